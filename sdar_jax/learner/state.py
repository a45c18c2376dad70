"""What training changes, on the device, and where each part is."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdar_jax.learner import scoring
from sdar_jax.models import decoder, sharding


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
    head = jax.eval_shape(lambda: scoring.init_value_head(model))
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
