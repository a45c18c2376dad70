"""Official ALFWorld games from the user's files; none is evaluated.

Of a game file only the PDDL problem, the goal's words and the `solvable` mark are used.
Its domain and its grammar (which contains expressions that TextWorld evaluates) are
looked at as plain text, never run.
"""

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sdar_jax import files
from sdar_jax.envs import base, records
from sdar_jax.envs.alfworld import engine, instruction
from sdar_jax.files import FileError

GRAMMARS = (*engine.GRAMMARS, 'file')
RELEASES = ('json_2.1.1', 'json_2.1.2')  # folders that alfworld-download makes
PACKED = ('.jsonl.xz', '.jsonl.gz', '.jsonl')
GAME_FILE = 'game.tw-pddl'
TRAJECTORY = 'traj_data.json'  # Says that a folder is one of a game.
MAX_BYTES = 16 * 2**20  # of one game; official ones have about 60 kB
MAX_GOAL = 10_000  # characters of a goal's words; official ones have about 60
_SAFE_ID = re.compile(r'[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*')
_GOAL = re.compile(r'"Your task is to: ([^"\\]*(?:\\.[^"\\]*)*)"')
_OLD_COMMAND, _NEW_COMMAND = 'put {o} in/on {r}', 'move {o} to {r}'


class _Record(NamedTuple):
  """One game in memory: about 4 kB."""

  game_id: str
  goal: str
  grammar: str
  problem: bytes  # zlib


def data_root(data_dir: str) -> Path:
  """Finds the official games: `data_dir`, or $ALFWORLD_DATA."""
  return records.data_root(data_dir, 'ALFWORLD_DATA')


class OfficialGames(base.Tasks):
  """The playable official games of one split, sorted by id.

  As in the official loader, games marked unsolvable or not at all, games with a movable
  receptacle or a sliced object, other task types than the six and folders without a
  game file are left out; how many of each is logged once.

  Args:
    data_dir: a folder as alfworld-download lays it out, a folder of packed files
      (`<split>.jsonl`, `.jsonl.gz` or `.jsonl.xz`: {id, task, pddl_problem} a line), or
      one packed file; '' means $ALFWORLD_DATA.
    split: 'train', 'valid_seen', 'valid_unseen' or another folder of games.
    grammar: 'new' or 'old' wording for all games, or 'file' for each file's own.

  Raises:
    FileError: one line that names the file and what is wrong with it.
    SplitError: no folder could have the split's name.
  """

  def __init__(self, data_dir: str, split: str, grammar: str = 'new'):
    base.check_choice('grammar', grammar, GRAMMARS)
    if not _SAFE_ID.fullmatch(split) or '/' in split or '..' in split:
      raise base.SplitError(split, 'must be the name of a folder of games')
    root, omitted = data_root(data_dir), records.Omitted()
    self._records = sorted(_read(root, split, grammar, omitted))
    if not self._records:
      left_out = f' ({omitted})' if omitted.counts else ''
      raise FileError(
        f'official games: {root} holds no playable game of {split!r}{left_out}'
      )
    omitted.say(f'{root}, {split}: {len(self._records)} games to play')
    digest = hashlib.sha256()
    for first, second in zip(self._records, [*self._records[1:], None]):
      if second and first.game_id == second.game_id:
        raise FileError(f'official games: {root} holds {first.game_id} twice')
      truth = [*first[:3], hashlib.sha256(zlib.decompress(first.problem)).hexdigest()]
      digest.update(json.dumps(truth).encode())
    super().__init__(split, len(self._records), self._make, digest=digest.hexdigest())

  def _make(self, index: int) -> base.Task:
    record = self._records[index]
    asked = read_instruction(record.game_id)
    task_id = f'official/{record.game_id}'
    problem = zlib.decompress(record.problem).decode()
    return base.Task(
      task_id=task_id,
      task_type=asked.task_type,
      goal=record.goal,
      metadata=asked.metadata,
      payload=engine.Game(problem, record.goal, record.grammar, source=task_id),
    )


def read_instruction(game_id: str) -> instruction.GameInstruction:
  """Reads a game's instruction from its id.

  The id is split/type-Object-Movable-Target-scene/trial.
  """
  parts = game_id.split('/')[1].split('-')
  if len(parts) != 5:
    raise ValueError(f'its id {game_id[:80]} does not name type, object and target')
  task_type, name, _, target, _ = parts
  if task_type == instruction.LOOK:
    return instruction.GameInstruction(task_type, name, '', target)
  return instruction.GameInstruction(
    task_type, name, target, instruction.tool_of(task_type)
  )


def _read(
  root: Path, split: str, grammar: str, omitted: records.Omitted
) -> Iterator[_Record]:
  """Yields all playable games of a split, in no particular order."""
  if root.is_file():
    return _read_packed(root, split, grammar, omitted)
  for folder in (*(root / release for release in RELEASES), root):
    if (folder / split).is_dir():
      return _read_folder(folder, split, grammar, omitted)
    for suffix in PACKED:
      if (folder / f'{split}{suffix}').is_file():
        return _read_packed(folder / f'{split}{suffix}', split, grammar, omitted)
  raise FileError(
    f'official games: {root} has neither {RELEASES[0]}/{split}/ nor'
    f' {split}{PACKED[0]} (config.world.data_dir)'
  )


