"""Log-probs, entropy, values and divergence of given tokens.

One pass of the decoder, `hidden_states`, serves several heads: log-probabilities and
entropy (`scores_of`), the critic's values (`token_values`) and the divergence from a
teacher (`token_divergence`). What is said of column t comes from hidden column t - 1.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from sdar_jax.losses import divergence
from sdar_jax.models import qwen

MASKED_LOGIT = float(jnp.finfo(jnp.float32).min)
# Small, and dear to compute: kept for the backward pass of a chunk, not recomputed.
_TEACHER_TOPK = 'teacher_topk'


@dataclasses.dataclass(frozen=True)
class Scoring:
  """Settings of scoring; static under jit.

  Attributes:
    temperature: divides the logits, > 0.
    valid_vocab: ids from here up are impossible; at most the model's vocab_size.
    dtype: compute dtype of the decoder; logits and log-softmax are float32.
    remat: recompute the decoder's layers in the backward pass.
    chunk: columns of T per pass of the output head.
  """

  temperature: float
  valid_vocab: int
  dtype: Any
  remat: bool
  chunk: int


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


def masked_logits(
  logits: jax.Array, temperature: float | jax.Array, valid_vocab: int
) -> jax.Array:
  """Applies the temperature and makes ids without a token impossible.

  z[v] = logits[v] / temperature for v < valid_vocab, else the least float32

  Args:
    logits: [..., V] f32.
    temperature: scalar > 0.
    valid_vocab: ids from here up have no token.

  Returns:
    [..., V] f32. The floor is finite, so that no gradient is NaN.
  """
  valid = jnp.arange(logits.shape[-1]) < valid_vocab
  return jnp.where(valid, logits / temperature, MASKED_LOGIT)


def hidden_states(
  config: qwen.ModelConfig,
  params: qwen.Params,
  tokens: jax.Array,
  positions: jax.Array | None,
  scoring: Scoring,
) -> jax.Array:
  """Runs the decoder without a head on right-padded rows.

  Args:
    config: the model; static under jit.
    params: parameters as `qwen.forward` takes them.
    tokens: [B, T] i32, right-padded rows.
    positions: [B, T] i32; None is 0, 1, .. T - 1 in every row.
    scoring: its `dtype` and `remat`.

  Returns:
    [B, T, D] in `dtype`, after the final norm; column t has seen tokens 0 .. t.
  """
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return qwen.forward(
    config, params, tokens, positions, dtype=scoring.dtype, remat=scoring.remat
  )[0]


def scores_of(
  config: qwen.ModelConfig,
  params: qwen.Params,
  hidden: jax.Array,
  tokens: jax.Array,
  scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
  """Scores each token after the hidden state before it.

  logprobs[b,t] = z[b,t-1,tokens[b,t]] - log sum_v exp z[b,t-1,v]
  entropy[b,t]  = -sum_v p[b,t-1,v] log p[b,t-1,v];  p = softmax(z)

  with z the masked logits at `temperature`. The output head runs over `chunk` columns
  at a time and is recomputed in the backward pass, so the largest array is
  [B, chunk, V].

  Args:
    config: the model; static under jit.
    params: nested dict; only the output head is read.
    hidden: [B, T, D] of `hidden_states`.
    tokens: [B, T] i32, the same rows.
    scoring: its `temperature`, `valid_vocab` and `chunk`.

  Returns:
    logprobs and entropy, [B, T] f32, nats; 0 at index 0. A token >= `valid_vocab` has
    about -3.4e38.

  Raises:
    ValueError: `chunk` or `valid_vocab` is out of range.
  """
  _check_sizes(config, scoring)

  def score(inputs):
    return _score_chunk(config, params, scoring, *inputs)

  scores = _in_chunks(score, (hidden[:, :-1], tokens[:, 1:]), scoring.chunk)
  return tuple(_shifted(value) for value in scores)


def token_logprobs(
  config: qwen.ModelConfig,
  params: qwen.Params,
  tokens: jax.Array,
  positions: jax.Array | None,
  scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
  """Scores each token given those before it.

  `scores_of` the `hidden_states`.

  Args:
    config: the model; static under jit.
    params: parameters as `qwen.forward` takes them.
    tokens: [B, T] i32, right-padded rows.
    positions: [B, T] i32; None is 0, 1, .. T - 1 in every row.
    scoring: how.

  Returns:
    logprobs and entropy, [B, T] f32, nats, as `scores_of` returns them.

  Raises:
    ValueError: `chunk` or `valid_vocab` is out of range.
  """
  hidden = hidden_states(config, params, tokens, positions, scoring)
  return scores_of(config, params, hidden, tokens, scoring)


def init_value_head(config: qwen.ModelConfig) -> dict[str, jax.Array]:
  """Makes a value head of zeros: `kernel` [D] f32 and `bias` [] f32."""
  return {'kernel': jnp.zeros(config.hidden_size), 'bias': jnp.zeros(())}


def token_values(hidden: jax.Array, value_head: dict[str, jax.Array]) -> jax.Array:
  """Estimates the value before each token, from the policy's trunk.

  values[b,t] = hidden[b,t-1] . kernel + bias

  Args:
    hidden: [B, T, D] of `hidden_states`.
    value_head: `kernel` [D] and `bias` [], f32, of `init_value_head` or trained.

  Returns:
    [B, T] f32, return units; 0 at index 0.

  Source: PPO (arXiv 1707.06347) sec. 5, a value function that shares the policy's
    parameters.
  """
  chex.assert_shape(value_head['kernel'], hidden.shape[-1:])
  # Not a matmul: accelerators would round its float32 inputs to half precision.
  products = hidden[:, :-1].astype(jnp.float32) * value_head['kernel']
  return _shifted(products.sum(-1) + value_head['bias'])


def token_divergence(
  config: qwen.ModelConfig,
  heads: tuple[qwen.Params, qwen.Params],
  hidden: tuple[jax.Array, jax.Array],
  places: Places,
  how: Divergence,
  scoring: Scoring,
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
  _check_sizes(config, scoring, how.topk)
  heads = heads[0], jax.lax.stop_gradient(heads[1])
  student, teacher = hidden[0], jax.lax.stop_gradient(hidden[1])
  columns, there = _response_columns(places, how.max_response_tokens)
  student = _states_before(student, columns, there)
  teacher = _states_before(teacher, columns + places.teacher_offset[:, None], there)
  compare = functools.partial(_divergence_chunk, config, heads, how, scoring)
  values = _in_chunks(compare, (student, teacher), scoring.chunk)
  width = places.response_mask.shape[1]
  return _at_columns(jnp.where(there, values, 0.0), columns, width)


def _check_sizes(config, scoring, topk=0):
  valid = scoring.valid_vocab
  if scoring.chunk < 1:
    raise ValueError(f'chunk {scoring.chunk}: must be at least 1')
  if not 0 < valid <= config.vocab_size:
    raise ValueError(f'valid_vocab {valid}: must be in 1 .. {config.vocab_size}')
  if not 0 <= topk <= valid:
    raise ValueError(f'topk {topk}: must be in 0 .. valid_vocab = {valid}')


def _logits(config, head, hidden, scoring):
  """Computes masked logits after `hidden`."""
  logits = qwen.logits(config, head, hidden)
  return masked_logits(logits, scoring.temperature, scoring.valid_vocab)


def _shifted(values):
  """Shifts by one: column t - 1 scores token t; 0 at index 0."""
  return jnp.pad(values, ((0, 0), (1, 0)))


def _score_chunk(config, params, scoring, hidden, targets):
  """Computes log-probability and entropy, [B, C], of `targets`."""
  scaled = _logits(config, params, hidden, scoring)
  log_normaliser = jax.nn.logsumexp(scaled, axis=-1)
  # A comparison, not a gather: it stays local where the vocabulary is sharded.
  ids = jnp.arange(scaled.shape[-1])
  chosen = jnp.where(ids == targets[..., None], scaled, 0.0).sum(-1)
  probabilities = jnp.exp(scaled - log_normaliser[..., None])
  finite = jnp.where(ids < scoring.valid_vocab, scaled, 0.0)
  entropy = log_normaliser - (probabilities * finite).sum(-1)
  return chosen - log_normaliser, entropy


def _divergence_chunk(config, heads, how, scoring, states):
  """Computes divergence [B, C] after both `states`, [B, C, D]."""
  student, teacher = (
    _logits(config, head, hidden, scoring) for head, hidden in zip(heads, states)
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


def _in_chunks(score, inputs, chunk):
  """Maps `score` over chunks of columns, recomputed backward."""
  length = inputs[0].shape[1]
  if length <= chunk:
    return score(inputs)  # Not a loop of one: XLA keeps one core in loops on CPU.
  count = -(-length // chunk)

  def split(array):
    widths = [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (array.ndim - 2)
    array = jnp.pad(array, widths)
    return array.reshape(array.shape[0], count, chunk, *array.shape[2:]).swapaxes(0, 1)

  def join(array):
    return array.swapaxes(0, 1).reshape(array.shape[1], -1)[:, :length]

  policy = jax.checkpoint_policies.save_only_these_names(_TEACHER_TOPK)
  scores = jax.lax.map(
    jax.checkpoint(score, policy=policy), jax.tree.map(split, inputs)
  )
  return jax.tree.map(join, scores)


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
