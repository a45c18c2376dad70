import dataclasses
import functools

import jax
import numpy as np
import pytest
import quick
import tokens
from batches import make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.advantages import grpo
from sdar_jax.losses import masked, policy
from sdar_jax.losses import objective as objectives
from sdar_jax.losses.objective import LossInputs
from sdar_jax.methods import gates
from sdar_jax.methods.hyperparameters import KEYS, Hyperparameters
from sdar_jax.methods.table import ALGORITHMS

LENGTH = 6
FORMS = KEYS['distill_form'].allowed
EXTRA = dict.fromkeys(LossInputs._fields) | {
  'gate_mean': np.float32(0.5),
  'distill_scale': np.float32(1),
}
POISON = {
  'logprobs': -np.inf,
  'entropy': np.nan,
  'old_logprobs': -np.inf,
  'ref_logprobs': np.inf,
  'teacher_logprobs': np.nan,
}


def inputs_of(batch, hyper, **changes):
  normaliser = masked.normaliser_of(
    batch['response_mask'], hyper.aggregation, length=LENGTH
  )
  mask = batch['response_mask']
  credit = {'advantages': np.where(mask, batch['advantages'][:, None], 0)}
  gap = np.where(mask, batch['teacher_logprobs'] - batch['old_logprobs'], 0)
  credit['gate'] = gates.gap_gate(gap, gate_beta=hyper.gate_beta, gap_clip=0.0)
  return LossInputs(**(EXTRA | batch | credit | {'normaliser': normaliser} | changes))


@functools.cache  # One function object, so that jit compiles once per shape.
def objective(name, hyper):
  def scalar(logprobs, entropy, inputs):
    inputs = inputs._replace(logprobs=logprobs, entropy=entropy)
    return objectives.policy_objective(ALGORITHMS[name], hyper, inputs)

  return jax.value_and_grad(scalar, argnums=(0, 1), has_aux=True)


def evaluate(name, hyper, inputs, wrap=quick.jit):
  """(loss, metrics, gradients by logprobs and entropy)."""

  function = objective(name, hyper)
  arrays = (inputs.logprobs, inputs.entropy, inputs)
  (loss, metrics), grads = wrap(function)(*arrays)
  return loss, metrics, grads


def assert_trees_equal(left, right):
  jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('wrap', [lambda fun: fun, jax.jit], ids=['eager', 'jit'])
def test_distill_coef_zero_is_grpo_bit_for_bit(form, wrap):
  batch = make_batch(0)
  zero = Hyperparameters(distill_coef=0.0, distill_form=form)
  sdar = evaluate('sdar', zero, inputs_of(batch, zero, teacher_logprobs=None), wrap)
  hyper = Hyperparameters(distill_form=form)
  grpo = evaluate('grpo', hyper, inputs_of(batch, hyper), wrap)
  assert sdar[1].keys() == grpo[1].keys()
  assert_trees_equal(sdar, grpo)


def test_terms_with_coefficient_zero_are_not_computed():
  batch = make_batch(1)
  hyper = Hyperparameters(distill_coef=0.0, kl_coef=0.0, entropy_coef=0.0)
  inputs = inputs_of(batch, hyper, ref_logprobs=None, teacher_logprobs=None)
  assert not hyper.needs_reference
  assert not ALGORITHMS['sdar'].needs_teacher(hyper)

  def program(name):
    function = lambda inputs: objectives.policy_objective(
      ALGORITHMS[name], hyper, inputs
    )
    return str(jax.make_jaxpr(function)(inputs))

  assert program('sdar') == program('grpo')
  loss, metrics, grads = evaluate('sdar', hyper, inputs)
  assert metrics.keys().isdisjoint({'kl', 'distill_loss', 'gate'})
  np.testing.assert_array_equal(grads[1], 0)
  np.testing.assert_allclose(loss, np.divide(*metrics['policy_loss']), rtol=1e-6)
  nothing = dataclasses.replace(hyper, policy_coef=0.0)
  loss, metrics, grads = evaluate('sdar', nothing, inputs)
  assert loss == 0
  assert_trees_equal(grads, jax.tree.map(np.zeros_like, grads))


