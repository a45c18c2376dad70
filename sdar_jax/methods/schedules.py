"""Coefficients as functions of the training step.

`step` counts from 0 and may be traced: hand the value to a jitted loss as an array, or
every step compiles anew.
"""

from sdar_jax.losses.masked import Array, namespace

WITHOUT_WARMDOWN = ('constant', 'zero')


def constant(step: int | Array, *, value: float) -> Array:
  """`value` at every step.

  Args:
    step: scalar int.
    value: any unit.

  Returns:
    Scalar in the unit of `value`.
  """
  xp = namespace(step)
  return value * xp.ones_like(step, float)


def linear_warmdown(
  step: int | Array,
  *,
  value: float,
  warmdown_steps: int,
  without_warmdown: str = 'constant',
) -> Array:
  r"""From `value` at step 0 in a line to 0 at `warmdown_steps`, then 0.

  \[ \lambda_k = \lambda\,(1 - k/W) \text{ for } k < W, \text{ else } 0 \]

  Without a warm-down (W <= 0) the released codes disagree: Skill-SD's takes -1 for
  'constant'; RLSD's gives 0 at every step ('zero'), so that it is GRPO and says
  nothing. Skill-SD's schedule is also only logged there, never applied.

  Args:
    step: scalar int, k.
    value: lambda, any unit.
    warmdown_steps: W, steps.
    without_warmdown: what W <= 0 means, one of `WITHOUT_WARMDOWN`.

  Returns:
    Scalar in the unit of `value`.

  Raises:
    ValueError: unknown `without_warmdown`.

  Source: RLSD (arXiv 2604.03128) and Skill-SD (arXiv 2604.10674) as released:
    verl/trainer/ppo/{rlsd,skillsd}_utils.py of ZJU-REAL/SDAR@8b85c23 (W = 100).
  """
  if without_warmdown not in WITHOUT_WARMDOWN:
    raise ValueError(
      f'without_warmdown={without_warmdown!r}: expected one of {WITHOUT_WARMDOWN}'
    )
  if warmdown_steps <= 0:
    return constant(step, value=value if without_warmdown == 'constant' else 0.0)
  return value * namespace(step).clip(1.0 - step / warmdown_steps, 0.0, 1.0)
