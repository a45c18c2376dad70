"""Every value and gradient of tests/golden/losses.npz, computed by the reference.

Two relative errors of an array are held to the bound, and elements that the reference
has at 0 must be exactly 0:

- norm: max |got - want| / max |want|;
- element: the largest |got - want| / |want|, in float64 over every element, in
  float32 over those of at least 1e-2 of the array's maximum. The smaller ones are
  differences of inputs whose own rounding to float32 is already more than 1e-5 of
  them (a k2 gradient logprobs - ref_logprobs of 1e-3 nats between log-probs of -3
  has no five digits), so in float32 they answer to the norm alone.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokens

from sdar_jax.advantages import baselines, credit, grpo, returns
from sdar_jax.losses import masked, policy

GOLDEN = Path(__file__).resolve().parents[1] / 'golden' / 'losses.npz'
CASES = (0, 1)
BOUND = {'float64': 1e-9, 'float32': 1e-5}
ELEMENT_FLOOR = {'float64': 0.0, 'float32': 1e-2}
EXPECTED_ARRAYS = 196
ROWS = 60  # Both cases are padded to one shape: one compilation, poison in padding.


def load():
  with np.load(GOLDEN, allow_pickle=False) as archive:
    return {name: archive[name] for name in archive.files}


def inputs_of(golden, number, dtype):
  """The inputs of one case as numpy arrays of one dtype, and its hyperparameters."""
  arrays = {}
  for key, value in golden.items():
    if not key.startswith(f'case{number}/in/'):
      continue
    if value.dtype.kind == 'U':
      value = np.unique(value, return_inverse=True)[1]
    if value.dtype.kind == 'f':
      value = value.astype(dtype)
    arrays[key.split('/')[-1]] = value
  arrays['mask'] = arrays.pop('response_mask').astype(bool)
  arrays['rows'] = np.ones(arrays['mask'].shape[0], bool)
  full = golden[f'case{number}/out/grpo_adv__std1_cross1']
  arrays['advantages'] = full.astype(dtype)
  return arrays


def pad_rows(case, rows):
  """`case` with poisoned padding rows after its own."""
  extra = rows - case['rows'].size
  mask = np.arange(rows) < case['rows'].size

  def pad(value):
    poison = {'f': np.nan, 'i': 0, 'b': False}[value.dtype.kind]
    tail = np.full((extra, *value.shape[1:]), poison, value.dtype)
    return np.concatenate([value, tail])

  padded = {name: pad(value) for name, value in case.items()}
  return padded | {'rows': mask}


def expected(golden, number):
  prefix = f'case{number}/out/'
  return {
    key.removeprefix(prefix): value
    for key, value in golden.items()
    if key.startswith(prefix)
  }


def clips(hyper):
  names = {'clip_low': 'clip_low', 'clip_high': 'clip_high', 'dual_clip': 'clip_c'}
  return {name: float(hyper[f'hp/{key}']) for name, key in names.items()}


def advantage_outputs(case, hyper):
  scores, mask, rows = case['episode_scores'], case['mask'], case['rows']
  ids = (case['group_ids'], case['trajectory_ids'])
  out = {}
  for cross, over in ((1, 'rows'), (0, 'trajectories')):
    for std in (1, 0):
      out[f'grpo_adv__std{std}_cross{cross}'] = grpo.group_relative(
        scores,
        *ids,
        rows,
        statistics_over=over,
        divide_by_std=bool(std),
        mute_zero_std=False,
      )
    out[f'rloo_adv__cross{cross}'] = baselines.rloo(
      scores, *ids, rows, statistics_over=over
    )
  for mode, std in (('mean_norm', False), ('mean_std_norm', True)):
    out[f'gigpo_adv__{mode}'] = baselines.gigpo(
      scores,
      case['step_returns'],
      *ids,
      case['anchor_obs'],
      rows,
      step_weight=float(hyper['hp/w']),
      divide_by_std=std,
    )
  out = {name: grpo.uniform_credit(row, mask) for name, row in out.items()}
  out['reinforcepp_adv'] = returns.reinforce_plus_plus(
    scores, mask, rows, gamma=float(hyper['hp/gamma'])
  )
  # The record was made with the current log-probs as the student's.
  gap = case['teacher_logprobs'] - case['logprobs']
  for mix in ('0', '0.5', '1'):
    out[f'rlsd_adv__lambda{mix}'] = credit.rlsd_credit(
      case['advantages'][:, 0],
      gap,
      mask,
      rlsd_lambda=float(mix),
      rlsd_clip=float(hyper['hp/rlsd_eps']),
    )
  return out


def golden_names(name, aggregation):
  if name.startswith('kl_'):
    return f'{name}__{aggregation}', f'{name}_grad__{aggregation}'
  stem, _, beta = name.partition('_')
  suffix = f'__{aggregation}_{beta}' if beta else f'__{aggregation}'
  return f'{stem}_loss{suffix}', f'{stem}_grad{suffix}'


def terms(hyper):
  """name -> (method whose objective has the term, its numbers)."""
  table = {
    'pg': ('sdar', {'policy_coef': 1.0, **clips(hyper)}),
    'skillsd': ('skill-sd', {'distill_coef': 1.0}),
  }
  for kind in policy.KL_KINDS:
    table[f'kl_{kind}'] = 'sdar', {'kl_coef': 1.0, 'kl_kind': kind}
  for beta in hyper['hp/betas']:
    numbers = {'distill_coef': 1.0, 'gate_beta': float(beta)}
    table[f'sdar_beta{beta:g}'] = 'sdar', numbers
  return table


def objective_outputs(case, hyper):
  """Losses, gradients and figures of the objective that trains, term by term."""
  names = ('old_logprobs', 'ref_logprobs', 'teacher_logprobs', 'advantages')
  arrays = {name: case[name] for name in names}

  def run(method, **numbers):
    quiet = not numbers.get('policy_coef')
    scalar = tokens.objective_of(method, case['mask'], arrays, quiet, **numbers)
    (loss, metrics), grad = jax.value_and_grad(scalar, has_aux=True)(case['logprobs'])
    return loss, grad, tokens.means(metrics)

  out = {}
  for name, (method, numbers) in terms(hyper).items():
    for aggregation in masked.AGGREGATIONS:
      loss, grad, figures = run(method, aggregation=aggregation, **numbers)
      value_name, grad_name = golden_names(name, aggregation)
      out[value_name], out[grad_name] = loss, grad
      if name == 'pg':  # The reference's figures are token means.
        clipped = figures['clip_high'] + figures['clip_low']
        out[f'pg_clipfrac__{aggregation}'] = clipped
        out[f'pg_clipfrac_lower__{aggregation}'] = figures['clip_dual']
        out[f'ppo_kl__{aggregation}'] = figures['approx_kl']
    if name.startswith('sdar_'):
      theirs = {
        'gate_mean': 'gate',
        'gate_active_ratio': 'gap_positive',
        'teacher_gap_mean': 'gap',
        'loss': 'distill_loss',
      }
      for key, ours in theirs.items():
        out[f'sdar_metric__{key}_{name.removeprefix("sdar_")}'] = figures[ours]
  numbers = {'policy_coef': 1.0, 'clip_low': 3e-4, 'clip_high': 4e-4}
  aggregation = 'seq-mean-token-mean'
  loss, grad, _ = run('gspo', aggregation=aggregation, **numbers)
  out['gspo_loss'], out['gspo_grad'] = loss, grad
  return out


def errors(got, want, floor):
  """(norm error, element error) of `got`; see the top of this file."""
  got, want = np.asarray(got, np.float64), np.asarray(want)
  assert got.shape == want.shape
  assert np.isfinite(got).all()
  np.testing.assert_array_equal(got[want == 0], 0)
  top = np.max(np.abs(want))
  if top == 0:
    return 0.0, 0.0
  difference = np.abs(got - want)
  large = np.abs(want) > floor * top
  return np.max(difference) / top, np.max(difference[large] / np.abs(want[large]))


def compare(outputs, want, dtype):
  """The largest error of each array, all of them within the dtype's bound."""
  bound, floor = BOUND[dtype], ELEMENT_FLOOR[dtype]
  worst = {}
  for name, value in outputs.items():
    worst[name] = max(errors(value, want[name], floor))
  failed = {name: error for name, error in worst.items() if not error <= bound}
  assert not failed, failed
  return worst


