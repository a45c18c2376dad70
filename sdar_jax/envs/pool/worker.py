"""One worker process: its side, the parent's side, and the wire.

A worker is told what to play in pickles, which only its parent can write. It answers
in lines of JSON, one per environment call: an answer is data that the parent checks,
so whatever a broken environment does to its own process cannot run in the parent.
"""

import collections
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any, BinaryIO

from sdar_jax import files
from sdar_jax.envs import base
from sdar_jax.envs.pool.episode import Answer, Failure, PoolEpisode, PoolJob, Stage

_LENGTH = struct.Struct('!Q')
_START_SECONDS = 60.0  # Allowed to a new worker on top of the deadline.
_GRACE_SECONDS = 3.0  # For a worker to end by itself once its parent is gone.
_LONGEST_LINE = 1 << 26  # Bytes of one answer.
# A worker plays one environment at a time: threads of its libraries are in the way.
_ENVIRON = {
  'OMP_NUM_THREADS': '1',
  'OPENBLAS_NUM_THREADS': '1',
  'MKL_NUM_THREADS': '1',
  'NUMEXPR_NUM_THREADS': '1',
  'TOKENIZERS_PARALLELISM': 'false',
}
# Nothing of the parent's main module is imported again, hence no JAX either.
_BOOT = """
import json, logging, sys
sys.path[:] = json.loads(sys.argv[2])
logging.getLogger('sdar_jax').setLevel(logging.ERROR)  # Our parent has said the rest.
from sdar_jax.envs.pool import worker
worker.serve(int(sys.argv[1]))
"""


def opening(world: base.World) -> bytes:
  """Writes the first message for a worker."""
  name = f'{type(world).__module__}.{type(world).__qualname__}'
  if type(world).__module__ == '__main__':
    raise ValueError(f'world {name}: put it in a module, for workers to import')
  try:
    return _pack(world)
  except Exception as error:  # Pickling raises whatever the object's parts raise.
    raise ValueError(
      f'world {name} does not pickle ({files.one_line(error, 300)}):'
      ' config.pool.workers must be 0'
    ) from None


class Worker:
  """This side of one worker process.

  Attributes:
    due: when the deadline of what it is doing passes.
    kind: the fault that ended it, or None.
    message: says more about it where that is known.
    delivered: it has answered something of the present exchange.
  """

  def __init__(self, opening: bytes, deadline: float):
    self.socket, theirs = socket.socketpair()
    with theirs:
      descriptor = theirs.fileno()
      command = [sys.executable, '-c', _BOOT, str(descriptor), json.dumps(sys.path)]
      self._process = subprocess.Popen(
        command,
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **_ENVIRON},
        start_new_session=True,  # The terminal's ^C is the parent's to handle.
      )
    self.socket.setblocking(False)
    self._deadline = deadline
    self._to_send, self._received = opening, b''
    self._notes = 1  # Lines without content that come before the answers.
    self._queue: collections.deque[tuple[PoolEpisode, PoolJob]] = collections.deque()
    self.due = time.monotonic() + _START_SECONDS
    self.kind: str | None = None
    self.message = ''
    self.delivered = False

  @property
  def culprit(self) -> PoolEpisode | None:
    """The episode being played; None while it starts or rests."""
    return self._queue[0][0] if self._queue and not self._notes else None

  def ask(self, forgotten: Sequence[int], episodes: Sequence[PoolEpisode]) -> None:
    """Queues a message with the present calls of these episodes."""
    jobs = [episode.job(self) for episode in episodes]
    self._queue.extend(zip(episodes, jobs))
    self._to_send += _pack((list(forgotten), jobs))
    start = self.due if self._notes else time.monotonic()
    self.due = start + self._deadline
    self._notes += 1
    self.delivered = False

  def check(self) -> bool:
    """Tells whether it has answered everything or failed."""
    if self.kind is None and self._queue and time.monotonic() > self.due:
      self._fail('hang', f'no answer in {self._deadline} s')
    return self.kind is not None or not self._queue

  def write(self) -> bool:
    """Sends a part of the queue; tells whether it was the rest."""
    try:
      sent = self.socket.send(self._to_send)
    except BlockingIOError:
      return False
    except ConnectionError:
      self._fail('crash')
      return True
    self._to_send = self._to_send[sent:]
    return not self._to_send

  def read(self) -> None:
    """Reads the answers received so far."""
    try:
      data = self.socket.recv(1 << 18)
    except BlockingIOError:
      return
    except ConnectionError:
      data = b''
    if not data:
      return self._fail('crash')
    *lines, self._received = (self._received + data).split(b'\n')
    try:
      for line in lines:
        self._hear(json.loads(line))
      if len(self._received) > _LONGEST_LINE:
        raise ValueError(f'a line of more than {_LONGEST_LINE} bytes')
    except (ValueError, RecursionError) as error:
      self._fail('garbage', files.one_line(error, 300))

  def _hear(self, fields: Any) -> None:
    self.due = time.monotonic() + self._deadline
    if self._notes:
      if fields is not None:
        raise ValueError('an answer too early')
      self._notes -= 1
      return
    ident, value = _decode(fields)
    if isinstance(value, Failure) and value.kind == 'garbage':
      raise ValueError(value.message)
    if not self._queue or ident != self._queue[0][0].ident:
      raise ValueError('an answer nobody asked for')
    episode, job = self._queue[0]
    if episode.hear(value, job):
      self._queue.popleft()
      self.delivered = True

  def _fail(self, kind: str, message: str = '') -> None:
    if self.kind is None:
      self.kind, self.message = kind, message

  def end(self, limit: float) -> None:
    """Kills it and all it started, unless it ends before `limit`."""
    self.socket.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(max(limit - time.monotonic(), 0.0))
    with contextlib.suppress(ProcessLookupError, PermissionError):
      os.killpg(self._process.pid, signal.SIGKILL)
    status = self._process.wait()
    self.message = self.message or f'its process ended with status {status}'


