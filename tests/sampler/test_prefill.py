"""Keys and values of a prompt are those of its tokens, to the bit."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from sdar_jax.models import attention, decoder
from sdar_jax.sampler import decoding

CONFIG = decoder.ModelConfig('qwen3', 100, 64, 128, 2, 4, 2, 16, 1e6, 1e-6, True)
SLOTS, ROWS, CHUNK = 6, 8, 16
SHORT, LONG = 72, attention.DENSE_KEYS + 88
PROMPT = 61  # Tokens; the last chunk is short.


@functools.cache
def _programs(length, dtype):
  return decoding.programs(CONFIG, SLOTS, length, 90, jnp.dtype(dtype), None)


@functools.cache
def _weights(dtype):
  params = jax.tree.map(
    lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, drawn.weights(CONFIG)
  )
  return decoding.decode_weights(params, jnp.dtype(dtype))


class _Cache:
  """A cache of slots that is filled by calls of one shape."""

  def __init__(self, length, dtype, rng):
    self.programs, self.weights = _programs(length, dtype), _weights(dtype)
    # What another prompt, or a response, may have left behind.
    self.cache = jax.tree.map(
      lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype),
      self.programs.make_cache(),
    )

  def call(self, chunks):
    """Computes {row: (slot, start, ids)}."""
    tokens = np.zeros((ROWS, CHUNK), np.int32)
    positions = np.full((ROWS, CHUNK), -1, np.int32)
    slots = np.zeros(ROWS, np.int32)
    for row, (slot, start, ids) in chunks.items():
      tokens[row, : len(ids)], slots[row] = ids, slot
      positions[row, : len(ids)] = np.arange(start, start + len(ids))
    self.cache = self.programs.prefill(
      self.weights, self.cache, tokens, positions, slots[None]
    )

  def copy(self, source, target):
    sources, targets = np.zeros(16, np.int32), np.full(16, SLOTS, np.int32)
    sources[3], targets[3] = source, target
    self.cache = self.programs.copy(self.cache, sources, targets)

  def read(self, slot, start, end):
    """Keys and values of positions, of all layers, as bits."""
    keys = [np.asarray(k[slot, :, :, start:end]) for k in self.cache.keys]
    values = [np.asarray(v[slot, :, start:end]) for v in self.cache.values]
    return b''.join(array.tobytes() for array in keys + values)


def _chunks(slot, ids, start=0):
  return [(slot, at, ids[at : at + CHUNK]) for at in range(start, len(ids), CHUNK)]


def _alone(length, dtype, ids):
  """A prompt's cache where each chunk is the only one of its call."""
  cache = _Cache(length, dtype, np.random.default_rng(99))
  for chunk in _chunks(2, ids):
    cache.call({0: chunk})
  return cache


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('length', [SHORT, LONG])
def test_rows_calls_and_neighbours_change_no_bit(length, dtype):
  rng = np.random.default_rng(0)
  prompt = rng.integers(0, 90, PROMPT)
  want = _alone(length, dtype, prompt).read(2, 0, PROMPT)
  for seed in range(12):
    rng = np.random.default_rng(seed)
    cache = _Cache(length, dtype, rng)
    slot, *others = rng.permutation(SLOTS)
    mine = _chunks(slot, prompt)
    # Others are prompts as long as the cache allows, and the same prompt elsewhere.
    theirs = _chunks(others[0], rng.integers(0, 90, length - 4))[-3:]
    theirs += _chunks(others[1], prompt) + _chunks(others[2], rng.integers(0, 90, 7))
    rng.shuffle(theirs)
    while mine:
      # As many of a call as the draw says; chunks of one slot may share one.
      take = mine[: rng.integers(1, len(mine) + 1)]
      mine = mine[len(take) :]
      beside = theirs[: rng.integers(0, ROWS - len(take) + 1)]
      rows = rng.permutation(ROWS)[: len(take) + len(beside)]
      cache.call(dict(zip(rows.tolist(), [*take, *beside])))
    assert cache.read(slot, 0, PROMPT) == want


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('length', [SHORT, LONG])
def test_what_is_reused_is_what_would_be_computed(length, dtype):
  rng = np.random.default_rng(1)
  prompt = rng.integers(0, 90, PROMPT)
  want = _alone(length, dtype, prompt).read(2, 0, PROMPT)
  for shared in range(0, PROMPT, CHUNK):
    other = np.concatenate([prompt[:shared], rng.integers(0, 90, PROMPT - shared)])
    cache = _Cache(length, dtype, rng)
    cache.call(dict(enumerate(_chunks(4, other))))
    cache.copy(4, 1)
    for slot in (1, 4):  # From a copy, and in place.
      cache.call(dict(enumerate(_chunks(slot, prompt, shared))))
      assert cache.read(slot, 0, PROMPT) == want


def test_a_chunk_writes_its_own_positions_only():
  rng = np.random.default_rng(2)
  cache = _Cache(SHORT, 'float32', rng)
  before = [cache.read(slot, 0, SHORT) for slot in range(SLOTS)]
  tail = cache.read(3, 23, SHORT)
  head = cache.read(3, 0, 16)
  cache.call({5: (3, 16, rng.integers(0, 90, 7))})
  after = [cache.read(slot, 0, SHORT) for slot in range(SLOTS)]
  assert [i for i in range(SLOTS) if before[i] != after[i]] == [3]
  assert cache.read(3, 0, 16) == head and cache.read(3, 23, SHORT) == tail


def test_chunks_are_a_forward_pass_cut_in_pieces():
  rng = np.random.default_rng(3)
  prompt = rng.integers(0, 90, PROMPT).astype(np.int32)
  cache = _Cache(SHORT, 'float32', rng)
  cache.call({7 - i: chunk for i, chunk in enumerate(_chunks(5, prompt))})
  whole = decoder.init_cache(CONFIG, 1, PROMPT, jnp.float32)
  forward = quick.jit(lambda *args: decoder.forward(CONFIG, *args, cache=whole)[1])
  want = forward(_weights('float32'), prompt[None], np.arange(PROMPT)[None])
  for got, one in zip(cache.cache.keys, want.keys):
    np.testing.assert_allclose(got[5, :, :, :PROMPT], one[0], atol=2e-4)
  for got, one in zip(cache.cache.values, want.values):
    np.testing.assert_allclose(got[5, :, :PROMPT], one[0], atol=2e-4)
