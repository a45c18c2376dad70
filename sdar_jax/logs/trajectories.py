"""Trajectories as JSON, and back. No JAX.

The only schema that this project writes about episodes (JSON lines, versioned).
"""

import dataclasses
import enum
from typing import Any

import numpy as np

from sdar_jax.trajectory import Outcome, Trajectory, Turn

SCHEMA_VERSION = 3  # 2: `score`. 3: `history_dropped`, `observation_cut`, `skills`.


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


def from_json(record: dict[str, Any]) -> Trajectory:
  """The inverse of `to_json`.

  Raises:
    ValueError: the record's schema version is not the one this code writes.
  """
  if record['schema'] != SCHEMA_VERSION:
    raise ValueError(
      f'trajectory schema {record["schema"]}: this version reads {SCHEMA_VERSION}'
    )
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