def test_the_objective_is_the_sum_of_its_terms():
  hyper = Hyperparameters(
    kl_coef=0.3, entropy_coef=0.2, distill_coef=0.5, policy_coef=2.0
  )
  loss, metrics, grads = evaluate('sdar', hyper, inputs_of(make_batch(2), hyper))
  means = tokens.means(metrics)
  want = (
    2.0 * means['policy_loss']
    + 0.3 * means['kl']
    - 0.2 * means['entropy']
    + 0.5 * means['distill_loss']
  )
  np.testing.assert_allclose(loss, want, rtol=1e-6)
  mask = make_batch(2)['response_mask']
  np.testing.assert_allclose(grads[1], -0.2 * mask / mask.sum(), rtol=1e-6)


def test_both_forms_have_one_gradient_on_policy():
  batch = make_batch(3)
  batch['logprobs'] = batch['old_logprobs']
  grads = []
  for form in FORMS:
    hyper = Hyperparameters(distill_form=form)
    grads.append(evaluate('sdar', hyper, inputs_of(batch, hyper))[2])
  np.testing.assert_allclose(grads[0][0], grads[1][0], rtol=1e-6, atol=1e-9)
  np.testing.assert_array_equal(grads[0][1], grads[1][1])


def test_without_a_policy_term_the_advantage_form_credits_the_gate():
  batch = make_batch(4)
  batch['logprobs'] = batch['old_logprobs'] + np.float32(0.1)  # Inside the clip.
  hyper = Hyperparameters(
    policy_coef=0.0, kl_coef=0.0, entropy_coef=0.0, distill_form='advantage'
  )
  (grad, _) = evaluate('sdar', hyper, inputs_of(batch, hyper))[2]
  # The gate of the step's start, like any other advantage.
  gap = batch['teacher_logprobs'].astype(np.float64) - batch['old_logprobs']
  mask = batch['response_mask']
  want = -0.01 * np.exp(0.1) * mask / (1 + np.exp(-5 * gap)) / mask.sum()
  np.testing.assert_allclose(grad, want, rtol=1e-5)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
def test_microbatches_add_up_to_the_minibatch(form, aggregation):
  batch = make_batch(5, rows=8, padding_rows=1)
  hyper = Hyperparameters(aggregation=aggregation, distill_form=form)
  inputs = inputs_of(batch, hyper)
  loss, metrics, grads = evaluate('sdar', hyper, inputs)
  parts = []
  for start in range(0, 8, 2):
    part = {name: value[start : start + 2] for name, value in batch.items()}
    part = inputs_of(part, hyper, normaliser=inputs.normaliser)
    parts.append(evaluate('sdar', hyper, part))
  np.testing.assert_allclose(sum(part[0] for part in parts), loss, rtol=1e-5)
  for index in (0, 1):
    whole = np.concatenate([part[2][index] for part in parts])
    np.testing.assert_allclose(whole, grads[index], rtol=1e-6)
  added = jax.tree.map(lambda *sums: sum(sums), *[part[1] for part in parts])
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, added, metrics)


@pytest.mark.parametrize('form', FORMS)
def test_rows_may_come_in_any_order(form):
  batch = make_batch(6)
  order = np.random.default_rng(0).permutation(8)
  hyper = Hyperparameters(distill_form=form)
  loss, _, grads = evaluate('sdar', hyper, inputs_of(batch, hyper))
  mixed = {name: value[order] for name, value in batch.items()}
  got, _, mixed_grads = evaluate('sdar', hyper, inputs_of(mixed, hyper))
  np.testing.assert_allclose(got, loss, rtol=1e-5)
  for a, b in zip(mixed_grads, grads):
    np.testing.assert_array_equal(a, np.asarray(b)[order])


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('aggregation', masked.AGGREGATIONS)
def test_all_masked_is_exactly_zero(form, aggregation):
  batch = make_batch(7)
  for name, value in POISON.items():
    batch[name] = np.full_like(batch[name], value)
  batch['response_mask'] = np.zeros_like(batch['response_mask'])
  batch['advantages'] = np.full_like(batch['advantages'], np.nan)
  hyper = Hyperparameters(aggregation=aggregation, distill_form=form)
  loss, metrics, grads = evaluate('sdar', hyper, inputs_of(batch, hyper))
  assert loss == 0
  assert_trees_equal(grads, jax.tree.map(np.zeros_like, grads))
  for value in tokens.means(metrics).values():
    np.testing.assert_array_equal(value, 0)


