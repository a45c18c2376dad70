"""What the objective reports of policy, gap and gate; no gradient.

Sums and counts, so that those of disjoint parts of a minibatch add up to its own.
"""

import jax
import jax.numpy as jnp

from sdar_jax.losses import masked, policy
from sdar_jax.losses.masked import Array

GATE_BINS = 10  # Equal bins of [0, 1].
GATE_OPEN, GATE_SHUT = 0.6, 0.4  # Between them a gate says little: it starts at 1/2.
GAP_TURNS = 50  # Bins of the gap by turn: the paper's longest episode.


def surrogate_metrics(
  logprobs: Array,
  old_logprobs: Array,
  advantages: Array,
  mask: Array,
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float,
) -> masked.Metrics:
  """Measures the policy's move, and clips of `policy.clipped_surrogate`.

  Args are those of `policy.clipped_surrogate`.

  Returns:
    (sum, tokens) each of: ratio; log_ratio_abs (nats); log_ratio_clamped (share
    beyond ±20 nats); approx_kl (k1 of old to current, nats); clip_high, clip_low,
    clip_dual (shares of tokens whose gradient that clip removes; the reference's
    pg_clipfrac is clip_high + clip_low).

  Source: verl/trainer/ppo/core_algos.py of ZJU-REAL/SDAR@8b85c23.
  """
  logprobs = jax.lax.stop_gradient(logprobs)
  (advantages,) = masked.fill(mask, advantages)
  current, old = masked.fill(mask, logprobs, old_logprobs)
  ratio = jnp.exp(policy.log_ratio(logprobs, old_logprobs, mask))
  losses, clipped = policy.pessimistic(ratio, advantages, clip_low, clip_high)
  values = {
    'ratio': ratio,
    'log_ratio_clamped': jnp.abs(current - old) > policy.LOG_RATIO_LIMIT,
    'clip_high': clipped & (advantages > 0),
    'clip_low': clipped & (advantages < 0),
    'clip_dual': (advantages < 0) & (losses > -advantages * dual_clip),
  }
  return totals(values, current, old, mask)


def totals(values, current, old, mask) -> masked.Metrics:
  """Sums a surrogate's metrics, and those of the log ratio, over tokens."""
  values |= {'log_ratio_abs': jnp.abs(current - old), 'approx_kl': old - current}
  return {name: masked.total(value, mask) for name, value in values.items()}


def gap_metrics(
  gap: Array, mask: Array, response_mask: Array, turn_ids: Array
) -> masked.Metrics:
  """Sums the gap's metrics.

  Args:
    gap: [B, T] float, nats.
    mask: [B, T] bool, taught tokens.
    response_mask: [B, T] bool.
    turn_ids: [B] int.

  Returns:
    (sum, count) each of: gap (nats) and gap_positive (share) over taught tokens,
    taught (share of response tokens), and gap_by_turn, [GAP_TURNS] sums and counts.

  Source: verl/trainer/ppo/sdar_utils.py of ZJU-REAL/SDAR@8b85c23 (gate_active_ratio,
    teacher_gap_mean); the rest is ours.
  """
  return {
    'gap': masked.total(gap, mask),
    'gap_positive': masked.total(gap > 0, mask),
    'gap_by_turn': gap_by_turn(gap, mask, turn_ids, num_turns=GAP_TURNS),
    'taught': masked.total(mask, response_mask),
  }


def gate_metrics(gate: Array, mask: Array, *, distill_coef: float) -> masked.Metrics:
  """Sums the gate's metrics.

  Args:
    gate: [B, T] in [0, 1].
    distill_coef: λ, advantage units.

  Returns:
    (sum, tokens) each of: gate, gate_open and gate_shut (shares beyond `GATE_OPEN` and
    `GATE_SHUT`), distill_abs (|distill_coef * gate|, to hold against advantage_abs),
    and gate_histogram, whose sum is [GATE_BINS] token counts over equal bins of [0, 1].

  Source: verl/trainer/ppo/sdar_utils.py of ZJU-REAL/SDAR@8b85c23 (gate_mean); the rest
    is ours.
  """
  (gate,) = masked.fill(mask, gate)
  metrics = {
    'gate': masked.total(gate, mask),
    'gate_open': masked.total(gate > GATE_OPEN, mask),
    'gate_shut': masked.total(gate < GATE_SHUT, mask),
    'distill_abs': masked.total(jnp.abs(distill_coef * gate), mask),
  }
  bins = jnp.minimum((gate * GATE_BINS).astype(jnp.int32), GATE_BINS - 1)
  hits = (bins[..., None] == jnp.arange(GATE_BINS)) & mask[..., None]
  tokens = metrics['gate'][1]
  metrics['gate_histogram'] = (jnp.sum(hits, axis=(0, 1)).astype(tokens.dtype), tokens)
  return metrics


def gap_by_turn(
  gap: Array, mask: Array, turn_ids: Array, *, num_turns: int
) -> tuple[jax.Array, jax.Array]:
  """Sums the gap and counts its tokens by turn.

  Args:
    gap: [B, T] float, nats.
    turn_ids: [B] int, from 0; later turns than the last bin fall into it.
    num_turns: number of bins.

  Returns:
    ([num_turns] sums in nats, [num_turns] token counts).
  """
  (gap,) = masked.fill(mask, jax.lax.stop_gradient(gap))
  hits = jnp.minimum(turn_ids, num_turns - 1)[:, None] == jnp.arange(num_turns)
  sums = jnp.where(hits, jnp.sum(gap, axis=1)[:, None], 0.0)
  counts = jnp.where(hits, jnp.sum(mask, axis=1)[:, None], 0)
  return jnp.sum(sums, axis=0), jnp.sum(counts, axis=0).astype(gap.dtype)
