"""Self-distillation: the gap to the privileged teacher, and its losses.

The teacher is the same network under a privileged prompt; only the sampled token's
log-probability enters here. Gates are in `methods.gates`, whole distributions in
`divergence`. Gradients reach `logprobs` only.
"""

import math

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses import masked
from sdar_jax.losses.masked import Array

GATE_BINS = 10  # Equal bins of [0, 1].
GATE_OPEN, GATE_SHUT = 0.6, 0.4  # Between them a gate says little: it starts at 1/2.
GAP_TURNS = 50  # Bins of the gap by turn: the paper's longest episode.
SKILL_SD_GAP_LIMIT = 20.0
SKILL_SD_LOG_RATIO_LIMIT = 10.0


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


def ratio_weights(
  weights: Array,
  logprobs: Array,
  old_logprobs: Array,
  mask: Array,
  *,
  ratio_limit: float,
) -> jax.Array:
  """Multiplies weights by the truncated ratio: w · min(sg[π/π_old], c).

  With it the gradient of `weighted` is the current policy's again, up to the
  truncation. At ratio 1 it leaves the weights as they are, bit for bit.

  Args:
    weights: [B, T] float: w.
    ratio_limit: c, >= 1.

  Returns:
    [B, T], 0 where masked; no gradient.

  Source: ours; truncation after Ionides 2008 (truncated importance sampling).
  """
  chex.assert_rank([weights, logprobs, old_logprobs], 2)
  logprobs, old_logprobs, weights = masked.fill(mask, logprobs, old_logprobs, weights)
  log_ratio = jnp.minimum(logprobs - old_logprobs, math.log(ratio_limit))
  return jax.lax.stop_gradient(weights * jnp.exp(log_ratio))


def centred(gate: Array, mask: Array, mean: Array | float) -> jax.Array:
  """Subtracts the step's mean from a gate, so that only differences teach.

  The constant part of a gate pushes every sampled token up whatever the teacher
  thinks: no signal, only variance (and, off policy, a loss of entropy).

  Args:
    gate: [B, T] in [0, 1].
    mean: scalar, one for all microbatches of a step, or they would disagree.

  Returns:
    [B, T] in [-1, 1], 0 where masked; no gradient.

  Source: ours: a baseline for SDAR's gradient, which is REINFORCE with the token
    reward g.
  """
  chex.assert_rank([gate, mean], [2, 0])
  (out,) = masked.fill(mask, gate - mean)
  return jax.lax.stop_gradient(out)


def gate_advantages(
  advantages: Array, gate: Array, mask: Array, *, distill_coef: float
) -> jax.Array:
  """Adds the gate to advantages, A + λg: ratio and clips apply to it too.

  Where the ratio is 1 and the token unclipped, the surrogate of these advantages has
  the gradient of the surrogate of A plus λ times `weighted` by the gate.

  Args:
    gate: [B, T] in (0, 1).
    distill_coef: λ, advantage units.

  Returns:
    [B, T] advantages, 0 where masked.

  Source: ours, from the identity that on the policy's own samples the loss form is
    REINFORCE with the token reward g.
  """
  advantages, gate = masked.fill(mask, advantages, gate)
  return advantages + distill_coef * gate


def opsd(
  logprobs: Array, teacher_logprobs: Array, mask: Array, *, gap_clip: float
) -> jax.Array:
  """Credits tokens with the gap, of either sign (OPSD).

    ℓ = -sg[clip(Δ, -τ, τ)] · log π

  Without the clip the expected gradient on the policy's own samples is that of
  KL(π || π_T): tokens that the teacher finds likelier go up, others down. The term of
  this name in ZJU-REAL/SDAR@8b85c23 is SDAR's gated one, which pushes every token up;
  its GRPO+OPSD has gate_beta = 0, where the gate is 1/2 and the gradient does not
  contain the teacher at all.

  Args:
    gap_clip: τ, nats, > 0; math.inf for none.

  Returns:
    [B, T] nats squared, to be minimised (only its gradient means anything); 0 where
    masked.

  Source: OPSD (arXiv 2601.18734), its sampled-token form; issue 16 of ZJU-REAL/SDAR.
  """
  credit = jnp.clip(gap(logprobs, teacher_logprobs, mask), -gap_clip, gap_clip)
  (logprobs,) = masked.fill(mask, logprobs)
  return -credit * logprobs


def skill_sd(
  logprobs: Array, old_logprobs: Array, teacher_logprobs: Array, mask: Array
) -> jax.Array:
  """Estimates KL(π || π_T) by k3, weighted by importance (Skill-SD).

    d = log π - log π_T,  k3 = exp(min(-d, 20)) - 1 + d,
    ρ = exp(min(log π - log π_old, 10)),  ℓ = ρ·k3

  The gradient flows through ρ as well as through k3.

  Source: Skill-SD (arXiv 2604.10674); verl/trainer/ppo/skillsd_utils.py of
    ZJU-REAL/SDAR@8b85c23.
  """
  chex.assert_rank(logprobs, 2)
  logprobs, old_logprobs, teacher_logprobs = masked.fill(
    mask, logprobs, old_logprobs, teacher_logprobs
  )
  lead = logprobs - jax.lax.stop_gradient(teacher_logprobs)
  k3 = jnp.expm1(jnp.minimum(-lead, SKILL_SD_GAP_LIMIT)) + lead
  moved = logprobs - jax.lax.stop_gradient(old_logprobs)
  return jnp.exp(jnp.minimum(moved, SKILL_SD_LOG_RATIO_LIMIT)) * k3


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
