"""What training changes, where each part is, and its update."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdar_jax.learner import critic
from sdar_jax.models import decoder, sharding

# Memory that holds the moments between updates, by JAX's names; None is the default.
PLACES = {'device': None, 'host': 'pinned_host'}


class TrainState(NamedTuple):
  """Everything that training changes, on the device.

  Attributes:
    params: the policy, float32, or its adapters alone; with a critic its `value_head`,
      too.
    opt_state: moments.
    teacher: the teacher's weights where they are neither the policy's nor the initial
      ones, else ().
    step: [] i32, completed passes of the loop.
    skipped: [] i32, updates skipped because they were not finite.
    skipped_in_a_row: [] i32, of those, the ones since the last good update.
  """

  params: Any
  opt_state: Any
  teacher: Any
  step: jax.Array
  skipped: jax.Array
  skipped_in_a_row: jax.Array

  @property
  def policy(self) -> Any:
    """What trains of the weights that sample: `params` without a value head."""
    return {name: w for name, w in self.params.items() if name != 'value_head'}


def placement(
  model: decoder.ModelConfig,
  mesh: Mesh,
  tx: optax.GradientTransformation,
  *,
  has_critic: bool,
  teacher: str | None,
  memory: str | None,
) -> TrainState:
  """Finds where every part of a state is: a sharding for each leaf.

  Args:
    model: architecture, with adapters or without.
    mesh: from `sharding.make_mesh`.
    tx: the optimizer; moments are where the weights are that they belong to.
    has_critic: a value head trains, too.
    teacher: weights that are kept for it: 'trained' as the policy's, a 'whole' model,
      or None.
    memory: of the moments, by JAX's name; None is the default.
  """
  one = NamedSharding(mesh, PartitionSpec())
  specs = model.adapter_specs() or model.param_specs()
  trained = params = sharding.param_shardings(specs, mesh)
  shapes = jax.tree.map(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, jnp.float32), specs
  )
  if has_critic:
    head = jax.eval_shape(lambda: critic.init_value_head(model))
    params = {**trained, 'value_head': dict.fromkeys(head, one)}
    shapes = {**shapes, 'value_head': head}
  moments = optax.tree.map_params(
    tx,
    lambda _, at: at if memory is None else at.with_memory_kind(memory),
    jax.eval_shape(tx.init, shapes),
    params,
    transform_non_params=lambda _: one,
  )
  kept: Any = ()
  if teacher is not None:
    whole = sharding.param_shardings(model.param_specs(), mesh)
    kept = whole if teacher == 'whole' else trained
  return TrainState(params, moments, kept, one, one, one)


def make_optimizer(
  *, b1: float, b2: float, eps: float, weight_decay: float, max_grad_norm: float
) -> optax.GradientTransformation:
  """Chains global-norm clip, Adam moments, decoupled weight decay.

  The result is a descent direction of unit learning rate; `learning_rate` scales it.
  A `max_grad_norm` of 0 clips nothing.

  Source: Loshchilov and Hutter, arXiv 1711.05101 (AdamW).
  """
  return optax.chain(
    clip(max_grad_norm),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay),
    optax.scale(-1.0),
  )


def check_place(where: str, device: jax.Device) -> None:
  """Raises ValueError where a device has no memory for moments."""
  kind = PLACES[where]
  found = [memory.kind for memory in device.addressable_memories()]
  if kind and kind not in found:
    raise ValueError(
      f'config.optimizer.moments={where!r}: {device.device_kind} has no memory of the'
      f" kind {kind!r} in this JAX: take 'device'"
    )


def clip(max_grad_norm: float) -> optax.GradientTransformation:
  """Clips the global norm of gradients; 0 clips nothing."""
  if max_grad_norm == 0:
    return optax.identity()
  return optax.clip_by_global_norm(max_grad_norm)


def learning_rate(step: jax.Array, *, peak: float, warmup_steps: int) -> jax.Array:
  """Computes the learning rate: linear warm-up, then constant.

  Args:
    step: [] int32, 0-based pass of the loop (not the optimizer update).
    peak: the constant value.
    warmup_steps: passes until `peak` is reached; 0 is none.

  Returns:
    [] float32.
  """
  if warmup_steps == 0:
    return jnp.asarray(peak, jnp.float32)
  return peak * jnp.minimum(1.0, (step + 1.0) / warmup_steps).astype(jnp.float32)


def apply(
  tx: optax.GradientTransformation,
  state: TrainState,
  grads: Any,
  loss: jax.Array,
  *,
  peak: float,
  warmup_steps: int,
) -> tuple[TrainState, dict[str, Any]]:
  """Updates the weights, unless a number of the update is not finite.

  Args:
    tx: the optimizer, without its learning rate.
    state: before the update.
    grads: a tree like `state.params`.
    loss: scalar.
    peak, warmup_steps: as in `learning_rate`.

  Returns:
    The state after it, and metrics, (sum, count).
  """
  norm = optax.tree.norm(grads)
  rate = learning_rate(state.step, peak=peak, warmup_steps=warmup_steps)

  def updated(grads: Any, params: Any, opt_state: Any) -> tuple[Any, Any]:
    updates, opt_state = tx.update(grads, opt_state, params)
    return jax.tree.map(lambda p, u: p + rate * u, params, updates), opt_state

  given = grads, state.params, state.opt_state
  # Moments, too: an infinite one would hold its weight where it is for good.
  good = jnp.isfinite(norm) & jnp.isfinite(loss) & _finite(updated(*given))
  # What was looked at is computed again to be kept, in the place of the old: nobody
  # holds weights and moments twice until the answer is known.
  good, given = jax.lax.optimization_barrier((good, given))
  params, opt_state = updated(*given)
  keep = functools.partial(jnp.where, good)
  state = state._replace(
    params=jax.tree.map(keep, params, given[1]),
    opt_state=jax.tree.map(keep, opt_state, given[2]),
    skipped=state.skipped + ~good,
    skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
  )
  one = jnp.ones(())
  return state, {
    'loss': (loss, one),
    'grad_norm': (norm, one),
    'learning_rate': (rate, one),
    'updates_skipped': (1.0 - good, one),
  }


def _finite(tree: Any) -> jax.Array:
  """Tests whether every number of a tree is finite."""
  leaves = [jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]
  return functools.reduce(jnp.logical_and, leaves)
