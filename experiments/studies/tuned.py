"""What the teacher's knowledge buys when every method has chosen its number.

Each trained method tries five values of one number on `valid_seen` with seeds of the
sweep's own, and is trained with the best of them on ten seeds that no choice has seen.
Methods of a weight choose it; GRPO, which has none, its learning rate. Generated
ALFWorld, 8 steps, 300 unseen games. docs/studies.md says what came out.
"""

import ml_collections

from experiments.studies import small

_WEIGHTS = (0.1, 0.25, 0.5, 1.0, 2.0)
_RATES = (1e-4, 2e-4, 3e-4, 5e-4, 1e-3)
_PUSHES = (-0.05, -0.1, -0.25, -0.5, -1.0)


def get_config() -> ml_collections.ConfigDict:
  """The study."""
  c = small.get_config()
  c.methods = (
    'grpo',
    'sdar',
    'sdar-none',
    'grpo+opsd-released',
    'sdar-other-task',
    'sdar-shuffled',
    'low-prob',
  )
  c.seeds = tuple(range(10))
  c.overrides['checkpoint.every'] = 8
  weight = {'algorithm': {'distill_coef': _WEIGHTS}}
  c.sweep = ml_collections.ConfigDict(
    {
      **{name: weight for name in c.methods},
      'grpo': {'optimizer': {'learning_rate': _RATES}},
      'low-prob': {'algorithm': {'unlikely_advantage': _PUSHES}},
    }
  )
  c.sweep_overrides = ml_collections.ConfigDict({'eval': {'tasks': 200, 'every': 8}})
  return c
