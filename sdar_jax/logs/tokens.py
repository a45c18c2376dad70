"""Records what is known of tokens, for some rows of a step. NumPy only."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sdar_jax.batching.rows import Row
from sdar_jax.logs import trajectories, writers
from sdar_jax.prompts.skills import SkillView
from sdar_jax.trajectory import Group, Trajectory

# Arrays [B, R] of a step's tokens that are recorded where the method has them.
_KNOWN = (
  'advantages',
  'sampler_logprobs',
  'old_logprobs',
  'ref_logprobs',
  'teacher_logprobs',
  'contrast_logprobs',
  'old_entropy',
  'old_values',
  'gate',
  'action_mask',
)
_LONGEST_PROMPT = 20_000  # Characters of a recorded prompt; the middle of more is cut.
_PROMPTS = ('teacher_prompt', 'contrast_prompt')
_PARTS = 4  # Tokens that one character of UTF-8 can be of.
Spell = Callable[[Sequence[int]], str]


class LogConfig(Protocol):
  """Interface of `config.log` as used here: how much is recorded."""

  token_rows: int
  token_episodes: int


def token_records(
  rows: Sequence[Row],
  known: Mapping[str, np.ndarray],
  prompts: Sequence[Sequence[np.ndarray]],
  views: Sequence[SkillView] | None,
  *,
  count: int,
  episodes: int,
  identity: tuple[int, ...],
  spell: Spell,
) -> list[dict[str, Any]]:
  """Collects per-token arrays of some of the step's rows.

  Those are all rows of some episodes, and some rows besides. `gap` and `gate` are the
  teacher's under pre-update weights, `teaching` is the weight of its row; a method that
  lacks one has no such entry.

  Args:
    rows: [B] the step's rows.
    known: what is known of them, [B], and of their tokens, [B, R].
    prompts: [B] of each context that teachers see; none without a teacher.
    views: what those show, or None.
    count: rows to record besides whole episodes, at most.
    episodes: to record whole, at most.
    identity: what the choice depends on besides the rows, e.g. (seed, step).
    spell: ids to text, control tokens by name.
  """
  out = []
  for index in _chosen(rows, count, episodes, identity):
    row = rows[index]
    ids = row.turn.response_ids.tolist()
    record = {
      'trajectory_id': row.trajectory_id,
      'turn_id': row.turn_id,
      'token_texts': texts(ids, spell),
      'student_prompt': _cut(spell(row.turn.prompt_ids.tolist())),
    }
    own = {name: known[name][index, : len(ids)] for name in _KNOWN if name in known}
    record |= {name: values.tolist() for name, values in own.items()}
    if 'teacher_logprobs' in own:
      record['gap'] = (own['teacher_logprobs'] - own['old_logprobs']).tolist()
    if views is not None:
      if 'teaching' in known:
        record['teaching'] = float(known['teaching'][index])
      record['teacher_skills'] = list(views[index].skill_ids)
      record['teacher_skill_tokens'] = views[index].tokens
      shown = zip(_PROMPTS, prompts)
      record |= {name: _cut(spell(p[index].tolist())) for name, p in shown}
    out.append(record)
  return out


def step_records(
  groups: Sequence[Group],
  rows: Sequence[Row],
  known: Mapping[str, np.ndarray],
  prompts: Sequence[Sequence[np.ndarray]],
  views: Sequence[SkillView] | None,
  *,
  log: LogConfig,
  **settings: Any,
) -> Iterator[dict[str, Any]]:
  """Makes the records of a step's episodes; see `token_records`."""
  settings |= {'count': log.token_rows, 'episodes': log.token_episodes}
  recorded = token_records(rows, known, prompts, views, **settings)
  return writers.with_tokens(groups, recorded, turn_means(rows, known))


