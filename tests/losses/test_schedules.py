import jax
import numpy as np
import pytest

from sdar_jax.methods import schedules


def loop_warmdown(step, value, steps):
  return value * (1 - step / steps) if step < steps else 0.0


@pytest.mark.parametrize('steps', [1, 50, 100])
def test_warmdown_equals_its_formula(steps):
  function = lambda step: schedules.linear_warmdown(
    step, value=0.5, warmdown_steps=steps
  )
  jitted = jax.jit(function)
  for step in (0, 1, 25, 49, 50, 99, 100, 101, 10**6):
    want = loop_warmdown(step, 0.5, steps)
    np.testing.assert_allclose(function(step), want, rtol=1e-12)
    np.testing.assert_allclose(jitted(step), want, atol=1e-7)
  assert function(0) == 0.5 and function(steps) == 0


def test_a_traced_step_compiles_once():
  traces = []

  @jax.jit
  def coefficient(step):
    traces.append(step)
    return schedules.linear_warmdown(step, value=1.0, warmdown_steps=4)

  got = [float(coefficient(step)) for step in range(6)]
  assert got == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0] and len(traces) == 1


@pytest.mark.parametrize('steps', [0, -1])
def test_the_quirk_without_a_warmdown_is_named(steps):
  for step in (0, 7):
    kept = schedules.linear_warmdown(step, value=0.5, warmdown_steps=steps)
    assert kept == 0.5 == schedules.constant(step, value=0.5)
    released = schedules.linear_warmdown(
      step, value=0.5, warmdown_steps=steps, without_warmdown='zero'
    )
    assert released == 0
  with pytest.raises(ValueError, match="without_warmdown='never'"):
    schedules.linear_warmdown(0, value=1.0, warmdown_steps=1, without_warmdown='never')
