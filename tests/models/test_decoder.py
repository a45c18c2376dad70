"""The decoder against recorded logits, numpy loops, and itself in other forms."""

import dataclasses
import functools

import drawn
import golden_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from sdar_jax.models import attention, attention_blocks, decoder, parameters, rope

SMALL = {
  family: decoder.ModelConfig(
    family=family,
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=family == 'qwen3',
  )
  for family in parameters.FAMILIES
}


@pytest.fixture(autouse=True)
def full_precision():
  """On accelerators, float32 products would be computed with fewer bits."""
  with jax.default_matmul_precision('highest'):
    yield


@functools.cache
def wide_params(config):
  """Random parameters far from the initial ones: biases and norms matter."""
  return drawn.weights(config, noise=0.2)


def rows(batch=3, length=11):
  drawn_ids = np.random.default_rng(0).integers(0, 97, (batch, length), np.int32)
  tokens = jnp.asarray(drawn_ids)
  return tokens, golden_models.positions_of(tokens)


def shapes_of(config, dtype=jnp.float32):
  """Shapes and dtypes of initial parameters."""
  return jax.eval_shape(
    lambda: parameters.init_params(config, jax.random.key(0), dtype)
  )


def run(config, params, tokens, positions, **kwargs):
  """Hidden states of whole rows."""
  step = quick.jit(lambda p, t, q: decoder.forward(config, p, t, q, **kwargs)[0])
  return step(params, tokens, positions)


def run_logits(config, params, tokens, **kwargs):
  """Logits of whole rows."""
  step = jax.jit(
    lambda p, t, q: decoder.logits(
      config, p, decoder.forward(config, p, t, q, **kwargs)[0]
    )
  )
  return step(params, tokens, golden_models.positions_of(tokens))


# --- recorded logits ---------------------------------------------------------------


@pytest.mark.parametrize('name', golden_models.NAMES)
def test_logits_are_those_recorded(name, monkeypatch):
  if name == golden_models.ROUNDED:
    golden_models.round_frequencies(monkeypatch)
  config, params, record = golden_models.load(name)
  got = np.asarray(run_logits(config, params, record['tokens']))
  real = record['attention_mask']
  np.testing.assert_allclose(got[real], record['logits'][real], rtol=0, atol=1e-5)


def test_the_rounded_record_is_as_far_as_transformers_is():
  # transformers 5.23 with torch 2.13 in float32 differs from this record by 4.26e-4.
  config, params, record = golden_models.load(golden_models.ROUNDED)
  real = record['attention_mask']
  got = np.asarray(run_logits(config, params, record['tokens']))
  error = np.abs(got - record['logits'])
  np.testing.assert_allclose(error[real].max(), 4.26e-4, rtol=0.02)


@pytest.mark.parametrize('name', golden_models.NAMES)
def test_greedy_continuation_is_the_recorded_one(name):
  config, params, record = golden_models.load(name)
  want, start = record['greedy'][0], 16  # The first 16 are the prompt.
  cache = decoder.init_cache(config, 1, len(want), jnp.float32)
  layers = jax.jit(decoder.unstack)(params)

  @jax.jit
  def step(token, position, cache):
    tokens, positions = token[None, None], position[None, None]
    hidden, cache = decoder.forward(config, layers, tokens, positions, cache=cache)
    return jnp.argmax(decoder.logits(config, layers, hidden[0, -1])), cache

  ids = list(want[:start])
  for position in range(len(want) - 1):
    best, cache = step(jnp.int32(ids[position]), jnp.int32(position), cache)
    if position >= start - 1:
      ids.append(int(best))
  assert ids == list(want)


# --- parts against numpy -----------------------------------------------------------


def test_rotation_is_multiplication_by_a_unit_complex_number():
  rng = np.random.default_rng(0)
  x, theta = rng.normal(size=(2, 5, 3, 8)), 1e6
  positions = rng.integers(0, 3000, (2, 5))
  angles = positions[:, :, None, None] * theta ** (-np.arange(4) / 4)
  turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
  got = attention.rotate(jnp.asarray(x, jnp.float32), jnp.asarray(positions), theta)
  want = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(got, want, atol=2e-3)  # 3,000 rad in float32.
  near = attention.rotate(
    jnp.asarray(x, jnp.float32), jnp.asarray(positions % 8), theta
  )
  angles = (positions % 8)[:, :, None, None] * theta ** (-np.arange(4) / 4)
  turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles)
  want = np.concatenate([turned.real, turned.imag], -1)
  np.testing.assert_allclose(near, want, atol=3e-6)


def test_scaled_frequencies_are_those_of_transformers():
  for name, spread in (('llama_tied', 4), ('llama_untied', 1)):
    config, _, record = golden_models.load(name)
    plain = attention.frequencies(config.head_dim, config.rope_theta)
    got = rope.scale(plain, config.rope_scaling)
    np.testing.assert_allclose(got, record['inverse_frequencies'], rtol=2e-6)
    # Kept, in between and divided: none of the three goes without a frequency.
    assert len(np.unique(np.round(plain / got, 3))) == spread


