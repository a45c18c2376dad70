"""Segments: rows with equal keys, as of a group, trajectory or anchor.

Sums run over sorted segments, so memory grows with rows and not with their square.
"""

import numpy as np


def segments_of(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Numbers the segments.

  Args:
    *keys: [B] int or bool each; a segment is one combination of their values.

  Returns:
    [B] int, each row's segment, from 0 in order of the keys; [B] int, the index of
    its first row.
  """
  combined = np.zeros(len(keys[0]), np.int64)
  for key in keys:
    values, number = np.unique(key, return_inverse=True)
    combined = combined * len(values) + number
  _, first, segments = np.unique(combined, return_index=True, return_inverse=True)
  return segments, first[segments]


def segment_sum(segments: np.ndarray, values: np.ndarray) -> np.ndarray:
  """Sums `values` [B] over each row's segment: [B] float64."""
  return np.bincount(segments, weights=values)[segments]


def centre(
  scores: np.ndarray, counted: np.ndarray, segments: np.ndarray, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Subtracts each segment's mean.

  Everything is relative to the segment's first row, so that equal scores give
  exactly 0 whatever rounding a mean would bring.

  Args:
    scores: [B] float.
    counted: [B] bool, rows that count in the statistics.
    segments: [B] int, with `first` from `segments_of`.
    first: [B] int.

  Returns:
    [B] each: centred scores; unbiased standard deviation, 0 where one row counts;
    number of rows counted.
  """
  shifted = scores - scores[first]
  count = segment_sum(segments, counted)
  mean = segment_sum(segments, counted * shifted) / count
  centred = shifted - mean
  squares = segment_sum(segments, counted * centred**2)
  return centred, np.sqrt(squares / np.maximum(count - 1, 1)), count


def in_turn(
  segments: np.ndarray, turn_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Orders rows by segment and, within one, by turn.

  Returns:
    [B] int, the order; [B] bool, whether the row at a place of it has the segment of
    the row before.
  """
  order = np.lexsort((turn_ids, segments))
  ordered = segments[order]
  return order, np.concatenate([[False], ordered[1:] == ordered[:-1]])


def recurrence(inputs: np.ndarray, decays: np.ndarray) -> np.ndarray:
  """Solves yᵢ = xᵢ + dᵢ·yᵢ₋₁, y₋₁ = 0, along the last axis.

  A decay of 0 starts afresh: nothing before it, however large, leaves a trace. Each of
  the log₂(n) passes doubles the reach.

  Args:
    inputs: [..., n] float, x.
    decays: [..., n] float, d.
  """
  values, step = inputs, 1
  while step < inputs.shape[-1]:
    pad = [(0, 0)] * (inputs.ndim - 1) + [(step, 0)]
    values = values + decays * np.pad(values[..., :-step], pad)
    decays = decays * np.pad(decays[..., :-step], pad)
    step *= 2
  return values
