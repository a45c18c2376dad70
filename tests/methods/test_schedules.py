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
  for step in (0, 1, 25, 49, 50, 99, 100, 101, 10**6):
    np.testing.assert_allclose(function(step), loop_warmdown(step, 0.5, steps))
  assert function(0) == 0.5 and function(steps) == 0


@pytest.mark.parametrize('step', [0, 7])
def test_without_a_warmdown_the_value_stays(step):
  assert schedules.linear_warmdown(step, value=0.5, warmdown_steps=0) == 0.5
