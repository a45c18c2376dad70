"""Sums and recurrences over runs of equal keys, on numpy and JAX alike.

A segment is the set of rows with one key (a group, a trajectory, an anchor). Everything
is sorts and running sums: memory is O(rows) and all of it jits.
"""

import chex
import numpy as np

from sdar_jax.losses.masked import Array


def paid(xp, scores: Array, row_mask: Array) -> Array:
  """Scores with 0 at padding rows; on the host, none of the rest may be NaN.

  Args:
    xp: `masked.namespace` of the arrays.
    scores: [B] float.
    row_mask: [B] bool, False for padding rows.

  Returns:
    [B] scores.

  Raises:
    ValueError: on the host, a score that is not finite.
  """
  chex.assert_type([scores, row_mask], [float, bool])
  scores = xp.where(row_mask, scores, xp.zeros_like(scores))
  if xp is np and not np.isfinite(scores).all():
    row = int(np.argmin(np.isfinite(scores)))
    raise ValueError(f'score of row {row} is {scores[row]}: rewards must be finite')
  return scores


def segments_of(xp, *keys: Array) -> tuple[Array, Array]:
  """Dense segment number of each row, and the index of its segment's first row.

  Args:
    xp: `masked.namespace` of the arrays.
    *keys: [B] int or bool each; a segment is one combination of their values.

  Returns:
    Two [B] int arrays.
  """
  order = xp.lexsort(keys[::-1])  # Stable, so equal keys stay in row order.
  ordered = [key[order] for key in keys]
  changed = xp.zeros(order.shape[0] - 1, bool)
  for key in ordered:
    changed = changed | (key[1:] != key[:-1])
  start = xp.zeros(1, changed.dtype)
  dense = xp.cumsum(xp.concatenate([start, changed]))
  first = order[xp.searchsorted(dense, dense)]
  back = xp.argsort(order)
  return dense[back], first[back]


def segment_sum(xp, segments: Array, values: Array) -> Array:
  """Per row, the sum of `values` over the row's segment.

  Args:
    xp: `masked.namespace` of the arrays.
    segments: [B] int from 0, as `segments_of` numbers them.
    values: [B] float.

  Returns:
    [B] sums.
  """
  bound = 'minlength' if xp is np else 'length'  # Under jit the length is static.
  sums = xp.bincount(segments, weights=values, **{bound: segments.shape[0]})
  return sums[segments]


def centre(xp, scores: Array, weights: Array, segments: Array, first: Array):
  """Scores minus their segment's weighted mean; standard deviation; count.

  Everything is relative to the segment's first row, so that equal scores give
  exactly 0 whatever rounding a mean would bring.

  Args:
    xp: `masked.namespace` of the arrays.
    scores: [B] float.
    weights: [B] float, 1 where a row counts in the statistics, else 0.
    segments: [B] int, first result of `segments_of`.
    first: [B] int, second result of `segments_of`.

  Returns:
    Three [B] arrays; the deviation is the unbiased one, 0 where one row counts.
  """
  shifted = scores - scores[first]
  count = segment_sum(xp, segments, weights)
  mean = segment_sum(xp, segments, weights * shifted) / count
  centred = shifted - mean
  squares = segment_sum(xp, segments, weights * centred**2)
  return centred, xp.sqrt(squares / xp.maximum(count - 1, 1)), count


def recurrence(xp, inputs: Array, decays: Array) -> Array:
  r"""The linear recurrence along the last axis.

  \[ y_i = x_i + d_i\,y_{i-1}, \qquad y_{-1} = 0 \]

  A decay of 0 starts afresh: nothing before it, however large, leaves a trace. The
  doubling takes log2(n) passes, on the host as under jit.

  Args:
    xp: `masked.namespace` of the arrays.
    inputs: [..., n] float.
    decays: [..., n] float, of the same shape.

  Returns:
    [..., n].
  """
  values, step = inputs, 1
  while step < inputs.shape[-1]:
    pad = [(0, 0)] * (inputs.ndim - 1) + [(step, 0)]
    values = values + decays * xp.pad(values[..., :-step], pad)
    decays = decays * xp.pad(decays[..., :-step], pad)
    step *= 2
  return values
