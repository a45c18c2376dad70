"""Makers of the table's rows: what differs from GRPO. No JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sdar_jax.methods import estimators
from sdar_jax.methods.interface import Algorithm, Distillation, on_device


def numbers(**values: Any) -> dict[str, Any]:
  """Names settings: gamma=0.95 -> {'algorithm.gamma': 0.95}."""
  return {f'algorithm.{name}': value for name, value in values.items()}


_CLIPS = ('clip_low', 'clip_high', 'dual_clip')
GRPO = Algorithm(
  summary='group-relative advantages, clipped surrogate',
  source='DeepSeekMath, arXiv 2402.03300',
  advantages=estimators.group_relative,
  policy_loss=on_device('clipped_surrogate', *_CLIPS),
  policy_metrics=on_device('clipped_metrics', *_CLIPS),
)


def policy(
  summary: str, source: str, settings: Mapping[str, Any] | None = None, **changes: Any
) -> Algorithm:
  """Makes a row that differs from GRPO in the policy's side."""
  return dataclasses.replace(
    GRPO, summary=summary, source=source, settings=settings or {}, **changes
  )


def taught(
  summary: str,
  source: str,
  teacher: Distillation | None,
  numbers: Mapping[str, Any],
  *,
  policy_settings: Mapping[str, Any] | None = None,
  sees: str = 'none',
  **changes: Any,
) -> Algorithm:
  """Makes GRPO with a teacher; `changes` are of the policy's side."""
  return dataclasses.replace(
    GRPO,
    summary=summary,
    source=source,
    distillation=teacher,
    settings=policy_settings or {},
    teacher_settings=numbers,
    student_sees_skills=sees,
    **changes,
  )


NO_REWARD = numbers(policy_coef=0.0)
# SDAR's own, which its controls must share.
GATED = numbers(distill_coef=0.01, gate='gap', gate_beta=5.0)
