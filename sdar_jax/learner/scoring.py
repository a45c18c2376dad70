"""Log-probs, entropy and values of given tokens.

One pass of the decoder, `hidden_states`, serves several heads: log-probabilities and
entropy (`scores_of`), the critic's values (`token_values`) and the divergence from a
teacher (`distributions`). What is said of column t comes from hidden column t - 1.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from sdar_jax.models import decoder

MASKED_LOGIT = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class Scoring:
  """Settings of scoring; static under jit.

  Attributes:
    temperature: divides the logits, > 0.
    valid_vocab: ids from here up are impossible; at most the model's vocab_size.
    dtype: compute dtype of the decoder; logits and log-softmax are float32.
    remat: recompute the decoder's layers in the backward pass.
    chunk: positions (rows x columns of T) per pass of the output head.
  """

  temperature: float
  valid_vocab: int
  dtype: Any
  remat: bool
  chunk: int


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
  config: decoder.ModelConfig,
  params: decoder.Params,
  tokens: jax.Array,
  positions: jax.Array | None,
  scoring: Scoring,
) -> jax.Array:
  """Runs the decoder without a head on right-padded rows.

  Args:
    config: the model; static under jit.
    params: parameters as `decoder.forward` takes them.
    tokens: [B, T] i32, right-padded rows.
    positions: [B, T] i32; None is 0, 1, .. T - 1 in every row.
    scoring: its `dtype` and `remat`.

  Returns:
    [B, T, D] in `dtype`, after the final norm; column t has seen tokens 0 .. t.
  """
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return decoder.forward(
    config, params, tokens, positions, dtype=scoring.dtype, remat=scoring.remat
  )[0]


def scores_of(
  config: decoder.ModelConfig,
  params: decoder.Params,
  hidden: jax.Array,
  tokens: jax.Array,
  scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
  """Scores each token after the hidden state before it.

  logprobs[b,t] = z[b,t-1,tokens[b,t]] - log sum_v exp z[b,t-1,v]
  entropy[b,t]  = -sum_v p[b,t-1,v] log p[b,t-1,v];  p = softmax(z)

  with z the masked logits at `temperature`. The output head is gathered once; it runs
  over `chunk` positions at a time and is recomputed in the backward pass, so the
  largest array is [chunk, V].

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
  check_sizes(config, scoring)

  head = decoder.output_head(config, params)

  def score(inputs):
    return _score_chunk(head, scoring, *inputs)

  scores = in_chunks(score, (hidden[:, :-1], tokens[:, 1:]), scoring.chunk)
  return tuple(_shifted(value) for value in scores)


def token_logprobs(
  config: decoder.ModelConfig,
  params: decoder.Params,
  tokens: jax.Array,
  positions: jax.Array | None,
  scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
  """Scores each token given those before it.

  `scores_of` the `hidden_states`.

  Args:
    config: the model; static under jit.
    params: parameters as `decoder.forward` takes them.
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


def init_value_head(config: decoder.ModelConfig) -> dict[str, jax.Array]:
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


def check_sizes(config, scoring, topk=0):
  """Raises ValueError for sizes that the vocabulary does not have."""
  valid = scoring.valid_vocab
  if scoring.chunk < 1:
    raise ValueError(f'chunk {scoring.chunk}: must be at least 1')
  if not 0 < valid <= config.vocab_size:
    raise ValueError(f'valid_vocab {valid}: must be in 1 .. {config.vocab_size}')
  if not 0 <= topk <= valid:
    raise ValueError(f'topk {topk}: must be in 0 .. valid_vocab = {valid}')


def head_logits(head, hidden, scoring):
  """Computes masked logits after `hidden` with an output head."""
  logits = decoder.project(head, hidden)
  return masked_logits(logits, scoring.temperature, scoring.valid_vocab)


def _shifted(values):
  """Shifts by one: column t - 1 scores token t; 0 at index 0."""
  return jnp.pad(values, ((0, 0), (1, 0)))


def _score_chunk(head, scoring, hidden, targets):
  """Computes log-probability and entropy, [B, C], of `targets`."""
  scaled = head_logits(head, hidden, scoring)
  log_normaliser = jax.nn.logsumexp(scaled, axis=-1)
  # A comparison, not a gather: it stays local where the vocabulary is sharded.
  ids = jnp.arange(scaled.shape[-1])
  chosen = jnp.where(ids == targets[..., None], scaled, 0.0).sum(-1)
  probabilities = jnp.exp(scaled - log_normaliser[..., None])
  finite = jnp.where(ids < scoring.valid_vocab, scaled, 0.0)
  entropy = log_normaliser - (probabilities * finite).sum(-1)
  return chosen - log_normaliser, entropy


def in_chunks(score, inputs, chunk, kept=()):
  """Maps `score` over chunks of columns, recomputed but for names `kept`."""
  rows, length = inputs[0].shape[:2]
  chunk = max(1, chunk // rows)
  if length <= chunk:
    return score(inputs)  # Not a loop of one: XLA keeps one core in loops on CPU.
  count = -(-length // chunk)

  def split(array):
    widths = [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (array.ndim - 2)
    array = jnp.pad(array, widths)
    return array.reshape(array.shape[0], count, chunk, *array.shape[2:]).swapaxes(0, 1)

  def join(array):
    return array.swapaxes(0, 1).reshape(array.shape[1], -1)[:, :length]

  policy = jax.checkpoint_policies.save_only_these_names(*kept)
  scores = jax.lax.map(
    jax.checkpoint(score, policy=policy), jax.tree.map(split, inputs)
  )
  return jax.tree.map(join, scores)
