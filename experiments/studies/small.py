"""Nine methods, three seeds, generated ALFWorld with the small model.

Two CPU cores, two cells side by side. docs/studies.md says how long that
took, and what came out.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
  """The study."""
  c = ml_collections.ConfigDict()
  c.world = 'alfworld'
  c.methods = (
    'grpo',
    'sdar',
    'grpo+opsd',
    'grpo+opsd-released',
    'rlsd',
    'skill-sd',
    'gigpo',
    'gigpo+sdar',
    'rloo',
  )
  c.seeds = (0, 1, 2)
  c.baseline = 'grpo'
  # Flattened keys of the runs' configs.
  c.overrides = ml_collections.ConfigDict(
    {'steps': 8, 'eval.every': 4, 'eval.tasks': 300, 'checkpoint.every': 4},
    allow_dotted_keys=True,
  )
  # Of single methods: {'rloo': {'optimizer': {'learning_rate': 1e-4}}}.
  c.method_overrides = ml_collections.ConfigDict()
  c.retries = 1  # Of a cell that fails.
  c.cell_seconds = 3600.0  # s that a cell may take in one call; 0 is no limit.
  return c
