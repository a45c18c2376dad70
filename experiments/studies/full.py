"""Every method, five seeds, generated ALFWorld with the small model.

Two CPU cores overnight, two cells side by side. Nobody has run it to the end yet.
"""

import ml_collections

from experiments.studies import small
from sdar_jax.methods import table


def get_config() -> ml_collections.ConfigDict:
  """The study."""
  c = small.get_config()
  combined = [name for name in c.methods if name not in table.ALGORITHMS]
  c.methods = (*table.ALGORITHMS, *combined)
  c.seeds = (0, 1, 2, 3, 4)
  c.overrides = ml_collections.ConfigDict(
    {'steps': 20, 'eval.every': 5, 'eval.tasks': 500}, allow_dotted_keys=True
  )
  return c
