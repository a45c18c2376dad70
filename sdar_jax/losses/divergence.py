r"""Divergences between the student's and the teacher's whole distributions.

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

KINDS = ('reverse_kl', 'forward_kl', 'jsd')
REMAINDERS = ('tail', 'renormalise')


def full(
  student_logits: Array,
  teacher_logits: Array,
  *,
  kind: str,
  valid_vocab: int,
  jsd_weight: float = 0.5,
  token_clip: float = math.inf,
) -> jax.Array:
  r"""Exact divergence per position over the whole vocabulary.

  \[ \min\Big(\tau,\ \sum_{v < V'} D_v(S, T)\Big), \qquad
     S, T = \mathrm{softmax}(z^S_{v<V'}), \mathrm{softmax}(z^T_{v<V'}) \]

  Args:
    student_logits: [..., V] float at the temperature of the comparison; the only input
      with a gradient.
    teacher_logits: [..., V] float.
    kind: one of `KINDS`.
    valid_vocab: V': ids from here up have no token; their logits may hold anything.
    jsd_weight: w, the teacher's share of the mixture, in (0, 1); only 'jsd' reads it.
    token_clip: tau, nats: a position beyond it counts as tau and has no gradient, so
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
  remainder: str = 'tail',
  jsd_weight: float = 0.5,
  token_clip: float = math.inf,
) -> jax.Array:
  r"""Divergence per position over the teacher's k likeliest ids and the rest.

  With 'tail' everything else is one bucket of probability 1 - sum_k p: a lower bound
  of the exact divergence, equal to it at k = V. With 'renormalise' the k ids are taken
  for the whole vocabulary, and mass that the student puts elsewhere costs nothing.

  Args:
    student_logprobs: [..., k] float, nats: the student's full-vocabulary log-softmax
      at the teacher's top-k ids; the only input with a gradient.
    teacher_logprobs: [..., k] float, nats: the teacher's own.
    kind: one of `KINDS`.
    remainder: one of `REMAINDERS`.
    jsd_weight: as in `full`.
    token_clip: as in `full`.

  Returns:
    [...] nats, >= 0 up to rounding.

  Raises:
    ValueError: unknown `kind` or `remainder`; `jsd_weight` out of range.

  Source: SDPO (arXiv 2601.20802), top-k (k = 20) plus tail; 'renormalise': UCOB
    (arXiv 2606.29502), k = 32.
  """
  chex.assert_equal_shape([student_logprobs, teacher_logprobs])
  if remainder not in REMAINDERS:
    raise ValueError(f'remainder={remainder!r}: expected one of {REMAINDERS}')
  close = _with_tail if remainder == 'tail' else jax.nn.log_softmax
  student, teacher = close(student_logprobs), close(teacher_logprobs)
  return _divergence(student, teacher, kind, jsd_weight, token_clip)


def _possible(logits, valid_vocab):
  """Logits in float32 at least, with the ids that have no token at a finite floor."""
  logits = jnp.asarray(logits)
  logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
  # A comparison, not a slice: it stays local where the vocabulary is sharded.
  valid = jnp.arange(logits.shape[-1]) < valid_vocab
  return jnp.where(valid, logits, jnp.finfo(logits.dtype).min)


def _with_tail(logprobs):
  """The log-probabilities and, as one more bucket, that of everything else."""
  inside = jax.nn.logsumexp(logprobs, axis=-1, keepdims=True)
  # Rounding may leave no mass, or less; then the tail is one unit in the last place.
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
