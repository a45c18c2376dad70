"""Adapters against the model with them added up, in float64 where it is arithmetic."""

import dataclasses
import functools
import json

import drawn
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
import quick

from sdar_jax.learner import scoring
from sdar_jax.models import adapter_files, hf_tensors, lora, sharding
from sdar_jax.models.hf_config import WeightError
from sdar_jax.rollout.request import Request, SamplingParams
from sdar_jax.sampler.sampler import Sampler

SETTINGS = lora.Lora(rank=3, alpha=7.0)
BASE = dataclasses.replace(micro.MODEL, num_layers=2)
MODEL = dataclasses.replace(BASE, lora=SETTINGS)
SHAPES = {
  'q_proj': (32, 32),
  'k_proj': (32, 16),
  'v_proj': (32, 16),
  'o_proj': (32, 32),
}
SHAPES |= {'gate_proj': (32, 64), 'up_proj': (32, 64), 'down_proj': (64, 32)}
HOW = scoring.Scoring(1.0, micro.VALID, jnp.float32, remat='none', chunk=512)


def score(params, tokens):
  return scoring.token_logprobs(MODEL, params, tokens, None, HOW)


scored = quick.jit(score)


@functools.cache
def base():
  return drawn.weights(BASE, noise=0.1)


@functools.cache
def adapters(seed=0):
  """Adapters as after some training: b is not zero."""
  random = np.random.default_rng(seed)
  draw = lambda spec: jnp.array(random.normal(0, 0.2, spec.shape).astype(np.float32))
  return jax.tree.map(draw, MODEL.adapter_specs())


def added():
  """The model with its adapters added up, a matrix at a time in float64."""
  out = jax.tree.map(np.array, base())
  for tensor in hf_tensors.tensor_table(BASE):
    if tensor.path[-1] != 'kernel':
      continue
    pair = hf_tensors.leaf(adapters(), tensor.path[:-1])
    kernel = hf_tensors.leaf(out, tensor.path)
    for layer in range(BASE.num_layers):
      a = np.asarray(pair['lora_a'][layer], np.float64).reshape(-1, SETTINGS.rank)
      b = np.asarray(pair['lora_b'][layer], np.float64).reshape(SETTINGS.rank, -1)
      kernel[layer] += (SETTINGS.alpha / SETTINGS.rank * a @ b).reshape(kernel[0].shape)
  return jax.tree.map(jnp.array, out)


def placed(tree, specs):
  """Copies weights to where a run has them."""
  shardings = sharding.param_shardings(specs, sharding.make_mesh(1, 1, 1))
  return sharding.place(jax.tree.map(np.array, tree), shardings)


def joined():
  return lora.joined(base(), adapters(), SETTINGS)


def rows():
  drawn_ids = np.random.default_rng(2).integers(0, micro.VALID, (4, 12), np.int32)
  return jnp.asarray(drawn_ids)


