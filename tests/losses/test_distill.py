import jax
import jax.numpy as jnp
import numpy as np
import pytest
from batches import make_batch
from scipy import special
from tokens import sdar_term

from sdar_jax.losses import distill, masked, measures, policy, variants
from sdar_jax.methods import gates

CLIPS = {'clip_low': 0.2, 'clip_high': 0.2, 'dual_clip': 3.0}


def power_of_two(batch):
  """The batch cut to 2 ** k response tokens, so that dividing by them is exact."""
  mask = batch['response_mask'].copy()
  keep = 1 << int(mask.sum()).bit_length() - 1
  mask.ravel()[np.flatnonzero(mask)[keep:]] = False
  assert mask.sum() == keep
  return batch | {'response_mask': mask}


def gate_of(gap, gate_beta=5.0):
  return gates.gap_gate(gap, gate_beta=gate_beta, gap_clip=0.0)


def loss_and_grad(logprobs, teacher, mask, gate_beta, jit=False):
  """Of SDAR's term alone, through the objective that trains it."""
  function = jax.value_and_grad(sdar_term(mask, teacher, gate_beta=gate_beta))
  return (jax.jit(function) if jit else function)(logprobs)


@pytest.mark.parametrize('jit', [False, True], ids=['eager', 'jit'])
@pytest.mark.parametrize('gate_beta', [0.0, 1.0, 5.0])
def test_gradient_is_the_gate_and_nothing_else(gate_beta, jit):
  batch = make_batch(0)
  mask, teacher = batch['response_mask'], batch['teacher_logprobs']
  loss, grad = loss_and_grad(batch['logprobs'], teacher, mask, gate_beta, jit)
  gap = teacher.astype(np.float64) - batch['logprobs']
  gate = special.expit(gate_beta * gap)
  np.testing.assert_allclose(loss, (gate * gap)[mask].mean(), rtol=1e-5)
  np.testing.assert_allclose(grad, -gate * mask / mask.sum(), rtol=2e-6)


@pytest.mark.parametrize('jit', [False, True], ids=['eager', 'jit'])
def test_gradient_is_exact_where_the_division_is(jit):
  batch = power_of_two(make_batch(1))
  mask, teacher = batch['response_mask'], batch['teacher_logprobs']
  _, grad = loss_and_grad(batch['logprobs'], teacher, mask, 5.0, jit)
  gate = gate_of(distill.gap(batch['logprobs'], teacher, mask))
  want = -np.asarray(gate) * mask / np.float32(mask.sum())
  np.testing.assert_array_equal(grad, want)


def test_an_agreeing_teacher_gives_loss_zero_and_gradient_minus_half():
  batch = power_of_two(make_batch(2))
  mask, logprobs = batch['response_mask'], batch['logprobs']
  loss, grad = loss_and_grad(logprobs, logprobs, mask, 5.0)
  assert loss == 0
  np.testing.assert_array_equal(grad, -0.5 * mask / mask.sum())


def test_nothing_flows_to_the_teacher_or_through_the_gate():
  batch = make_batch(3)
  mask = batch['response_mask']

  def scalar(teacher, logprobs):
    loss = sdar_term(mask, teacher)(logprobs)
    return loss, jnp.sum(distill.gap(logprobs, teacher, mask))

  pull = jax.vjp(scalar, batch['teacher_logprobs'], batch['logprobs'])[1]
  np.testing.assert_array_equal(pull((1.0, 0.0))[0], 0)
  for grad in pull((0.0, 1.0)):
    np.testing.assert_array_equal(grad, 0)


@pytest.mark.parametrize('zero_advantages', [False, True])
def test_both_forms_have_one_gradient_on_policy(zero_advantages):
  batch = power_of_two(make_batch(4))
  mask, old = batch['response_mask'], batch['old_logprobs']
  teacher, coef = batch['teacher_logprobs'], 0.01
  advantages = batch['advantages'] * (not zero_advantages)
  credit = np.where(mask, advantages[:, None], 0).astype(np.float32)
  gate = gate_of(distill.gap(old, teacher, mask))

  def surrogate(logprobs, credit):
    losses = policy.clipped_surrogate(logprobs, old, credit, mask, **CLIPS)
    return masked.aggregate(losses, mask, mask.sum(), 'token-mean')

  def loss_form(logprobs):
    return surrogate(logprobs, credit) + coef * sdar_term(mask, teacher)(logprobs)

  def advantage_form(logprobs):
    shaped = variants.gate_advantages(credit, gate, mask, distill_coef=coef)
    return surrogate(logprobs, shaped)

  got, want = jax.grad(advantage_form)(old), jax.grad(loss_form)(old)
  # One sum, taken before or after the surrogate: equal but for its last bit; with
  # no advantage there is no sum, and the order of two products is all that differs.
  np.testing.assert_allclose(got, want, rtol=3e-7, atol=1e-9)
  np.testing.assert_array_equal(np.asarray(got)[~mask], 0)


