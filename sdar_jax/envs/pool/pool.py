"""Many environments at once, here or in worker processes. No JAX.

An environment is a function of its task and the actions played, so a broken one is
replaced by playing the same actions again in a fresh one, and what comes of an episode
depends neither on how many workers there are nor on what befell them. A replay that
does not answer as before is a fault itself.
"""

import abc
import collections
import itertools
import selectors
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sdar_jax.envs import base
from sdar_jax.envs.pool import worker
from sdar_jax.envs.pool.episode import Failure, PoolEpisode, Stage
from sdar_jax.envs.pool.watch import Watch

Key = Hashable

HANGS = 2  # At the same place of a task, before the task is quarantined.
DEATHS = 3  # Of every worker, in a row and with nothing delivered: give up.
_LEAST_DEATHS = 10  # Three tasks in a row may each kill the only worker.
_CLOSE_SECONDS = 3.0  # For workers to end by themselves.
_QUARANTINED = Failure('quarantined', f'it hung {HANGS} times at the same place')


class PoolError(RuntimeError):
  """No worker lives long enough to deliver anything."""

  exit_code = 70


class Pool(abc.ABC):
  """Environments by key; use it as a context manager, or close it.

  Args:
    world: makes the environments.
    retries: how often a call that failed is tried again.

  Attributes:
    last_fault: the newest; None before the first.
  """

  def __init__(self, world: base.World, *, retries: int):
    self.world = world
    self.last_fault: base.EnvironmentFault | None = None
    self._retries = retries
    self._live: dict[Key, PoolEpisode] = {}
    self._idents = itertools.count()
    self._counts: collections.Counter[str] = collections.Counter()
    self._hangs: collections.Counter[tuple[str, ...]] = collections.Counter()
    self._quarantine: set[str] = set()

  def __enter__(self) -> 'Pool':
    return self

  def __exit__(self, *exc_info: object) -> None:
    self.close()

  def reset(
    self, starts: Mapping[Key, base.Task]
  ) -> dict[Key, base.Observation | base.EnvironmentFault]:
    """Starts episodes, each in a fresh environment.

    Returns:
      The first observation by key, in the order of `starts`; where the pool gave up,
      the last fault.
    """
    self.release(starts)
    first = next(self._idents)
    for i, (key, task) in enumerate(starts.items()):
      # Neighbours share a worker, hence what an engine keeps of their common task.
      share = (first + i * self._shares // len(starts)) % self._shares
      self._live[key] = PoolEpisode(next(self._idents), task, share)
    return self._settle(starts)

  def step(
    self, actions: Mapping[Key, str]
  ) -> dict[Key, base.StepResult | base.EnvironmentFault]:
    """Plays one action in each of these episodes.

    Returns:
      The results by key, in the order of `actions`; where the pool gave up, the last
      fault: such an episode is over.
    """
    for key, action in actions.items():
      self._live[key].actions.append(action)
    return self._settle(actions)

  def release(self, keys: Iterable[Key]) -> None:
    """Drops episodes; unknown keys are no error."""
    for key in keys:
      episode = self._live.pop(key, None)
      if episode is not None:
        self._forget(episode)

  def close(self) -> None:
    """Drops all episodes and ends the processes."""
    self.release(list(self._live))

  def faults(self) -> dict[str, int]:
    """Counts faults of each kind since the last call."""
    counts, self._counts = dict(sorted(self._counts.items())), collections.Counter()
    return counts

  @property
  def quarantine(self) -> list[str]:
    """Ids of the tasks played no more, for a checkpoint."""
    return sorted(self._quarantine)

  @quarantine.setter
  def quarantine(self, task_ids: Iterable[str]) -> None:
    self._quarantine = set(task_ids)

  def _settle(self, keys: Iterable[Key]) -> dict[Key, Any]:
    """Tries until every one of these episodes has an answer or is given up."""
    out: dict[Key, Any] = dict.fromkeys(keys)
    while waiting := [key for key in out if out[key] is None]:
      episodes = [self._live[key] for key in waiting]
      for episode in episodes:
        if episode.task.task_id in self._quarantine:
          episode.fail(_QUARANTINED)
      self._exchange([episode for episode in episodes if episode.answer is None])
      for key in waiting:
        out[key] = self._conclude(self._live[key])
        if isinstance(out[key], base.EnvironmentFault):
          self.release([key])
    return out

  def _conclude(self, episode: PoolEpisode) -> Any:
    """Gives the outcome of the present call; None to try (again)."""
    answer, episode.answer = episode.answer, None
    if answer is None:  # Its worker died before its turn came.
      return None
    if not isinstance(answer, base.EnvironmentFault):
      episode.tries = 0
      episode.log.append(answer)
      return answer
    self._counts[answer.kind] += 1
    self.last_fault = answer
    episode.tries += 1
    failure = episode.failure
    if failure is None or failure is _QUARANTINED:  # Raised by the world, or final.
      return answer
    if failure.kind == 'hang':
      place = (episode.task.task_id, *episode.actions)
      self._hangs[place] += 1
      if self._hangs[place] >= HANGS:
        self._quarantine.add(episode.task.task_id)
        return None  # Ends as quarantined.
    return None if episode.tries <= self._retries else answer

  @property
  @abc.abstractmethod
  def _shares(self) -> int:
    """The number of shares that the episodes of a call are divided into."""

  @abc.abstractmethod
  def _exchange(self, episodes: Sequence[PoolEpisode]) -> None:
    """Plays the present call of these episodes; sets their answers."""

  @abc.abstractmethod
  def _forget(self, episode: PoolEpisode) -> None:
    """Drops an environment."""


class InProcessPool(Pool):
  """Plays in this process: for worlds in pure Python.

  A call that takes too long cannot be ended here, but it is named in the log.

  Args:
    world: makes the environments.
    retries: how often a call that failed is tried again.
    deadline: seconds after which a call is named.
  """

  _shares = 1

  def __init__(self, world: base.World, *, retries: int, deadline: float = 60.0):
    super().__init__(world, retries=retries)
    self._stage = Stage(world)
    self._watch = Watch(deadline)

  def close(self) -> None:
    """Drops all episodes."""
    super().close()
    self._watch.close()

  def _exchange(self, episodes: Sequence[PoolEpisode]) -> None:
    jobs = [episode.job(self._stage) for episode in episodes]
    with self._watch('looking up what is played next'):
      self._stage.prefetch(jobs)
    for episode, job in zip(episodes, jobs):
      played = f'action {job.actions[-1]!r:.100}' if job.actions else 'reset'
      with self._watch(f'task {episode.task.task_id}, {played}'):
        for value in self._stage.play(job):
          episode.hear(value, job)

  def _forget(self, episode: PoolEpisode) -> None:
    self._stage.forget([episode.ident])


class WorkerPool(Pool):
  """Plays in worker processes; kills and replaces failing ones.

  Args:
    world: makes the environments; every worker gets a copy.
    workers: number of processes. They start with the first episode.
    deadline: seconds that one call of an environment may take.
    retries: how often a call that failed is tried again.

  Raises:
    ValueError: the world does not pickle.
  """

  def __init__(self, world: base.World, *, workers: int, deadline: float, retries: int):
    super().__init__(world, retries=retries)
    self._deadline = deadline
    self._opening = worker.opening(world)
    self._workers: list[worker.Worker | None] = [None] * workers
    self._forgotten: list[list[int]] = [[] for _ in range(workers)]
    # Tasks whose first try killed a worker since something was delivered; None where
    # the worker was not playing one.
    self._fruitless: list[str | None] = []

  @property
  def _shares(self) -> int:
    return len(self._workers)

  def _forget(self, episode: PoolEpisode) -> None:
    self._forgotten[episode.share].append(episode.ident)

  def close(self) -> None:
    """Drops all episodes and ends the processes."""
    super().close()
    running = [process for process in self._workers if process is not None]
    self._workers = [None] * len(self._workers)
    for process in running:
      process.socket.close()  # A healthy worker exits at the end of file.
    limit = time.monotonic() + _CLOSE_SECONDS
    for process in running:
      process.end(limit)

  def _exchange(self, episodes: Sequence[PoolEpisode]) -> None:
    shares = collections.defaultdict(list)
    for episode in episodes:
      shares[episode.share].append(episode)
    with selectors.DefaultSelector() as selector:
      busy = {}
      for share, members in shares.items():
        process = self._ask(share, members)
        busy[process] = share
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        selector.register(process.socket, both, process)
      while busy:
        patience = min(process.due for process in busy) - time.monotonic()
        for key, events in selector.select(max(patience, 0.0)):
          if events & selectors.EVENT_WRITE and key.data.write():
            selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
          if events & selectors.EVENT_READ:
            key.data.read()
        for process in [process for process in busy if process.check()]:
          selector.unregister(process.socket)
          self._finish(process, busy.pop(process))

  def _ask(self, share: int, episodes: Sequence[PoolEpisode]) -> worker.Worker:
    process = self._workers[share]
    if process is None:
      process = self._workers[share] = worker.Worker(self._opening, self._deadline)
    process.ask(self._forgotten[share], episodes)
    self._forgotten[share] = []
    return process

  def _finish(self, process: worker.Worker, share: int) -> None:
    """Counts a worker's answers and failures; drops it if it failed."""
    if process.delivered:
      self._fruitless = []
    if process.kind is None:
      return
    self._workers[share], self._forgotten[share] = None, []
    process.end(0.0)
    if process.culprit is None:
      self._counts[process.kind] += 1
      self._fruitless.append(None)
    else:
      if process.culprit.tries == 0:
        self._fruitless.append(process.culprit.task.task_id)
      process.culprit.fail(Failure(process.kind, process.message))
    self._check_use(process)

  def _check_use(self, last: worker.Worker) -> None:
    """Raises PoolError if workers die whatever they do."""
    deaths, limit = self._fruitless, DEATHS * self._shares
    of_tasks = len(deaths) >= max(limit, _LEAST_DEATHS) and len(set(deaths)) > 2
    if of_tasks or deaths.count(None) >= limit:
      raise PoolError(
        f'{len(deaths)} environment workers failed one after another and delivered'
        f' nothing (the last: {last.kind}, {last.message}): config.pool.workers=0 plays'
        ' in this process and shows why'
      )


def make(world: base.World, *, workers: int, deadline: float, retries: int) -> Pool:
  """Makes a pool of so many worker processes; 0 plays in this process.

  Args:
    world: makes the environments.
    workers: number of processes.
    deadline: seconds for one call of an environment; without workers one that takes
      longer is named and not ended.
    retries: how often a call that failed is tried again.
  """
  if workers:
    return WorkerPool(world, workers=workers, deadline=deadline, retries=retries)
  return InProcessPool(world, retries=retries, deadline=deadline)