@pytest.mark.parametrize(
  ('dtype', 'jit'),
  [
    pytest.param('float64', False, marks=pytest.mark.long),
    ('float64', True),
    pytest.param('float32', True, marks=pytest.mark.long),
    pytest.param('float32', False, marks=pytest.mark.slow),
  ],
)
def test_every_value_and_gradient_is_reproduced(dtype, jit):
  """For float32 without jit, `pytest -m slow tests/methods/test_golden.py`."""
  golden = load()

  def outputs_of(case):
    return objective_outputs(case, golden)

  compared, worst = 0, 0.0
  with jax.enable_x64(dtype == 'float64'):
    for number in CASES:
      case = inputs_of(golden, number, dtype)
      rows = case['rows'].size
      case = pad_rows(case, ROWS)
      outputs = advantage_outputs(case, golden)
      case = jax.tree.map(jnp.asarray, case)
      outputs |= jax.jit(outputs_of)(case) if jit else outputs_of(case)
      outputs = jax.tree.map(lambda x, n=rows: x[:n] if x.ndim else x, outputs)
      want = expected(golden, number)
      assert outputs.keys() == want.keys()
      assert all(value.dtype == dtype for value in outputs.values())
      worst = max(worst, *compare(outputs, want, dtype).values())
      compared += len(outputs)
  print(f'{compared} arrays, {dtype}, jit={jit}: largest relative error {worst:.2e}')
  assert compared == EXPECTED_ARRAYS


@pytest.mark.parametrize('dtype', ['float64', 'float32'])
def test_advantages_need_no_padding(dtype):
  golden = load()
  for number in CASES:
    outputs = advantage_outputs(inputs_of(golden, number, dtype), golden)
    assert all(isinstance(value, np.ndarray) for value in outputs.values())
    assert all(value.dtype == dtype for value in outputs.values())
    compare(outputs, expected(golden, number), dtype)
