"""Sequences: what one forward pass reads of a step's rows. NumPy only.

A row is one turn. In the layout 'turns' every row is a sequence of its own: its prompt
and its response. In the layout 'conversation' a turn whose prompt begins with all that
the turn before had read and said goes on in the same sequence, which then holds the
responses of both; so an episode is read once, and not once a turn. Nothing but ids
decides: where a prompt is no extension, a new sequence begins.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sdar_jax.batching.rows import Row

LAYOUTS = ('turns', 'conversation')


@dataclasses.dataclass(frozen=True)
class TokenSequence:
  """Ids that one forward pass reads, with the responses in them.

  Attributes:
    ids: [L] int32, from the first prompt to the end of the last response.
    rows: indices of the rows whose responses stand in it, in order.
    starts: where the response of each begins; at least 1.
  """

  ids: np.ndarray
  rows: tuple[int, ...]
  starts: tuple[int, ...]


def make(
  batch_rows: Sequence[Row],
  prompts: Sequence[np.ndarray],
  layout: str,
  within: Sequence[TokenSequence] | None = None,
) -> list[TokenSequence]:
  """Makes the sequences of rows, in their order.

  Args:
    batch_rows: [B] rows, the turns of an episode one after another.
    prompts: [B] the ids before each row's response: the student's or the teacher's.
    layout: one of LAYOUTS.
    within: sequences of the same rows that none of these may reach beyond.

  Raises:
    ValueError: a prompt is empty; unknown `layout`.
  """
  if layout not in LAYOUTS:
    raise ValueError(f'layout {layout!r}: must be one of {LAYOUTS}')
  heads = {sequence.rows[0] for sequence in within or ()}
  out: list[TokenSequence] = []
  for index, (row, prompt) in enumerate(zip(batch_rows, prompts, strict=True)):
    if not len(prompt):
      raise ValueError(f'row {index} has an empty prompt: nothing predicts its answer')
    ids = np.concatenate([prompt, row.turn.response_ids]).astype(np.int32)
    start = len(prompt)
    last = out[-1] if out and layout == 'conversation' and index not in heads else None
    if last is not None and _goes_on(last, batch_rows, row, prompt):
      out[-1] = TokenSequence(ids, (*last.rows, index), (*last.starts, start))
    else:
      out.append(TokenSequence(ids, (index,), (start,)))
  return out


def _goes_on(
  last: TokenSequence, batch_rows: Sequence[Row], row: Row, prompt: np.ndarray
) -> bool:
  """Whether a prompt begins with a whole sequence of its episode."""
  if batch_rows[last.rows[0]].trajectory_id != row.trajectory_id:
    return False
  return np.array_equal(prompt[: len(last.ids)], last.ids)
