"""Checks of a step's arrays."""

import numpy as np


def check_shapes(shape: tuple[int, ...], **arrays: np.ndarray) -> None:
  """Raises ValueError, naming the array, unless all have this shape."""
  for name, array in arrays.items():
    if array.shape != shape:
      raise ValueError(f'{name} has shape {array.shape}: must be {shape}')


def checked_scores(scores: np.ndarray, row_mask: np.ndarray) -> np.ndarray:
  """Zeroes the scores of padding rows; refuses non-finite ones.

  Args:
    scores: [B] float.
    row_mask: [B] bool, False for padding rows.

  Raises:
    ValueError: a score is not finite, or an array's shape or type is another.
  """
  check_shapes(scores.shape, row_mask=row_mask)
  if scores.dtype.kind != 'f' or row_mask.dtype != bool:
    raise ValueError(
      f'scores are {scores.dtype}, their mask {row_mask.dtype}: must be float and bool'
    )
  scores = np.where(row_mask, scores, 0)
  finite = np.isfinite(scores)
  if not finite.all():
    row = int(np.argmin(finite))
    raise ValueError(f'score of row {row} is {scores[row]}: rewards must be finite')
  return scores
