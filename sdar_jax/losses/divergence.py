"""Divergences of whole distributions, student against teacher.

Over the full vocabulary, from logits that the caller hands in chunks of positions; or
over the teacher's top k and one bucket for the rest. Positions are independent, so
chunks concatenate to the whole. Gradients reach the student only.

  reverse_kl  KL(S || T)
  forward_kl  KL(T || S)
  jsd         w KL(T || M) + (1 - w) KL(S || M),  M = w T + (1 - w) S
"""

import math

import chex
import jax
import jax.numpy as jnp

from sdar_jax.losses.masked import Array
from sdar_jax.methods.hyperparameters import KEYS

KINDS = KEYS['divergence'].allowed


def full(
  student_logits: Array,
  teacher_logits: Array,
  *,
  kind: str,
  valid_vocab: int,
  jsd_weight: float = 0.5,
  token_clip: float = math.inf,
) -> jax.Array:
  """Computes the exact divergence per position over the whole vocabulary.

    min(τ, Σ_{v<V'} D_v(S, T)),  S, T = softmax of either's logits below V'

  Args:
    student_logits: [..., V] float at the temperature of the comparison.
    teacher_logits: [..., V] float.
    kind: one of `KINDS`.
    valid_vocab: V': ids from here up have no token; their logits may hold anything.
    jsd_weight: w, the teacher's share of the mixture, in (0, 1); only 'jsd' reads it.
    token_clip: τ, nats: a position beyond it counts as τ and has no gradient, so
      that a few stylistic tokens cannot dominate (OPSD: 0.05).

  Returns:
    [...] nats, >= 0 up to rounding.

  Raises:
    ValueError: unknown `kind`; `valid_vocab` or `jsd_weight` out of range.

  Source: OPSD (arXiv 2601.18734); generalised JSD: Agarwal et al. 2024 (arXiv
    2306.13649) eq. 1.
  """
  chex.assert_equal_shape([student_logits, teacher_logits])
  if not 0 < valid_vocab <= student_logits.shape[-1]:
    raise ValueError(
      f'valid_vocab={valid_vocab}: must be in 1 .. {student_logits.shape[-1]}'
    )
  student, teacher = (
    jax.nn.log_softmax(_possible(logits, valid_vocab), axis=-1)
    for logits in (student_logits, teacher_logits)
  )
  return _divergence(student, teacher, kind, jsd_weight, token_clip)


def topk(
  student_logprobs: Array,
  teacher_logprobs: Array,
  *,
  kind: str,
  jsd_weight: float = 0.5,
  token_clip: float = math.inf,
) -> jax.Array:
  """Computes the divergence over the teacher's k likeliest ids.

  All other ids are one bucket of probability 1 - Σₖ p: a lower bound of the exact
  divergence, equal to it at k = V.

  Args:
    student_logprobs: [..., k] float, nats: the student's full-vocabulary log-softmax
      at the teacher's top-k ids.
    teacher_logprobs: [..., k] float, nats: the teacher's own.
    kind, jsd_weight, token_clip: as in `full`.

  Returns:
    [...] nats, >= 0 up to rounding.

  Raises:
    ValueError: unknown `kind`; `jsd_weight` out of range.

  Source: SDPO (arXiv 2601.20802), top-k (k = 20) plus tail.
  """
  chex.assert_equal_shape([student_logprobs, teacher_logprobs])
  student, teacher = _with_tail(student_logprobs), _with_tail(teacher_logprobs)
  return _divergence(student, teacher, kind, jsd_weight, token_clip)


def _possible(logits, valid_vocab):
  """Logits in float32 at least, ids without a token at a finite floor."""
  logits = jnp.asarray(logits)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  # A comparison, not a slice: it stays local where the vocabulary is sharded.
  valid = jnp.arange(logits.shape[-1]) < valid_vocab
  return jnp.where(valid, logits, jnp.finfo(logits.dtype).min)


def _with_tail(logprobs):
  """Appends the log-probability of everything else as one more bucket."""
  inside = jax.nn.logsumexp(logprobs, axis=-1, keepdims=True)
  # Rounding can make the tail's mass <= 0; it is one unit in the last place at least.
  inside = jnp.minimum(inside, -jnp.finfo(inside.dtype).eps)
  near = inside > -math.log(2.0)  # Where 1 - e^x would cancel, and where e^x is small.
  outside = jnp.where(
    near,
    jnp.log(-jnp.expm1(jnp.where(near, inside, -1.0))),
    jnp.log1p(-jnp.exp(jnp.where(near, -1.0, inside))),
  )
  return jnp.concatenate([logprobs, outside], axis=-1)


def _divergence(student, teacher, kind, jsd_weight, token_clip):
  """Divergence of normalised log-probabilities, summed over the last axis."""
  if kind not in KINDS:
    raise ValueError(f'divergence={kind!r}: expected one of {KINDS}')
  teacher = jax.lax.stop_gradient(teacher)
  if kind == 'reverse_kl':
    per_id = _relative_entropy(student, teacher)
  elif kind == 'forward_kl':
    per_id = _relative_entropy(teacher, student)
  else:
    if not 0 < jsd_weight < 1:
      raise ValueError(f'jsd_weight={jsd_weight}: expected a number in (0, 1)')
    mixture = jnp.logaddexp(
      math.log(jsd_weight) + teacher, math.log1p(-jsd_weight) + student
    )
    per_id = jsd_weight * _relative_entropy(teacher, mixture)
    per_id += (1.0 - jsd_weight) * _relative_entropy(student, mixture)
  return jnp.minimum(jnp.sum(per_id, axis=-1), token_clip)


def _relative_entropy(left, right):
  """p log(p/q) by id, of log p and log q."""
  return jnp.exp(left) * (left - right)
