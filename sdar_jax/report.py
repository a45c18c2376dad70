"""What happened in one step, as named numbers. NumPy only."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdar_jax import fitting
from sdar_jax.batching import Row
from sdar_jax.skills import SkillView
from sdar_jax.trajectory import Group

_TOKEN_ARRAYS = (
  'advantages',
  'sampler_logprobs',
  'old_logprobs',
  'ref_logprobs',
  'teacher_logprobs',
  'gate',
)


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
  """Success, returns, lengths and validity of a step's episodes."""
  played = [t for g in groups for t in g.trajectories]
  sound = [t for t in played if not t.outcome.is_fault]
  turns = [turn for t in sound for turn in t.turns]
  flat = [g for g in groups if not g.varies]
  tokens = np.concatenate([t.response_ids for t in turns]) if turns else np.zeros(1)
  return {
    'rollout/success_rate': _mean([t.success for t in sound]),
    'rollout/return_mean': _mean([t.episode_return for t in sound]),
    'rollout/turns_mean': _mean([len(t.turns) for t in sound]),
    'rollout/valid_action_rate': _mean([t.valid for t in turns]),
    'rollout/admissible_action_rate': _mean([t.admissible for t in turns]),
    'rollout/truncated_rate': _mean([t.stop_reason == 'length' for t in turns]),
    **{f'rollout/{name}': value for name, value in fitting.shares(sound).items()},
    'rollout/zero_variance_groups': len(flat) / max(len(groups), 1),
    'rollout/faults': float(len(played) - len(sound)),
    'rollout/prompt_tokens_mean': _mean([len(t.prompt_ids) for t in turns]),
    'rollout/response_tokens_mean': _mean([len(t.response_ids) for t in turns]),
    'rollout/token_zero_rate': float(np.mean(tokens == 0)),
    'rollout/rows': float(len(turns)),
  }


def skill_metrics(views: Sequence[SkillView] | None) -> dict[str, float]:
  """How much privileged text the teachers of a step saw; {} without a teacher."""
  if not views:
    return {}
  return {
    'train/teacher_skills_mean': _mean([len(view.skill_ids) for view in views]),
    'train/teacher_skill_tokens_mean': _mean([view.tokens for view in views]),
    'train/teacher_skill_tokens_min': float(min(view.tokens for view in views)),
  }


def skills_seen(views: Sequence[SkillView]) -> dict[str, int]:
  """How many rows' teachers saw each skill, most seen first."""
  counts = collections.Counter(skill for view in views for skill in view.skill_ids)
  return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def shown_by_episode(
  rows: Sequence[Row], *views: Sequence[SkillView]
) -> list[tuple[tuple[str, ...], bool]]:
  """What was shown in each episode, to whomever, and whether the episode succeeded."""
  shown: dict[int, tuple[dict[str, None], bool]] = {}
  for row, *seen in zip(rows, *views, strict=True):
    ids, _ = shown.setdefault(row.trajectory_id, ({}, row.trajectory.success))
    for view in seen:
      ids.update(dict.fromkeys(view.skill_ids))
  return [(tuple(ids), success) for ids, success in shown.values()]


def mismatch(scores: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
  """Sampled against scored log-probs of the same tokens under the same weights.

  Args:
    scores: microbatches with `response_mask`, `sampler_logprobs` and `old_logprobs`,
      on the host.
  """
  gaps = np.concatenate(
    [(m['sampler_logprobs'] - m['old_logprobs'])[m['response_mask']] for m in scores]
  )
  return {
    'train/sampler_mismatch_mean': float(np.mean(np.abs(gaps))),
    'train/sampler_mismatch_max': float(np.max(np.abs(gaps))),
  }


def token_records(
  rows: Sequence[Row],
  scores: Sequence[Mapping[str, np.ndarray]],
  views: Sequence[SkillView] | None,
  *,
  count: int,
) -> list[dict[str, Any]]:
  """Per-token arrays of the step's first `count` rows, for a viewer.

  `gap` and `gate` are the teacher's under pre-update weights, `teaching` is the weight
  of its row.
  """
  out = {}
  for microbatch in scores:
    for i, index in enumerate(microbatch['row_index']):
      if not 0 <= index < count:
        continue
      row, mask = rows[index], microbatch['response_mask'][i]
      record = {
        'trajectory_id': row.trajectory_id,
        'turn_id': row.turn_id,
        'response_ids': row.turn.response_ids.tolist(),
      }
      for name in _TOKEN_ARRAYS:
        if name in microbatch:
          record[name] = microbatch[name][i][mask].tolist()
      if views is not None:
        gap = (microbatch['teacher_logprobs'] - microbatch['old_logprobs'])[i][mask]
        record['gap'] = gap.tolist()
        record['teaching'] = float(microbatch['teaching'][i])
        record['teacher_skills'] = list(views[index].skill_ids)
        record['teacher_skill_tokens'] = views[index].tokens
      out[index] = record
  return [out[index] for index in sorted(out)]


def _mean(values: Sequence[float]) -> float:
  return float(np.mean(values)) if len(values) else 0.0
