"""Carries values of rows, [B, R], to sheets and back. NumPy only."""

from collections.abc import Mapping, Sequence

import numpy as np

from sdar_jax.batching.packing import Arrays


def gather(
  packed: Sequence[Mapping[str, np.ndarray]],
  scores: Sequence[Mapping[str, np.ndarray]],
  count: int,
  width: int,
) -> Arrays:
  """Gathers scores of sheets, [M, R], to [B, width] of the step's rows.

  Args:
    packed: sheets.
    scores: of each of them, all with the same names.
    count: B.
    width: of the longest response.
  """
  out: Arrays = {}
  for sheet, values in zip(packed, scores, strict=True):
    there = sheet['row_index'] >= 0
    mask = sheet['response_mask'][there, :width]
    for name, value in values.items():
      value = np.asarray(value)
      to = out.setdefault(name, np.zeros((count, width), value.dtype))
      to[sheet['row_index'][there]] = np.where(mask, value[there, :width], 0)
  return out


def gather_step(
  student: tuple[Sequence[Arrays], Sequence[Arrays]],
  teacher: tuple[Sequence[Arrays], Sequence[Arrays]],
  names: Sequence[str],
  sampled: np.ndarray,
) -> Arrays:
  """Gathers a step's scores, [B, R] each.

  Args:
    student: its sheets and their scores.
    teacher: likewise, of one name; none where it scores as the student does.
    names: of its contexts' scores, in order.
    sampled: [B, R] f32, the sampler's log-probs: the old ones where none are scored.
  """
  count, width = sampled.shape
  out = {'sampler_logprobs': sampled, 'old_logprobs': sampled}
  out |= gather(*student, count, width)
  if not teacher[0]:
    return out | dict.fromkeys(names, out['old_logprobs'])
  ((_, scores),) = gather(*teacher, count * len(names), width).items()
  return out | dict(zip(names, scores.reshape(len(names), count, width)))


def scatter(sheet: Arrays, values: Mapping[str, np.ndarray]) -> Arrays:
  """Scatters values of the step's rows to a sheet.

  Args:
    sheet: one.
    values: scalars, [B] or left-aligned [B, R'] arrays.

  Returns:
    The same names with scalars, [M] or [M, R] arrays, 0 at padding.
  """
  there, mask = sheet['row_index'] >= 0, sheet['response_mask']
  rows = np.where(there, sheet['row_index'], 0)
  placed: Arrays = {}
  for name, value in values.items():
    if value.ndim == 0:
      placed[name] = value
    elif value.ndim == 1:
      placed[name] = np.where(there, value[rows], value.dtype.type(0))
    else:
      placed[name] = np.zeros(mask.shape, value.dtype)
      width = min(value.shape[1], mask.shape[1])
      found = np.where(mask[:, :width], value[rows, :width], value.dtype.type(0))
      placed[name][:, :width] = found
  return placed
