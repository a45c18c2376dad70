"""Our own `/retrieve` server, for an index on another machine.

  python -m sdar_jax.envs.search_qa.server --corpus=wiki.jsonl.gz --port=8000
  python -m sdar_jax.envs.search_qa.server --corpus=wiki.jsonl \\
    --index=e5_Flat.index --encoder=package.module:function

Without `--index` it is BM25 over the corpus. It answers both public request shapes (see
`client.HttpRetriever`) and has no authentication: it listens on the loopback interface
unless `--host` says otherwise.
"""

import argparse
import contextlib
import dataclasses
import http.server
import io
import json
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.envs.base import EnvironmentFault
from sdar_jax.envs.search_qa.retrieval.base import Passage, PassageRetriever
from sdar_jax.envs.search_qa.retrievers import open_retriever
from sdar_jax.process import flags, terminal

PATH = '/retrieve'
MAX_BODY = 4 * 2**20  # bytes
MAX_QUERIES = 4096
MAX_QUERY = 8192  # characters
MAX_TOPK = 100
_PIECE = 64  # Queries that are searched and written at a time.


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one client can take from the others.

  Attributes:
    connections: open at a time. One more closes the one that has kept silent longest;
      where none is silent, it is refused with status 503.
    working: requests that are read and answered at a time; others wait for their turn.
    request_seconds: for a whole request to arrive, from the end of the one before.
    answer_seconds: for a request to get its turn and be answered.
    reply_seconds: for the client to take the reply.
    reply_bytes: of one reply; `client.HttpRetriever` takes as many.
  """

  connections: int = 64
  working: int = 4
  request_seconds: float = 10.0
  answer_seconds: float = 60.0
  reply_seconds: float = 30.0
  reply_bytes: int = 8 * 2**20


class Refused(Exception):
  """A refused request, with its HTTP status."""

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


class Server(http.server.ThreadingHTTPServer):
  """Answers from one retriever, a thread per connection.

  Args:
    address: (host, port); port 0 takes a free one.
    retriever: must allow several threads to search at once.
    limits: of what a client may take.
    clock: seconds that only grow.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(
    self,
    address: tuple[str, int],
    retriever: PassageRetriever,
    limits: Limits = Limits(),
    clock: Callable[[], float] = time.monotonic,
  ):
    self.retriever, self.limits, self.clock = retriever, limits, clock
    self.turns = threading.BoundedSemaphore(limits.working)
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    self._most = max(1, min(limits.connections, descriptors // 2))
    self._lock = threading.Lock()
    # Whether each open connection is silent, those that are for longest first.
    self._silent: dict[socket.socket, bool] = {}
    super().__init__(address, _Handler)

  def process_request(self, request: Any, client_address: Any) -> None:
    """Starts a thread for a connection, if room can be made."""
    if self._admit(request):
      super().process_request(request, client_address)
      return
    request.settimeout(1.0)
    with contextlib.suppress(OSError):  # It may have gone away.
      request.sendall(b'HTTP/1.1 503 Busy\r\nConnection: close\r\n\r\n')
    self.shutdown_request(request)

  def _admit(self, request: socket.socket) -> bool:
    """Counts a connection in; ends the oldest silent one for room."""
    oldest = None
    with self._lock:
      if len(self._silent) >= self._most:
        oldest = next((each for each, silent in self._silent.items() if silent), None)
        if oldest is None:
          return False
        del self._silent[oldest]
      self._silent[request] = True
    if oldest is not None:
      with contextlib.suppress(OSError):  # The client was faster.
        oldest.shutdown(socket.SHUT_RDWR)  # Its thread sees the end of it.
    return True

  def set_silent(self, connection: socket.socket, silent: bool) -> None:
    """Notes whether a connection is waited for, or served."""
    with self._lock:
      if self._silent.pop(connection, None) is not None:
        self._silent[connection] = silent

  def shutdown_request(self, request: Any) -> None:
    """Closes a connection."""
    with self._lock:
      self._silent.pop(request, None)
    super().shutdown_request(request)

  def handle_error(self, request: Any, client_address: Any) -> None:
    """Ignores a client's departure, reports other errors."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)

  @property
  def url(self) -> str:
    """Where it answers."""
    host, port = self.server_address[:2]
    return f'http://{host}:{port}{PATH}'


class _Arriving(io.RawIOBase):
  """What a client sends, as long as there is time left."""

  def __init__(self, connection: socket.socket, left: Callable[[], float]):
    super().__init__()
    self._connection, self._left = connection, left

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    left = self._left()
    if left <= 0:
      raise TimeoutError('the request took too long')
    self._connection.settimeout(left)
    return self._connection.recv_into(buffer)


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Server
  protocol_version = 'HTTP/1.1'

  def setup(self) -> None:
    super().setup()
    self.rfile = io.BufferedReader(_Arriving(self.connection, self._left))

  def _left(self) -> float:
    """Seconds for the rest of the request."""
    return self._until - self.server.clock()

  def handle_one_request(self) -> None:
    """Reads and answers one request; all of it must arrive in time."""
    self._until = self.server.clock() + self.server.limits.request_seconds
    self.server.set_silent(self.connection, True)
    super().handle_one_request()

  def do_POST(self) -> None:
    try:
      if self.path != PATH:
        raise Refused(404, f'post to {PATH}')
      body = self._body()
      self.server.set_silent(self.connection, False)
      status, content = 200, self._answer(body)
    except Refused as refusal:
      status, content = refusal.status, json.dumps({'error': str(refusal)}).encode()
      self.close_connection = True  # Its body may still be unread.
    self.connection.settimeout(self.server.limits.reply_seconds)  # Of the whole write.
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(content)))
    if self.close_connection:
      self.send_header('Connection', 'close')
    self.end_headers()
    self.wfile.write(content)

  def _answer(self, body: bytes) -> bytes:
    """Finds the reply to a request, when it is this request's turn."""
    until = self.server.clock() + self.server.limits.answer_seconds
    if not self.server.turns.acquire(timeout=self.server.limits.answer_seconds):
      raise Refused(503, 'busy: no turn in time')
    try:
      return self._reply(*read_request(body), until)
    finally:
      self.server.turns.release()

  def _reply(
    self, queries: Sequence[str], topk: int, scored: bool, until: float
  ) -> bytes:
    """Searches and writes in pieces, never holding too large a reply."""
    limits, written, size = self.server.limits, [], 0
    for start in range(0, len(queries), _PIECE):
      if self.server.clock() > until:
        raise Refused(
          503, f'no answer in {limits.answer_seconds} s; send fewer queries'
        )
      piece = queries[start : start + _PIECE]
      for answer in self.server.retriever.search_many(piece, topk):
        if isinstance(answer, EnvironmentFault):
          raise Refused(500, str(answer))
        written.append(json.dumps([_hit(hit, scored) for hit in answer]).encode())
        size += len(written[-1]) + 2
        if size + 14 > limits.reply_bytes:
          raise Refused(
            413, f'the reply exceeds {limits.reply_bytes} bytes: fewer queries or topk'
          )
    return b'{"result": [' + b', '.join(written) + b']}'

  def _body(self) -> bytes:
    length = self.headers['Content-Length'] or ''
    if not length.isascii() or not length.isdigit():
      raise Refused(411, 'send a Content-Length')
    if len(length) > 12 or int(length) > MAX_BODY:
      raise Refused(413, f'a request may have {MAX_BODY} bytes')
    return self.rfile.read(int(length))

  def log_message(self, format: str, *args: Any) -> None:
    """Says nothing: a line per request would be all there is to read."""


def read_request(body: bytes) -> tuple[list[str], int, bool]:
  """Reads the queries, topk, and the wish for scores.

  Raises:
    Refused: one line that says what is wrong with the request.
  """
  try:
    request = files.parse_json(body, 'the body')
  except files.FileError as error:
    raise Refused(400, str(error)) from None
  if ('queries' in request) == ('query' in request):
    raise Refused(400, "send {'queries': [...]} or {'query': '...'}")
  queries = request['queries'] if 'queries' in request else [request['query']]
  if not isinstance(queries, list) or not 1 <= len(queries) <= MAX_QUERIES:
    raise Refused(400, f"'queries' must be a list of 1 to {MAX_QUERIES} texts")
  if not all(isinstance(query, str) and len(query) <= MAX_QUERY for query in queries):
    raise Refused(400, f'a query must be a text of at most {MAX_QUERY} characters')
  options = {'topk': 3, 'return_scores': False, **request}
  topk, scored = options['topk'], options['return_scores']
  if type(topk) is not int or not 1 <= topk <= MAX_TOPK:
    raise Refused(400, f"'topk' must be a whole number from 1 to {MAX_TOPK}")
  if type(scored) is not bool:
    raise Refused(400, "'return_scores' must be true or false")
  return queries, topk, scored


def _hit(passage: Passage, scored: bool) -> dict[str, Any]:
  # The title apart, too: whether marks around it are its own cannot be seen.
  document = {'contents': passage.contents, 'title': passage.title}
  return {'document': document, 'score': passage.score} if scored else document


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = flags.Parser('python -m sdar_jax.envs.search_qa.server', __doc__)
  parser.add_argument(
    '--corpus', metavar='FILE', help='of passages (datasets.read_corpus)'
  )
  parser.add_argument(
    '--index', metavar='FILE', help='FAISS index or .npy (default: BM25)'
  )
  parser.add_argument(
    '--encoder', metavar='NAME', help='package.module:function, of --index'
  )
  parser.add_argument(
    '--host', default='127.0.0.1', help='address to listen on (default: %(default)s)'
  )
  parser.add_argument(
    '--port', type=int, default=8000, help='0 takes a free one (default: %(default)s)'
  )
  return parser.parse_all(argv)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Serves until it is interrupted; returns the exit code."""
  options = _arguments(argv)
  if options.corpus is None:
    raise ValueError('--corpus is missing: name the file of passages')
  retriever = open_retriever(
    'dense' if options.index else 'bm25',
    corpus=options.corpus,
    index=options.index or '',
    encoder=options.encoder or '',
  )
  try:
    server = Server((options.host, options.port), retriever)
  except (OSError, OverflowError) as error:
    where = f'--host={options.host} --port={options.port}'
    raise ValueError(f'{where}: {files.one_line(error)}') from error
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.default_int_handler)
  print(f'answering at {server.url}', flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    server.server_close()
  return 0


if __name__ == '__main__':
  main()
