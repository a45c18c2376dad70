"""One session of an OpenEnv server, as of openenv 0.10. No JAX.

Each episode has a session of its own at `URL/ws`, a JSON message each way: `reset` and
`step` are answered by `observation`, with reward and done beside it, or by `error`.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from sdar_jax import files
from sdar_jax.envs import base


class OpenEnvSession:
  """A game at a server."""

  def __init__(self, world: Any):
    self._world, self._open, self._socket = world, contextlib.ExitStack(), None

  def reset(self, start: dict[str, Any]) -> str:
    with _faults():
      self._socket = self._open.enter_context(self._world.connect())
    return self._exchange('reset', start)[0]

  def step(self, action: str) -> tuple[str, float, bool]:
    world = self._world
    said = {**world.read_object('action_json'), world.action_field: action}
    return self._exchange('step', said)

  def close(self) -> None:
    """Ends the session."""
    self._open.close()

  def _exchange(self, kind: str, data: dict[str, Any]) -> tuple[str, float, bool]:
    with _faults():
      self._socket.send(json.dumps({'type': kind, 'data': data}))
      answer = json.loads(self._socket.recv(timeout=self._world.timeout_seconds))
      if answer['type'] == 'error':
        code, said = answer['data'].get('code', 'error'), answer['data'].get('message')
        raise base.EnvironmentFault(str(code).lower(), files.one_line(Exception(said)))
      seen = answer['data']
      text = self._world.read(seen['observation'])
      return text, float(seen['reward'] or 0), seen['done'] or False


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


def at(value: Any, path: str) -> Any:
  """Follows a path such as messages.-1.content; None at its end."""
  for step in path.split('.'):
    try:
      value = value[int(step)] if isinstance(value, list) else value[step]
    except (LookupError, TypeError, ValueError):
      return None
  return value
