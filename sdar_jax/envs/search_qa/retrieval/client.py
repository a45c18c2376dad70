"""A retriever behind a `/retrieve` server, trusted in nothing.

Whatever goes wrong becomes an `EnvironmentFault` of a kind that is counted; text of an
error never becomes an observation.
"""

import concurrent.futures
import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.envs.base import EnvironmentFault, check_choice
from sdar_jax.envs.search_qa.retrieval import wire
from sdar_jax.envs.search_qa.retrieval.base import Passage, Retrieved

SHAPES = ('batch', 'single')
# Of these the server said nothing about a query, so one alone would fare no better.
_SILENT = ('refused', 'dropped', 'unreachable', 'timeout', 'open_circuit')
FIRST_PAUSE = 1.0  # Seconds without a request after `patience` failures.
_PASSING = (408, 425, 429)  # HTTP statuses below 500 that may pass.


class HttpRetriever:
  """Asks a server; implements `PassageRetriever`; safe for threads.

  Request shapes: 'batch' posts {"queries": [...], "topk": k, "return_scores": true},
  'single' posts {"query": "...", ...} per query. The reply to either is
  {"result": [[{"document": {"contents": "title\\ntext"}, "score": s}, ...], ...]}.

  A failed request is tried again after a pause that doubles; each try gets its share of
  the time that is left. A batch that the server answers wrongly is asked once more
  query by query, so that one which it cannot digest costs the others nothing.

  Args:
    url: of the server, e.g. http://127.0.0.1:8000/retrieve.
    shape: 'batch' or 'single'.
    deadline: seconds for all queries of one call together, tries and pauses included.
    tries: of one request.
    pause: seconds before the second try.
    batch: queries per request of shape 'batch'.
    connections: requests at the same time.
    max_bytes: of one reply.
    patience: failed requests in a row, tries exhausted, after which nothing is asked
      for `cooldown` seconds.
    cooldown: seconds at most. The first pause is `FIRST_PAUSE`; each that ends in
      another failure is followed by one twice as long, so that a server that is back
      is asked again before it has been away twice as long.
  """

  def __init__(
    self,
    url: str,
    shape: str = 'batch',
    *,
    deadline: float = 30.0,
    tries: int = 4,
    pause: float = 0.5,
    batch: int = 64,
    connections: int = 8,
    max_bytes: int = 8 * 2**20,
    patience: int = 8,
    cooldown: float = 30.0,
  ):
    wire.check_url(url)
    check_choice('shape', shape, SHAPES)
    if min(deadline, tries, batch, connections, max_bytes, patience) <= 0:
      raise ValueError(f'{url}: deadline, tries and limits must be positive')
    self._url = url
    self._shape = shape
    self._deadline = deadline
    self._tries = tries
    self._pause = pause
    self._batch = batch if shape == 'batch' else 1
    self._connections = connections
    self._max_bytes = max_bytes
    self._circuit = Circuit(patience, cooldown, url)
    # What the server searches cannot be known from here, wherever it listens.
    self.digest = hashlib.sha256(b'http/1').hexdigest()

  def search_many(self, queries: Sequence[str], topk: int) -> list[Retrieved]:
    """Answers each query, in order, within the deadline."""
    until = time.monotonic() + self._deadline
    parts = [
      queries[start : start + self._batch]
      for start in range(0, len(queries), self._batch)
    ]
    if len(parts) <= 1:
      return self._answers(queries, topk, until) if parts else []
    workers = min(self._connections, len(parts))
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
      answers = pool.map(lambda part: self._answers(part, topk, until), parts)
      return [answer for part in answers for answer in part]

  def _answers(
    self, queries: Sequence[str], topk: int, until: float
  ) -> list[Retrieved]:
    try:
      return self._request(queries, topk, until)
    except EnvironmentFault as fault:
      if len(queries) == 1 or fault.kind in _SILENT:
        return [fault] * len(queries)
    return [self._answers([query], topk, until)[0] for query in queries]

  def _request(
    self, queries: Sequence[str], topk: int, until: float
  ) -> list[Retrieved]:
    """Sends one request, several times; raises the last fault."""
    pause = self._pause
    for left in range(self._tries, 0, -1):
      self._circuit.check()
      now = time.monotonic()
      try:
        answers = self._try(queries, topk, now + (until - now) / left)
      except EnvironmentFault as error:
        fault = error
      else:
        self._circuit.succeeded()
        return answers
      if left == 1 or not _may_pass(fault) or time.monotonic() + pause >= until:
        break
      time.sleep(pause)
      pause *= 2
    self._circuit.failed()
    raise fault

  def _try(self, queries: Sequence[str], topk: int, until: float) -> list[Retrieved]:
    batch = self._shape == 'batch'
    asked = {'queries': list(queries)} if batch else {'query': queries[0]}
    body = json.dumps({**asked, 'topk': topk, 'return_scores': True}).encode()
    status, content = wire.post(self._url, body, until, self._max_bytes)
    if status != 200:
      raise EnvironmentFault(f'http_{status}', f'{self._url}: HTTP status {status}')
    try:
      return read_reply(content, len(queries), topk)
    except EnvironmentFault as fault:
      raise EnvironmentFault(fault.kind, f'{self._url}: {fault.message}') from None


