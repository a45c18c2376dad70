"""Coefficients as functions of the training step. Host."""


def linear_warmdown(step: int, *, value: float, warmdown_steps: int) -> float:
  """Lowers `value` in a line to 0: λ·max(0, 1 - k/W); λ where W is 0.

  Args:
    step: k, from 0.
    value: λ, any unit.
    warmdown_steps: W, steps; 0 is no warm-down.

  Source: RLSD (arXiv 2604.03128) and Skill-SD (arXiv 2604.10674) as released:
    verl/trainer/ppo/{rlsd,skillsd}_utils.py of ZJU-REAL/SDAR@8b85c23 (W = 100). Without
    a warm-down Skill-SD is constant there (W = -1), and so is this; RLSD is 0 at every
    step.
  """
  if not warmdown_steps:
    return value
  return value * max(0.0, 1.0 - step / warmdown_steps)