def test_new_adapters_change_no_bit():
  draw = quick.jit(lambda key: lora.init(MODEL.adapter_specs(), key))
  fresh = draw(jax.random.key(0))
  for got, want in zip(
    scored(lora.joined(base(), fresh, SETTINGS), rows()), scored(base(), rows())
  ):
    np.testing.assert_array_equal(got, want)
  bounds = {32: 1 / np.sqrt(32), 64: 1 / np.sqrt(64)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(fresh):
    if path[-1].key == 'lora_a':
      bound = bounds[int(np.prod(leaf.shape[1:-1]))]
      assert 0.8 * bound < jnp.abs(leaf).max() <= bound


def test_a_forward_pass_adds_them_up():
  for got, want in zip(scored(joined(), rows()), scored(added(), rows())):
    np.testing.assert_allclose(got, want, atol=2e-5)
  apart = np.abs(scored(joined(), rows())[0] - scored(base(), rows())[0]).max()
  assert apart > 0.1  # So that the comparison says something.


def test_gradients_are_those_of_the_matrices_by_the_chain_rule():
  weights = np.random.default_rng(3).normal(size=(4, 12)).astype(np.float32)
  loss = lambda params: (weights * score(params, rows())[0]).sum()
  got = quick.jit(jax.grad(lambda low: loss(lora.joined(base(), low, SETTINGS))))(
    adapters()
  )
  whole = quick.jit(jax.grad(loss))(added())
  for tensor in hf_tensors.tensor_table(BASE):
    if tensor.path[-1] != 'kernel':
      continue
    pair = hf_tensors.leaf(adapters(), tensor.path[:-1])
    found = hf_tensors.leaf(got, tensor.path[:-1])
    change = np.asarray(hf_tensors.leaf(whole, tensor.path), np.float64)
    for layer in range(BASE.num_layers):
      a = np.asarray(pair['lora_a'][layer], np.float64).reshape(-1, SETTINGS.rank)
      b = np.asarray(pair['lora_b'][layer], np.float64).reshape(SETTINGS.rank, -1)
      flat = SETTINGS.scale * change[layer].reshape(len(a), -1)
      for name, want in (('lora_a', flat @ b.T), ('lora_b', a.T @ flat)):
        value = np.asarray(found[name][layer]).reshape(want.shape)
        scale = np.abs(want).max()
        np.testing.assert_allclose(value, want, atol=2e-5 * scale)


def test_a_sampler_draws_as_with_the_matrices_added_up():
  def play(model, params):
    sampler = Sampler(
      model,
      params,
      slots=3,
      max_prompt_tokens=8,
      max_response_tokens=6,
      valid_vocab=micro.VALID,
      prefill_chunk=4,
    )
    prompts = np.random.default_rng(4).integers(0, micro.VALID, (5, 8))
    how = SamplingParams(max_tokens=6)
    sampler.submit([Request(i, p, how, (0, i)) for i, p in enumerate(prompts)])
    done = {}
    while found := sampler.poll():
      done |= {one.request_id: one for one in found}
    return done

  got, want = play(MODEL, joined()), play(BASE, added())
  for name, one in want.items():
    np.testing.assert_array_equal(got[name].token_ids, one.token_ids)
    np.testing.assert_allclose(got[name].logprobs, one.logprobs, atol=1e-5)


def test_a_learner_trains_adapters_and_scores_the_model_as_reference():
  learner = micro.learner(model=MODEL)
  model = placed(base(), BASE.param_specs())
  initial = learner.make_initial(model)
  assert initial is model  # No second copy.
  state = learner.init_state(model)
  assert jax.tree.structure(state.params) == jax.tree.structure(adapters())
  state = state._replace(params=placed(adapters(), MODEL.adapter_specs()))
  (batch,) = micro.scored(learner, state, initial, [micro.split(micro.minibatch())])
  plain = micro.learner(model=BASE)
  theirs = plain.init_state(placed(added(), BASE.param_specs()))
  (wanted,) = micro.scored(plain, theirs, model, [micro.split(micro.minibatch())])
  for name in ('old_logprobs', 'ref_logprobs', 'teacher_logprobs'):
    got, want = micro.joined(batch, name), micro.joined(wanted, name)
    np.testing.assert_allclose(got, want, atol=3e-5, err_msg=name)
  before = jax.tree.map(np.array, state.params)
  state, metrics = learner.train_step(state, batch, initial)
  theirs, expected = plain.train_step(theirs, wanted)
  for name in ('loss', 'policy_loss', 'distill_loss', 'kl'):
    got, want = (float(np.sum(found[name][0])) for found in (metrics, expected))
    assert got == pytest.approx(want, abs=3e-3), name
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, before, state.params)
  assert all(jax.tree.leaves(moved))
  jax.tree.map(np.testing.assert_array_equal, initial, base())


# --- files --------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  adapter_files.save(tmp_path, MODEL, adapters(), 'Qwen/Qwen3-0.6B')
  return tmp_path


