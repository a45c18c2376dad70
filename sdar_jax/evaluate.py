"""Evaluation on fixed panels: which tasks, once each, with an interval."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from sdar_jax import averages, fitting, rollout, statistics
from sdar_jax.envs import base
from sdar_jax.envs.pool import Pool
from sdar_jax.trajectory import Outcome, Trajectory

PANEL_VERSION = 1
REPORT_SCHEMA = 1
# Leads the identity of evaluation requests, which no training step's can equal.
_IDENTITY = -1


@dataclasses.dataclass(frozen=True)
class Panel:
  """A versioned list of task ids.

  Attributes:
    name: world, split and size, for people.
    tasks: the tasks, in order, no two alike.
    digest: hex SHA-256 over the version, the world's content and the task ids.
  """

  name: str
  tasks: tuple[base.Task, ...]
  digest: str


def make_panel(world: base.World, split: str, size: int) -> Panel:
  """The first `size` tasks of a split (0: all of them).

  Raises:
    ValueError: the split has fewer tasks, or one twice.
  """
  source = world.tasks(split)
  size = size or len(source)
  if size > len(source):
    raise ValueError(
      f'config.eval.tasks={size}: split {split!r} of {world.name} has {len(source)}'
    )
  tasks = tuple(source[i] for i in range(size))
  ids = [task.task_id for task in tasks]
  if len(set(ids)) != len(ids):
    raise ValueError(f'split {split!r} of {world.name}: a task id occurs twice')
  content = json.dumps([PANEL_VERSION, source.digest, ids])
  digest = hashlib.sha256(content.encode()).hexdigest()
  return Panel(f'{world.name}/{split}/{size}', tasks, digest)


def evaluate(
  panel: Panel,
  pool: Pool,
  sampler: rollout.TokenSampler,
  agent: rollout.Agent,
  *,
  attempts: int,
  seed: int,
  should_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], list[Trajectory]]:
  """Plays each task of the panel `attempts` times and reports.

  The same panel, weights, agent and seed give the same report.

  Returns:
    The report (plain JSON) and the trajectories, task by task.

  Raises:
    rollout.Interrupted: `should_stop` became true.
  """
  groups = rollout.collect(
    pool,
    panel.tasks,
    sampler,
    agent,
    group_size=attempts,
    identity=(_IDENTITY, seed),
    should_stop=should_stop,
  )
  trajectories = [t for group in groups for t in group.trajectories]
  report = {
    'schema': REPORT_SCHEMA,
    'panel': panel.name,
    'panel_digest': panel.digest,
    'temperature': agent.sampling.temperature,
    'attempts': attempts,
    'seed': seed,
    **summarise(trajectories),
    'tasks': [_task_record(t) for t in trajectories],
  }
  return report, trajectories


def summarise(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
  """n, success with its Wilson 95 % interval, score, the same by type, turns, validity.

  Episodes that failed for reasons of infrastructure are counted apart, not as misses.
  """
  played = [t for t in trajectories if not t.outcome.is_fault]
  by_type = collections.defaultdict(list)
  for trajectory in played:
    by_type[trajectory.task_type].append(trajectory)
  turns = [turn for t in played for turn in t.turns]
  return {
    **_success(played),
    'macro_success_rate': _macro(played),
    **_score(played),
    'faults': len(trajectories) - len(played),
    'mean_turns': len(turns) / max(len(played), 1),
    'valid_action_rate': sum(t.valid for t in turns) / max(len(turns), 1),
    'admissible_action_rate': sum(t.admissible for t in turns) / max(len(turns), 1),
    'truncated_rate': sum(t.stop_reason == 'length' for t in turns)
    / max(len(turns), 1),
    **fitting.shares(played),
    'by_type': {name: _success(by_type[name]) for name in sorted(by_type)},
  }


def _success(trajectories: Sequence[Trajectory]) -> dict[str, Any]:
  n, won = len(trajectories), sum(t.success for t in trajectories)
  low, high = statistics.wilson_interval(won, n)
  return {
    'n': n,
    'successes': won,
    'success_rate': won / max(n, 1),
    'interval': [low, high],
  }


def _macro(trajectories: Sequence[Trajectory]) -> float:
  """The mean over task types; in Search-QA over data sets."""
  results = [(t.task_type, float(t.success)) for t in trajectories]
  return averages.average(results).macro if results else 0.0


def _score(trajectories: Sequence[Trajectory]) -> dict[str, float]:
  """The mean score in worlds that grade; {} in others."""
  scores = [t.score for t in trajectories if t.score is not None]
  return {'mean_score': sum(scores) / len(scores)} if scores else {}


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
