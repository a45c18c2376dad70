"""Log-probabilities and entropy of given tokens, without a [B, T, V] array."""

from typing import Any

import jax
import jax.numpy as jnp

from sdar_jax.models import qwen

MASKED_LOGIT = float(jnp.finfo(jnp.float32).min)


def masked_logits(
  logits: jax.Array, temperature: float | jax.Array, valid_vocab: int
) -> jax.Array:
  """Logits at a temperature with the ids that have no token made impossible.

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


def _score_chunk(config, params, hidden, targets, temperature, valid_vocab):
  """Log-probability and entropy, [B, C] each, of `targets` after `hidden`."""
  scaled = masked_logits(qwen.logits(config, params, hidden), temperature, valid_vocab)
  log_normaliser = jax.nn.logsumexp(scaled, axis=-1)
  # A comparison, not a gather: it stays local where the vocabulary is sharded.
  ids = jnp.arange(scaled.shape[-1])
  chosen = jnp.where(ids == targets[..., None], scaled, 0.0).sum(-1)
  probabilities = jnp.exp(scaled - log_normaliser[..., None])
  finite = jnp.where(ids < valid_vocab, scaled, 0.0)
  entropy = log_normaliser - (probabilities * finite).sum(-1)
  return chosen - log_normaliser, entropy


def token_logprobs(
  config: qwen.ModelConfig,
  params: qwen.Params,
  tokens: jax.Array,
  positions: jax.Array,
  *,
  temperature: float,
  valid_vocab: int,
  dtype: Any,
  remat: bool,
  chunk: int,
) -> tuple[jax.Array, jax.Array]:
  """Log-probability of each token given those before it, and the entropy there.

  logprobs[b,t] = z[b,t-1,tokens[b,t]] - log sum_v exp z[b,t-1,v]
  entropy[b,t]  = -sum_v p[b,t-1,v] log p[b,t-1,v];  p = softmax(z)

  with z the masked logits at `temperature`. The output head runs over `chunk` columns
  at a time and is recomputed in the backward pass, so the largest array is
  [B, chunk, V].

  Args:
    config: the model; static under jit.
    params: parameters as `qwen.forward` takes them.
    tokens: [B, T] i32, right-padded rows.
    positions: [B, T] i32.
    temperature: scalar > 0.
    valid_vocab: ids from here up are impossible; at most config.vocab_size.
    dtype: compute dtype of the decoder; logits and log-softmax are float32.
    remat: recompute the decoder's layers in the backward pass.
    chunk: columns of T per pass of the output head.

  Returns:
    logprobs and entropy, [B, T] f32, nats; 0 at index 0. A token >= `valid_vocab` has
    about -3.4e38.

  Raises:
    ValueError: `chunk` or `valid_vocab` is out of range.
  """
  if chunk < 1:
    raise ValueError(f'chunk {chunk}: must be at least 1')
  if not 0 < valid_vocab <= config.vocab_size:
    raise ValueError(f'valid_vocab {valid_vocab}: must be in 1 .. {config.vocab_size}')
  hidden, _ = qwen.forward(config, params, tokens, positions, dtype=dtype, remat=remat)

  def score(inputs):
    return _score_chunk(config, params, *inputs, temperature, valid_vocab)

  inputs = (hidden[:, :-1], tokens[:, 1:])
  if tokens.shape[1] - 1 <= chunk:
    scores = score(inputs)  # Not a loop of one: XLA keeps one core in loops on CPU.
  else:
    scores = _in_chunks(score, inputs, chunk)
  return tuple(jnp.pad(value, ((0, 0), (1, 0))) for value in scores)


def _in_chunks(score, inputs, chunk):
  """`score` over pieces of at most `chunk` columns, recomputed in the backward pass."""
  length = inputs[0].shape[1]
  count = -(-length // chunk)

  def split(array):
    widths = [(0, 0), (0, count * chunk - length)] + [(0, 0)] * (array.ndim - 2)
    array = jnp.pad(array, widths)
    return array.reshape(array.shape[0], count, chunk, *array.shape[2:]).swapaxes(0, 1)

  scores = jax.lax.map(jax.checkpoint(score), jax.tree.map(split, inputs))
  return [v.swapaxes(0, 1).reshape(v.shape[1], -1)[:, :length] for v in scores]