def test_the_scaling_decides_the_logits():
  config, params, record = golden_models.load('llama_tied')
  unscaled = dataclasses.replace(config, rope_scaling=None)
  got = np.asarray(run_logits(unscaled, params, record['tokens']))
  assert np.abs(got - record['logits'])[record['attention_mask']].max() > 0.1


# --- causality and padding ---------------------------------------------------------


@pytest.mark.parametrize('family', parameters.FAMILIES)
def test_no_gradient_flows_from_later_tokens(family):
  config = dataclasses.replace(SMALL[family], tie_word_embeddings=False)
  params = wide_params(config)
  tokens = jnp.arange(10)[None]  # Each token once: its row is this position's input.

  def at(embedding, position):
    changed = {**params, 'embed': {'embedding': embedding}}
    hidden, _ = decoder.forward(config, changed, tokens, tokens)
    return (hidden[0, position] ** 2).sum()

  embedding = params['embed']['embedding']
  gradient_at = quick.jit(jax.grad(at))
  for position in (0, 4, 9):
    gradient = np.abs(gradient_at(embedding, position)).sum(-1)[:10]
    assert (gradient[: position + 1] > 0).all()
    assert (gradient[position + 1 :] == 0).all()


def test_padding_on_the_right_changes_nothing():
  config = SMALL['qwen2']
  params = wide_params(config)
  tokens, positions = rows(length=12)
  long = run(config, params, tokens, positions)
  short = run(config, params, tokens[:, :7], positions[:, :7])
  np.testing.assert_allclose(long[:, :7], short, rtol=1e-5, atol=1e-5)


# --- one computation in several forms ----------------------------------------------


@pytest.mark.parametrize('family', parameters.FAMILIES)
def test_unrolled_layers_equal_scanned_ones(family, monkeypatch):
  config = SMALL[family]
  params = wide_params(config)
  tokens, positions = rows()
  forms = [
    run(config, params, tokens, positions),  # So few that the scan is unrolled.
    run(config, jax.jit(decoder.unstack)(params), tokens, positions),
  ]
  monkeypatch.setattr(decoder, 'UNROLLED_LAYERS', 0)
  scanned = run(config, params, tokens, positions)
  for form in forms:
    np.testing.assert_allclose(scanned, form, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('family', parameters.FAMILIES)
def test_decoding_with_a_cache_equals_the_whole_row(family):
  config = SMALL[family]
  params = wide_params(config)
  tokens, positions = rows(batch=3, length=11)
  want = run(config, params, tokens, positions)
  lengths = jnp.array([5, 2, 4])  # Rows at different positions, as slots are.
  cache = decoder.init_cache(config, 3, 13, jnp.float32)
  prompt = jnp.where(jnp.arange(5) < lengths[:, None], tokens[:, :5], 0)
  fill = quick.jit(lambda *args: decoder.forward(config, *args[:3], cache=args[3]))
  first, cache = fill(params, prompt, positions[:, :5], cache)
  layers = jax.jit(decoder.unstack)(params)
  step = quick.jit(
    lambda t, q, c: decoder.forward(config, layers, t, q, cache=c), donate_argnums=2
  )
  for row in range(3):
    got = first[row, : lengths[row]]
    np.testing.assert_allclose(got, want[row, : lengths[row]], rtol=1e-4, atol=1e-4)
  for offset in range(6):
    at = (lengths + offset)[:, None]
    hidden, cache = step(jnp.take_along_axis(tokens, at, 1), at, cache)
    expected = jnp.take_along_axis(want, at[:, :, None], 1)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-4)


def test_positions_outside_the_cache_are_dropped():
  config = SMALL['qwen3']
  params = wide_params(config)
  cache = decoder.init_cache(config, 2, 4, jnp.float32)
  tokens = jnp.array([[5, 6], [5, 6]])
  positions = jnp.array([[-1, 4], [0, 1]])
  write = quick.jit(
    lambda p: decoder.forward(config, p, tokens, positions, cache=cache)[1]
  )
  for form in (params, jax.jit(decoder.unstack)(params)):
    new = write(form)
    for array in new.keys + new.values:
      assert not array[0].any()
      assert array[1].any()


def test_decoding_keeps_one_copy_of_the_cache():
  config = SMALL['qwen3']
  params = shapes_of(config)
  cache = decoder.init_cache(config, 4, 4096, jnp.float32)

  def decode(params, cache):
    layers = decoder.unstack(params)

    def body(state):
      position, cache = state
      at = jnp.full((4, 1), position)
      _, cache = decoder.forward(config, layers, at, at, cache=cache)
      return position + 1, cache

    return jax.lax.while_loop(lambda state: state[0] < 90, body, (0, cache))

  compiled = quick.jit(decode, donate_argnums=1).lower(params, cache).compile()
  size = sum(array.nbytes for array in jax.tree.leaves(cache))
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= size
  assert memory.temp_size_in_bytes < 0.5 * size