def _left_out(game_id: str) -> str | None:
  """Gives the official loader's reason to leave out a game, or None."""
  kind = game_id.split('/')[1].partition('-')[0]
  if 'movable' in game_id or 'Sliced' in game_id:
    return 'with a movable receptacle or a sliced object left out'
  return None if kind in instruction.TASK_TYPES else 'of another task type left out'


def _read_folder(
  folder: Path, split: str, grammar: str, omitted: records.Omitted
) -> Iterator[_Record]:
  """Yields games from <split>/<task>/<trial>/game.tw-pddl."""
  inside = os.path.realpath(folder)
  for trial in _trials(folder / split, omitted):
    game_id = trial.relative_to(folder).as_posix()
    reason = _left_out(game_id)
    path = trial / GAME_FILE
    if reason is None and not os.path.lexists(path):
      reason = f'without {GAME_FILE} left out'
    if reason is not None:
      omitted.add(reason, game_id)
      continue
    with records.naming(path):
      _checked_id(game_id)
      if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise ValueError(f'leads out of {folder}; copy the game instead of linking it')
    with records.opened(path) as file:
      data = file.read(MAX_BYTES + 1)
      if len(data) > MAX_BYTES:
        raise ValueError(f'larger than {MAX_BYTES} bytes')
    game = files.parse_json(data, path)
    with records.naming(path):
      solvable = game.get('solvable')
      if solvable is not None and not isinstance(solvable, bool):
        shown = records.shown(solvable)
        raise ValueError(f"its 'solvable' is {shown}, not true or false")
      if not solvable:
        mark = 'marked unsolvable' if solvable is False else 'not marked solvable'
        omitted.add(f'{mark} left out', game_id)
        continue
      record = _folder_record(game_id, game, grammar)
    yield record


def _trials(folder: Path, omitted: records.Omitted) -> Iterator[Path]:
  """Yields the folders <task>/<trial> of games, sorted."""
  for task in sorted(path for path in folder.iterdir() if path.is_dir()):
    for trial in sorted(path for path in task.iterdir() if path.is_dir()):
      if any(os.path.lexists(trial / name) for name in (GAME_FILE, TRAJECTORY)):
        yield trial
      elif any(trial.glob(f'*/{GAME_FILE}')):
        omitted.add('folders with games below <task>/<trial> left out', str(trial))
    if os.path.lexists(task / GAME_FILE):
      omitted.add('games above <task>/<trial> left out', str(task))


def _folder_record(game_id: str, game: dict, grammar: str) -> _Record:
  """Takes the played parts from a game file."""
  text = records.text(game, 'grammar')
  found = _GOAL.search(text)
  goal = json.loads(f'"{found[1]}"') if found else 'UNKNOWN GOAL'
  if 'UNKNOWN GOAL' in goal:
    raise ValueError("its grammar states no goal ('Your task is to: ...')")
  if grammar == 'file':
    if _NEW_COMMAND not in text and _OLD_COMMAND not in text:
      raise ValueError(f'its grammar has neither {_NEW_COMMAND!r} nor {_OLD_COMMAND!r}')
    grammar = 'new' if _NEW_COMMAND in text else 'old'
  return _record(game_id, goal, grammar, records.text(game, 'pddl_problem'))


def _read_packed(
  path: Path, split: str, grammar: str, omitted: records.Omitted
) -> Iterator[_Record]:
  """Games of one split from a file of JSON lines."""
  if grammar == 'file':
    raise FileError(f"{path}: packed games carry no grammar; use 'new' or 'old'")
  for place, line in records.lines(path):
    row = files.parse_json(line, place)
    with records.naming(place):
      game_id = _checked_id(records.text(row, 'id'))
      reason = _left_out(game_id)
      if not game_id.startswith(f'{split}/'):
        reason = 'of another split'
      if reason is None:
        goal, problem = records.text(row, 'task'), records.text(row, 'pddl_problem')
        record = _record(game_id, goal, grammar, problem)
    if reason is None:
      yield record
    else:
      omitted.add(reason, game_id)


def _checked_id(game_id: str) -> str:
  """Refuses ids in the form of a path elsewhere."""
  parts = game_id.split('/')
  if not _SAFE_ID.fullmatch(game_id) or len(parts) < 2 or {'.', '..'} & set(parts):
    raise ValueError(f'{game_id[:80]!r} is not a game id (letters, digits, _.-/ only)')
  return game_id


def _record(game_id: str, goal: str, grammar: str, problem: str) -> _Record:
  """Compresses a game after a cheap check of its completeness."""
  read_instruction(game_id)
  whole = '(:init' in problem and '(:goal' in problem
  if not whole or problem.count('(') != problem.count(')'):
    raise ValueError('its pddl_problem is not whole')
  records.checked_text(goal, 'goal')
  if len(goal) > MAX_GOAL:
    raise ValueError(f'its goal has {len(goal)} characters, more than {MAX_GOAL}')
  return _Record(game_id, goal, grammar, zlib.compress(problem.encode(), 1))
