"""A server in a thread, for `sdar serve` and for training. Device."""

import dataclasses
import numbers
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import numpy as np
import uvicorn

from sdar_jax.envs.base import EnvironmentFault
from sdar_jax.prompts.chat import Chat
from sdar_jax.rollout.collecting import Asked, CollectedError
from sdar_jax.rollout.episodes import Interrupted
from sdar_jax.rollout.order import task_key
from sdar_jax.rollout.request import SamplingParams
from sdar_jax.sampler.sampler import Sampler
from sdar_jax.serve.app import App
from sdar_jax.serve.engine import Engine
from sdar_jax.serve.protocol import Bounds
from sdar_jax.serve.sessions import SessionError, Sessions
from sdar_jax.trajectory import Group, Outcome, Trajectory

_CONNECTIONS = 1024  # More are answered 503 at once.
_SLICE = 0.2  # Seconds between two looks at whether the run shall stop.


class Endpoint:
  """An endpoint over a sampler; use it as a context manager.

  Attributes:
    url: of the endpoint, '/v1' included.
    sessions: conversations that were recorded.

  Args:
    sampler: of the policy; nothing else may use it meanwhile.
    chat: of the policy.
    defaults: of sampling; its `max_tokens` is the most.
    longest: tokens of a prompt.
    model: name under which it is served.
    host, port: where; port 0 is any that is free.
    key: that clients must show; needed where `host` is not this machine's own.
    limits: of what is taken.
    seed: leading part of the identity of what sessions draw.
    talks: whether sessions go on as conversations.
    trains: whether a learner takes the sessions: all draw as `defaults` says.
  """

  def __init__(
    self,
    sampler: Sampler,
    chat: Chat,
    defaults: SamplingParams,
    *,
    longest: int,
    model: str = 'policy',
    host: str = '127.0.0.1',
    port: int = 0,
    key: str = '',
    limits: Bounds | None = None,
    seed: tuple[int, ...] = (0,),
    talks: bool = False,
    trains: bool = False,
  ):
    check_key(host, key)
    limits = limits or Bounds()
    self._socket = _bound(host, port)
    shown = f'[{host}]' if ':' in host else host
    self.url = f'http://{shown}:{self._socket.getsockname()[1]}/v1'
    self.sessions = Sessions(
      chat,
      seed=seed,
      most=limits.sessions,
      talks=talks,
      fixed=defaults if trains else None,
    )
    self._engine = Engine(sampler, most=limits.queue)
    app = App(
      self._engine,
      chat,
      self.sessions,
      model=model,
      defaults=defaults,
      longest=longest,
      limits=limits,
      key=key,
    )
    self._server = uvicorn.Server(
      uvicorn.Config(
        app.asgi,
        log_level='warning',
        access_log=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=2,
        lifespan='off',
      )
    )
    self._thread = threading.Thread(target=self._serve, daemon=True)

  def _serve(self) -> None:
    self._server.run(sockets=[self._socket])

  def __enter__(self) -> 'Endpoint':
    self._thread.start()
    return self

  def __exit__(self, *exc_info: object) -> None:
    self._server.should_exit = True
    self._engine.close()  # Who waits is told so, and the connections can end.
    self._thread.join()
    self._socket.close()

  def wait(self) -> None:
    """Serves until something interrupts this thread."""
    while self._thread.is_alive():
      self._thread.join(_SLICE)


def check_key(host: str, key: str) -> None:
  """Raises ValueError where others could ask without a key."""
  if not key and host not in ('127.0.0.1', '::1', 'localhost'):
    raise ValueError(
      f'--host={host}: others can reach it: give --api-key-file=FILE, or the variable'
      ' SDAR_API_KEY'
    )


def _bound(host: str, port: int) -> socket.socket:
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  made = socket.socket(family, socket.SOCK_STREAM)
  try:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    made.listen(128)  # So that who comes before the first pass of the loop waits.
  except OSError as error:
    made.close()
    raise ValueError(
      f'--host={host} --port={port}: {error.strerror or error}'
    ) from None
  return made


