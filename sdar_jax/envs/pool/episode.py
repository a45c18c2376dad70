"""One episode in a pool, and its player in any process."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sdar_jax import files
from sdar_jax.envs import base

# What one call of an environment comes to, if it is no fault.
Answer = base.Observation | base.StepResult


class PoolJob(NamedTuple):
  """PoolJob to make of one environment.

  Attributes:
    ident: of the episode.
    task: starts a fresh environment with it; None goes on with the one there is.
    actions: played in order.
  """

  ident: int
  task: base.Task | None
  actions: tuple[str, ...]


class Failure(NamedTuple):
  """An environment failure (crash, hang, exception, ...).

  Attributes:
    kind: 'crash', 'hang', 'error' (it raised), 'garbage' (what it returned is no
      answer), 'diverged' (a replay did not answer as before) or 'quarantined' (its
      task hung too often to be tried).
    message: one line.
  """

  kind: str
  message: str


class Stage:
  """The environments of one process."""

  def __init__(self, world: base.World):
    self._world = world
    self._envs: dict[int, base.TextEnv] = {}

  def forget(self, idents: Iterable[int]) -> None:
    """Drops the environments of these episodes."""
    for ident in idents:
      self._envs.pop(ident, None)

  def prefetch(self, jobs: Sequence[PoolJob]) -> None:
    """Announces the next actions to the world."""
    self._world.prefetch([action for job in jobs for action in job.actions])

  def play(self, job: PoolJob) -> Iterator[Answer | base.EnvironmentFault | Failure]:
    """Yields the outcome of each call; a fault or failure is the last."""
    kind = base.StepResult if job.task is None else base.Observation
    for value in self._calls(job):
      if isinstance(value, base.EnvironmentFault | Failure):
        yield value
        return
      try:
        yield check(value, kind)
      except ValueError as error:
        yield Failure('garbage', str(error))
        return
      kind = base.StepResult

  def _calls(self, job: PoolJob) -> Iterator[Any]:
    try:
      if job.task is not None:
        self._envs[job.ident] = self._world.make_env()
        yield self._envs[job.ident].reset(job.task)
      for action in job.actions:
        yield self._envs[job.ident].step(action)
    except base.EnvironmentFault as fault:
      yield fault
    except TimeoutError as error:  # An environment that keeps a deadline itself.
      yield Failure('hang', files.one_line(error, 300))
    # Whatever it raises is this episode's fault alone; one that exits ends no run.
    except (Exception, SystemExit) as error:
      yield Failure('error', f'{type(error).__name__}: {files.one_line(error, 300)}')


@dataclasses.dataclass(eq=False)
class PoolEpisode:
  """An episode, its environment's home and its present call.

  Attributes:
    ident: unique within the pool.
    task: what it plays.
    share: the number of its worker.
    actions: all that were played, the present one included.
    log: what was delivered so far: what a replay has to come to.
    home: the process that holds its environment; None if there is none.
    tries: failures of the present call.
    answer: what the present call came to; None while it came to nothing.
    failure: why the answer is a fault, unless that is the world's own word.
  """

  ident: int
  task: base.Task
  share: int
  actions: list[str] = dataclasses.field(default_factory=list)
  log: list[Answer] = dataclasses.field(default_factory=list)
  home: Any = None
  tries: int = 0
  answer: Answer | base.EnvironmentFault | None = None
  failure: Failure | None = None
  _heard: list[Answer] = dataclasses.field(default_factory=list)

  def job(self, home: Any) -> PoolJob:
    """Lists the calls for a process; a new home replays the episode."""
    self._heard = []
    if self.home is home:
      return PoolJob(self.ident, None, tuple(self.actions[-1:]))
    self.home = home
    return PoolJob(self.ident, self.task, tuple(self.actions))

  def hear(self, value: Any, job: PoolJob) -> bool:
    """Takes in one outcome of `job`; tells whether the job is over.

    Raises:
      ValueError: `value` is no answer.
    """
    if isinstance(value, Failure):
      self.fail(value)
      return True
    if isinstance(value, base.EnvironmentFault):
      self.answer, self.failure, self.home = value, None, None
      return True
    first = job.task is not None and not self._heard
    self._heard.append(check(value, base.Observation if first else base.StepResult))
    if len(self._heard) < len(job.actions) + (job.task is not None):
      return False
    if job.task is not None and self._heard[:-1] != self.log:
      self.fail(Failure('diverged', 'a replay did not answer as before'))
    else:
      self.answer, self.failure = value, None
    return True

  def fail(self, failure: Failure) -> None:
    """Ends the call with a failure; its environment is not to be used again."""
    late = failure.kind in ('hang', 'quarantined')
    fault = base.EnvironmentTimeout if late else base.EnvironmentFault
    self.answer = fault(failure.kind, f'task {self.task.task_id}: {failure.message}')
    self.failure, self.home = failure, None


def check(value: Any, kind: type[Answer]) -> Answer:
  """Returns `value` if it is a well-formed answer of this kind.

  Raises:
    ValueError: it is not.
  """
  if type(value) is not kind:
    raise ValueError(f'a {type(value).__name__} in place of a {kind.__name__}')
  step = kind is base.StepResult
  seen = value.observation if step else value
  if type(seen) is not base.Observation or type(seen.text) is not str:
    raise ValueError('an observation without text')
  if type(seen.admissible) is not tuple or set(map(type, seen.admissible)) - {str}:
    raise ValueError('admissible actions that are not a tuple of strings')
  if step:
    if not _is_number(value.reward):
      raise ValueError(f'a reward of {value.reward!r}')
    if type(value.done) is not bool or type(value.success) is not bool:
      raise ValueError(f'done={value.done!r}, success={value.success!r}')
    if value.score is not None and not _is_number(value.score):
      raise ValueError(f'a score of {value.score!r}')
  return value


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)