def test_the_clip_applies_to_the_advantage_form_only():
  mask, one = jnp.ones((1, 1), bool), jnp.ones((1, 1))
  shaped = variants.gate_advantages(0 * one, 0.5 * one, mask, distill_coef=0.01)
  surrogate = lambda x: policy.clipped_surrogate(x, 0 * x, shaped, mask, **CLIPS).sum()
  far = jnp.log(1.5 * one)
  np.testing.assert_array_equal(jax.grad(surrogate)(far), 0)
  np.testing.assert_array_equal(jax.grad(sdar_term(mask, far))(far), -0.5)


def test_skill_sd_value_and_numeric_gradient():
  batch = make_batch(5, spread=0.5)
  mask = batch['response_mask']
  x, old, teacher = (
    batch[name].astype(np.float64)
    for name in ('logprobs', 'old_logprobs', 'teacher_logprobs')
  )

  def oracle(x):
    log_ratio = teacher - x
    return np.exp(x - old) * (np.exp(log_ratio) - 1 - log_ratio) * mask

  with jax.enable_x64(True):
    losses, pull = jax.vjp(lambda x: variants.skill_sd(x, old, teacher, mask), x)
    (grad,) = pull(jnp.ones_like(losses))
  np.testing.assert_allclose(losses, oracle(x), rtol=1e-10, atol=1e-14)
  numeric = (oracle(x + 1e-5) - oracle(x - 1e-5)) / 2e-5
  np.testing.assert_allclose(grad, numeric, rtol=1e-6, atol=1e-8)


def test_gate_metrics_equal_numpy():
  batch = make_batch(6, rows=12, spread=0.1, padding_rows=1)
  mask, teacher = batch['response_mask'], batch['teacher_logprobs']
  gap = distill.gap(batch['logprobs'], teacher, mask)
  gate = gate_of(gap)
  metrics = measures.gate_metrics(gate, mask, distill_coef=0.01)
  gate = np.asarray(gate)[mask]
  wants = {
    'gate': gate.sum(),
    'gate_open': (gate > 0.6).sum(),
    'gate_shut': (gate < 0.4).sum(),
    'distill_abs': 0.01 * gate.sum(),
    'gate_histogram': np.histogram(gate, measures.GATE_BINS, (0, 1))[0],
  }
  assert metrics.keys() == wants.keys()
  assert 0 < wants['gate_shut'] < wants['gate_open'] + wants['gate_shut'] < mask.sum()
  for name, want in wants.items():
    np.testing.assert_allclose(metrics[name][0], want, rtol=1e-5)
    assert metrics[name][1] == mask.sum()


def test_the_histogram_holds_gates_of_zero_and_one():
  gate, mask = jnp.array([[0.0, 1.0, 0.1, 0.999]]), jnp.ones((1, 4), bool)
  metrics = measures.gate_metrics(gate, mask, distill_coef=1.0)
  np.testing.assert_array_equal(metrics['gate_histogram'][0], [1, 1] + 7 * [0] + [2])


def test_gap_by_turn_sums_by_turn():
  batch = make_batch(7, padding_rows=2)
  mask, turns = batch['response_mask'], batch['turn_ids']
  gap = np.where(mask, batch['logprobs'], np.nan)
  sums, counts = measures.gap_by_turn(gap, mask, turns, num_turns=3)
  for turn in range(3):
    rows = (turns == turn) if turn < 2 else (turns >= 2)
    np.testing.assert_allclose(sums[turn], np.nansum(gap[rows]), rtol=1e-5)
    assert counts[turn] == mask[rows].sum()


