"""Log-probs and entropy of given tokens.

One pass of the decoder, `hidden_states`, serves several heads: log-probabilities and
entropy (`scores_after`), the critic's values (`critic`) and the divergence from a
teacher (`distributions`). Heads run on the states that predict a sampled token alone,
`states_at` the places of a sheet, and `by_rows` brings what they say to rows.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sdar_jax.models import attention_kernels, decoder, sharding

MASKED_LOGIT = float(jnp.finfo(jnp.float32).min)


@dataclasses.dataclass(frozen=True)
class Scoring:
  """Settings of scoring; static under jit.

  Attributes:
    temperature: divides the logits, > 0.
    valid_vocab: ids from here up are impossible; at most the model's vocab_size.
    dtype: compute dtype of the decoder; logits and log-softmax are float32.
    remat: what the backward pass recomputes, of `decoder.REMATS`.
    chunk: positions (rows x columns of T) per pass of the output head.
  """

  temperature: float
  valid_vocab: int
  dtype: Any
  remat: str
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


def states_at(hidden: jax.Array, places: jax.Array) -> jax.Array:
  """Takes the states at the places of a sheet.

  Args:
    hidden: [S, T, D] of `hidden_states`.
    places: [L, N] i32: lane l has sequences l * S/L to (l + 1) * S/L, and state (s, t)
      of them stands at s * T + t.

  Returns:
    [L, N, D].
  """
  lanes = places.shape[0]
  states = hidden.reshape(lanes, -1, hidden.shape[-1])
  states = sharding.constrain(states, ('batch', None, None))
  return jax.vmap(lambda lane, at: lane[at])(states, places)


def by_rows(values: jax.Array, response_mask: jax.Array) -> jax.Array:
  """Brings values of a sheet's places to its rows.

  Args:
    values: [L, N]; a lane's rows stand one after another.
    response_mask: [M, R] bool, left-aligned; lane l has rows l * M/L to (l + 1) * M/L.

  Returns:
    [M, R]; 0 without a gradient where masked, whatever stands there.
  """
  lanes = values.shape[0]
  mask = response_mask.reshape(lanes, -1, response_mask.shape[1])
  sizes = mask.sum(2)
  starts = jnp.cumsum(sizes, axis=1) - sizes
  at = starts[:, :, None] + jnp.arange(mask.shape[2])
  # Beyond a row the next begins; beyond the last nothing does.
  at = jnp.where(mask, at, 0)
  taken = jax.vmap(lambda lane, index: lane[index])(values, at)
  return jnp.where(mask, taken, 0.0).reshape(response_mask.shape)


def scores_after(
  config: decoder.ModelConfig,
  params: decoder.Params,
  states: jax.Array,
  targets: jax.Array,
  scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
  """Scores each token after the hidden state before it.

  logprobs[b,n] = z[b,n,targets[b,n]] - log sum_v exp z[b,n,v]
  entropy[b,n]  = -sum_v p[b,n,v] log p[b,n,v];  p = softmax(z)

  with z the masked logits at `temperature`. The output head is gathered once; it runs
  over `chunk` positions at a time and is recomputed in the backward pass, so the
  largest array is [chunk, V].

  Args:
    config: the model; static under jit.
    params: nested dict; only the output head is read.
    states: [B, N, D], of the token before each target.
    targets: [B, N] i32.
    scoring: its `temperature`, `valid_vocab` and `chunk`.

  Returns:
    logprobs and entropy, [B, N] f32, nats. A token >= `valid_vocab` has about -3.4e38.

  Raises:
    ValueError: `chunk` or `valid_vocab` is out of range.
  """
  check_sizes(config, scoring)
  head = decoder.output_head(config, params)
  score = lambda inputs: _score_chunk(head, scoring, *inputs)
  return in_chunks(score, (states, targets), scoring.chunk)


def token_logprobs(
  config: decoder.ModelConfig,
  params: decoder.Params,
  tokens: jax.Array,
  positions: jax.Array | None,
  scoring: Scoring,
) -> tuple[jax.Array, jax.Array]:
  """Scores each token given those before it, in whole rows.

  Args:
    config: the model; static under jit.
    params: parameters as `decoder.forward` takes them.
    tokens: [B, T] i32, right-padded rows.
    positions: [B, T] i32; None is 0, 1, .. T - 1 in every row.
    scoring: how.

  Returns:
    logprobs and entropy, [B, T] f32, nats, as `scores_after` has them; 0 at index 0.

  Raises:
    ValueError: `chunk` or `valid_vocab` is out of range.
  """
  hidden = hidden_states(config, params, tokens, positions, scoring)
  scores = scores_after(config, params, hidden[:, :-1], tokens[:, 1:], scoring)
  return tuple(jnp.pad(value, ((0, 0), (1, 0))) for value in scores)


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


def _score_chunk(head, scoring, states, targets):
  """Computes log-probability and entropy, [B, C], of `targets`."""
  return _log_softmax_at(head_logits(head, states, scoring), targets)


@jax.custom_vjp
def _log_softmax_at(logits, targets):
  """Computes log softmax at `targets`, and the entropy.

  Its own gradient makes one array of the logits' size, p times something:
  d logprob / d z[v] = [v = target] - p[v];  d H / d z[v] = -p[v] (log p[v] + H)
  """
  return _log_softmax_forward(logits, targets)[0]


def _log_softmax_forward(logits, targets):
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  # A comparison, not a gather: it stays local where the vocabulary is sharded.
  there = jnp.arange(logits.shape[-1]) == targets[..., None]
  chosen = jnp.where(there, logits, 0.0).sum(-1)
  probabilities = jnp.exp(logits - log_normaliser[..., None])
  # The masked logits are finite, and 0 times one is nothing.
  entropy = log_normaliser - (probabilities * logits).sum(-1)
  saved = logits, targets, log_normaliser, entropy
  return (chosen - log_normaliser, entropy), saved


def _log_softmax_backward(saved, gradients):
  logits, targets, log_normaliser, entropy = saved
  to_logprob, to_entropy = (gradient[..., None] for gradient in gradients)
  logprobs = logits - log_normaliser[..., None]
  weights = to_logprob + to_entropy * (logprobs + entropy[..., None])
  there = jnp.arange(logits.shape[-1]) == targets[..., None]
  to_logits = jnp.where(there, to_logprob, 0.0) - jnp.exp(logprobs) * weights
  if attention_kernels.platform() == 'cpu':
    # XLA would compute it twice, once for the product that wants it transposed.
    to_logits = jax.lax.optimization_barrier(to_logits)
  return to_logits, None


_log_softmax_at.defvjp(_log_softmax_forward, _log_softmax_backward)


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
