"""Our own `/retrieve` server, for an index too large for the machines that train.

  python -m sdar_jax.envs.search_qa.server --corpus=wiki.jsonl.gz --port=8000
  python -m sdar_jax.envs.search_qa.server --corpus=wiki.jsonl \
    --index=e5_Flat.index --encoder=package.module:function

Without `--index` it is BM25 over the corpus. It answers both public request shapes (see
`client.HttpRetriever`) and has no authentication: it listens on the loopback interface
unless `--host` says otherwise.
"""

import http.server
import json
import signal
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags

from sdar_jax.envs.base import EnvironmentFault
from sdar_jax.envs.search_qa.retrieval import Passage, Retriever
from sdar_jax.envs.search_qa.retrievers import open_retriever
from sdar_jax.flags import parse_absl

PATH = '/retrieve'
MAX_BODY = 4 * 2**20  # bytes
MAX_QUERIES = 4096
MAX_QUERY = 8192  # characters
MAX_TOPK = 100
IDLE_SECONDS = 60.0  # after which a silent connection is dropped

_CORPUS = flags.DEFINE_string('corpus', '', 'File of passages (datasets.read_corpus).')
_INDEX = flags.DEFINE_string('index', '', 'FAISS index or .npy; empty: BM25.')
_ENCODER = flags.DEFINE_string('encoder', '', 'package.module:function, for --index.')
_HOST = flags.DEFINE_string('host', '127.0.0.1', 'Address to listen on.')
_PORT = flags.DEFINE_integer('port', 8000, 'Port to listen on; 0 takes a free one.')


class Refused(Exception):
  """A request that is not answered, with the status that says so."""

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status


class Server(http.server.ThreadingHTTPServer):
  """Answers from one retriever, a thread per connection.

  Args:
    address: (host, port); port 0 takes a free one.
    retriever: must allow several threads to search at once.
  """

  daemon_threads = True
  request_queue_size = 128

  def __init__(self, address: tuple[str, int], retriever: Retriever):
    self.retriever = retriever
    super().__init__(address, _Handler)

  def handle_error(self, request: Any, client_address: Any) -> None:
    """A client that went away is no error of ours."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)

  @property
  def url(self) -> str:
    """Where it answers."""
    host, port = self.server_address[:2]
    return f'http://{host}:{port}{PATH}'


class _Handler(http.server.BaseHTTPRequestHandler):
  server: Server
  protocol_version = 'HTTP/1.1'
  timeout = IDLE_SECONDS

  def do_POST(self) -> None:
    try:
      status, reply = 200, self._answer()
    except Refused as refusal:
      status, reply = refusal.status, {'error': str(refusal)}
      self.close_connection = True  # Its body may still be unread.
    content = json.dumps(reply).encode()
    self.send_response(status)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(content)))
    if self.close_connection:
      self.send_header('Connection', 'close')
    self.end_headers()
    self.wfile.write(content)

  def _answer(self) -> dict[str, Any]:
    if self.path != PATH:
      raise Refused(404, f'post to {PATH}')
    queries, topk, scored = read_request(self._body())
    answers = self.server.retriever.search_many(queries, topk)
    for answer in answers:
      if isinstance(answer, EnvironmentFault):
        raise Refused(500, str(answer))
    return {'result': [[_hit(p, scored) for p in answer] for answer in answers]}

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
  """The queries, topk, and whether scores are wanted.

  Raises:
    Refused: one line that says what is wrong with the request.
  """
  try:
    request = json.loads(body)
  except (ValueError, RecursionError):
    raise Refused(400, 'the body is not JSON') from None
  if not isinstance(request, dict) or ('queries' in request) == ('query' in request):
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
  document = {'contents': passage.contents}
  return {'document': document, 'score': passage.score} if scored else document


def main(argv: Sequence[str]) -> None:
  """Serves until it is interrupted."""
  del argv
  try:
    if not _CORPUS.value:
      raise ValueError('name the file of passages: --corpus=FILE')
    retriever = open_retriever(
      'dense' if _INDEX.value else 'bm25',
      corpus=_CORPUS.value,
      index=_INDEX.value,
      encoder=_ENCODER.value,
    )
    server = Server((_HOST.value, _PORT.value), retriever)
  except (ValueError, OSError, OverflowError) as error:
    raise SystemExit(f'server: {error}') from None
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.default_int_handler)
  print(f'answering at {server.url}', flush=True)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    server.server_close()


if __name__ == '__main__':
  app.run(main, flags_parser=parse_absl)
