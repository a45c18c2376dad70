"""Trajectories as JSON, and back. No JAX.

The only schema that this project writes about episodes (JSON lines, versioned).
"""

import dataclasses
import enum
from typing import Any

import numpy as np

from sdar_jax.trajectory import Outcome, Trajectory, Turn

# 2: `score`. 3: `history_dropped`, `observation_cut`, `skills`. 4: goal and sums before
# the turns, means of every turn, prompts and entropy beside tokens.
SCHEMA_VERSION = 4
READABLE = (3, SCHEMA_VERSION)  # Their turns are alike.


def _plain(value: Any) -> Any:
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, enum.Enum):
    return value.value
  if isinstance(value, tuple):
    return list(value)
  return value


def turn_to_json(turn: Turn) -> dict[str, Any]:
  """A JSON object with every field of `turn`; arrays become lists."""
  fields = dataclasses.fields(turn)
  return {field.name: _plain(getattr(turn, field.name)) for field in fields}


def to_json(trajectory: Trajectory) -> dict[str, Any]:
  """Makes a JSON object, the inverse of `from_json`."""
  return {
    'schema': SCHEMA_VERSION,
    'task_id': trajectory.task_id,
    'task_type': trajectory.task_type,
    'group_id': trajectory.group_id,
    'member': trajectory.member,
    'outcome': trajectory.outcome.value,
    'return': trajectory.episode_return,
    'score': trajectory.score,
    'turns': [turn_to_json(turn) for turn in trajectory.turns],
  }


def with_head(record: dict[str, Any], goal: str) -> dict[str, Any]:
  """Sums a record up before its turns, for readers that go no further.

  Adds the task's goal, the number of turns (`length`), of those with `tokens`
  (`recorded`), of sampled tokens (`sampled`), and the turns' mean `means`.
  """
  turns = record['turns']
  means: dict[str, list[float]] = {}
  for turn in turns:
    for name, value in turn.get('means', {}).items():
      means.setdefault(name, []).append(value)
  head = {
    'goal': goal,
    'length': len(turns),
    'recorded': sum('tokens' in turn for turn in turns),
    'sampled': sum(len(turn['response_ids']) for turn in turns),
    'means': {name: float(np.mean(values)) for name, values in means.items()},
  }
  return {**{k: v for k, v in record.items() if k != 'turns'}, **head, 'turns': turns}


def check_schema(version: Any) -> None:
  """Raises ValueError unless this code reads records of the version."""
  if version not in READABLE:
    known = ' and '.join(map(str, READABLE))
    raise ValueError(f'trajectory schema {version}: this version reads {known}')


def from_json(record: dict[str, Any]) -> Trajectory:
  """The inverse of `to_json`.

  Raises:
    ValueError: the record's schema version is none of `READABLE`.
  """
  check_schema(record['schema'])
  names = [field.name for field in dataclasses.fields(Turn)]
  turns = []
  for item in record['turns']:
    values = {name: item[name] for name in names}
    values['prompt_ids'] = np.asarray(item['prompt_ids'], np.int32)
    values['response_ids'] = np.asarray(item['response_ids'], np.int32)
    values['skills'] = tuple(item['skills'])
    values['sampler_logprobs'] = np.asarray(item['sampler_logprobs'], np.float32)
    turns.append(Turn(**values))
  return Trajectory(
    task_id=record['task_id'],
    task_type=record['task_type'],
    group_id=record['group_id'],
    member=record['member'],
    turns=turns,
    outcome=Outcome(record['outcome']),
    score=record['score'],
  )
