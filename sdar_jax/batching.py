"""From trajectories to fixed-shape arrays: one row per turn. NumPy only."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sdar_jax.envs.base import Task
from sdar_jax.trajectory import Group, Trajectory, Turn

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Row:
  """One turn with the identity and score it is trained under.

  Attributes:
    score: the trajectory's return less the penalty if this turn was malformed.
    trajectory_id: unique within the step.
  """

  turn: Turn
  trajectory: Trajectory
  task: Task
  group_id: int
  trajectory_id: int
  turn_id: int
  score: float


def rows(groups: Sequence[Group], *, invalid_penalty: float) -> list[Row]:
  """One row per turn, in order of group, member and turn.

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
      total = trajectory.episode_return
      for turn_id, turn in enumerate(trajectory.turns):
        score = total - (0.0 if turn.valid else invalid_penalty)
        out.append(
          Row(turn, trajectory, group.task, group.group_id, identity, turn_id, score)
        )
  return out


def identities(batch_rows: Sequence[Row]) -> Arrays:
  """[B] arrays: `scores` f32, `group_ids`, `trajectory_ids` i32, `row_mask` bool."""
  return {
    'scores': np.asarray([row.score for row in batch_rows], np.float32),
    'group_ids': np.asarray([row.group_id for row in batch_rows], np.int32),
    'trajectory_ids': np.asarray([r.trajectory_id for r in batch_rows], np.int32),
    'row_mask': np.ones(len(batch_rows), bool),
  }


def bucket(length: int, buckets: Sequence[int], key: str) -> int:
  """The smallest bucket that holds `length` tokens.

  Raises:
    ValueError: none does; `key` names the config value to raise.
  """
  for size in buckets:
    if length <= size:
      return size
  raise ValueError(f'a row of {length} tokens exceeds config.{key}={tuple(buckets)}')


def permutation(count: int, *, shuffle: bool, seed: int, step: int) -> np.ndarray:
  """The order in which rows enter minibatches: a function of (seed, step) only."""
  if not shuffle:
    return np.arange(count)
  return np.random.default_rng([seed, step]).permutation(count)


def pack(
  batch_rows: Sequence[Row],
  teacher_prompts: Sequence[np.ndarray] | None,
  advantages: np.ndarray,
  *,
  order: np.ndarray,
  minibatch_rows: int,
  microbatch_rows: int,
  length_buckets: Sequence[int],
  teacher_buckets: Sequence[int],
) -> list[list[Arrays]]:
  """Rows to minibatches, each a list of microbatches of a few fixed shapes.

  The rows are dealt evenly over the fewest minibatches that hold them, so that none is
  a small remainder. Inside a minibatch rows of similar length go together, longest
  first, and each microbatch is as wide as its own longest row needs: what an update
  computes does not depend on that, only how much padding it computes on. Padding rows
  are masked out and stand with the shortest.

  Args:
    batch_rows: [B] rows.
    teacher_prompts: [B] privileged prompts of the same rows, or None.
    advantages: [B] f32, group-relative.
    order: [B] permutation.
    minibatch_rows: most rows per minibatch.
    microbatch_rows: m rows per microbatch.
    length_buckets: allowed T.
    teacher_buckets: allowed T of the teacher's rows.

  Returns:
    Minibatches of microbatches with `row_index` [m] i32 (index into `batch_rows`, -1 at
    padding), `tokens` [m, T] i32, `response_mask` [m, T] bool, `advantages` [m] f32,
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
  for part in np.array_split(order, max(1, math.ceil(len(order) / minibatch_rows))):
    part = part[np.argsort(-lengths[part], kind='stable')]
    minibatch = []
    for start in range(0, max(len(part), 1), microbatch_rows):
      indices = part[start : start + microbatch_rows]
      width = _width(lengths, indices, length_buckets, 'train.length_buckets')
      wide = 0
      if teacher:
        wide = _width(
          teacher_lengths, indices, teacher_buckets, 'train.teacher_buckets'
        )
      arrays = _empty(microbatch_rows, width, wide)
      for i, index in enumerate(indices):
        _fill(arrays, i, index, batch_rows, teacher_prompts, advantages)
      minibatch.append(arrays)
    out.append(minibatch)
  return out


def _lengths(batch_rows: Sequence[Row], prompts: Sequence[np.ndarray]) -> np.ndarray:
  pairs = zip(prompts, batch_rows, strict=True)
  return np.asarray([len(p) + len(row.turn.response_ids) for p, row in pairs], int)


def _width(
  lengths: np.ndarray, indices: np.ndarray, buckets: Sequence[int], key: str
) -> int:
  return bucket(int(lengths[indices].max(initial=1)), buckets, key)


def _empty(count: int, width: int, teacher_width: int) -> Arrays:
  arrays = {
    'row_index': np.full(count, -1, np.int32),
    'tokens': np.zeros((count, width), np.int32),
    'response_mask': np.zeros((count, width), bool),
    'advantages': np.zeros(count, np.float32),
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
  advantages: np.ndarray,
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
  arrays['advantages'][i] = advantages[index]
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
