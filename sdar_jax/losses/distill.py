"""Self-distillation: the gap to the privileged teacher, the gated loss.

The teacher is the same network under a privileged prompt; only the sampled token's
log-probability enters here. Gates are in `methods.gates`, whole distributions in
`divergence`, variants in `variants`. Gradients reach `logprobs` only.
"""

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked
from sdar_jax.losses.masked import Array

GATE_BINS = 10  # Equal bins of [0, 1].
GATE_OPEN, GATE_SHUT = 0.6, 0.4  # Between them a gate says little: it starts at 1/2.
GAP_TURNS = 50  # Bins of the gap by turn: the paper's longest episode.


def gap(logprobs: Array, teacher_logprobs: Array, mask: Array) -> jax.Array:
  """Subtracts the student from the teacher: Δ = sg[log π_T - log π].

  Returns:
    [B, T] nats, 0 where masked; no gradient.

  Source: SDAR (arXiv 2605.15155); verl/trainer/ppo/sdar_utils.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank(logprobs, 2)
  logprobs, teacher_logprobs = masked.fill(mask, logprobs, teacher_logprobs)
  return jax.lax.stop_gradient(teacher_logprobs - logprobs)


def weighted(
  logprobs: Array, teacher_logprobs: Array, weights: Array, mask: Array
) -> jax.Array:
  """Weighs the distillation term of each token.

    ℓ = sg[w] · (log π_T - log π),  ∂ℓ/∂log π = -w

  With a gate for w this is SDAR's term. Its gradient is -w and nothing else: every
  sampled token is pushed up, and the teacher enters only through w. So a zero loss is
  not a no-op: where teacher and student agree, the loss is 0 and its gradient -1/2.

  Args:
    weights: [B, T] float: w, a gate or signed.

  Source: SDAR (arXiv 2605.15155), propositions 1-2, with w for its gate;
    verl/trainer/ppo/sdar_utils.py of ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank([logprobs, teacher_logprobs, weights], 2)
  logprobs, teacher_logprobs, weights = masked.fill(
    mask, logprobs, teacher_logprobs, weights
  )
  teacher_logprobs, weights = jax.lax.stop_gradient((teacher_logprobs, weights))
  return weights * (teacher_logprobs - logprobs)


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