# Eagerly too: XLA turns a product with a mask into a select, so that jit forgives it.
@pytest.mark.parametrize('wrap', [lambda fun: fun, jax.jit], ids=['eager', 'jit'])
@pytest.mark.parametrize('form', FORMS)
def test_poison_at_padding_changes_no_bit(form, wrap):
  batch = make_batch(8, padding_rows=1)
  hyper = Hyperparameters(distill_form=form)
  want = evaluate('sdar', hyper, inputs_of(batch, hyper), wrap)
  mask = batch['response_mask']
  poison = {n: np.where(mask, batch[n], v).astype('f4') for n, v in POISON.items()}
  got = evaluate('sdar', hyper, inputs_of(batch | poison, hyper), wrap)
  assert_trees_equal(got, want)


WILD = st.sampled_from([1e4, -1e4, 0.0, 50.0, -50.0, 3.0, -3.0, 0.1])
HYPERS = [
  Hyperparameters(distill_form=form, kl_kind=kind)
  for form, kind in zip(FORMS * 2, ('k1', 'k2', 'k3', 'abs'))
]


@pytest.mark.parametrize('hyper', HYPERS, ids=lambda h: f'{h.distill_form}-{h.kl_kind}')
def test_wild_log_ratios_give_finite_gradients(hyper):
  batch = make_batch(10, rows=2, tokens=4)
  inputs = inputs_of(batch, hyper)

  def scalar(logprobs, inputs):
    inputs = inputs._replace(logprobs=logprobs)
    return objectives.policy_objective(ALGORITHMS['sdar'], hyper, inputs)

  function = jax.jit(jax.value_and_grad(scalar, has_aux=True))

  @settings(max_examples=60, deadline=None)
  @given(st.lists(WILD, min_size=34, max_size=34), st.integers(0, 255))
  def check(values, bits):
    wild = np.array(values[:32], np.float32).reshape(4, 2, 4)
    names = ('logprobs', 'old_logprobs', 'ref_logprobs', 'teacher_logprobs')
    mask = (bits >> np.arange(8) & 1).astype(bool).reshape(2, 4)
    changed = inputs._replace(
      **dict(zip(names, wild)),
      advantages=np.tile(np.array(values[32:], np.float32)[:, None], 4),
      response_mask=mask,
    )
    (loss, metrics), grad = function(changed.logprobs, changed)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()
    assert np.all(np.asarray(grad)[~mask] == 0)
    for value, count in metrics.values():
      assert np.isfinite(value).all() and np.isfinite(count).all()

  check()


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('aggregation', 'mean'),
    ('kl_kind', 'k4'),
    ('distill_form', 'reward'),
    ('statistics_over', 'batch'),
    ('clip_low', 1.5),
    ('clip_high', -0.1),
    ('dual_clip', 0.5),
    ('distill_coef', float('nan')),
    ('kl_coef', -1.0),
  ],
)
def test_wrong_hyperparameters_are_named(name, value):
  with pytest.raises(ValueError, match=rf'^config\.algorithm\.{name}=[^\n]*$'):
    Hyperparameters(**{name: value})


def _acting(name, batch, hyper):
  """Credit and ratio of each token that a surrogate reads, in NumPy."""
  mask, old = batch['response_mask'], batch['old_logprobs']
  credit = np.where(mask, batch['advantages'][:, None], 0)
  if hyper.distill_form == 'advantage':
    gap = batch['teacher_logprobs'] - old
    credit = credit + hyper.distill_coef / (1 + np.exp(-hyper.gate_beta * gap))
  moved = np.where(mask, batch['logprobs'] - old, 0)
  if name == 'gspo':
    size = np.maximum(mask.sum(1, keepdims=True), 1)
    moved = np.broadcast_to(moved.sum(1, keepdims=True) / size, mask.shape)
  return credit, np.exp(moved)


# One row for each policy loss of the table, and one whose teacher changes the credit.
SURROGATES = list({row.policy_loss: name for name, row in ALGORITHMS.items()}.values())


