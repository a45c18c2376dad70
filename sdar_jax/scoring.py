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
  batch, length = tokens.shape
  count = -(-(length - 1) // chunk)
  padding = (0, count * chunk - (length - 1))
  hidden = jnp.pad(hidden[:, :-1], ((0, 0), padding, (0, 0)))
  targets = jnp.pad(tokens[:, 1:], ((0, 0), padding))
  hidden = hidden.reshape(batch, count, chunk, config.hidden_size).swapaxes(0, 1)
  targets = targets.reshape(batch, count, chunk).swapaxes(0, 1)

  @jax.checkpoint
  def score(inputs):
    return _score_chunk(config, params, *inputs, temperature, valid_vocab)

  def whole(chunks):
    row = chunks.swapaxes(0, 1).reshape(batch, count * chunk)[:, : length - 1]
    return jnp.pad(row, ((0, 0), (1, 0)))

  logprobs, entropy = jax.lax.map(score, (hidden, targets))
  return whole(logprobs), whole(entropy)
