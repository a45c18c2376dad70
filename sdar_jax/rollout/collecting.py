"""Episodes from elsewhere, asked for and checked. No JAX."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from sdar_jax.envs import base
from sdar_jax.envs.pool.pool import Pool
from sdar_jax.rollout.episodes import Agent, TokenSampler
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

_ROUNDING = 1e-3  # Nats.


class CollectedError(ValueError):
  """A group unfit for training: one line."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
  """A step's request to a collector.

  Attributes:
    step: of training.
    tasks: [P] tasks; the index in this list is the group's id.
    occurrences: [P], how often each had its turn in this step before.
    group_size: G episodes of each.
    seed: of the run.
    sampler: the policy as it is now; `submit` requests, `poll` completions.
    agent: prompts, decoding and sampling of the run's own episodes.
    pool: environments of the run's world, for collectors that play it.
    success_reward: factor on the world's reward.
    should_stop: whether the run was asked to stop; raise `episodes.Interrupted` then.
    progress: to be told how many episodes have ended, of how many.
  """

  step: int
  tasks: Sequence[base.Task]
  occurrences: Sequence[int]
  group_size: int
  seed: int
  sampler: TokenSampler
  agent: Agent
  pool: Pool
  success_reward: float
  should_stop: Callable[[], bool]
  progress: Callable[[int, int], None]


class Collector(Protocol):
  """Plays episodes in a way of its own.

  What it returns is trained on, token for token: `prompt_ids` and `response_ids` are
  what the sampler was given and what it said, `sampler_logprobs` what it said of them.
  """

  def __call__(self, asked: Asked) -> list[Group]:
    """Plays each task `group_size` times; groups in order of tasks."""


def adapted(collector: Collector) -> Callable[..., list[Group]]:
  """Gives a collector the signature of `episodes.collect`."""

  def collect(pool, tasks, sampler, agent, **rest: Any) -> list[Group]:
    seed, step = rest['identity']
    occurrences = []
    for task in tasks:
      occurrences.append(rest['played'][task.task_id])
      rest['played'][task.task_id] += 1
    names = ('group_size', 'success_reward', 'should_stop', 'progress')
    asked = Asked(
      step=step,
      seed=seed,
      tasks=tasks,
      occurrences=occurrences,
      sampler=sampler,
      agent=agent,
      pool=pool,
      **{name: rest[name] for name in names},
    )
    groups = collector(asked)
    check(groups, asked)
    return groups

  return collect


def check(groups: Sequence[Group], asked: Asked) -> None:
  """Checks groups against what was asked for.

  Raises:
    CollectedError: one is not; what fails by a fault of infrastructure is said by the
      outcome of its episode instead.
  """
  if len(groups) != len(asked.tasks):
    raise CollectedError(
      f'collect: {len(groups)} groups for {len(asked.tasks)} tasks: return one each'
    )
  for index, (group, task) in enumerate(zip(groups, asked.tasks, strict=True)):
    where = f'collect: group {index}'
    if group.group_id != index or group.task.task_id != task.task_id:
      raise CollectedError(
        f'{where} is group {group.group_id} of task {group.task.task_id!r}: must be'
        f' that of {task.task_id!r}'
      )
    members = [trajectory.member for trajectory in group.trajectories]
    if members != list(range(asked.group_size)):
      raise CollectedError(
        f'{where} has members {members[:9]}: must be 0 to {asked.group_size - 1}'
      )
    for trajectory in group.trajectories:
      _check_episode(trajectory, asked.agent, f'{where}, member {trajectory.member}')


def _check_episode(trajectory: Trajectory, agent: Agent, where: str) -> None:
  too_long = trajectory.outcome is Outcome.PROMPT_TOO_LONG
  if trajectory.outcome.is_fault or (too_long and not trajectory.turns):
    return
  if not trajectory.turns:
    raise CollectedError(f'{where}: has no turn and no fault as its outcome')
  for number, turn in enumerate(trajectory.turns):
    said = _wrong(turn, agent)
    if said:
      raise CollectedError(f'{where}, turn {number}: {said}')


def _wrong(turn: Turn, agent: Agent) -> str:
  """Says what is wrong with a turn; '' for nothing."""
  longest = agent.max_prompt_tokens + turn.skill_tokens
  most = agent.sampling.max_tokens
  for name in ('prompt_ids', 'response_ids', 'sampler_logprobs'):
    kind = np.floating if name == 'sampler_logprobs' else np.integer
    value = getattr(turn, name)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or not len(value):
      return f'{name} must be an array of at least one token'
    if not np.issubdtype(value.dtype, kind):
      return f'{name} has dtype {value.dtype}'
  if len(turn.prompt_ids) > longest:
    return (
      f'a prompt of {len(turn.prompt_ids)} tokens:'
      f' config.rollout.max_prompt_tokens={longest}'
    )
  if len(turn.response_ids) > most:
    return (
      f'a response of {len(turn.response_ids)} tokens:'
      f' config.rollout.max_response_tokens={most}'
    )
  if len(turn.response_ids) != len(turn.sampler_logprobs):
    return (
      f'{len(turn.sampler_logprobs)} sampler_logprobs of'
      f' {len(turn.response_ids)} response_ids'
    )
  if not np.isfinite(turn.sampler_logprobs).all() or not np.isfinite(turn.reward):
    return 'a log-prob or the reward is no number'
  if turn.sampler_logprobs.max() > _ROUNDING:
    return f'a log-prob of {turn.sampler_logprobs.max():g}: must not be above 0'
  ids = np.concatenate([turn.prompt_ids, turn.response_ids])
  if ids.min() < 0:
    return 'an id is negative'
  if agent.len_vocab and ids.max() >= agent.len_vocab:
    return (
      f'id {ids.max()}: must be below {agent.len_vocab}, the size of the vocabulary'
    )
  return ''