def test_opsd_equals_a_loop_and_pushes_both_ways():
  batch = make_batch(8, spread=0.5)
  mask = batch['response_mask']
  x, teacher = (
    batch[name].astype(np.float64) for name in ('logprobs', 'teacher_logprobs')
  )
  want, grad = np.zeros(mask.shape), np.zeros(mask.shape)
  for i, t in zip(*np.nonzero(mask)):
    credit = min(max(teacher[i, t] - x[i, t], -0.6), 0.6)
    want[i, t], grad[i, t] = -credit * x[i, t], -credit
  x, teacher = (np.where(mask, array, np.inf) for array in (x, teacher))
  with jax.enable_x64(True):
    function = lambda x: variants.opsd(x, teacher, mask, gap_clip=0.6)
    for call in (function, jax.jit(function)):
      losses, pull = jax.vjp(call, x)
      np.testing.assert_allclose(losses, want, rtol=1e-12)
      np.testing.assert_allclose(pull(jnp.ones_like(losses))[0], grad, rtol=1e-12)
  assert (grad > 0).any() and (grad < 0).any()


def test_unclipped_opsd_has_the_gradient_of_the_reverse_kl():
  """On the policy's own samples; SDAR's gated term does not, whatever its beta."""
  rng = np.random.default_rng(11)
  logits, teacher = rng.standard_normal((2, 1, 9))
  mask = np.ones((1, 9), bool)
  with jax.enable_x64(True):
    teacher = jax.nn.log_softmax(jnp.asarray(teacher))

    def expected(logits, losses):
      logp = jax.nn.log_softmax(logits)
      measure = jax.lax.stop_gradient(jnp.exp(logp))
      return jnp.sum(measure * losses(logp))

    def reverse_kl(logits):
      logp = jax.nn.log_softmax(logits)
      return jnp.sum(jnp.exp(logp) * (logp - teacher))

    opsd = lambda logp: variants.opsd(logp, teacher, mask, gap_clip=np.inf)
    gated = lambda logp: distill.weighted(
      logp, teacher, gate_of(distill.gap(logp, teacher, mask)), mask
    )
    logits = jnp.asarray(logits)
    want = jax.grad(reverse_kl)(logits)
    np.testing.assert_allclose(jax.grad(expected)(logits, opsd), want, atol=1e-14)
    assert np.abs(jax.grad(expected)(logits, gated) - want).max() > 1e-2


def test_the_released_grpo_opsd_has_no_teacher_signal():
  """gate_beta 0: not a bit of the gradient depends on the teacher."""
  batch = make_batch(9)
  mask, logprobs = batch['response_mask'], batch['logprobs']
  teachers = (batch['teacher_logprobs'], batch['ref_logprobs'] - 7.0, 0 * logprobs)
  grads = [loss_and_grad(logprobs, teacher, mask, 0.0)[1] for teacher in teachers]
  for grad in grads:
    np.testing.assert_array_equal(grad, grads[0])
  np.testing.assert_array_equal(np.asarray(grads[0])[~mask], 0)
  np.testing.assert_allclose(np.asarray(grads[0])[mask], -0.5 / mask.sum(), rtol=1e-6)
  # With any beta, or with OPSD itself, it does.
  grads = [loss_and_grad(logprobs, teacher, mask, 0.1)[1] for teacher in teachers[:2]]
  assert np.abs(grads[0] - grads[1]).max() > 1e-4
  real = lambda x, teacher: variants.opsd(x, teacher, mask, gap_clip=5.0).sum()
  grads = [jax.grad(real)(logprobs, teacher) for teacher in teachers[:2]]
  assert np.abs(grads[0] - grads[1]).max() > 0.1


def test_the_released_opsd_pushes_every_token_up():
  batch = make_batch(10)
  mask, teacher = batch['response_mask'], batch['teacher_logprobs']
  _, grad = loss_and_grad(batch['logprobs'], teacher, mask, 5.0)
  assert (np.asarray(grad)[mask] < 0).all()


@pytest.mark.parametrize('gap', [1e4, -1e4])
def test_wild_gaps_are_finite(gap):
  mask, logprobs = np.ones((1, 1), bool), np.full((1, 1), -1e4 - 1, np.float32)
  for function in (
    lambda x: variants.opsd(x, x + gap, mask, gap_clip=np.inf),
    lambda x: variants.opsd(x, x + gap, mask, gap_clip=0.05),
    lambda x: distill.weighted(x, x + gap, 0 * x + 2, mask),
  ):
    losses, pull = jax.vjp(function, logprobs)
    assert np.isfinite(losses).all() and np.isfinite(pull(losses)[0]).all()
