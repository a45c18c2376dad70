"""Rows of GRPO and SDAR, and makers of the table's others. No JAX."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdar_jax.advantages import grpo
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import Hyperparameters, reads
from sdar_jax.methods.interface import Algorithm, Distillation, StepData, on_device


@reads('statistics_over', 'divide_by_std')
def group_relative(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Takes deviations from a group's mean, as in GRPO."""
  return grpo.group_relative(
    data.scores,
    data.group_ids,
    data.trajectory_ids,
    data.row_mask,
    statistics_over=hyper.statistics_over,
    divide_by_std=hyper.divide_by_std,
  )


@reads('gate')
def selected_gate(hyper: Hyperparameters) -> gates.Gate:
  """Finds the gate that the config names."""
  return gates.find(hyper.gate)


def numbers(**values: Any) -> dict[str, Any]:
  """Names settings: gamma=0.95 -> {'algorithm.gamma': 0.95}."""
  return {f'algorithm.{name}': value for name, value in values.items()}


_CLIPS = ('clip_low', 'clip_high', 'dual_clip')
GRPO = Algorithm(
  summary='group-relative advantages, clipped surrogate',
  source='DeepSeekMath, arXiv 2402.03300',
  advantages=group_relative,
  policy_loss=on_device('objective:clipped_surrogate', *_CLIPS),
  policy_metrics=on_device('objective:clipped_metrics', *_CLIPS),
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
GATE_NUMBERS = numbers(distill_coef=0.01, gate='gap', gate_beta=5.0)
GATED = Distillation(
  'skills',
  gate=selected_gate,
  losses=on_device('objective:gated', 'gate_centred', 'ratio_limit'),
  advantages=on_device('gated_advantages', 'gate_centred'),
)
SDAR = taught(
  'GRPO and gated self-distillation, as a loss', 'arXiv 2605.15155', GATED, GATE_NUMBERS
)