def _pack(message: Any) -> bytes:
  """Writes one message for `serve`."""
  data = bytes(ForkingPickler.dumps(message))
  return _LENGTH.pack(len(data)) + data


def _encode(ident: int, value: Answer | base.EnvironmentFault | Failure) -> bytes:
  """Writes the line for the outcome of a call."""
  if isinstance(value, Failure):
    content = ['failure', *value]
  elif isinstance(value, base.EnvironmentFault):
    late = isinstance(value, base.EnvironmentTimeout)
    content = ['fault', late, str(value.kind), str(value.message)]
  elif isinstance(value, base.Observation):
    content = ['observation', value.text, value.admissible]
  else:
    seen = value.observation
    content = ['step', seen.text, seen.admissible]
    content += [value.reward, value.done, value.success, value.score]
  return json.dumps([ident, *content]).encode() + b'\n'


def _decode(fields: Any) -> tuple[int, Any]:
  """Reads the episode and outcome of a line, still to be checked.

  Raises:
    ValueError: no such line was ever encoded.
  """
  match fields:
    case [int(ident), 'observation', text, list(admissible)]:
      return ident, base.Observation(text, tuple(admissible))
    case [int(ident), 'step', text, list(admissible), reward, done, success, score]:
      seen = base.Observation(text, tuple(admissible))
      return ident, base.StepResult(seen, reward, done, success, score)
    case [int(ident), 'fault', bool(late), str(kind), str(message)]:
      fault = base.EnvironmentTimeout if late else base.EnvironmentFault
      return ident, fault(kind, message)
    case [int(ident), 'failure', str(kind), str(message)]:
      return ident, Failure(kind, message)
  raise ValueError('a line that says nothing')


def serve(descriptor: int) -> None:
  """Plays the parent's requests until the parent is gone.

  The first message is the world, answered by `null`. Every other is (episodes to
  forget, jobs), answered by `null` after the prefetch and a line per call; after
  garbage it plays no more.
  """
  gone = contextlib.suppress(ConnectionError)
  with gone, socket.socket(fileno=descriptor) as link:
    link.set_inheritable(False)  # An environment may have children of its own.
    threading.Thread(target=_follow, args=(descriptor,), daemon=True).start()
    with link.makefile('rb') as requests:
      stage = Stage(_receive(requests))
      link.sendall(b'null\n')
      while (request := _receive(requests)) is not None:
        idents, jobs = request
        stage.forget(idents)
        stage.prefetch(jobs)
        link.sendall(b'null\n')
        for job in jobs:
          for value in stage.play(job):
            link.sendall(_encode(job.ident, value))
            if isinstance(value, Failure) and value.kind == 'garbage':
              return


def _receive(requests: BinaryIO) -> Any:
  """Reads the next message; None once the parent is gone."""
  header = requests.read(_LENGTH.size)
  if len(header) < _LENGTH.size:
    return None
  (length,) = _LENGTH.unpack(header)
  data = requests.read(length)
  return ForkingPickler.loads(data) if len(data) == length else None


def _follow(descriptor: int) -> None:
  """Ends a hanging worker and its children after the parent's death."""
  hung_up = select.poll()
  hung_up.register(descriptor, 0)  # Wakes up for POLLHUP only.
  hung_up.poll()
  time.sleep(_GRACE_SECONDS)
  os.killpg(0, signal.SIGKILL)  # It leads a group of its own.
