"""OpenEnv servers over their WebSocket, as of openenv 0.10. No JAX.

Each episode has a session of its own at `URL/ws`, a JSON message each way: `reset` and
`step` are answered by `observation`, with reward and done beside it, or by `error`.
What a server does with its seed is its own business: runs are not reproducible to the
bit.
"""

import contextlib
import dataclasses
import hashlib
import json
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

from sdar_jax import files
from sdar_jax.envs import base
from sdar_jax.envs.adapters import foreign
from sdar_jax.envs.base import setting

_LARGEST = 2**24  # Bytes of a message.


class _RemoteGame:
  """A game at a server."""

  def __init__(self, world: 'OpenEnvWorld'):
    self._world, self._socket = world, None

  def reset(self, start: dict[str, Any]) -> str:
    with _faults():
      self._socket = self._world.connect()
    return self._exchange('reset', start)[0]

  def step(self, action: str) -> tuple[str, float, bool]:
    world = self._world
    said = {**world.read_object('action_json'), world.action_field: action}
    return self._exchange('step', said)

  def __del__(self):
    # What closes it waits for a thread, which an interpreter at its end has no more.
    if self._socket is not None and not sys.is_finalizing():
      with contextlib.suppress(Exception):
        self._socket.close()

  def _exchange(self, kind: str, data: dict[str, Any]) -> tuple[str, float, bool]:
    with _faults():
      self._socket.send(json.dumps({'type': kind, 'data': data}))
      answer = json.loads(self._socket.recv(timeout=self._world.timeout_seconds))
      if answer['type'] == 'error':
        code, said = answer['data'].get('code', 'error'), answer['data'].get('message')
        raise base.EnvironmentFault(str(code).lower(), files.one_line(Exception(said)))
      seen = answer['data']
      text = self._world.read(seen['observation'])
      return text, float(seen['reward'] or 0), bool(seen['done'])


@contextlib.contextmanager
def _faults() -> Iterator[None]:
  """Makes what may befall a connection a fault of a kind."""
  try:
    yield
  except TimeoutError as error:
    raise base.EnvironmentTimeout('timeout', files.one_line(error)) from error
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise base.EnvironmentFault('garbage', f'its answer: {error!r:.200}') from error
  except base.EnvironmentFault:
    raise
  except Exception as error:  # Of the socket, and of the package that speaks over it.
    raise base.EnvironmentFault('connection', files.one_line(error)) from error


@dataclasses.dataclass(frozen=True)
class OpenEnvWorld(foreign.ForeignWorld):
  """An environment that an OpenEnv server plays.

  Args:
    url: of the server, such as http://127.0.0.1:8000.
    action_field: of the action that holds the policy's text.
    action_json: its other fields, a JSON object.
    shown: the observation's fields to show, such as 'prompt,messages.-1.content'; ''
      shows it all as JSON.
    start: what decides a task: its 'seed', or 'split' and index.
    timeout_seconds: for an answer.
  """

  name = 'openenv'
  maker: str = 'websockets.sync.client:connect'
  url: str = 'http://127.0.0.1:8000'
  action_field: str = 'message'
  action_json: str = '{}'
  shown: str = ''
  start: str = setting('seed', choices=('seed', 'split'))
  timeout_seconds: int = setting(30, least=1, most=3600)
  package = 'websockets'

  def open(self) -> foreign.ForeignGame:
    """Makes a session, which connects when it is reset."""
    return _RemoteGame(self)

  def connect(self) -> Any:
    """Connects to the server; no proxy is asked."""
    address = f'{self.url.rstrip("/").replace("http", "ws", 1)}/ws'
    limit = self.timeout_seconds
    return self.find('maker')(
      address, open_timeout=limit, max_size=_LARGEST, proxy=None
    )

  def read(self, observation: dict[str, Any]) -> str:
    """Writes what is shown of an observation."""
    if not self.shown:
      return json.dumps(observation, ensure_ascii=False)
    parts = (_at(observation, path.strip()) for path in self.shown.split(','))
    return foreign.joined([part for part in parts if part is not None])

  def identify(self) -> str:
    """Hashes the server's schema, which says nothing of its version."""
    self.find('maker')
    try:
      schema = f'{self.url.rstrip("/")}/schema'
      direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
      with direct.open(schema, timeout=self.timeout_seconds) as answer:
        return hashlib.sha256(answer.read(_LARGEST)).hexdigest()
    except (OSError, ValueError) as error:
      said = f'config.world.url={self.url!r}: {files.one_line(error)}'
      raise ValueError(f'{said}: start the server') from None

  def task(self, split: str, index: int) -> base.Task:
    """Makes a task: what its reset is sent."""
    task = super().task(split, index)
    seed = {'seed': task.payload}
    start = seed if self.start == 'seed' else {'split': split, 'index': index}
    return dataclasses.replace(task, payload=start)


def _at(value: Any, path: str) -> Any:
  """Follows a path such as messages.-1.content; None at its end."""
  for step in path.split('.'):
    try:
      value = value[int(step)] if isinstance(value, list) else value[step]
    except (LookupError, TypeError, ValueError):
      return None
  return value
