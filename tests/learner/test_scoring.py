"""Chunked scoring against the whole [B, T, V] computation and recorded values."""

import pathlib

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from sdar_jax.learner import critic, scoring
from sdar_jax.models import attention, decoder, hf, parameters

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'models'
CONFIG = decoder.ModelConfig(
  family='qwen2',
  vocab_size=53,
  hidden_size=16,
  intermediate_size=24,
  num_layers=1,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  rope_theta=1e4,
  rms_norm_eps=1e-6,
  tie_word_embeddings=False,
)
VALID = 47


def options(**changes):
  values = {
    'temperature': 0.7,
    'valid_vocab': VALID,
    'dtype': jnp.float32,
    'remat': 'none',
    'chunk': 12,
  }
  return {'scoring': scoring.Scoring(**values | changes)}


def inputs(length=11):
  params = drawn.weights(CONFIG)
  params = jax.tree.map(lambda leaf: np.float32(5) * np.asarray(leaf), params)
  tokens = np.random.default_rng(1).integers(0, VALID, (3, length), np.int32)
  positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
  return params, jnp.asarray(tokens), jnp.asarray(positions)


def whole(params, tokens, positions, temperature, dtype=jnp.float32):
  """All logits at once, the impossible ids cut off."""
  hidden, _ = decoder.forward(CONFIG, params, tokens, positions, dtype=dtype)
  scores = decoder.logits(CONFIG, params, hidden)[:, :-1, :VALID] / temperature
  every = jax.nn.log_softmax(scores)
  logprobs = jnp.take_along_axis(every, tokens[:, 1:, None], -1)[..., 0]
  entropy = -(jnp.exp(every) * every).sum(-1)
  first = ((0, 0), (1, 0))
  return jnp.pad(logprobs, first), jnp.pad(entropy, first)


naive = quick.jit(whole, static_argnames='dtype')


@pytest.mark.parametrize(
  'chunk, wrap',
  [(3, quick.jit), (12, quick.jit), (15, lambda fun: fun), (192, quick.jit)],
)
def test_values_are_those_of_the_whole_computation(chunk, wrap):
  params, tokens, positions = inputs()
  got = wrap(
    lambda *args: scoring.token_logprobs(CONFIG, *args, **options(chunk=chunk))
  )(params, tokens, positions)
  want = naive(params, tokens, positions, 0.7)
  for one, other in zip(got, want):
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_whole_computation():
  params, tokens, positions = inputs()
  weights = np.random.default_rng(2).normal(size=(2, *tokens.shape)).astype('float32')

  def loss(score):
    return lambda params: sum(
      (weight * value).sum()
      for weight, value in zip(weights, score(params, tokens, positions))
    )

  chunked = loss(
    lambda *args: scoring.token_logprobs(CONFIG, *args, **options(remat='full'))
  )
  want = quick.jit(jax.grad(loss(lambda *args: whole(*args, 0.7))))(params)
  got = quick.jit(jax.grad(chunked))(params)
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    scale = float(jnp.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * scale)


def score(params, tokens, positions, **changes):
  """Jitted `token_logprobs`."""
  chosen = options(**changes)
  step = jax.jit(lambda *args: scoring.token_logprobs(CONFIG, *args, **chosen))
  return step(params, tokens, positions)


def test_ids_without_a_token_have_no_probability():
  params, tokens, positions = inputs()
  head = np.array(params['lm_head']['embedding'])
  head[VALID:] *= 1e4
  changed = {**params, 'lm_head': {'embedding': head}}
  got, entropy = score(changed, tokens, positions)
  want, _ = score(params, tokens, positions)
  np.testing.assert_array_equal(got, want)
  assert np.isfinite(entropy).all()
  assert (entropy[:, 1:] <= np.log(VALID)).all()
  impossible, _ = score(params, tokens.at[0, 5].set(VALID), positions)
  assert impossible[0, 5] < -1e38


def test_gradients_stay_finite_where_a_token_is_impossible():
  params, tokens, positions = inputs()
  tokens = tokens.at[0, 5].set(VALID)
  kept = jnp.ones(tokens.shape, bool).at[0, 5].set(False)

  def loss(params):
    logprobs, entropy = score(params, tokens, positions)
    return jnp.where(kept, logprobs, 0.0).sum() + entropy.sum()

  for leaf in jax.tree.leaves(quick.jit(jax.grad(loss))(params)):
    assert np.isfinite(leaf).all()