def test_files_have_the_names_and_shapes_of_peft(folder):
  stored = adapter_files._tensors(folder / adapter_files.WEIGHTS)
  assert len(stored) == 2 * 7 * BASE.num_layers
  for name, (inputs, outputs) in SHAPES.items():
    group = 'mlp' if name[0] in 'gud' else 'self_attn'
    stem = f'base_model.model.model.layers.1.{group}.{name}'
    assert stored[f'{stem}.lora_A.weight'].shape == (3, inputs)
    assert stored[f'{stem}.lora_B.weight'].shape == (outputs, 3)
  record = json.loads((folder / adapter_files.CONFIG).read_text())
  assert (record['r'], record['lora_alpha'], record['peft_type']) == (3, 7.0, 'LORA')
  assert sorted(record['target_modules']) == sorted(SHAPES)


def test_what_was_written_is_merged_into_the_model(folder):
  got = adapter_files.merge_into(base(), BASE, str(folder))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, added())


def test_adapters_of_some_matrices_leave_the_others(tmp_path):
  some = dataclasses.replace(SETTINGS, targets='mlp')
  model = dataclasses.replace(MODEL, lora=some)
  part = {'layers': {'mlp': adapters()['layers']['mlp']}}
  assert jax.tree.structure(model.adapter_specs()) == jax.tree.structure(part)
  adapter_files.save(tmp_path, model, part, '')
  got = adapter_files.merge_into(base(), BASE, str(tmp_path))
  for group, equal in (('attention', True), ('mlp', False)):
    same = jax.tree.map(np.array_equal, got['layers'][group], base()['layers'][group])
    assert all(jax.tree.leaves(same)) == equal


@pytest.mark.parametrize(
  'change, said',
  [
    ({'peft_type': 'LOHA'}, "peft_type is 'LOHA', only 'LORA' is read"),
    ({'use_dora': True}, 'use_dora is True'),
    ({'r': 0}, 'r is 0, must be a positive number'),
    ({'r': 4}, r'lora_A\.weight is \[3, 32\], this model and rank want \[4, 32\]'),
    ({'lora_alpha': 'x'}, "lora_alpha is 'x'"),
    ({'alpha_pattern': {'q_proj': 64}}, "alpha_pattern is {'q_proj': 64}"),
    ({'rank_pattern': {'q_proj': 4}}, "rank_pattern is {'q_proj': 4}"),
    ({'lora_bias': True}, 'lora_bias is True'),
    ({'init_lora_weights': 'pissa_niter_4'}, "'pissa_niter_4', which belongs to other"),
  ],
)
def test_a_foreign_configuration_is_refused_in_a_line(folder, change, said):
  path = folder / adapter_files.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(WeightError, match=said) as error:
    adapter_files.merge_into(base(), BASE, str(folder))
  assert str(folder) in str(error.value) and '\n' not in str(error.value)


def test_what_peft_writes_where_nothing_is_special_is_read(folder):
  plain = {'alpha_pattern': {}, 'rank_pattern': {}, 'lora_bias': False}
  for begun in (True, 'gaussian', 'eva'):
    path = folder / adapter_files.CONFIG
    record = json.loads(path.read_text()) | plain | {'init_lora_weights': begun}
    path.write_text(json.dumps(record))
    adapter_files._checked(record, path)


def test_tensors_that_do_not_belong_are_refused_in_a_line(folder):
  path = folder / adapter_files.WEIGHTS
  stored = adapter_files._tensors(path)
  one = min(name for name in stored if name.endswith('lora_B.weight'))
  value = stored.pop(one)
  adapter_files.save_file(stored, path)
  with pytest.raises(WeightError, match=f'{one} is missing'):
    adapter_files.merge_into(base(), BASE, str(folder))
  adapter_files.save_file(stored | {one: value, 'lm_head.lora_A.weight': value}, path)
  with pytest.raises(WeightError, match=r'lm_head.*belongs to no matrix'):
    adapter_files.merge_into(base(), BASE, str(folder))
  wrong = value.copy()
  wrong[0, 0] = np.nan
  for bad, said in (
    (wrong, f'{one} has values that are not finite'),
    (value.astype(np.int8), f'{one} is int8'),
  ):
    adapter_files.save_file(stored | {one: bad}, path)
    with pytest.raises(WeightError, match=said):
      adapter_files.merge_into(base(), BASE, str(folder))
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(WeightError, match=r'adapter_model\.safetensors'):
    adapter_files.merge_into(base(), BASE, str(folder))
