"""Sampling of token ids by inverse CDF, one uniform number each.

Every function works on rows that know nothing of each other, in fixed shapes, so that
what a row draws does not depend on the rest of the batch.
"""

import jax
import jax.numpy as jnp

BLOCK = 128  # Ids per block of the two-level inverse CDF.


def uniforms(keys: jax.Array, positions: jax.Array) -> jax.Array:
  """Draws a number in [0, 1) per row from its key and position only.

  Args:
    keys: [B, 2] u32 from `request.request_key`.
    positions: [B] i32, index of the token in its response.

  Returns:
    [B] f32.
  """

  def one(key, position):
    key = jax.random.wrap_key_data(key, impl='threefry2x32')
    return jax.random.uniform(jax.random.fold_in(key, position), dtype=jnp.float32)

  return jax.vmap(one)(keys, positions)


def _cumulative(weights: jax.Array) -> jax.Array:
  """Sums along each row by a product with a triangle."""
  width = weights.shape[-1]
  triangle = jnp.triu(jnp.ones((width, width), weights.dtype))
  return jnp.matmul(weights, triangle, precision=jax.lax.Precision.HIGHEST)


def _pick(weights: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Picks the first index with a cumulative sum above the target."""
  indices = jnp.arange(weights.shape[-1], dtype=jnp.int32)
  cumulative = _cumulative(weights)
  positive = weights > 0
  # Without `positive` a rounding step of the sum could pick an index of weight 0.
  hit = positive & (cumulative > target[:, None])
  # target = u * total can round up to the end of the sum: the last positive takes it.
  last = jnp.where(positive, indices, 0).max(-1)
  index = jnp.minimum(jnp.where(hit, indices, len(indices)).min(-1), last)
  before = jnp.take_along_axis(cumulative - weights, index[:, None], axis=-1)[:, 0]
  return index, target - before


def inverse_cdf(weights: jax.Array, uniform: jax.Array) -> jax.Array:
  """Draws an id with probability proportional to its weight.

  min {i: weights[i] > 0 and sum_{j<=i} weights[j] > uniform * sum_j weights[j]}

  The sum runs over blocks first and inside one block then, which is short and keeps
  the rounding error small for large vocabularies.

  Args:
    weights: [B, V] f32, not negative, some of each row positive.
    uniform: [B] f32 in [0, 1).

  Returns:
    [B] i32; never an id of weight 0.
  """
  rows, width = weights.shape
  weights = jnp.pad(weights, ((0, 0), (0, -width % BLOCK)))
  blocks = weights.reshape(rows, -1, BLOCK)
  sums = blocks.sum(-1)
  block, rest = _pick(sums, uniform * sums.sum(-1))
  inner = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  return block * BLOCK + _pick(inner, rest)[0]


def keep_mask(scores: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
  """Selects the ids left by top_k, then by top_p among those.

  Args:
    scores: [B, V] f32, logits over temperature; -inf is impossible.
    top_k: [B] i32; 0 keeps all.
    top_p: [B] f32 in (0, 1]; 1 keeps all.

  Returns:
    [B, V] bool; the most likely id is always kept.
  """
  rows, width = scores.shape
  ids = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), scores.shape)
  negated, ids = jax.lax.sort((-scores, ids), num_keys=1, is_stable=True)
  rank = jnp.arange(width)[None]
  keep = (top_k[:, None] == 0) | (rank < top_k[:, None])
  mass = jnp.where(keep, jnp.exp(negated[:, :1] - negated), 0)
  before = jnp.cumsum(mass, axis=-1) - mass
  nucleus = before < top_p[:, None] * mass.sum(-1, keepdims=True)
  # At 1 by name: the sum reaches its total before the last unlikely ids.
  keep &= nucleus | (top_p[:, None] >= 1)
  unsorted = jnp.zeros(scores.shape, bool)
  return unsorted.at[jnp.arange(rows)[:, None], ids].set(keep)


def draw(
  logits: jax.Array,
  uniform: jax.Array,
  temperature: jax.Array,
  top_k: jax.Array,
  top_p: jax.Array,
  valid_vocab: int,
) -> tuple[jax.Array, jax.Array]:
  """Draws one id per row and tells its log-probability.

  logprob = log_softmax(logits[:valid_vocab] / temperature)[id], before top_k and top_p;
  at temperature 0 the id is the argmax and the log-probability is that at 1

  Args:
    logits: [B, V] f32.
    uniform: [B] f32 in [0, 1).
    temperature: [B] f32.
    top_k: [B] i32; 0 keeps all.
    top_p: [B] f32 in (0, 1]; 1 keeps all.
    valid_vocab: ids from here on have probability 0.

  Returns:
    ids [B] i32 and log-probabilities [B] f32, nats.
  """
  scale = jnp.where(temperature > 0, temperature, 1)[:, None]
  indices = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  scores = jnp.where(indices < valid_vocab, logits / scale, -jnp.inf)
  peak = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - peak)
  # Only the mask is computed under the condition: the rows that keep all ids take the
  # same path whatever the others ask for, and a plain batch pays for no sort.
  keep = jax.lax.cond(
    jnp.any((top_k > 0) | (top_p < 1)),
    keep_mask,
    lambda scores, *_: jnp.ones(scores.shape, bool),
    scores,
    top_k,
    top_p,
  )
  drawn = inverse_cdf(jnp.where(keep, weights, 0), uniform)
  # jnp.argmax would do, but takes as long as the rest of this function on CPU.
  best = jnp.where(scores == peak, indices, valid_vocab - 1).min(-1)
  ids = jnp.where(temperature > 0, drawn, best)
  normaliser = peak[:, 0] + jnp.log(weights.sum(-1))
  chosen = jnp.take_along_axis(scores, ids[:, None], axis=-1)[:, 0]
  return ids, chosen - normaliser