@pytest.mark.parametrize('name', [*SURROGATES, 'sdar-advantage'])
def test_clip_shares_are_of_tokens_whose_gradient_a_clip_stops(name):
  """Counted in the gradient that autodiff finds."""
  keys = {k: v for k, v in ALGORITHMS[name].all_settings.items() if 'algorithm' in k}
  own = {key.removeprefix('algorithm.'): value for key, value in keys.items()}
  own |= {'policy_coef': 1.0, 'distill_form': 'loss', 'distill_coef': 0.0}
  if name == 'sdar-advantage':
    own |= {'distill_form': 'advantage', 'distill_coef': 1.0}
  hyper = Hyperparameters(
    **own | {'kl_coef': 0.0, 'entropy_coef': 0.0, 'dual_clip': 1.5}
  )
  batch = make_batch(5, rows=64, padding_rows=3, spread=1e-3 if name == 'gspo' else 0.6)
  extra = {}
  if ALGORITHMS[name].has_critic:
    zeros = np.zeros_like(batch['logprobs'])
    extra = dict.fromkeys(('values', 'old_values', 'value_targets'), zeros)
  inputs = inputs_of(batch, hyper, **extra)
  _, metrics, (gradient, _) = evaluate(name, hyper, inputs)
  credit, ratio = _acting(name, batch, hyper)
  stopped = batch['response_mask'] & (np.asarray(gradient) == 0)
  want = {
    'clip_high': stopped & (credit > 0),
    'clip_low': stopped & (credit < 0) & (ratio < 1),
    'clip_dual': stopped & (credit < 0) & (ratio > 1),
  }
  for key, hit in want.items():
    assert metrics[key] == (hit.sum(), batch['response_mask'].sum()), key
    assert hit.sum() > 0 or (name, key) == ('gspo', 'clip_dual'), key
  np.testing.assert_allclose(
    metrics['ratio'][0], ratio[batch['response_mask']].sum(), rtol=1e-5
  )


def test_clips_of_a_surrogate_that_is_not_in_the_objective_stop_nothing():
  hyper = Hyperparameters(policy_coef=0.0, kl_coef=0.0)
  inputs = inputs_of(make_batch(5, spread=0.9), hyper)
  _, metrics, _ = evaluate('opsd-released', hyper, inputs)
  assert metrics['ratio'][0] > 0
  for key in ('clip_low', 'clip_high', 'clip_dual'):
    assert metrics[key][0] == 0


def test_dr_grpo_is_two_settings():
  """No deviation, and a constant for a length: a token weighs the same everywhere."""
  batch = make_batch(9)
  rng = np.random.default_rng(9)
  scores, groups = rng.choice([0.0, 1.0], 8), np.arange(8) // 4
  mask, length = batch['response_mask'], 6
  old, new = (batch[name].astype(float) for name in ('old_logprobs', 'logprobs'))

  def objective(new):
    row = grpo.group_relative(
      scores, groups, np.arange(8), np.ones(8, bool), divide_by_std=False
    )
    credit = grpo.uniform_credit(row, mask)
    losses = policy.clipped_surrogate(
      new, old, credit, mask, clip_low=0.2, clip_high=0.2, dual_clip=1e9
    )
    mode = 'seq-mean-token-sum-norm'
    normaliser = masked.normaliser_of(mask, mode, length=length)
    return masked.aggregate(losses, mask, normaliser, mode)

  want, grad = 0.0, np.zeros((8, 6))
  for i in range(8):
    baseline = np.mean([scores[j] for j in range(8) if groups[j] == groups[i]])
    for t in np.flatnonzero(mask[i]):
      advantage, ratio = scores[i] - baseline, np.exp(new[i, t] - old[i, t])
      clipped = min(max(ratio, 0.8), 1.2)
      want -= min(advantage * ratio, advantage * clipped) / length
      if advantage * ratio <= advantage * clipped:
        grad[i, t] = -advantage * ratio / length
  with jax.enable_x64(True):
    for function in (objective, jax.jit(objective)):
      got = jax.value_and_grad(function)(new)
      np.testing.assert_allclose(got[0], want, rtol=1e-12)
      np.testing.assert_allclose(got[1], grad, rtol=1e-12, atol=1e-15)