def test_the_first_column_is_zero_and_one_column_is_enough():
  params, tokens, positions = inputs(length=1)
  for value in score(params, tokens, positions):
    np.testing.assert_array_equal(value, np.zeros((3, 1), np.float32))


def test_half_precision_scores_are_summed_in_float32():
  params, tokens, positions = inputs()
  got, _ = score(params, tokens, positions, dtype=jnp.bfloat16)
  want, _ = naive(params, tokens, positions, 0.7, jnp.bfloat16)
  assert got.dtype == jnp.float32
  # The same half-precision hidden states; all that follows them is float32.
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_no_array_of_all_logits_exists():
  sizes = {'vocab_size': 20_000, 'num_layers': 2}
  config = decoder.ModelConfig(**{**vars(CONFIG), **sizes})
  params = jax.eval_shape(lambda: parameters.init_params(config, jax.random.key(0)))
  tokens = jax.ShapeDtypeStruct((2, 512), jnp.int32)

  def size(chunk):
    def loss(params, tokens, positions):
      logprobs, entropy = scoring.token_logprobs(
        config, params, tokens, positions, **options(chunk=chunk, remat='full')
      )
      return (logprobs + entropy).sum()

    lowered = quick.jit(jax.grad(loss)).lower(params, tokens, tokens)
    return lowered.compile().memory_analysis().temp_size_in_bytes

  logits = 2 * 512 * 20_000 * 4
  assert size(1024) > logits
  assert size(64) < 0.4 * logits


def test_one_pass_of_the_decoder_serves_every_head():
  params, tokens, positions = inputs()

  def apart(params):
    hidden = scoring.hidden_states(CONFIG, params, tokens, None, **options())
    states, targets = hidden[:, :-1], tokens[:, 1:]
    return scoring.scores_after(CONFIG, params, states, targets, **options())

  for one, other in zip(jax.jit(apart)(params), score(params, tokens, positions)):
    np.testing.assert_array_equal(one, other[:, 1:])
  given = jax.jit(
    lambda q: scoring.hidden_states(CONFIG, params, tokens, q, **options())
  )
  forward = jax.jit(lambda q: decoder.forward(CONFIG, params, tokens, q)[0])
  shifted, plain = given(3 * positions), forward(positions)
  np.testing.assert_array_equal(shifted, forward(3 * positions))
  assert np.abs(shifted - plain).max() > 1e-2


def _sheet(rng, lanes, rows, longest):
  """Sizes of rows, their mask, and places of lanes with some padding behind."""
  sizes = rng.integers(0, longest + 1, (lanes, rows))
  mask = (np.arange(longest) < sizes[..., None]).reshape(-1, longest)
  places = np.zeros((lanes, int(sizes.sum(1).max()) + 3), np.int32)
  return sizes, mask, places


def test_states_and_values_stand_where_a_loop_puts_them():
  rng = np.random.default_rng(6)
  hidden = rng.normal(size=(6, 9, 4)).astype(np.float32)  # Three sequences a lane.
  sizes, mask, places = _sheet(rng, lanes=2, rows=5, longest=4)
  want_states, want = np.zeros((*places.shape, 4)), np.zeros((2, 5, 4))
  values = rng.normal(size=places.shape).astype(np.float32)
  for lane in range(2):
    place = 0
    for row, size in enumerate(sizes[lane]):
      for token in range(size):
        sequence, column = rng.integers(3), rng.integers(9)
        places[lane, place] = sequence * 9 + column
        want_states[lane, place] = hidden[3 * lane + sequence, column]
        want[lane, row, token] = values[lane, place]
        place += 1
    want_states[lane, place:] = hidden[3 * lane, 0]
  got = jax.jit(scoring.states_at)(hidden, places)
  np.testing.assert_array_equal(got, want_states)
  got = jax.jit(scoring.by_rows)(values, mask)
  np.testing.assert_array_equal(got, want.reshape(10, 4))


