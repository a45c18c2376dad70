"""Whether training collapses: GRPO and SDAR, three seeds, 100 steps, ALFWorld.

Two CPU cores, two cells side by side. docs/studies.md says what a collapse is, which
was decided before, how long it took, and what came out.
"""

import ml_collections

from experiments.studies import small


def get_config() -> ml_collections.ConfigDict:
  """The study: five times the experiment's steps."""
  c = small.get_config()
  c.methods = ('grpo', 'sdar')
  c.overrides = ml_collections.ConfigDict(
    {'steps': 100, 'eval.every': 20, 'eval.tasks': 300}, allow_dotted_keys=True
  )
  c.cell_seconds = 0.0
  return c
