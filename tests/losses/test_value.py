import jax
import jax.numpy as jnp
import numpy as np

from sdar_jax.losses import value


def test_value_loss_and_its_gradient_equal_a_loop():
  rng = np.random.default_rng(6)
  mask = rng.random((4, 5)) < 0.6
  values, old, targets = rng.standard_normal((3, 4, 5))
  want, grad = np.zeros((4, 5)), np.zeros((4, 5))
  for i, t in zip(*np.nonzero(mask)):
    near = min(max(values[i, t], old[i, t] - 0.5), old[i, t] + 0.5)
    errors = values[i, t] - targets[i, t], near - targets[i, t]
    want[i, t] = max(error**2 for error in errors) / 2
    moves = errors[1] ** 2 <= errors[0] ** 2
    grad[i, t] = errors[0] if moves else 0.0  # The clipped branch is a constant here.
  poison = lambda array: np.where(mask, array, np.nan)
  arrays = [poison(array) for array in (old, targets)]
  function = lambda values: value.value_loss(values, *arrays, mask, value_clip=0.5)
  with jax.enable_x64(True):
    for call in (function, jax.jit(function)):
      losses, pull = jax.vjp(call, jnp.asarray(poison(values)))
      np.testing.assert_allclose(losses, want, rtol=1e-12)
      np.testing.assert_allclose(pull(jnp.ones_like(losses))[0], grad, rtol=1e-12)
  assert (grad[mask] == 0).any() and (grad != 0).any()
  # Nothing flows to the old values or the targets.
  others = lambda old, targets: value.value_loss(
    values, old, targets, mask, value_clip=0.5
  ).sum()
  for grad in jax.grad(others, argnums=(0, 1))(old, targets):
    np.testing.assert_array_equal(grad, 0)
