"""Every back end of attention against numpy, the dense one, and itself in company."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from sdar_jax.models import attention, attention_blocks, attention_kernels, decoder

FORMS = {
  'chunked': attention_blocks.attend,
  # Without positions: the kernels know only indices.
  'splash': lambda q, k, v, *_: attention_kernels.splash(q, k, v),
}


@pytest.fixture(autouse=True)
def full_precision():
  """On accelerators, float32 products would be computed with fewer bits."""
  with jax.default_matmul_precision('highest'):
    yield


@pytest.fixture
def small_blocks(monkeypatch):
  """Many blocks of few queries and keys."""
  monkeypatch.setattr(attention_blocks, 'QUERIES', 16)
  monkeypatch.setattr(attention_blocks, 'KEYS', 32)


def inputs(batch, queries, keys, heads, kv_heads, width, dtype=jnp.float32, seed=0):
  """Random query, keys and values."""
  rng = np.random.default_rng(seed)
  shapes = (
    (batch, queries, heads, width),
    (batch, kv_heads, width, keys),
    (batch, kv_heads, keys, width),
  )
  return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def rising(batch, length):
  return jnp.broadcast_to(jnp.arange(length), (batch, length))


def with_gradients(form, arrays, *positions, read=None):
  """Output, and gradients of a random mix of it; of `read` queries only, [B, T]."""
  rng = np.random.default_rng(9)
  mix = jnp.asarray(rng.normal(size=arrays[0].shape), jnp.float32)
  mix = mix if read is None else mix * read[:, :, None, None]

  @quick.jit
  def run(*arrays):
    def loss(*arrays):
      out = form(*arrays, *positions)
      return (out * mix).sum(), out

    gradients, out = jax.grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    return out, *gradients

  return [np.asarray(array, np.float64) for array in run(*arrays)]


def assert_near(got, want, tolerance):
  """Errors relative to the largest value of each array."""
  for one, other in zip(got, want, strict=True):
    assert np.abs(one - other).max() <= tolerance * np.abs(other).max()


# --- against numpy and the library -------------------------------------------------


def numpy_attention(query, keys, values, query_positions, key_positions):
  """One head and one query at a time, in float64."""
  batch, length, heads, width = query.shape
  group = heads // keys.shape[1]
  out = np.zeros(query.shape)
  for b, t, n in np.ndindex(batch, length, heads):
    seen = np.flatnonzero(key_positions[b] <= query_positions[b, t])
    scores = keys[b, n // group][:, seen].T @ query[b, t, n] / np.sqrt(width)
    weights = np.exp(scores - scores.max())
    out[b, t, n] = weights / weights.sum() @ values[b, n // group][seen]
  return out


@pytest.mark.parametrize('back_end', ['dense', 'chunked'])
@pytest.mark.parametrize('length', [1, 5])
@pytest.mark.parametrize('wrap', [quick.jit, lambda fun, static_argnames: fun])
def test_attention_is_the_sum_over_visible_keys(length, wrap, back_end, monkeypatch):
  monkeypatch.setattr(attention_blocks, 'QUERIES', 2)
  monkeypatch.setattr(attention_blocks, 'KEYS', 3)
  rng = np.random.default_rng(0)
  query = rng.normal(size=(2, length, 6, 8))
  keys, values = rng.normal(size=(2, 3, 8, 7)), rng.normal(size=(2, 3, 7, 8))
  query_positions = np.array([[1], [4]]) + np.arange(length)  # Some beyond all keys.
  key_positions = rng.permutation(7) * np.ones((2, 1), int)
  arrays = query, keys, values
  got = wrap(attention.attend, static_argnames='back_end')(
    *[jnp.asarray(array, jnp.float32) for array in arrays],
    jnp.asarray(query_positions),
    jnp.asarray(key_positions),
    back_end=back_end,
  )
  want = numpy_attention(*arrays, query_positions, key_positions)
  np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_attention_equals_the_library():
  query, keys, values = inputs(2, 64, 64, 4, 2, 64)
  positions = rising(2, 64)
  want = quick.jit(attention.dense)(query, keys, values, positions, positions)
  mask = (positions[:, None, :] <= positions[:, :, None])[:, None]
  flipped = keys.transpose(0, 3, 1, 2), values.transpose(0, 2, 1, 3)
  got = quick.jit(jax.nn.dot_product_attention)(query, *flipped, mask=mask)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_half_precision_softmax_is_computed_in_float32():
  # 512 equal scores: in bfloat16 the sum of the weights would stall at 256.
  query = jnp.zeros((1, 1, 1, 2), jnp.bfloat16)
  keys = jnp.zeros((1, 1, 2, 512), jnp.bfloat16)
  values = jnp.ones((1, 1, 512, 2), jnp.bfloat16)
  positions = jnp.arange(512)[None]
  for form in (attention.dense, attention_blocks.attend):
    got = quick.jit(form)(query, keys, values, positions[:, -1:], positions)
    np.testing.assert_allclose(np.asarray(got, np.float32), 1.0, rtol=1e-2)


# --- against the dense form --------------------------------------------------------


@pytest.mark.parametrize(
  'form, sizes',
  [
    ('chunked', (3, 50, 50, 4, 2, 8)),  # Neither count divides by its block.
    ('chunked', (2, 32, 64, 6, 3, 16)),  # Both do; positions anywhere in a cache.
    ('chunked', (2, 1, 90, 4, 1, 8)),
    ('splash', (1, 200, 200, 4, 2, 16)),
  ],
)
@pytest.mark.parametrize('dtype, tolerance', [('float32', 2e-6), ('bfloat16', 2e-2)])
def test_forms_and_gradients_equal_the_dense_one(
  form, sizes, dtype, tolerance, small_blocks
):
  batch, queries, keys = sizes[:3]
  arrays = inputs(*sizes, dtype=dtype)
  key_positions = rising(batch, keys)
  drawn = np.random.default_rng(0).integers(0, keys + 20, (batch, queries))
  positions = key_positions if queries == keys else jnp.sort(jnp.asarray(drawn))
  want = with_gradients(attention.dense, arrays, positions, key_positions)
  got = with_gradients(FORMS[form], arrays, positions, key_positions)
  assert_near(got, want, tolerance)


@pytest.mark.parametrize('form', FORMS)
def test_padding_on_the_right_reaches_no_token(form, small_blocks):
  sizes, lengths = (3, 40, 40, 4, 2, 16), np.array([40, 7, 23])
  real, positions = np.arange(40) < lengths[:, None], rising(3, 40)
  arrays, garbage = inputs(*sizes), inputs(*sizes, seed=1)
  mask = jnp.asarray(real)
  masks = (mask[:, :, None, None], mask[:, None, None, :], mask[:, None, :, None])
  padded = [jnp.where(m, a, 9 * g) for m, a, g in zip(masks, arrays, garbage)]
  want = with_gradients(attention.dense, arrays, positions, positions, read=mask)
  got = with_gradients(FORMS[form], padded, positions, positions, read=mask)
  for one, other, where in zip(got[1:], want[1:], masks):
    assert not one[~np.broadcast_to(where, one.shape)].any()
    assert np.abs(one - other).max() <= 2e-6 * np.abs(other).max()
  assert_near([got[0][real]], [want[0][real]], 2e-6)


def test_a_query_that_sees_no_key_gets_zeros_and_no_gradient(small_blocks):
  arrays = inputs(2, 3, 40, 4, 2, 8)
  positions = jnp.array([[-1, -1, 5], [-1, 39, 40]])
  got = with_gradients(attention_blocks.attend, arrays, positions, rising(2, 40))
  blind = np.asarray(positions) < 0
  assert not got[0][blind].any() and not got[1][blind].any()
  assert all(np.isfinite(array).all() for array in got)
  assert got[0][~blind].all()


def test_cudnn_equals_the_oracle():
  if jax.default_backend() != 'gpu':
    pytest.skip('the cudnn back end needs a GPU')
  arrays, positions = inputs(2, 640, 640, 4, 2, 64, jnp.bfloat16), rising(2, 640)
  form = lambda q, k, v, *_: attention_kernels.cudnn(q, k, v)
  want = with_gradients(attention.dense, arrays, positions, positions)
  assert_near(with_gradients(form, arrays, positions, positions), want, 3e-2)


def test_cudnn_is_handed_what_attention_was(monkeypatch):
  library = jax.nn.dot_product_attention
  said = {}

  def elsewhere(*arrays, **options):
    said.update(options)
    return library(*arrays, **{**options, 'implementation': 'xla'})

  monkeypatch.setattr(jax.nn, 'dot_product_attention', elsewhere)
  arrays, positions = inputs(2, 40, 40, 4, 2, 16), rising(2, 40)
  want = quick.jit(attention.dense)(*arrays, positions, positions)
  form = quick.jit(functools.partial(attention.attend, back_end='cudnn'))
  got = form(*arrays, positions, positions)
  assert_near([np.asarray(got)], [np.asarray(want)], 2e-6)
  assert said == {'is_causal': True, 'implementation': 'cudnn'}


# --- a cache that is read no further than need be ----------------------------------


@functools.cache
def one_token(back_end, keys):
  step = functools.partial(attention.attend, back_end=back_end)
  return jax.jit(lambda *args: step(*args, jnp.arange(keys)[None]))


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_slot_does_not_depend_on_how_far_its_neighbours_are(dtype):
  keys = 2048 + 300  # The last block reaches back over the one before.
  arrays = inputs(4, 1, keys, 4, 2, 32, dtype)
  own = [3, 511, 512, 1500]
  alone = []
  for row, position in enumerate(own):
    positions = jnp.full((4, 1), -1).at[row].set(position)
    alone.append(one_token('auto', keys)(*arrays, positions)[row])
  want = attention.dense(*arrays, jnp.array(own)[:, None], jnp.arange(keys)[None])
  tolerance = {'float32': 2e-6, 'bfloat16': 2e-2}[dtype]
  assert_near(np.float64([alone]), np.float64([want]), tolerance)
  for row, other, position in np.ndindex(4, 4, 5):
    if row != other:
      positions = jnp.full((4, 1), -1).at[row].set(own[row])
      positions = positions.at[other].set([0, 700, 1600, keys - 1, keys][position])
      got = one_token('auto', keys)(*arrays, positions)[row]
      np.testing.assert_array_equal(got, alone[row])


@pytest.mark.skipif(
  jax.default_backend() == 'gpu',
  reason='a GPU reads the whole cache: blocks are copied',
)
def test_blocks_beyond_the_longest_slot_are_not_read():
  arrays = inputs(2, 1, 2048, 4, 2, 32)
  start = jnp.arange(2048) < 1024
  broken = [
    arrays[0],
    jnp.where(start, arrays[1], jnp.nan),
    jnp.where(start[:, None], arrays[2], jnp.nan),
  ]
  positions = jnp.array([[1023], [-1]])
  got = one_token('auto', 2048)(*broken, positions)
  assert np.isfinite(got).all()
  np.testing.assert_array_equal(got, one_token('auto', 2048)(*arrays, positions))


# --- memory and choice -------------------------------------------------------------


def temporaries(back_end, length):
  """Bytes that forward and backward pass of attention need beside their arrays."""
  shapes = [
    jax.ShapeDtypeStruct(shape, jnp.float32)
    for shape in ((2, length, 4, 64), (2, 2, 64, length), (2, 2, length, 64))
  ]

  def loss(*arrays):
    positions = rising(2, length)
    return attention.attend(*arrays, positions, positions, back_end).sum()

  compiled = quick.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_long_rows_keep_blocks_of_scores_only():
  length = 4096
  scores = 2 * 4 * length * length * 4  # All of them, in bytes: 512 MiB.
  block = 2 * 4 * attention_blocks.QUERIES * attention_blocks.KEYS * 4
  arrays = 2 * length * (4 + 2 + 2) * 64 * 4
  assert temporaries('auto', length) < 4 * arrays + 6 * block < 0.25 * scores
  assert temporaries('dense', length) > scores


@pytest.mark.parametrize(
  'platform, back_end, queries, keys, width, dtype, want',
  [
    ('cpu', 'auto', 248, 248, 32, 'float32', 'dense'),  # The small models' longest.
    ('gpu', 'auto', 512, 512, 128, 'bfloat16', 'dense'),
    ('cpu', 'auto', 513, 513, 32, 'float32', 'chunked'),
    ('gpu', 'auto', 513, 513, 128, 'bfloat16', 'cudnn'),
    ('gpu', 'auto', 513, 513, 128, 'float32', 'chunked'),
    ('gpu', 'auto', 513, 513, 256, 'bfloat16', 'chunked'),
    ('tpu', 'auto', 513, 513, 64, 'float32', 'splash'),
    ('tpu', 'auto', 513, 513, 32, 'float32', 'chunked'),
    ('tpu', 'auto', 1, 513, 128, 'bfloat16', 'chunked'),
    ('cpu', 'auto', 1, 513, 128, 'float32', 'chunked'),
    ('gpu', 'auto', 1, 4096, 128, 'bfloat16', 'dense'),  # Blocks would be copied.
    ('gpu', 'chunked', 1, 4096, 128, 'bfloat16', 'chunked'),
    ('gpu', 'cudnn', 1, 512, 128, 'bfloat16', 'dense'),
    ('gpu', 'cudnn', 512, 513, 128, 'bfloat16', 'chunked'),
    ('gpu', 'cudnn', 16, 16, 128, 'bfloat16', 'cudnn'),
    ('tpu', 'splash', 16, 16, 128, 'bfloat16', 'splash'),
    ('gpu', 'dense', 1, 4096, 128, 'bfloat16', 'dense'),
    ('gpu', 'chunked', 16, 16, 128, 'bfloat16', 'chunked'),
  ],
)
def test_the_back_end_that_is_chosen(
  monkeypatch, platform, back_end, queries, keys, width, dtype, want
):
  monkeypatch.setattr(attention_kernels, 'platform', lambda: platform)
  assert attention.choose(back_end, queries, keys, width, jnp.dtype(dtype)) == want


def test_the_mesh_says_where_a_program_will_run():
  device = jax.sharding.AbstractDevice('TPU v5 lite', 1, 'tpu')
  mesh = jax.sharding.AbstractMesh((1,), ('data',), abstract_device=device)
  assert attention_kernels.platform() == jax.default_backend()
  with jax.sharding.use_abstract_mesh(mesh):
    assert attention_kernels.platform() == 'tpu'


@pytest.mark.parametrize('back_end', attention.BACK_ENDS)
def test_parameters_do_not_depend_on_the_back_end(back_end):
  small = decoder.ModelConfig('qwen3', 9, 8, 8, 1, 2, 1, 4, 1e4, 1e-6, True)
  changed = dataclasses.replace(small, attention=back_end)
  assert changed.param_specs() == small.param_specs()