def test_what_no_row_reads_has_no_gradient():
  rng = np.random.default_rng(7)
  sizes, mask, places = _sheet(rng, lanes=3, rows=4, longest=5)
  values = np.where(np.arange(places.shape[1]) < sizes.sum(1)[:, None], 1.0, np.nan)
  got, grads = jax.value_and_grad(lambda v: scoring.by_rows(v, mask).sum())(values)
  assert got == sizes.sum()
  np.testing.assert_array_equal(grads, np.where(np.isnan(values), 0, 1))


@pytest.mark.parametrize('wrap', [jax.jit, lambda fun: fun])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_values_are_those_of_a_loop_with_its_gradient(wrap, dtype):
  rng = np.random.default_rng(3)
  hidden = jnp.asarray(rng.normal(size=(2, 5, 16)), dtype)
  head = {'kernel': rng.normal(size=16), 'bias': np.array(0.25)}
  head = jax.tree.map(np.float32, head)
  values, pull = jax.vjp(wrap(critic.token_values), hidden, head)
  weights = rng.normal(size=(2, 5)).astype(np.float32)
  to_hidden, to_head = pull(weights)
  exact = np.asarray(hidden, np.float64)
  want, kernel = np.zeros((2, 5)), np.zeros(16)
  for b in range(2):
    for t in range(5):
      want[b, t] = sum(exact[b, t] * head['kernel']) + 0.25
      kernel += weights[b, t] * exact[b, t]
      np.testing.assert_allclose(
        np.asarray(to_hidden[b, t], np.float32),
        weights[b, t] * head['kernel'],
        rtol=1e-6 if dtype == jnp.float32 else 2**-8,
      )
  assert values.dtype == jnp.float32
  np.testing.assert_allclose(values, want, atol=1e-5)
  np.testing.assert_allclose(to_head['kernel'], kernel, atol=1e-5)
  np.testing.assert_allclose(to_head['bias'], weights.sum(), atol=1e-5)


def test_a_new_critic_says_zero_and_has_a_gradient():
  hidden = np.random.default_rng(4).normal(size=(3, 11, 16)).astype(np.float32)
  head = critic.init_value_head(CONFIG)
  assert {leaf.dtype for leaf in jax.tree.leaves(head)} == {jnp.dtype('float32')}
  np.testing.assert_array_equal(critic.token_values(hidden, head), np.zeros((3, 11)))
  grads = jax.grad(lambda head: critic.token_values(hidden, head).sum())(head)
  assert grads['bias'] == 33 and np.abs(grads['kernel']).max() > 0
  with pytest.raises(AssertionError):
    critic.token_values(hidden[..., :1], head)


@pytest.mark.parametrize('changes', [{'chunk': 0}, {'valid_vocab': 54}])
def test_sizes_out_of_range_are_refused(changes):
  params, tokens, positions = inputs()
  name = next(iter(changes))
  with pytest.raises(ValueError, match=f'{name} {changes[name]}: must be'):
    scoring.token_logprobs(CONFIG, params, tokens, positions, **options(**changes))


@pytest.mark.parametrize('name', ['qwen2_tied', 'qwen2_untied_bf16', 'qwen3_tied'])
def test_logprobs_are_those_recorded(name, monkeypatch):
  if name == 'qwen2_untied_bf16':  # See tests/models/golden_models.py for why.
    exact = attention.frequencies
    monkeypatch.setattr(
      attention,
      'frequencies',
      lambda *args: jax.lax.reduce_precision(exact(*args), 8, 7),
    )
  config, params = hf.load(str(GOLDEN / name), None, jnp.float32)
  record = np.load(GOLDEN / name / 'expected.npz')
  tokens = jnp.asarray(record['tokens'], jnp.int32)
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  with jax.default_matmul_precision('highest'):
    chosen = options(
      temperature=1.0, valid_vocab=config.vocab_size, chunk=20 * len(tokens)
    )
    step = jax.jit(lambda *args: scoring.token_logprobs(config, *args, **chosen)[0])
    got = step(params, tokens, positions)
  real = record['attention_mask'][:, 1:].astype(bool)
  np.testing.assert_allclose(
    np.asarray(got)[:, 1:][real], record['token_logprobs'][real], rtol=0, atol=1e-5
  )
