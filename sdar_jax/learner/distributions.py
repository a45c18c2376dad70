"""Divergence of the policy's next-token distributions from a teacher's."""

import dataclasses
import functools
from typing import NamedTuple

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
    max_response_tokens: R; columns from prompt_lengths + R up count as masked.
  """

  kind: str
  topk: int
  jsd_weight: float
  token_clip: float
  max_response_tokens: int


class Places(NamedTuple):
  """Columns of responses.

  Attributes:
    prompt_lengths: [B] i32, the column of the response's first token.
    teacher_offset: [B] i32: response token t stands at t + offset with the teacher.
    response_mask: [B, T] bool, True where to compare.
  """

  prompt_lengths: jax.Array
  teacher_offset: jax.Array
  response_mask: jax.Array


def token_divergence(
  config: decoder.ModelConfig,
  heads: tuple[decoder.Params, decoder.Params],
  hidden: tuple[jax.Array, jax.Array],
  places: Places,
  how: Divergence,
  scoring: scoring_lib.Scoring,
) -> jax.Array:
  """Compares next-token distributions of student and teacher.

  D[b,t] = divergence(softmax z[b,t-1], softmax z'[b,t-1+teacher_offset[b]])

  with z, z' their masked logits. Only `chunk` response columns have logits at a time.

  Args:
    config: the model, the teacher's too; static under jit.
    heads: the student's parameters and the teacher's; only output heads are read, and
      gradients reach the student's.
    hidden: `hidden_states`, the student's [B, T, D] with a gradient, and the teacher's
      [B, T', D] without.
    places: where to compare.
    how: what is compared.
    scoring: its `temperature`, `valid_vocab` and `chunk`.

  Returns:
    [B, T] f32, nats; 0 without a gradient where masked, whatever stands there.

  Raises:
    ValueError: a size or weight is out of range; unknown `kind`.

  Source: OPSD (arXiv 2601.18734), SDPG (2606.04036); top-k: SDPO (2601.20802).
  """
  scoring_lib.check_sizes(config, scoring, how.topk)
  heads = tuple(decoder.output_head(config, params) for params in heads)
  heads = heads[0], jax.lax.stop_gradient(heads[1])
  student, teacher = hidden[0], jax.lax.stop_gradient(hidden[1])
  columns, there = _response_columns(places, how.max_response_tokens)
  student = _states_before(student, columns, there)
  teacher = _states_before(teacher, columns + places.teacher_offset[:, None], there)
  compare = functools.partial(_divergence_chunk, heads, how, scoring)
  values = scoring_lib.in_chunks(
    compare, (student, teacher), scoring.chunk, kept=(_TEACHER_TOPK,)
  )
  width = places.response_mask.shape[1]
  return _at_columns(jnp.where(there, values, 0.0), columns, width)


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


def _response_columns(places, longest):
  """Finds columns [B, R] of response tokens and which to compare."""
  count = min(longest, places.response_mask.shape[1])
  columns = jnp.arange(count) + places.prompt_lengths[:, None]
  # No state stands before column 0.
  return columns, _taken(places.response_mask, columns) & (columns > 0)


def _states_before(hidden, columns, there):
  """Takes hidden states [B, R, D] before `columns`; 0 where masked."""
  return jnp.where(there[..., None], _taken(hidden, columns - 1), 0)


def _taken(array, columns):
  """Takes `array[b, columns[b, r]]`; 0 beyond the row."""
  take = lambda row, at: row.at[at].get(mode='fill', fill_value=0)
  return jax.vmap(take)(array, columns)


def _at_columns(values, columns, width):
  """Puts `values` [B, R] at `columns` of [B, width], 0 elsewhere."""
  put = lambda row, at: jnp.zeros(width, row.dtype).at[at].set(row, mode='drop')
  return jax.vmap(put)(values, columns)
