"""Divergence of the policy's next-token distributions from a teacher's."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sdar_jax.learner import scoring as scoring_lib
from sdar_jax.losses import divergence
from sdar_jax.models import decoder

# Small, and dear to compute: kept for the backward pass of a chunk, not recomputed.
_TEACHER_TOPK = 'teacher_topk'


@dataclasses.dataclass(frozen=True)
class Divergence:
  """Settings of a divergence; static under jit.

  Attributes:
    kind, jsd_weight, token_clip: as in `divergence.topk`; inf is no clip.
    topk: k, the teacher's likeliest ids to compare; 0 is the whole vocabulary.
  """

  kind: str
  topk: int
  jsd_weight: float
  token_clip: float


def token_divergence(
  config: decoder.ModelConfig,
  heads: tuple[decoder.Params, decoder.Params],
  states: tuple[jax.Array, jax.Array],
  how: Divergence,
  scoring: scoring_lib.Scoring,
) -> jax.Array:
  """Compares next-token distributions of student and teacher.

  D[b,n] = divergence(softmax z[b,n], softmax z'[b,n])

  with z, z' their masked logits. Only `chunk` positions have logits at a time.

  Args:
    config: the model, the teacher's too; static under jit.
    heads: the student's parameters and the teacher's; only output heads are read, and
      gradients reach the student's.
    states: [B, N, D] each, the student's with a gradient and the teacher's without, of
      the token before each that is compared at.
    how: what is compared.
    scoring: its `temperature`, `valid_vocab` and `chunk`.

  Returns:
    [B, N] f32, nats.

  Raises:
    ValueError: a size or weight is out of range; unknown `kind`.

  Source: OPSD (arXiv 2601.18734), SDPG (2606.04036); top-k: SDPO (2601.20802).
  """
  scoring_lib.check_sizes(config, scoring, how.topk)
  heads = tuple(decoder.output_head(config, params) for params in heads)
  heads = heads[0], jax.lax.stop_gradient(heads[1])
  states = states[0], jax.lax.stop_gradient(states[1])
  compare = functools.partial(_divergence_chunk, heads, how, scoring)
  return scoring_lib.in_chunks(compare, states, scoring.chunk, kept=(_TEACHER_TOPK,))


def _divergence_chunk(heads, how, scoring, states):
  """Computes divergence [B, C] after both `states`, [B, C, D]."""
  student, teacher = (
    scoring_lib.head_logits(*pair, scoring) for pair in zip(heads, states)
  )
  options = {
    'kind': how.kind,
    'jsd_weight': how.jsd_weight,
    'token_clip': how.token_clip,
  }
  if not how.topk:
    valid = scoring.valid_vocab
    return divergence.full(student, teacher, valid_vocab=valid, **options)
  # At this recall exact; and local where rows are sharded, which `top_k` is not.
  best, ids = jax.lax.approx_max_k(teacher, how.topk, recall_target=1.0)
  best -= jax.nn.logsumexp(teacher, axis=-1, keepdims=True)
  best, ids = checkpoint_name((best, ids), _TEACHER_TOPK)
  chosen = jnp.take_along_axis(student, ids, axis=-1)
  chosen -= jax.nn.logsumexp(student, axis=-1, keepdims=True)
  return divergence.topk(chosen, best, **options)
