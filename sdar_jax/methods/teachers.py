"""The other teachers that act by a loss or inside of it. No JAX.

Each constant is a `Distillation` of pure functions; its numbers are its rows'. Those
that act by credit are in `crediting`.
"""

import dataclasses

import numpy as np

from sdar_jax.advantages import two_views
from sdar_jax.methods import gates, sdar
from sdar_jax.methods.hyperparameters import Hyperparameters, reads
from sdar_jax.methods.interface import Distillation, StepData, on_device


@reads()
def _lost_groups(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  return (data.success_rates == 0).astype(float)


@reads('retire_success', 'retire_slope', 'retire_decay')
def _retirement(data: StepData, hyper: Hyperparameters) -> dict[str, float]:
  """Retires the teacher for good, once it has no more to teach.

  The mean size of the gap and the rate of success are averaged over steps; where the
  one falls by less than a share of itself in a step, and the other is high enough, the
  share of the teacher is 0 from then on.

  Source: RetireOPD (arXiv 2609.20784), from its abstract and the README of
    ZJU-REAL/SDAR@26eefb8: that two such metrics decide. The averages are ours, and
    so is that success is that of the step's episodes, not of an evaluation.
  """
  before = data.memory
  if before.get('share', 1.0) == 0 or not data.taught_mask.any():
    return dict(before)
  now = {
    'gap': float(np.abs(data.gap[data.taught_mask]).mean()),
    'success': float(data.success_rates[data.row_mask].mean()),
  }
  decay = hyper.retire_decay
  kept = {k: decay * before.get(k, v) + (1 - decay) * v for k, v in now.items()}
  still = 'gap' in before and kept['gap'] > before['gap'] * (1 - hyper.retire_slope)
  retires = still and kept['success'] >= hyper.retire_success
  return {**kept, 'share': 0.0 if retires else 1.0}


@reads(
  *('view_gamma', 'view_margin', 'view_temperature', 'view_weight_cap'),
  'anchor_similarity',
)
def _view_weights(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  discounted = data.discounted(hyper.view_gamma)
  states = data.anchor_ids(hyper.anchor_similarity)
  gaps = two_views.view_gaps(
    discounted, data.group_ids, states, data.sees_skills, data.row_mask
  )
  return two_views.view_weights(
    gaps,
    margin=hyper.view_margin,
    temperature=hyper.view_temperature,
    weight_cap=hyper.view_weight_cap,
  )


def _unclipped_gap_gate(gap, *, gate_beta: float):
  return gates.gap_gate(gap, gate_beta=gate_beta, gap_clip=0.0)


@reads()
def _two_view_gate(hyper: Hyperparameters) -> gates.Gate:
  return _unclipped_gap_gate


SIBLING_GATED = dataclasses.replace(sdar.GATED, context='sibling')
FEEDBACK_GATED = dataclasses.replace(sdar.GATED, context='feedback')
# Every gate is 1/2 at gate_beta=0: no effect, which is the point of a control.
UNGATED = dataclasses.replace(sdar.GATED, control=True)
_DIVERGENCE = on_device('divergence', 'divergence', 'topk', 'token_clip', 'jsd_weight')
DIVERGENCE = Distillation('skills', losses=_DIVERGENCE, whole_distribution=True)
SIBLING = Distillation('sibling', losses=_DIVERGENCE, whole_distribution=True)
SAMPLED = Distillation('skills', losses=on_device('sampled_gap', 'gap_clip'))
K3 = Distillation('skills', losses=on_device('k3'))
TWO_VIEWS = Distillation(
  'other_view',
  gate=_two_view_gate,
  losses=on_device('two_view', 'action_weight'),
  weights=_view_weights,
)
VIEWS = Distillation(
  'skills', contrast='sibling', losses=on_device('adaptive_views', 'gap_clip')
)
INFLUENTIAL = Distillation(
  'skills', gate=sdar.selected_gate, losses=on_device('influential')
)
REFLECTED = Distillation('feedback', losses=_DIVERGENCE, whole_distribution=True)
LOST = dataclasses.replace(SAMPLED, weights=_lost_groups)
RETIRING = dataclasses.replace(SAMPLED, remember=_retirement)
