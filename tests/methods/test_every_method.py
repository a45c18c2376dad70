"""What holds for every row: order, masks, padding, units, single members."""

import jax
import numpy as np
import pytest
from algorithm_cases import (
  CREDITS,
  LOSSES,
  TURNS,
  assert_close,
  assert_same,
  credit,
  evaluate,
  gradient,
  hyper_of,
  inputs_of,
  step_data,
  take,
  taught_tokens,
  without_loners,
)
from credit_loops import LOOPS

from sdar_jax.methods.credit import assign_credit
from sdar_jax.methods.gates import GATES
from sdar_jax.methods.table import find


@pytest.mark.parametrize('name', CREDITS)
def test_rows_may_come_in_any_order(name):
  data = step_data(step=30)
  if hyper_of(name).statistics_over == 'trajectories':  # The first row speaks for all.
    data = data._replace(
      scores=data.scores + data.penalties, penalties=np.zeros(len(TURNS))
    )
  order = np.random.default_rng(3).permutation(len(TURNS))
  want, got = credit(name, data), credit(name, take(data, order))
  for field in ('advantages', 'teaching', 'value_targets'):
    if field in want:
      assert_close(got[field], want[field][order], rtol=1e-5, atol=1e-6)
  assert_close(got['gate_mean'], want['gate_mean'], rtol=1e-5)


POISON = {
  'old_logprobs': -np.inf,
  'ref_logprobs': np.inf,
  'teacher_logprobs': np.nan,
  'contrast_logprobs': np.nan,
  'old_entropy': np.nan,
  'old_kl': np.nan,
  'old_values': np.inf,
  'logprobs': -np.inf,
  'entropy': np.nan,
  'values': np.nan,
  'divergence': np.inf,
  'advantages': np.nan,
  'value_targets': np.nan,
}


THEIRS = ('teacher_logprobs', 'contrast_logprobs', 'divergence')


def poisoned(arrays, mask, fields=POISON):
  """With POISON where masked, as far as there are such fields."""
  there = {n: getattr(arrays, n, None) for n in fields}
  there = {n: v for n, v in there.items() if v is not None}
  return arrays._replace(**{n: np.where(mask, v, POISON[n]) for n, v in there.items()})


def spoilt(arrays, data):
  """Poisoned at masked tokens, and the teacher's word on rows without a lesson."""
  taught = poisoned(arrays, taught_tokens(data), THEIRS)
  return poisoned(taught, data.response_mask)


@pytest.mark.parametrize('name', CREDITS)
def test_credit_never_reads_masked_tokens_nor_rows_without_a_lesson(name):
  data = step_data(step=30)
  with np.errstate(invalid='ignore'):
    got = credit(name, spoilt(data, data))
  assert_same(got, credit(name, data))


@pytest.mark.parametrize('name', LOSSES)
def test_the_objective_never_reads_masked_tokens_nor_rows_without_a_lesson(name):
  data = step_data(step=30)
  mask, hyper = data.response_mask, hyper_of(name)
  inputs = inputs_of(name, hyper, data)
  want = evaluate(name, hyper, inputs)
  assert_same(evaluate(name, hyper, spoilt(inputs, data)), want)
  (loss, metrics), grads = want
  assert np.isfinite(loss)
  assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
  for field, values in grads.items():
    assert np.isfinite(values).all(), field
    np.testing.assert_array_equal(values[~mask], 0)
  assert (grads['logprobs'] != 0)[mask & data.taught[:, None]].any()


@pytest.mark.parametrize('name', CREDITS)
def test_padding_rows_change_nothing(name):
  """Whatever they hold: of a group that is there, an episode that is not."""
  data = step_data(step=30)
  want = credit(name, data)
  more = take(data, [*range(len(TURNS)), 0])
  for field, value in (
    ('row_mask', False),
    ('response_mask', False),
    ('trajectory_ids', 43),
    ('scores', np.nan),
    ('rewards', np.nan),
    ('penalties', np.nan),
  ):
    getattr(more, field)[-1] = value
  with np.errstate(invalid='ignore'):
    got = credit(name, poisoned(more, more.response_mask))
  for field, values in want.items():
    there = got[field][:-1] if values.ndim else got[field]
    assert_close(there, values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got['advantages'][-1], 0)


@pytest.mark.parametrize('gate', sorted(GATES))
@pytest.mark.parametrize('name', ['sdar-advantage', 'sdar-centred'])
def test_masked_entropies_are_never_read(name, gate):
  data, hyper = step_data(), hyper_of(name, gate=gate)
  with np.errstate(invalid='ignore'):
    poison = assign_credit(find(name), hyper, spoilt(data, data))
  assert_same(poison, assign_credit(find(name), hyper, data))
  inputs = inputs_of(name, hyper, data)
  got = evaluate(name, hyper, spoilt(inputs, data))
  assert_same(got, evaluate(name, hyper, inputs))


RELATIVE = ['grpo', 'dr-grpo', 'rloo', 'grpo-passk', 'gigpo', 'reinforce++-baseline']


@pytest.mark.parametrize('name', [*RELATIVE, *LOOPS, 'gigpo+grsd'])
def test_equal_scores_teach_nothing(name):
  data = without_loners(step_data())
  data = data._replace(
    scores=0.7 + 0.1 * data.group_ids,  # Numbers that a mean would round.
    rewards=np.zeros(len(data.scores)),
    penalties=np.zeros(len(data.scores)),
  )
  got, inputs = gradient(name, data)
  np.testing.assert_array_equal(inputs.advantages, 0)
  np.testing.assert_array_equal(got, 0)


PLAIN = {'dr-grpo': {}, 'rloo': {}, 'gigpo': {'divide_by_std': False}}
DIVIDED = ['grpo', 'grpo-passk', 'gigpo', 'ppo', 'ppo-kl-reward', 'reinforce++']


def ten_times(data):
  """A world that pays, and a critic and a KL that count, in tenths."""
  fields = ('scores', 'rewards', 'penalties', 'old_values', 'old_kl')
  return data._replace(**{name: 10 * getattr(data, name) for name in fields})


@pytest.mark.parametrize('name', [*DIVIDED, *LOOPS, 'opid'])
def test_the_unit_of_rewards_is_divided_out(name):
  data = without_loners(step_data())
  want, got = (credit(name, d)['advantages'] for d in (data, ten_times(data)))
  assert np.abs(want).max() > 0.5
  assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', PLAIN)
def test_the_unit_of_rewards_stays_without_a_deviation(name):
  data, settings = step_data(), PLAIN[name]
  want, got = (
    credit(name, d, **settings)['advantages'] for d in (data, ten_times(data))
  )
  assert np.abs(want).max() > 0.5
  assert_close(got, 10 * want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', CREDITS)
def test_single_members_are_finite(name):
  data = step_data()
  alone = take(data, [14])
  for few in (alone, take(data, [14, 0]), take(data, [0, 1])):
    for value in credit(name, few).values():
      assert np.isfinite(value).all()
  got = credit(name, alone)['advantages']
  np.testing.assert_array_equal(got[~alone.response_mask], 0)
