"""Evaluation on fixed panels, several attempts a task, with an interval."""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdar_jax.envs.pool.pool import Pool
from sdar_jax.evaluation import averages, statistics
from sdar_jax.evaluation.panels import Panel
from sdar_jax.prompts import cuts
from sdar_jax.rollout import episodes
from sdar_jax.trajectory import Group, Outcome, Trajectory

REPORT_SCHEMA = 2  # 2: which tasks, settings and weights; intervals over tasks.
MAX_FAULTS = 0.1  # Share of the episodes that infrastructure may take from a result.
# Leads the identity of evaluation requests, which no training step's can equal.
_IDENTITY = -1


class EvaluationError(RuntimeError):
  """Too little was played for a result: one line with the counts."""

  exit_code = 70


class UnshownError(ValueError):
  """Too many tasks without room for their first prompt: one line."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """A panel and its settings: reports of one plan are comparable.

  Attributes:
    panel: the tasks.
    agent: prompts, decoding and sampling.
    attempts: times that each task is played.
    seed: of the sampler.
    with_skills: whether the policy is shown skills.
    world_digest: what episodes consist of.
  """

  panel: Panel
  agent: episodes.Agent
  attempts: int
  seed: int
  with_skills: bool
  world_digest: str

  @property
  def settings(self) -> dict[str, Any]:
    """Lists the settings of a report, its first entries."""
    sampling = self.agent.sampling
    return {
      'schema': REPORT_SCHEMA,
      'panel': self.panel.name,
      'panel_digest': self.panel.digest,
      'composition': dict(self.panel.composition),
      'world_digest': self.world_digest,
      'with_skills': self.with_skills,
      'temperature': sampling.temperature,
      'top_p': sampling.top_p,
      'top_k': sampling.top_k,
      'max_prompt_tokens': self.agent.max_prompt_tokens,
      'max_response_tokens': sampling.max_tokens,
      'attempts': self.attempts,
      'seed': self.seed,
    }

  @property
  def goals(self) -> dict[str, str]:
    """What each task asks for, by its id."""
    return {task.task_id: task.goal for task in self.panel.tasks}


def evaluate(
  plan: Plan,
  pool: Pool,
  sampler: episodes.TokenSampler,
  weights: Mapping[str, Any],
  *,
  collect: Callable[..., list[Group]] = episodes.collect,
  should_stop: Callable[[], bool] = lambda: False,
  progress: Callable[[int, int], None] = lambda ended, wanted: None,
) -> tuple[dict[str, Any], list[Trajectory]]:
  """Plays each task of the plan's panel and reports.

  The same plan and weights give the same report.

  Args:
    plan: what is played and how.
    pool: environments of the panel's world.
    sampler: completes prompts.
    weights: what names them (step, digests); becomes part of the report.
    collect: plays groups, as `episodes.collect` does.
    should_stop: asked between polls.
    progress: told between polls how many episodes have ended, of how many.

  Returns:
    The report (plain JSON) and the trajectories, task by task.

  Raises:
    rollout.Interrupted: `should_stop` became true.
    EvaluationError: faults took more than `MAX_FAULTS` of the episodes.
    UnshownError: as many have no turn, since their first prompt is too long.
  """
  groups = collect(
    pool,
    plan.panel.tasks,
    sampler,
    plan.agent,
    group_size=plan.attempts,
    identity=(_IDENTITY, plan.seed),
    should_stop=should_stop,
    progress=progress,
  )
  trajectories = [t for group in groups for t in group.trajectories]
  check_played(plan.panel.name, trajectories, pool.faults())
  _check_shown(plan, trajectories)
  report = {
    **plan.settings,
    **weights,
    **summarise(trajectories),
    'tasks': [_task_record(t) for t in trajectories],
  }
  return report, trajectories


def check_played(
  panel: str, trajectories: Sequence[Trajectory], kinds: Mapping[str, int]
) -> None:
  """Raises EvaluationError if faults took too many episodes.

  Args:
    panel: name, for the error.
    trajectories: all of an evaluation.
    kinds: faults of each kind that the environments had.
  """
  lost = collections.Counter(
    t.outcome.value for t in trajectories if t.outcome.is_fault
  )
  count, total = sum(lost.values()), len(trajectories)
  if total and count <= MAX_FAULTS * total:
    return
  outcomes = ', '.join(f'{name} {number}' for name, number in sorted(lost.items()))
  why = ', '.join(f'{name} {number}' for name, number in kinds.items())
  raise EvaluationError(
    f'no result of {panel}: {count} of {total} episodes were lost to the environment'
    f' ({outcomes or "none was played"}{"; faults: " if why else ""}{why}), at most'
    f' {MAX_FAULTS:.0%} may be; mend it and give the same command again'
  )


def _check_shown(plan: Plan, trajectories: Sequence[Trajectory]) -> None:
  """Raises UnshownError where too little was played for want of room."""
  unshown = [
    t for t in trajectories if t.outcome is Outcome.PROMPT_TOO_LONG and not t.turns
  ]
  if len(unshown) > MAX_FAULTS * len(trajectories):
    raise UnshownError(
      f'no result of {plan.panel.name}: the first prompt of {len(unshown)} of'
      f' {len(trajectories)} episodes is above config.rollout.max_prompt_tokens='
      f'{plan.agent.max_prompt_tokens}: raise it'
    )


def summarise(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
  """Summarises episodes: success and interval, score, turns, validity.

  Episodes that failed for reasons of infrastructure are counted apart, not as misses;
  a number of which nothing was played is None.
  """
  played = [t for t in trajectories if not t.outcome.is_fault]
  by_type = collections.defaultdict(list)
  for trajectory in played:
    by_type[trajectory.task_type].append(trajectory)
  turns = [turn for t in played for turn in t.turns]
  return {
    **_success(played),
    'macro_success_rate': _macro(trajectories),
    **_score(played),
    'faults': len(trajectories) - len(played),
    'mean_turns': _mean([len(t.turns) for t in played]),
    'valid_action_rate': _mean([t.valid for t in turns]),
    'admissible_action_rate': _mean([t.admissible for t in turns]),
    'truncated_rate': _mean([t.stop_reason == 'length' for t in turns]),
    **cuts.shares(played),
    'by_type': {name: _success(by_type[name]) for name in sorted(by_type)},
  }


def _mean(values: Sequence[float]) -> float | None:
  return sum(values) / len(values) if values else None


def _success(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
  tries: dict[str, list[bool]] = {}
  for trajectory in trajectories:
    tries.setdefault(trajectory.task_id, []).append(trajectory.success)
  won, played = [sum(t) for t in tries.values()], [len(t) for t in tries.values()]
  return {
    'n': sum(played),
    'tasks_played': len(played),
    'successes': sum(won),
    'success_rate': sum(won) / sum(played) if played else None,
    'interval': list(statistics.rate_interval(won, played)) if played else None,
  }


def _macro(trajectories: Sequence[Trajectory]) -> float | None:
  """Averages over task types (data sets); None if one has no episode."""
  played = [t for t in trajectories if not t.outcome.is_fault]
  if {t.task_type for t in played} != {t.task_type for t in trajectories} or not played:
    return None
  return averages.average([(t.task_type, float(t.success)) for t in played]).macro


def _score(trajectories: Sequence[Trajectory]) -> dict[str, float]:
  """Averages the graded score; {} in worlds without grades.

  In one with grades an episode without, which was never shown, counts 0.
  """
  if all(t.score is None for t in trajectories):
    return {}
  return {'mean_score': sum(t.score or 0.0 for t in trajectories) / len(trajectories)}


def _task_record(trajectory: Trajectory) -> dict[str, Any]:
  return {
    'task_id': trajectory.task_id,
    'attempt': trajectory.member,
    'type': trajectory.task_type,
    'success': trajectory.outcome is Outcome.SUCCESS,
    'outcome': trajectory.outcome.value,
    'score': trajectory.score,
    'turns': len(trajectory.turns),
  }