# Plays one episode of a task through an endpoint: of its URL, the task, and the name of
# the session that its requests carry. Returns the reward and whether it was solved, or
# raises EnvironmentFault where something else than the policy failed.
Play = Callable[[str, Any, str], tuple[float, bool]]


def _result(said: Any, task: Any) -> tuple[float, bool]:
  """Checks what an agent made of an episode: anything else is truthy, too."""
  reward, success = (
    said if isinstance(said, tuple | list) and len(said) == 2 else ('', '')
  )
  if not isinstance(reward, numbers.Real) or not isinstance(success, bool | np.bool_):
    raise CollectedError(
      f'play: task {task.task_id!r} gave {said!r:.60}: must be its reward, a number,'
      ' and whether it was solved, true or false'
    )
  return float(reward), bool(success)


class Played:
  """Collects episodes played through an endpoint (docs/serving.md).

  Args:
    play: plays one episode with whatever agent; its requests carry the session's name.
    chat: of the policy.
    workers: episodes at a time.
    talks: whether sessions go on as conversations: as config.rollout.layout says.
  """

  def __init__(self, play: Play, chat: Chat, *, workers: int = 16, talks: bool = False):
    self._play, self._chat = play, chat
    self._workers, self._talks = workers, talks

  def __call__(self, asked: Asked) -> list[Group]:
    """Plays the episodes of a step."""
    server = Endpoint(
      asked.sampler,
      self._chat,
      asked.agent.sampling,
      longest=asked.agent.max_prompt_tokens,
      seed=(asked.seed, asked.step),
      talks=self._talks,
      trains=True,
      limits=self._limits(len(asked.tasks) * asked.group_size),
    )
    names = {
      (i, member): f'{task_key(task.task_id, count)}/{member}'
      for i, (task, count) in enumerate(zip(asked.tasks, asked.occurrences))
      for member in range(asked.group_size)
    }
    # The server ends first: an agent that is to stop hears that nobody answers it.
    with futures.ThreadPoolExecutor(self._workers) as pool, server:
      playing = [
        pool.submit(self._episode, server, asked.tasks[i], name, asked.success_reward)
        for (i, _), name in names.items()
      ]
      try:
        self._wait(playing, asked)
      except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    return [
      Group(i, task, [self._trajectory(server, names, task, i, m) for m in members])
      for i, task in enumerate(asked.tasks)
      for members in [range(asked.group_size)]
    ]

  def _limits(self, count: int) -> Bounds:
    """Makes limits with room for all episodes of a step."""
    usual = Bounds()
    return dataclasses.replace(
      usual,
      queue=max(usual.queue, 2 * self._workers),
      sessions=max(usual.sessions, 2 * count),
    )

  def _episode(self, server: Endpoint, task: Any, name: str, factor: float) -> None:
    try:
      said = self._play(server.url, task, name)
    except EnvironmentFault:
      return  # Without a reward it is no trajectory to train on.
    except Exception:
      if server.sessions.cut(name):  # It is the answer to a prompt without room.
        return
      raise
    reward, success = _result(said, task)
    server.sessions.reward(name, factor * reward, success=success)

  def _wait(self, playing: Sequence[futures.Future], asked: Asked) -> None:
    left = set(playing)
    while left:
      done, left = futures.wait(left, _SLICE, futures.FIRST_COMPLETED)
      for future in done:
        future.result()  # An agent that fails ends the run, and says why.
      asked.progress(len(playing) - len(left), len(playing))
      if asked.should_stop():
        raise Interrupted

  def _trajectory(self, server: Endpoint, names, task: Any, i: int, member: int) -> Any:
    name, kind = names[i, member], task.task_type
    try:
      return server.sessions.trajectory(
        name, task_id=task.task_id, task_type=kind, place=(i, member)
      )
    except SessionError:  # It failed before its first turn.
      return Trajectory(task.task_id, kind, i, member, [], Outcome.ENV_ERROR)
