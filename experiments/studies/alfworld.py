"""GRPO, SDAR and SDAR without a teacher's effect, three seeds: generated ALFWorld.

Two CPU cores, two cells side by side. docs/results.md says what came out.
"""

import ml_collections

from experiments.studies import small


def get_config() -> ml_collections.ConfigDict:
  """The study: each cell is the experiment of this world as it stands."""
  c = small.get_config()
  c.world = 'alfworld'
  c.methods = ('grpo', 'sdar', 'grpo+opsd-released')
  c.overrides = ml_collections.ConfigDict()
  return c