@pytest.mark.parametrize('policy', ['dots', 'full'])
def test_remat_changes_no_gradient(policy):
  config = dataclasses.replace(SMALL['qwen2'], num_layers=1)
  params = wide_params(config)
  tokens, positions = rows()

  def loss(params, remat):
    hidden, _ = decoder.forward(config, params, tokens, positions, remat=remat)
    return jnp.sin(hidden).sum()

  gradient = quick.jit(jax.grad(loss), static_argnums=1)
  with_remat, without = gradient(params, policy), gradient(params, 'none')
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(without))
  for one, other in zip(jax.tree.leaves(with_remat), jax.tree.leaves(without)):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_attention_by_blocks_changes_neither_states_nor_gradients(remat, monkeypatch):
  monkeypatch.setattr(attention_blocks, 'QUERIES', 4)
  monkeypatch.setattr(attention_blocks, 'KEYS', 8)
  one = dataclasses.replace(SMALL['qwen2'], num_layers=1)
  params = wide_params(one)
  tokens, positions = rows()

  def run(back_end):
    config = dataclasses.replace(one, attention=back_end)

    def loss(params):
      hidden, _ = decoder.forward(config, params, tokens, positions, remat=remat)
      return jnp.sin(hidden).sum(), hidden

    return quick.jit(jax.grad(loss, has_aux=True))(params)

  for one, other in zip(jax.tree.leaves(run('chunked')), jax.tree.leaves(run('dense'))):
    error = np.abs(np.asarray(one) - other).max()
    assert error <= 1e-5 * np.abs(np.asarray(other)).max()


@pytest.mark.long
def test_remat_stores_less():
  config = dataclasses.replace(SMALL['qwen3'], num_layers=8)
  params = shapes_of(config)
  tokens, positions = rows(batch=2, length=256)

  def size(remat):
    def loss(params):
      return decoder.forward(config, params, tokens, positions, remat=remat)[0].sum()

    compiled = quick.jit(jax.grad(loss)).lower(params).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  sizes = [size(name) for name in ('full', 'dots', 'none')]
  assert sizes[0] < 0.9 * sizes[1] and sizes[1] < 0.9 * sizes[2]
  assert sizes[0] < 0.5 * sizes[2]


@pytest.mark.parametrize('name', ['qwen2_tied', 'qwen3_tied'])
def test_half_precision_is_close(name):
  config, params, record = golden_models.load(name)
  got = run_logits(config, params, record['tokens'], dtype=jnp.bfloat16)
  assert got.dtype == jnp.float32
  error = np.abs(np.asarray(got) - record['logits'])[record['attention_mask']]
  assert 1e-4 < error.max() < 0.05  # Not float32 by accident, and near it.


# --- configuration and parameters --------------------------------------------------


@pytest.mark.parametrize('family', parameters.FAMILIES)
@pytest.mark.parametrize('tied', [True, False])
def test_specs_describe_the_parameters(family, tied):
  config = dataclasses.replace(SMALL[family], tie_word_embeddings=tied)
  params = shapes_of(config, jnp.bfloat16)
  specs = config.param_specs()
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda s: s.shape, specs)
  for spec in jax.tree.leaves(specs):
    assert len(spec.shape) == len(spec.axes)
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
  assert 'lm_head' not in params if tied else 'lm_head' in params


def test_initial_parameters_depend_on_the_key_and_differ_between_layers():
  config = SMALL['qwen3']
  draw = quick.jit(lambda key: parameters.init_params(config, key))
  one, same, other = (draw(jax.random.key(seed)) for seed in (0, 0, 1))
  gate = one['layers']['mlp']['gate']['kernel']
  np.testing.assert_array_equal(gate, same['layers']['mlp']['gate']['kernel'])
  assert (gate != other['layers']['mlp']['gate']['kernel']).mean() > 0.99
  assert (gate[0] != gate[1]).mean() > 0.99
  np.testing.assert_allclose(gate.std(), attention.INIT_STDDEV, rtol=0.05)


@pytest.mark.parametrize(
  'change, words',
  [
    ({'family': 'gemma'}, "family 'gemma'"),
    ({'attention': 'flash'}, "attention 'flash'"),
    ({'num_kv_heads': 3}, 'num_heads 4: must divide by num_kv_heads 3'),
    ({'head_dim': 15}, 'head_dim 15: must be even'),
    ({'num_layers': 0}, 'num_layers 0: must be at least 1'),
  ],
)
def test_impossible_configurations_are_refused(change, words):
  with pytest.raises(ValueError, match=words) as caught:
    dataclasses.replace(SMALL['qwen2'], **change)
  assert '\n' not in str(caught.value)
