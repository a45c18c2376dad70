"""Self-distillation: the gap to the privileged teacher, the gated loss.

The teacher is the same network under a privileged prompt; only the sampled token's
log-probability enters here. Gates are in `methods.gates`, whole distributions in
`divergence`, variants in `variants`. Gradients reach `logprobs` only.
"""

import chex
import jax

from sdar_jax.losses import masked
from sdar_jax.losses.masked import Array


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
