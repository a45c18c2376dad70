"""A `/retrieve` server that echoes queries, or does what a test wants done badly."""

import json
import socketserver
import threading
import time


class FaultyServer(socketserver.ThreadingTCPServer):
  """Use it as a context manager.

  Args:
    behave: called with (socket, request, number) per request, numbered from 0.

  Attributes:
    requests: what was asked, in order of arrival.
  """

  daemon_threads = True
  block_on_close = False
  request_queue_size = 128

  def __init__(self, behave):
    self.behave = behave
    self.requests = []
    self.lock = threading.Lock()
    self.closing = threading.Event()
    super().__init__(('127.0.0.1', 0), _Handler)

  @property
  def url(self):
    return f'http://127.0.0.1:{self.server_address[1]}/retrieve'

  def __enter__(self):
    threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
    return self

  def __exit__(self, *exc_info):
    self.closing.set()
    self.shutdown()
    self.server_close()

  def handle_error(self, request, client_address):
    """The client hung up on us, as it should."""


class _Handler(socketserver.StreamRequestHandler):
  def handle(self):
    length, line = 0, b'POST'
    while line.strip():
      line = self.rfile.readline()
      if line.lower().startswith(b'content-length:'):
        length = int(line.split(b':')[1])
    request = json.loads(self.rfile.read(length))
    with self.server.lock:
      number = len(self.server.requests)
      self.server.requests.append(request)
    self.server.behave(self.connection, request, number)


def respond(sock, content, status=200, headers='', length=None):
  if not isinstance(content, bytes):
    content = json.dumps(content).encode()
  length = len(content) if length is None else length
  head = f'HTTP/1.1 {status} X\r\n{headers}Content-Length: {length}\r\n\r\n'
  sock.sendall(head.encode() + content)


def asked(request):
  """The queries of a request of either shape."""
  return request['queries'] if 'queries' in request else [request['query']]


def echo(request):
  """A proper reply, in which every passage names its query and rank."""
  return {
    'result': [
      [
        {'document': {'contents': f'{query}\nrank {rank}'}, 'score': 9.0 - rank}
        for rank in range(request['topk'])
      ]
      for query in asked(request)
    ]
  }


def good(sock, request, number):
  respond(sock, echo(request))


def good_bye(sock, request, number):
  respond(sock, echo(request), headers='Connection: close\r\n')


def endless(sock, request, number):
  """A proper reply that ends where the connection does, as in HTTP 1.0."""
  sock.sendall(b'HTTP/1.0 200 OK\r\n\r\n' + json.dumps(echo(request)).encode())


def status(code, headers=''):
  return lambda sock, request, number: respond(sock, {'e': 1}, code, headers)


def says(content, **options):
  return lambda sock, request, number: respond(sock, content, **options)


def hang(sock, request, number):
  time.sleep(60)


def drip_headers(sock, request, number):
  for i in range(2000):
    sock.sendall(b'HTTP/1.1 200 OK\r\nX: y'[i : i + 1] or b'y')
    time.sleep(0.02)


def drip_content(sock, request, number):
  sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n')
  for _ in range(2000):
    sock.sendall(b' ')
    time.sleep(0.02)


def raw(data):
  return lambda sock, request, number: sock.sendall(data)


def chunked(sock, request, number):
  content = json.dumps(echo(request)).encode()
  sock.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n')
  for start in range(0, len(content), 7):
    piece = content[start : start + 7]
    sock.sendall(b'%x\r\n%s\r\n' % (len(piece), piece))
  sock.sendall(b'0\r\n\r\n')


def half(sock, request, number):
  content = json.dumps(echo(request)).encode()
  respond(sock, content[: len(content) // 2], length=len(content))


def reset(sock, request, number):
  """Closes without a word."""


def one_too_few(sock, request, number):
  respond(sock, {'result': echo(request)['result'][1:]})


def one_too_many(sock, request, number):
  respond(sock, {'result': echo(request)['result'] * 2})


def deep_lists(sock, request, number):
  respond(sock, b'[' * 100_000)


def ten_megabytes(sock, request, number):
  reply = echo(request)
  reply['result'][0][0]['document']['contents'] = 'x' * 10 * 2**20
  respond(sock, reply)


def first(count, behave, then=good):
  """Behaves badly `count` times, then well."""
  return lambda sock, request, number: (behave if number < count else then)(
    sock, request, number
  )


def poisoned(sock, request, number):
  """Fails on every batch that contains a poison."""
  bad = any('poison' in query for query in asked(request))
  (status(500) if bad else good)(sock, request, number)
