"""Random inputs of losses."""

import numpy as np


def make_batch(seed, *, rows=8, tokens=6, padding_rows=0, spread=0.3):
  """Float32 log-probs around old ones, with ragged masks."""
  rng = np.random.default_rng(seed)
  shape = (rows, tokens)
  old = -rng.exponential(1.0, shape)
  batch = {
    'old_logprobs': old,
    'logprobs': old + spread * rng.standard_normal(shape),
    'ref_logprobs': old + spread * rng.standard_normal(shape),
    'teacher_logprobs': old + 3 * spread * rng.standard_normal(shape),
    'entropy': rng.uniform(0, 2, shape),
    'advantages': rng.standard_normal(rows),
    'teaching': np.ones(rows),
  }
  batch = {name: value.astype(np.float32) for name, value in batch.items()}
  lengths = rng.integers(1, tokens + 1, rows)
  lengths[rows - padding_rows :] = 0
  starts = rng.integers(0, tokens - lengths + 1)
  index = np.arange(tokens)
  inside = (index >= starts[:, None]) & (index < (starts + lengths)[:, None])
  return batch | {
    'response_mask': inside,
    'turn_ids': rng.integers(0, 4, rows).astype(np.int32),
  }
