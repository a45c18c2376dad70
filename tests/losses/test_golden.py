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

from sdar_jax.losses import advantages, distill, masked, policy, returns

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
      out[f'grpo_adv__std{std}_cross{cross}'] = advantages.group_relative(
        scores,
        *ids,
        rows,
        statistics_over=over,
        divide_by_std=bool(std),
        mute_zero_std=False,
      )
    out[f'rloo_adv__cross{cross}'] = advantages.rloo(
      scores, *ids, rows, statistics_over=over
    )
  for mode, std in (('mean_norm', False), ('mean_std_norm', True)):
    out[f'gigpo_adv__{mode}'] = advantages.gigpo(
      scores,
      case['step_returns'],
      *ids,
      case['anchor_obs'],
      rows,
      step_weight=float(hyper['hp/w']),
      divide_by_std=std,
    )
  out = {name: advantages.uniform_credit(row, mask) for name, row in out.items()}
  out['reinforcepp_adv'] = returns.reinforce_plus_plus(
    scores, mask, rows, gamma=float(hyper['hp/gamma'])
  )
  # The record was made with the current log-probs as the student's.
  gap = case['teacher_logprobs'] - case['logprobs']
  for mix in ('0', '0.5', '1'):
    out[f'rlsd_adv__lambda{mix}'] = advantages.rlsd_credit(
      case['advantages'][:, 0],
      gap,
      mask,
      rlsd_lambda=float(mix),
      rlsd_clip=float(hyper['hp/rlsd_eps']),
    )
  return out


def token_losses(case, hyper):
  """name -> (names of value and gradient, function of the log-probs)."""
  mask, old, teacher = case['mask'], case['old_logprobs'], case['teacher_logprobs']
  ref, credit = case['ref_logprobs'], case['advantages']
  table = {
    'pg': lambda x: policy.clipped_surrogate(x, old, credit, mask, **clips(hyper)),
    'skillsd': lambda x: distill.skill_sd(x, old, teacher, mask),
  }
  for kind in policy.KL_KINDS:
    table[f'kl_{kind}'] = lambda x, kind=kind: policy.kl_penalty(
      x, ref, mask, kind=kind
    )
  for beta in hyper['hp/betas']:
    table[f'sdar_beta{beta:g}'] = lambda x, beta=beta: distill.gated_distillation(
      x, teacher, mask, gate_beta=float(beta)
    )
  return table


def golden_names(name, aggregation):
  if name.startswith('kl_'):
    return f'{name}__{aggregation}', f'{name}_grad__{aggregation}'
  stem, _, beta = name.partition('_')
  suffix = f'__{aggregation}_{beta}' if beta else f'__{aggregation}'
  return f'{stem}_loss{suffix}', f'{stem}_grad{suffix}'


def loss_outputs(case, hyper):
  out = {}
  mask = case['mask']

  def values_and_grads(tokens, *aggregations):
    def scalars(logprobs):
      losses = tokens(logprobs)
      normalisers = [
        masked.normaliser_of(mask, aggregation, length=mask.shape[1])
        for aggregation in aggregations
      ]
      values = [
        masked.aggregate(losses, mask, normaliser, aggregation)
        for normaliser, aggregation in zip(normalisers, aggregations)
      ]
      return jnp.stack(values)

    values, pull = jax.vjp(scalars, case['logprobs'])
    (grads,) = jax.vmap(pull)(jnp.eye(len(aggregations), dtype=values.dtype))
    return values, grads

  for name, tokens in token_losses(case, hyper).items():
    values, grads = values_and_grads(tokens, *masked.AGGREGATIONS)
    for aggregation, value, grad in zip(masked.AGGREGATIONS, values, grads):
      value_name, grad_name = golden_names(name, aggregation)
      out[value_name], out[grad_name] = value, grad
  values, grads = values_and_grads(
    lambda x: policy.gspo(
      x, case['old_logprobs'], case['advantages'], mask, clip_low=3e-4, clip_high=4e-4
    ),
    'seq-mean-token-mean',
  )
  out['gspo_loss'], out['gspo_grad'] = values[0], grads[0]
  return out


def metric_outputs(case, hyper):
  out = {}
  logprobs, mask = case['logprobs'], case['mask']
  figures = masked.finish_metrics(
    policy.surrogate_metrics(
      logprobs, case['old_logprobs'], case['advantages'], mask, **clips(hyper)
    )
  )
  for aggregation in masked.AGGREGATIONS:  # The reference's figures are token means.
    clipped = figures['clip_high'] + figures['clip_low']
    out[f'pg_clipfrac__{aggregation}'] = clipped
    out[f'pg_clipfrac_lower__{aggregation}'] = figures['clip_dual']
    out[f'ppo_kl__{aggregation}'] = figures['approx_kl']
  for beta in hyper['hp/betas']:
    gap = distill.gap(logprobs, case['teacher_logprobs'], mask)
    gate = distill.gate(gap, float(beta))
    metrics = distill.gate_metrics(gap, gate, mask, distill_coef=0.01)
    losses = distill.gated_distillation(
      logprobs, case['teacher_logprobs'], mask, gate_beta=float(beta)
    )
    metrics['loss'] = masked.total(losses, mask)
    figures = masked.finish_metrics(metrics)
    names = {
      'gate_mean': 'gate',
      'gate_active_ratio': 'gap_positive',
      'teacher_gap_mean': 'gap',
      'loss': 'loss',
    }
    for theirs, ours in names.items():
      out[f'sdar_metric__{theirs}_beta{beta:g}'] = figures[ours]
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


@pytest.mark.parametrize('jit', [False, True], ids=['eager', 'jit'])
@pytest.mark.parametrize('dtype', ['float64', 'float32'])
def test_every_value_and_gradient_is_reproduced(dtype, jit):
  golden = load()

  def outputs_of(case):
    out = advantage_outputs(case, golden)
    return out | loss_outputs(case, golden) | metric_outputs(case, golden)

  compared, worst = 0, 0.0
  with jax.enable_x64(dtype == 'float64'):
    for number in CASES:
      case = inputs_of(golden, number, dtype)
      rows = case['rows'].size
      case = jax.tree.map(jnp.asarray, pad_rows(case, ROWS))
      outputs = jax.jit(outputs_of)(case) if jit else outputs_of(case)
      outputs = jax.tree.map(lambda x, n=rows: x[:n] if x.ndim else x, outputs)
      want = expected(golden, number)
      assert outputs.keys() == want.keys()
      assert all(value.dtype == dtype for value in outputs.values())
      worst = max(worst, *compare(outputs, want, dtype).values())
      compared += len(outputs)
  print(f'{compared} arrays, {dtype}, jit={jit}: largest relative error {worst:.2e}')
  assert compared == EXPECTED_ARRAYS


@pytest.mark.parametrize('dtype', ['float64', 'float32'])
def test_numpy_gives_the_same_advantages(dtype):
  golden = load()
  for number in CASES:
    outputs = advantage_outputs(inputs_of(golden, number, dtype), golden)
    assert all(isinstance(value, np.ndarray) for value in outputs.values())
    assert all(value.dtype == dtype for value in outputs.values())
    compare(outputs, expected(golden, number), dtype)
