"""Draws against exact distributions and plain loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from sdar_jax.rollout.request import SamplingParams, request_key
from sdar_jax.sampler import draw

VALID = 50
VOCAB = VALID + 10
ROWS, CALLS = 1024, 128  # 131,072 draws.


def _logits(valid=VALID, spread=2.0):
  rng = np.random.default_rng(0)
  logits = rng.normal(0, spread, valid + 10).astype(np.float32)
  logits[valid:] = 50  # What a padded row of the embedding may well give.
  return logits


def _oracle(logits, temperature=1.0, top_k=0, top_p=1.0):
  """The distribution in float64, by a loop over the ids from the most likely on."""
  valid = len(logits) - 10
  probs = special.softmax(logits[:valid].astype(np.float64) / temperature)
  order = sorted(range(valid), key=lambda i: (-probs[i], i))
  if top_k:
    order = order[:top_k]
  total, mass, kept = probs[order].sum(), 0.0, []
  for index in order:
    if mass >= top_p * total and kept:
      break
    kept.append(index)
    mass += probs[index]
  out = np.zeros(len(logits))
  out[kept] = probs[kept] / probs[kept].sum()
  return out


@functools.partial(jax.jit, static_argnums=0)
def _run(valid, logits, keys, position, temperature, top_k, top_p):
  uniform = draw.uniforms(keys, jnp.full(len(keys), position))
  tiled = jnp.broadcast_to(logits, (len(keys), len(logits)))
  return draw.draw(tiled, uniform, temperature, top_k, top_p, valid)


def _draws(logits, options, calls=CALLS):
  """Ids and log-probabilities, [calls, ROWS]; `options` is [ROWS, 3]."""
  temperature, top_k, top_p = np.array(options).T
  options = temperature.astype('f4'), top_k.astype('i4'), top_p.astype('f4')
  keys = np.stack([request_key((3, row)) for row in range(ROWS)])
  draws = [_run(len(logits) - 10, logits, keys, i, *options) for i in range(calls)]
  return [np.stack(parts) for parts in zip(*draws)]


def _count(logits, *, temperature=1.0, top_k=0, top_p=1.0, calls=CALLS):
  """How often each id is drawn, and the log-probability that came with it."""
  ids, values = _draws(logits, [[temperature, top_k, top_p]] * ROWS, calls)
  logprobs = np.full(len(logits), np.nan)
  logprobs[ids] = values
  return np.bincount(ids.ravel(), minlength=len(logits)), logprobs


def _p_value(counts, probs):
  assert counts[probs == 0].sum() == 0
  order = np.argsort(-probs)
  counts, expected = counts[order], probs[order] * counts.sum()
  rare = expected < 10
  if rare.any():
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
  keep = expected > 0
  return stats.chisquare(counts[keep], expected[keep]).pvalue


@pytest.mark.parametrize(
  'options',
  [
    {},
    {'temperature': 0.7},
    {'temperature': 1.8},
    {'top_k': 1},
    {'top_k': 7},
    {'top_p': 0.8},
    {'top_p': 0.1},
    {'temperature': 1.5, 'top_k': 20, 'top_p': 0.9},
  ],
  ids=str,
)
def test_draws_follow_the_softmax(options):
  logits = _logits()
  counts, logprobs = _count(logits, **options)
  assert counts.sum() >= 1e5
  probs = _oracle(logits, **options)
  if np.count_nonzero(probs) > 1:
    assert _p_value(counts, probs) > 1e-3
  # The log-probabilities know of the temperature, but not of top_k or top_p.
  scaled = logits[:VALID].astype(np.float64) / options.get('temperature', 1)
  want = special.log_softmax(scaled)
  drawn = np.flatnonzero(counts)
  np.testing.assert_allclose(logprobs[drawn], want[drawn], atol=1e-5)


def test_draws_over_several_blocks_follow_the_softmax():
  logits = _logits(valid=3 * draw.BLOCK + 5)
  counts, _ = _count(logits)
  assert _p_value(counts, _oracle(logits)) > 1e-3


def test_the_chi_square_test_finds_a_wrong_temperature():
  counts, _ = _count(_logits(), temperature=1.03)
  assert _p_value(counts, _oracle(_logits())) < 1e-3


def test_a_row_draws_the_same_beside_rows_with_other_options():
  plain = np.tile([1.0, 0, 1.0], (ROWS, 1))
  mixed = plain.copy()
  mixed[1::2] = 0.5, 3, 0.7
  for alone, beside in zip(_draws(_logits(), plain, 4), _draws(_logits(), mixed, 4)):
    np.testing.assert_array_equal(alone[:, ::2], beside[:, ::2])
    assert (alone[:, 1::2] != beside[:, 1::2]).any()


@pytest.mark.parametrize('jit', [True, False])
def test_keep_mask_equals_a_loop(jit):
  rng = np.random.default_rng(1)
  rows = 60
  logits = rng.normal(0, 2, (rows, VOCAB)).astype(np.float32)
  logits[::4] = np.round(logits[::4])  # Many equals.
  logits[:, VALID:] = -np.inf
  top_k = rng.choice([0, 1, 2, 5, 49, 1000], rows).astype(np.int32)
  top_p = rng.choice([1.0, 0.9, 0.5, 0.01], rows).astype(np.float32)
  keep = jax.jit(draw.keep_mask) if jit else draw.keep_mask
  got = np.asarray(keep(logits, top_k, top_p))
  for row in range(rows):
    want = _oracle(logits[row], 1.0, int(top_k[row]), float(top_p[row]))
    np.testing.assert_array_equal(got[row, :VALID], want[:VALID] > 0, str(row))


def test_top_p_of_one_keeps_what_the_sum_no_longer_sees():
  scores = np.full((1, VOCAB), -20, np.float32)
  scores[0, 7] = 0
  keep = jax.jit(draw.keep_mask)(scores, np.zeros(1, np.int32), np.ones(1, np.float32))
  assert np.asarray(keep).all()


@pytest.mark.parametrize('width', [1, 2, 127, 128, 129, 1000])
def test_inverse_cdf_never_leaves_the_support(width):
  rng = np.random.default_rng(width)
  rows = 3000
  weights = rng.exponential(1, (rows, width)).astype(np.float32)
  weights *= 10.0 ** rng.integers(-6, 3, (rows, width))
  weights *= rng.random((rows, width)) < rng.choice([0.02, 0.5, 1.0], (rows, 1))
  weights[:, rng.integers(width)] += 1e-3
  below_one = np.nextafter(np.float32(1), np.float32(0))
  drawn = jax.jit(draw.inverse_cdf)
  for value in (0.0, 1e-8, 0.5, below_one, 1.0):
    ids = np.asarray(drawn(weights, np.full(rows, value, np.float32)))
    assert ((0 <= ids) & (ids < width)).all()
    assert (weights[np.arange(rows), ids] > 0).all()
  first = drawn(weights, np.zeros(rows, np.float32))
  np.testing.assert_array_equal(first, (weights > 0).argmax(1))


def test_a_million_draws_stay_inside_the_valid_vocabulary():
  counts, _ = _count(_logits(spread=0.1), calls=980)
  assert counts.sum() > 1e6
  assert counts[VALID:].sum() == 0
  assert (counts[:VALID] > 0).all()


def test_greedy_is_the_lowest_best_id_at_temperature_one():
  logits = np.zeros((2, VOCAB), np.float32)
  logits[0, [7, 9]] = 3
  logits[1, VALID - 1] = 1
  logits[:, VALID:] = 9
  zeros, ones = np.zeros(2, np.float32), np.ones(2, np.float32)
  drawn = jax.jit(draw.draw, static_argnums=5)
  ids, logprobs = drawn(logits, zeros + 0.99, zeros, zeros > 1, ones, VALID)
  np.testing.assert_array_equal(ids, [7, VALID - 1])
  want = special.log_softmax(logits[:, :VALID].astype(np.float64), axis=1)
  np.testing.assert_allclose(logprobs, want[[0, 1], [7, VALID - 1]], atol=1e-6)


def test_uniforms_know_only_key_and_position():
  keys = np.stack([request_key((0, row)) for row in range(64)])
  positions = np.arange(64, dtype=np.int32) % 5
  full = np.asarray(draw.uniforms(keys, positions))
  order = np.random.default_rng(0).permutation(64)[:17]
  part = np.asarray(jax.jit(draw.uniforms)(keys[order], positions[order]))
  np.testing.assert_array_equal(part, full[order])
  assert len(set(full.tolist())) == 64


def test_request_key_tells_identities_apart():
  identities = [(1, 23), (12, 3), (123,), (23, 1), (1, 2, 3), (-1, 23), (1, 2**80)]
  keys = {request_key(identity).tobytes() for identity in identities}
  assert len(keys) == len(identities)
  same = request_key((np.int64(1), np.int32(23)))
  np.testing.assert_array_equal(same, request_key((1, 23)))
  # Fixed for ever: a resumed run must draw what the interrupted one would have.
  assert request_key((0, 1, 2)).tolist() == [85275779, 2109182962]


@pytest.mark.parametrize(
  'wrong',
  [
    {'temperature': -1.0},
    {'temperature': 1e-9},
    {'temperature': float('nan')},
    {'top_p': 0.0},
    {'top_p': 1.1},
    {'top_k': -1},
    {'max_tokens': 0},
    {'stop_strings': ('',)},
  ],
  ids=str,
)
def test_wrong_options_are_one_line(wrong):
  with pytest.raises(ValueError, match=next(iter(wrong))) as error:
    SamplingParams(**{'max_tokens': 4, **wrong})
  assert '\n' not in str(error.value)
