"""Packs sequences into arrays of a few shapes. NumPy only.

A sheet is what one forward pass reads and says: `tokens` of whole sequences, and of
them only what was sampled is scored. So three axes meet in it:

  S sequences of T tokens   what the decoder reads
  L lanes of N places       which of its states predict a sampled token, row by row
  M rows of R tokens        what losses see: the responses, left-aligned

A lane is the part of a sheet that one shard of the batch holds: the states that a lane
needs are of its own sequences, so nothing travels between devices. The tokens of a
lane's rows stand in its places one after another, so that masks alone tell where.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sdar_jax.batching import rows as rows_lib
from sdar_jax.batching.rows import Arrays, Row, TokenSequence

# The output head runs on a quarter of the tokens, or on all of them: two programs.
SHARES = (4, 1)


@dataclasses.dataclass(frozen=True)
class Packing:
  """How rows become sheets.

  Attributes:
    kind: 'sorted' or 'in order'.
    minibatch_rows: most rows per minibatch; about, where a sequence has several.
    microbatch_rows: S sequences per sheet.
    length_buckets: allowed T.
    teacher_buckets: allowed T of the teacher's sequences.
    response_tokens: R.
    lanes: L, shards of a batch; divides S.
    layout: of `rows.LAYOUTS`.
    sequence_rows: rows of a sequence, at most; M is as many times S.
    shuffle: whether minibatches are dealt in an order that seed and step decide, or in
      that of the rows.
    seed: of that order.
  """

  kind: str
  minibatch_rows: int
  microbatch_rows: int
  length_buckets: tuple[int, ...]
  teacher_buckets: tuple[int, ...]
  response_tokens: int
  lanes: int = 1
  layout: str = 'turns'
  sequence_rows: int = 1
  shuffle: bool = False
  seed: int = 0


def bucket(length: int, buckets: Sequence[int], key: str) -> int:
  """Finds the smallest bucket of at least `length` tokens.

  Raises:
    ValueError: none does; `key` names the config value to raise.
  """
  for size in buckets:
    if length <= size:
      return size
  raise ValueError(f'a row of {length} tokens exceeds config.{key}={tuple(buckets)}')


def pack(
  batch_rows: Sequence[Row],
  prompts: Sequence[Sequence[np.ndarray]],
  packing: Packing,
  *,
  step: int,
  compares: bool,
  scores: bool = True,
) -> tuple[list[list[Arrays]], list[Arrays]]:
  """Packs a step: minibatches, and what of the teacher is scored.

  Args:
    batch_rows: [B] rows.
    prompts: [B] their privileged prompts, for each context of a teacher.
    packing: how.
    step: decides the order, with the seed.
    compares: minibatches hold the teacher's sequences, of its first context, too.
    scores: the teacher's sequences are scored.

  Returns:
    The minibatches of `minibatches` and the sheets of `teacher_sheets`.
  """
  own = [row.turn.prompt_ids for row in batch_rows]
  student = rows_lib.make_sequences(batch_rows, own, packing.layout)
  teachers = [
    rows_lib.make_sequences(batch_rows, ids, packing.layout, within=student)
    for ids in prompts
  ]
  order = np.arange(len(student))
  if packing.shuffle:
    order = np.random.default_rng([packing.seed, step]).permutation(len(student))
  compared = teachers[0] if compares else None
  batch = minibatches(batch_rows, student, order, packing, compared)
  if not (teachers and scores):
    return batch, []
  # Contexts share sheets: row i under context c is row cB + i of them.
  every = [
    dataclasses.replace(one, rows=tuple(c * len(batch_rows) + row for row in one.rows))
    for c, its in enumerate(teachers)
    for one in its
  ]
  return batch, teacher_sheets([*batch_rows] * len(teachers), every, packing)


def teacher_sheets(
  batch_rows: Sequence[Row], sequences: Sequence[TokenSequence], packing: Packing
) -> list[Arrays]:
  """Packs a step's sequences of the teacher for scoring, longest first.

  Args:
    batch_rows: [B] rows.
    sequences: of these rows under privileged prompts.
    packing: how.

  Returns:
    Sheets: `tokens` [S, T] i32, `places` and `targets` [L, N] i32, `row_index` [M] i32
    (index into `batch_rows`, -1 at padding) and `response_mask` [M, R] bool.

  Raises:
    ValueError: a sequence exceeds the largest bucket.
  """
  order = np.argsort([-len(s.ids) for s in sequences], kind='stable')
  return [
    _sheet(batch_rows, [sequences[i] for i in chosen], packing, 'teacher_buckets')
    for chosen in _batches(order, packing.microbatch_rows)
  ]


def minibatches(
  batch_rows: Sequence[Row],
  sequences: Sequence[TokenSequence],
  order: np.ndarray,
  packing: Packing,
  teacher: Sequence[TokenSequence] | None = None,
) -> list[list[Arrays]]:
  """Packs a step's sequences into minibatches of sheets.

  'sorted': rows are dealt evenly over the fewest minibatches that hold them, and inside
  one, sequences of similar length go together, longest first. Each sheet is as wide as
  its own longest sequence needs, which changes the padding and nothing else. 'in
  order': minibatches and sheets are filled one after the other; the last may be short.

  Args:
    batch_rows: [B] rows.
    sequences: the student's of these rows.
    order: permutation of `sequences`.
    packing: how.
    teacher: sequences of the same rows, each within one of the student's, for a loss
      that compares whole distributions; else None.

  Returns:
    Minibatches of sheets as of `teacher_sheets`; with a teacher each has its
    `teacher_tokens` [S', T'] and `teacher_places` [L, N], too.

  Raises:
    ValueError: a sequence exceeds the largest bucket.
  """
  parts: dict[int, list[TokenSequence]] = {}
  owner = {row: i for i, s in enumerate(sequences) for row in s.rows}
  for one in teacher or ():
    parts.setdefault(owner[one.rows[0]], []).append(one)
  out = []
  for dealt in _dealt(sequences, order, packing):
    if packing.kind == 'sorted':
      lengths = np.array([len(sequences[i].ids) for i in dealt], int)
      dealt = dealt[np.argsort(-lengths, kind='stable')]
    minibatch = []
    for chosen in _batches(dealt, packing.microbatch_rows):
      own = [sequences[i] for i in chosen]
      sheet = _sheet(batch_rows, own, packing, 'length_buckets')
      if teacher is not None:
        theirs = [parts[i] for i in chosen]
        sheet |= _teacher_part(batch_rows, theirs, packing, sheet['places'].shape[1])
      minibatch.append(sheet)
    out.append(minibatch)
  return out


def blank(packing: Packing, width: int, share: int) -> Arrays:
  """Makes an empty sheet of a width and a share of sampled tokens."""
  size, lanes = packing.microbatch_rows, packing.lanes
  count, rows = math.ceil(size // lanes * width / share), size * packing.sequence_rows
  return {
    'tokens': np.zeros((size, width), np.int32),
    'places': np.zeros((lanes, count), np.int32),
    'targets': np.zeros((lanes, count), np.int32),
    'row_index': np.full(rows, -1, np.int32),
    'response_mask': np.zeros((rows, packing.response_tokens), bool),
  }


def _batches(order: np.ndarray, size: int) -> list[np.ndarray]:
  starts = range(0, max(len(order), 1), size)
  return [order[start : start + size] for start in starts]


def _dealt(
  sequences: Sequence[TokenSequence], order: np.ndarray, packing: Packing
) -> list[np.ndarray]:
  """Deals sequences over minibatches, by the rows in them."""
  sizes = np.array([len(sequences[i].rows) for i in order], int)
  before, total = np.cumsum(sizes) - sizes, int(sizes.sum())
  if packing.kind != 'sorted':
    return _split(order, before // packing.minibatch_rows)
  count = max(1, math.ceil(total / packing.minibatch_rows))
  # The first `total % count` of them get a row more, as numpy.array_split deals.
  size, more = divmod(total, count)
  edges = np.cumsum([size + (i < more) for i in range(count)])
  return _split(order, np.searchsorted(edges, before, side='right'))


def _split(order: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
  found = [order[numbers == number] for number in range(numbers.max(initial=0) + 1)]
  return [part for part in found if len(part)] or [order]


def _sheet(
  batch_rows: Sequence[Row], chosen: list[TokenSequence], packing: Packing, key: str
) -> Arrays:
  per = packing.microbatch_rows // packing.lanes
  lanes = [chosen[lane * per : (lane + 1) * per] for lane in range(packing.lanes)]
  tokens, placed = _laid(batch_rows, lanes, per, packing, key)
  room = tokens.size // packing.lanes
  most = max(len(places) for places, _ in placed)
  share = next(s for s in SHARES if math.ceil(room / s) >= most)
  rows = per * packing.sequence_rows
  out = {**blank(packing, tokens.shape[1], share), 'tokens': tokens}
  for lane, (places, targets) in enumerate(placed):
    out['places'][lane, : len(places)] = places
    out['targets'][lane, : len(targets)] = targets
    indices = [row for sequence in lanes[lane] for row in sequence.rows]
    start = lane * rows
    out['row_index'][start : start + len(indices)] = indices
    for i, index in enumerate(indices):
      size = len(batch_rows[index].turn.response_ids)
      if size > packing.response_tokens:
        raise ValueError(
          f'a response of {size} tokens exceeds config.rollout.max_response_tokens='
          f'{packing.response_tokens}'
        )
      out['response_mask'][start + i, :size] = True
  return out


def _laid(
  batch_rows: Sequence[Row],
  lanes: Sequence[Sequence[TokenSequence]],
  per: int,
  packing: Packing,
  key: str,
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
  """Lays lanes of sequences out: tokens, and each lane's places, targets."""
  longest = max((len(s.ids) for lane in lanes for s in lane), default=1)
  width = bucket(longest, getattr(packing, key), f'train.{key}')
  tokens, placed = np.zeros((len(lanes) * per, width), np.int32), []
  for number, lane in enumerate(lanes):
    places, targets = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for i, sequence in enumerate(lane):
      tokens[number * per + i, : len(sequence.ids)] = sequence.ids
      for row, start in zip(sequence.rows, sequence.starts):
        ids = batch_rows[row].turn.response_ids
        # The state that predicts a token is that of the token before it.
        places.append(i * width + start - 1 + np.arange(len(ids), dtype=np.int32))
        targets.append(ids)
    placed.append((np.concatenate(places), np.concatenate(targets)))
  return tokens, placed


def _teacher_part(
  batch_rows: Sequence[Row],
  chosen: list[list[TokenSequence]],
  packing: Packing,
  count: int,
) -> Arrays:
  """Lays the teacher's sequences out in the lanes of the student's."""
  per = packing.microbatch_rows // packing.lanes
  lanes = [
    [one for parts in chosen[lane * per : (lane + 1) * per] for one in parts]
    for lane in range(packing.lanes)
  ]
  while per < max(map(len, lanes)):
    per *= 2
  tokens, placed = _laid(batch_rows, lanes, per, packing, 'teacher_buckets')
  out = np.zeros((packing.lanes, count), np.int32)
  for lane, (places, _) in enumerate(placed):
    out[lane, : len(places)] = places
  return {'teacher_tokens': tokens, 'teacher_places': out}
