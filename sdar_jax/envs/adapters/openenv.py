"""OpenEnv servers over their WebSocket. No JAX.

What a server does with its seed is its own business: runs are not reproducible to the
bit.
"""

import dataclasses
import hashlib
import json
import urllib.request
from typing import Any

from sdar_jax import files
from sdar_jax.envs import base
from sdar_jax.envs.adapters import foreign, openenv_session
from sdar_jax.envs.base import setting

_LARGEST = 2**24  # Bytes of a message.


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
    return openenv_session.OpenEnvSession(self)

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
    parts = (
      openenv_session.at(observation, path.strip()) for path in self.shown.split(',')
    )
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
