"""Empty sheets, for compiling a run's programs ahead. NumPy only."""

import numpy as np

from sdar_jax.batching.packing import SHARES, Packing, blank
from sdar_jax.batching.rows import Arrays


def blanks(packing: Packing, *, compares: bool) -> tuple[list[Arrays], list[Arrays]]:
  """Makes an empty sheet of each shape that steps may have.

  Args:
    packing: how.
    compares: minibatches hold the teacher's sequences, too.

  Returns:
    The student's, and those of the teacher that are scored. An episode that forks in
    the teacher's prompts may need more sequences than there are here.
  """
  every = lambda buckets: [
    blank(packing, t, share) for t in buckets for share in SHARES
  ]
  student, teacher = every(packing.length_buckets), every(packing.teacher_buckets)
  if not compares:
    return student, teacher
  shapes = {one['tokens'].shape for one in teacher}
  return [
    {
      **sheet,
      'teacher_tokens': np.zeros(shape, np.int32),
      'teacher_places': np.zeros_like(sheet['places']),
    }
    for sheet in student
    for shape in sorted(shapes)
  ], teacher