def keeper(
  count: int, spell: Spell, goals: Mapping[str, str]
) -> Callable[[Sequence[Trajectory]], list[dict[str, Any]]]:
  """Makes a function from an evaluation's episodes to records of some.

  They are of the same tasks at every step.

  Args:
    count: how many, at most; attempts at one task come after other tasks.
    spell: ids to text, control tokens by name.
    goals: of the tasks, by id.
  """

  def keep(played: Sequence[Trajectory]) -> list[dict[str, Any]]:
    out = []
    for index in sample([(t.task_id, t.task_id, t.member) for t in played], count, ()):
      record = trajectories.to_json(played[index])
      for turn in record['turns']:
        turn['tokens'] = {'token_texts': texts(turn['response_ids'], spell)}
      out.append(trajectories.with_head(record, goals.get(record['task_id'], '')))
    return out

  return keep


def texts(ids: Sequence[int], spell: Spell) -> list[str]:
  """Spells tokens one by one; together they are the whole text.

  A token that holds a part of a character is '', and the one that completes it has it.
  """
  out, start = [], 0
  for end in range(1, len(ids) + 1):
    text = spell(ids[start:end])
    if text.endswith('\ufffd') and end - start < _PARTS and end < len(ids):
      out.append('')
    else:
      out.append(text)
      start = end
  return out


def turn_means(
  rows: Sequence[Row], known: Mapping[str, np.ndarray]
) -> dict[tuple[int, int], dict[str, float]]:
  """Averages over each row's tokens, by (trajectory_id, turn_id).

  Args:
    rows: [B] the step's rows.
    known: `advantages` and, with a teacher, `teacher_logprobs`, `gate`, [B, R], and
      `teaching`, [B]; `response_mask`. What a row has no teacher for is left out.
  """
  mask = known['response_mask']
  size = np.maximum(mask.sum(1), 1)
  mean = lambda values: np.where(mask, values, 0.0).sum(1, dtype=np.float64) / size
  columns = {'advantage': mean(known['advantages'])}
  taught = known.get('teaching', np.zeros(len(rows))) != 0
  if 'teacher_logprobs' in known:
    columns['gap'] = mean(known['teacher_logprobs'] - known['old_logprobs'])
  if 'gate' in known:
    columns['gate'] = mean(known['gate'])
  return {
    (row.trajectory_id, row.turn_id): {
      name: float(values[index])
      for name, values in columns.items()
      if name == 'advantage' or taught[index]
    }
    for index, row in enumerate(rows)
  }


def sample(
  names: Iterable[tuple[Any, ...]], count: int, identity: tuple[int, ...]
) -> list[int]:
  """Draws `count` places, as many from each group.

  A group is the first entry of a name. Which they are is a function of the identity and
  of the names, not of their order.
  """
  by_group: dict[Any, list[tuple[bytes, int]]] = {}
  for index, (group, *name) in enumerate(names):
    said = repr((*identity, *name)).encode(errors='replace')
    key = hashlib.blake2b(said, digest_size=8).digest()
    by_group.setdefault(group, []).append((key, index))
  places = [
    (place, *drawn)
    for group in by_group.values()
    for place, drawn in enumerate(sorted(group))
  ]
  return sorted(index for _, _, index in sorted(places)[:count])


def _chosen(
  rows: Sequence[Row], count: int, episodes: int, identity: tuple[int, ...]
) -> list[int]:
  """Lists the places of rows to record: of whole episodes, and others."""
  played = list({row.trajectory_id: row for row in rows}.values())
  names = [(r.group_id, r.trajectory.task_id, r.trajectory.member) for r in played]
  whole = {played[i].trajectory_id for i in sample(names, episodes, identity)}
  of_those = [i for i, row in enumerate(rows) if row.trajectory_id in whole]
  others = [i for i, row in enumerate(rows) if row.trajectory_id not in whole]
  names = [
    (r.group_id, r.trajectory.task_id, r.trajectory.member, r.turn_id)
    for r in (rows[i] for i in others)
  ]
  return sorted(of_those + [others[i] for i in sample(names, count, identity)])


def _cut(text: str) -> str:
  if len(text) <= _LONGEST_PROMPT:
    return text
  half = _LONGEST_PROMPT // 2
  left_out = len(text) - 2 * half
  return f'{text[:half]}\n[{left_out} characters are left out]\n{text[-half:]}'
