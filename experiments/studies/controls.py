"""What the privileged teacher buys: SDAR beside its controls, generated ALFWorld.

The same coefficient, the same episodes in the first step, another teacher: skills, the
student's own prompt, another task's skills, the same words in another order; and no
effect of a teacher at all. Three seeds, 8 steps. docs/studies.md says what came out.
"""

import ml_collections

from experiments.studies import small


def get_config() -> ml_collections.ConfigDict:
  """The study: the small one's sizes, other methods."""
  c = small.get_config()
  c.methods = (
    'grpo',
    'sdar',
    'sdar-none',
    'sdar-other-task',
    'sdar-shuffled',
    'grpo+opsd-released',
  )
  return c
