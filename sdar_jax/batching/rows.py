"""Rows, the sequences of them, and their values on sheets. NumPy only.

A row is one turn. A sequence is what one forward pass reads; `packing` lays them into
sheets. In the layout 'turns' every row is a sequence of its own: its prompt and its
response. In the layout 'conversation' a turn whose prompt begins with all that the turn
before had read and said goes on in the same sequence, which then holds the responses of
both; so an episode is read once, and not once a turn. Nothing but ids decides: where a
prompt is no extension, a new sequence begins.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdar_jax.envs.base import Task
from sdar_jax.trajectory import Group, Trajectory, Turn

Arrays = dict[str, np.ndarray]
LAYOUTS = ('turns', 'conversation')


@dataclasses.dataclass(frozen=True)
class Row:
  """One turn with the identity and score it is trained under.

  Attributes:
    penalty: of a malformed turn, else 0.
    head: the turn with which the row's conversation began; its own where none did.
    trajectory_id: unique within the step.
  """

  turn: Turn
  trajectory: Trajectory
  task: Task
  group_id: int
  trajectory_id: int
  turn_id: int
  penalty: float
  head: Turn

  @property
  def score(self) -> float:
    """The trajectory's return less the row's penalty."""
    return self.trajectory.episode_return - self.penalty


def rows(groups: Sequence[Group], *, invalid_penalty: float) -> list[Row]:
  """Makes one row per turn, in order of group, member and turn.

  A group in which an episode failed for reasons of infrastructure is left out whole:
  what remains of it would be a biased sample.

  Args:
    groups: the step's episodes.
    invalid_penalty: subtracted from the score of a malformed turn's row only
      (the reference's per-step penalty).
  """
  out = []
  for group in groups:
    if any(trajectory.outcome.is_fault for trajectory in group.trajectories):
      continue
    for trajectory in group.trajectories:
      identity = group.group_id * len(group.trajectories) + trajectory.member
      head = None
      for turn_id, turn in enumerate(trajectory.turns):
        head = head if turn.goes_on else turn
        out.append(
          Row(
            turn=turn,
            trajectory=trajectory,
            task=group.task,
            group_id=group.group_id,
            trajectory_id=identity,
            turn_id=turn_id,
            penalty=0.0 if turn.valid else invalid_penalty,
            head=head,
          )
        )
  return out


def identities(batch_rows: Sequence[Row]) -> dict[str, Any]:
  """Gathers the fields of `StepData` with one value per row, [B]."""
  rewards = [row.turn.reward for row in batch_rows]
  return {
    'scores': np.asarray([row.score for row in batch_rows], np.float32),
    'rewards': np.asarray(rewards, np.float32),
    'penalties': np.asarray([row.penalty for row in batch_rows], np.float32),
    'successes': np.asarray([row.trajectory.success for row in batch_rows], bool),
    'group_ids': np.asarray([row.group_id for row in batch_rows], np.int32),
    'trajectory_ids': np.asarray([r.trajectory_id for r in batch_rows], np.int32),
    'turn_ids': np.asarray([row.turn_id for row in batch_rows], np.int32),
    'row_mask': np.ones(len(batch_rows), bool),
    'observations': [row.turn.observation for row in batch_rows],
  }


def left_aligned(values: Sequence[np.ndarray], width: int) -> np.ndarray:
  """Stacks arrays of different lengths to [B, width], 0 behind each."""
  out = np.zeros((len(values), width), values[0].dtype if values else np.float32)
  for row, value in zip(out, values):
    row[: len(value)] = value
  return out


def sampler_logprobs(batch_rows: Sequence[Row]) -> np.ndarray:
  """Gathers [B, R] f32 log-probs as decoded, R the longest response.

  Raises:
    ValueError: a turn lacks some.
  """
  turns = [row.turn for row in batch_rows]
  for turn in turns:
    size, given = len(turn.response_ids), len(turn.sampler_logprobs)
    if size != given:
      raise ValueError(f'a turn has {size} response ids but {given} log-probs')
  width = max((len(turn.response_ids) for turn in turns), default=0)
  return left_aligned([turn.sampler_logprobs for turn in turns], width)


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


def make_sequences(
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
