"""Everything that training changes, on the device."""

from typing import Any, NamedTuple

import jax


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