class Circuit:
  """Stops asking a server after several failures; safe for threads."""

  def __init__(self, patience: int, cooldown: float, name: str = 'the server'):
    self._patience = patience
    self._cooldown = cooldown
    self._name = name
    self._lock = threading.Lock()
    self.succeeded()

  def check(self) -> None:
    """Raises EnvironmentFault 'open_circuit' while nothing may be asked."""
    with self._lock:
      left = self._until - time.monotonic()
      if left > 0:
        message = f'{self._failures} failures in a row; asks again in {left:.0f} s'
        raise EnvironmentFault('open_circuit', f'{self._name}: {message}')

  def succeeded(self) -> None:
    """Notes an answered request."""
    with self._lock:
      self._failures, self._until = 0, -math.inf
      self._pause = min(FIRST_PAUSE, self._cooldown)

  def failed(self) -> None:
    """Notes a failed request."""
    with self._lock:
      self._failures += 1
      now = time.monotonic()
      # Others that were under way when the pause began do not make it longer.
      if self._failures >= self._patience and now >= self._until:
        self._until = now + self._pause
        self._pause = min(2 * self._pause, self._cooldown)


def read_reply(content: bytes, count: int, topk: int) -> list[Retrieved]:
  """Reads the passages in a reply to `count` queries.

  Raises:
    EnvironmentFault: 'garbage' (no JSON), 'schema' (not the shape that is agreed), or
      'count' (more or fewer answers than queries, or more passages than asked for).
  """
  try:
    reply = files.parse_json(content, 'the reply', object)
  except files.FileError as error:
    raise EnvironmentFault('garbage', str(error)) from None
  result = reply['result'] if isinstance(reply, dict) and 'result' in reply else None
  if not isinstance(result, list) or not all(isinstance(hits, list) for hits in result):
    raise EnvironmentFault('schema', "the reply has no list of lists 'result'")
  if len(result) != count:
    raise EnvironmentFault('count', f'{len(result)} answers to {count} queries')
  most = max(map(len, result))
  if most > topk:
    raise EnvironmentFault('count', f'{most} passages where {topk} were asked for')
  try:
    return [tuple(_passage(hit) for hit in hits) for hits in result]
  except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
    message = f"a hit is not {{'document': {{'contents': ...}}, 'score': ...}}: {error}"
    raise EnvironmentFault('schema', files.one_line(ValueError(message))) from None


def _passage(hit: Any) -> Passage:
  document, score = hit['document'], float(hit['score'])
  contents, title = document['contents'], document.get('title')
  if not isinstance(contents, str) or not math.isfinite(score):
    raise TypeError('wrong types')
  if isinstance(title, str) and contents.startswith(f'{title}\n'):
    return Passage(title, contents[len(title) + 1 :], score)
  return Passage.from_contents(contents, score)


def _may_pass(fault: EnvironmentFault) -> bool:
  """Tells whether the same request may fare better in a moment."""
  status = fault.kind.removeprefix('http_')
  return not status.isdigit() or int(status) >= 500 or int(status) in _PASSING
