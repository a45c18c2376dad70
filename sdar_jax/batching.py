"""From trajectories to fixed-shape arrays: one row per turn. NumPy only."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdar_jax.envs.base import Task
from sdar_jax.trajectory import Group, Trajectory, Turn

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
  """One turn with the identity and score it is trained under.

  Attributes:
    penalty: of a malformed turn, else 0.
    trajectory_id: unique within the step.
  """

  turn: Turn
  trajectory: Trajectory
  task: Task
  group_id: int
  trajectory_id: int
  turn_id: int
  penalty: float

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
      for turn_id, turn in enumerate(trajectory.turns):
        penalty = 0.0 if turn.valid else invalid_penalty
        out.append(
          Row(turn, trajectory, group.task, group.group_id, identity, turn_id, penalty)
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


def bucket(length: int, buckets: Sequence[int], key: str) -> int:
  """Finds the smallest bucket of at least `length` tokens.

  Raises:
    ValueError: none does; `key` names the config value to raise.
  """
  for size in buckets:
    if length <= size:
      return size
  raise ValueError(f'a row of {length} tokens exceeds config.{key}={tuple(buckets)}')


def permutation(count: int, *, shuffle: bool, seed: int, step: int) -> np.ndarray:
  """Orders rows for minibatches, as (seed, step) decide."""
  if not shuffle:
    return np.arange(count)
  return np.random.default_rng([seed, step]).permutation(count)


@dataclasses.dataclass(frozen=True)
class Packing:
  """How rows become minibatches.

  Attributes:
    kind: 'sorted' or 'in order'.
    minibatch_rows: most rows per minibatch.
    microbatch_rows: m rows per microbatch.
    length_buckets: allowed T.
    teacher_buckets: allowed T of the teacher's rows.
  """

  kind: str
  minibatch_rows: int
  microbatch_rows: int
  length_buckets: tuple[int, ...]
  teacher_buckets: tuple[int, ...]


def pack(
  batch_rows: Sequence[Row],
  teacher_prompts: Sequence[np.ndarray] | None,
  order: np.ndarray,
  packing: Packing,
) -> list[list[Arrays]]:
  """Packs rows into minibatches of microbatches of a few fixed shapes.

  'sorted': rows are dealt evenly over the fewest minibatches that hold them, and inside
  one those of similar length go together, longest first. Each microbatch is as wide as
  its own longest row needs, which changes the padding and nothing else. 'in order':
  minibatches and microbatches are filled one after the other; the last may be short.

  Args:
    batch_rows: [B] rows.
    teacher_prompts: [B] privileged prompts of the same rows, or None.
    order: [B] permutation.
    packing: how.

  Returns:
    Minibatches of microbatches with `row_index` [m] i32 (index into `batch_rows`, -1 at
    padding), `tokens` [m, T] i32, `response_mask` [m, T] bool, `prompt_lengths` and
    `turn_ids` [m] i32, `sampler_logprobs` [m, T] f32 and, with a teacher,
    `teacher_tokens` [m, T'] i32 and `teacher_offset` [m] i32: response token t of
    `tokens` stands at t + offset there.

  Raises:
    ValueError: a row exceeds the largest bucket.
  """
  lengths = _lengths(batch_rows, [row.turn.prompt_ids for row in batch_rows])
  teacher = teacher_prompts is not None
  teacher_lengths = _lengths(batch_rows, teacher_prompts) if teacher else None
  out = []
  for part in _parts(order, packing):
    if packing.kind == 'sorted':
      part = part[np.argsort(-lengths[part], kind='stable')]
    minibatch = []
    for start in range(0, max(len(part), 1), packing.microbatch_rows):
      indices = part[start : start + packing.microbatch_rows]
      width = _width(lengths, indices, packing, 'length_buckets')
      wide = 0
      if teacher:
        wide = _width(teacher_lengths, indices, packing, 'teacher_buckets')
      arrays = _empty(packing.microbatch_rows, width, wide)
      for i, index in enumerate(indices):
        _fill(arrays, i, index, batch_rows, teacher_prompts)
      minibatch.append(arrays)
    out.append(minibatch)
  return out


def _parts(order: np.ndarray, packing: Packing) -> list[np.ndarray]:
  size = packing.minibatch_rows
  count = max(1, math.ceil(len(order) / size))
  if packing.kind == 'sorted':
    return np.array_split(order, count)
  return [order[i * size : (i + 1) * size] for i in range(count)]


def _lengths(batch_rows: Sequence[Row], prompts: Sequence[np.ndarray]) -> np.ndarray:
  pairs = zip(prompts, batch_rows, strict=True)
  return np.asarray([len(p) + len(row.turn.response_ids) for p, row in pairs], int)


def _width(
  lengths: np.ndarray, indices: np.ndarray, packing: Packing, name: str
) -> int:
  longest = int(lengths[indices].max(initial=1))
  return bucket(longest, getattr(packing, name), f'train.{name}')


def _empty(count: int, width: int, teacher_width: int) -> Arrays:
  arrays = {
    'row_index': np.full(count, -1, np.int32),
    'tokens': np.zeros((count, width), np.int32),
    'response_mask': np.zeros((count, width), bool),
    'prompt_lengths': np.zeros(count, np.int32),
    'turn_ids': np.zeros(count, np.int32),
    'sampler_logprobs': np.zeros((count, width), np.float32),
  }
  if teacher_width:
    arrays['teacher_tokens'] = np.zeros((count, teacher_width), np.int32)
    arrays['teacher_offset'] = np.zeros(count, np.int32)
  return arrays


def _fill(
  arrays: Arrays,
  i: int,
  index: int,
  batch_rows: Sequence[Row],
  teacher_prompts: Sequence[np.ndarray] | None,
) -> None:
  """Puts row `index` of the step in place `i` of a microbatch."""
  turn = batch_rows[index].turn
  start, size = len(turn.prompt_ids), len(turn.response_ids)
  if len(turn.sampler_logprobs) != size:
    raise ValueError(
      f'a turn has {size} response ids but {len(turn.sampler_logprobs)} log-probs'
    )
  arrays['row_index'][i] = index
  arrays['turn_ids'][i] = batch_rows[index].turn_id
  arrays['prompt_lengths'][i] = start
  arrays['tokens'][i, :start] = turn.prompt_ids
  arrays['tokens'][i, start : start + size] = turn.response_ids
  arrays['response_mask'][i, start : start + size] = True
  arrays['sampler_logprobs'][i, start : start + size] = turn.sampler_logprobs
  if teacher_prompts is not None:
    prompt = teacher_prompts[index]
    begin = len(prompt)
    arrays['teacher_tokens'][i, :begin] = prompt
    arrays['teacher_tokens'][i, begin : begin + size] = turn.response_ids
    arrays['teacher_offset'][i] = begin - start


def gather(
  microbatches: Sequence[Arrays], name: str, count: int, width: int
) -> np.ndarray | None:
  """Gathers values of response tokens, [m, T] to left-aligned [B, R].

  Args:
    microbatches: of all minibatches, as `pack` made them, with `name`.
    name: of an array; None is returned where the microbatches lack it.
    count: B.
    width: R, tokens of the longest response.
  """
  if name not in microbatches[0]:
    return None
  out = np.zeros((count, width), microbatches[0][name].dtype)
  for arrays in microbatches:
    there, compact = _places(arrays, width)
    block = np.zeros(compact.shape, out.dtype)
    block[compact] = arrays[name][arrays['response_mask']]
    out[arrays['row_index'][there]] = block[there]
  return out


def scatter(
  microbatches: Sequence[Arrays], values: Mapping[str, np.ndarray]
) -> list[Arrays]:
  """Scatters values to microbatches: the inverse of `gather`.

  Args:
    microbatches: as `pack` made them.
    values: scalars, [B] or left-aligned [B, R] arrays.

  Returns:
    The same names with scalars, [m] or [m, T] arrays, 0 at padding.
  """
  out = []
  for arrays in microbatches:
    placed: Arrays = {}
    for name, value in values.items():
      if value.ndim == 0:
        placed[name] = value
        continue
      width = value.shape[1] if value.ndim == 2 else 0
      there, compact = _places(arrays, width)
      rows = np.where(there, arrays['row_index'], 0)
      if value.ndim == 1:
        placed[name] = np.where(there, value[rows], value.dtype.type(0))
        continue
      placed[name] = np.zeros(arrays['tokens'].shape, value.dtype)
      placed[name][arrays['response_mask']] = value[rows][compact]
    out.append(placed)
  return out


def _places(arrays: Arrays, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Finds [m] real rows and [m, R] left-aligned places of tokens."""
  sizes = arrays['response_mask'].sum(1)
  return arrays['row_index'] >= 0, np.arange(width) < sizes[:, None]
