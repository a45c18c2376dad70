"""Official ALFWorld games, read from where the user put them; nothing is evaluated.

Of a game file only the PDDL problem, the goal's words and the `solvable` mark are used.
Its domain and its grammar (which contains expressions that TextWorld evaluates) are
looked at as plain text, never run.
"""

import contextlib
import gzip
import hashlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sdar_jax.envs.alfworld import aims
from sdar_jax.envs.alfworld.engine import GRAMMARS, Game
from sdar_jax.envs.base import Task

RELEASES = ('json_2.1.1', 'json_2.1.2')  # folders that alfworld-download makes
PACKED = ('.jsonl.xz', '.jsonl.gz', '.jsonl')
GAME_FILE = 'game.tw-pddl'
MAX_BYTES = 16 * 2**20  # of one game; official ones have about 60 kB
_SAFE_ID = re.compile(r'[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*')
_GOAL = re.compile(r'"Your task is to: ((?:[^"\\]|\\.)*)"')
_OLD_COMMAND, _NEW_COMMAND = 'put {o} in/on {r}', 'move {o} to {r}'
_DAMAGE = (ValueError, EOFError, OSError, RecursionError, lzma.LZMAError, zlib.error)


class GameError(ValueError):
  """A missing, damaged or unsafe game file; the message is one line that names it."""


class _Record(NamedTuple):
  """One game in memory: about 4 kB."""

  game_id: str
  goal: str
  grammar: str
  problem: bytes  # zlib


def data_root(data_dir: str) -> Path:
  """The folder of the official games: `data_dir`, or $ALFWORLD_DATA if it is ''.

  Raises:
    GameError: neither is given, or there is no such place.
  """
  named = data_dir or os.environ.get('ALFWORLD_DATA', '')
  if not named:
    raise GameError(
      'official games: set config.world.data_dir or $ALFWORLD_DATA to the folder that'
      ' alfworld-download filled (third_party/envs/README.md)'
    )
  root = Path(named).expanduser()
  if not root.exists():
    raise GameError(f'official games: {root} does not exist (config.world.data_dir)')
  return root


class OfficialTasks(Sequence[Task]):
  """The playable official games of one split, sorted by id; parsed when played.

  As in the official loader, games marked unsolvable, games with a movable receptacle
  or a sliced object and other task types than the six are left out.

  Args:
    data_dir: a folder as alfworld-download lays it out, a folder of packed files
      (`<split>.jsonl`, `.jsonl.gz` or `.jsonl.xz`: {id, task, pddl_problem} a line), or
      one packed file; '' means $ALFWORLD_DATA.
    split: 'train', 'valid_seen', 'valid_unseen' or another folder of games.
    grammar: 'new' or 'old' wording for all games, or 'file' for each file's own.

  Raises:
    GameError: one line that names the file and what is wrong with it.
  """

  def __init__(self, data_dir: str, split: str, grammar: str = 'new'):
    if grammar not in (*GRAMMARS, 'file'):
      raise GameError(f'grammar {grammar!r} must be one of {(*GRAMMARS, "file")}')
    if not _SAFE_ID.fullmatch(split) or '/' in split or '..' in split:
      raise GameError(f'split {split!r} is not the name of a folder of games')
    root = data_root(data_dir)
    self.split = split
    self._records = sorted(_read(root, split, grammar))
    if not self._records:
      raise GameError(f'official games: {root} holds no playable game of {split!r}')
    digest = hashlib.sha256()
    for first, second in zip(self._records, [*self._records[1:], None]):
      if second and first.game_id == second.game_id:
        raise GameError(f'official games: {root} holds {first.game_id} twice')
      truth = [*first[:3], hashlib.sha256(zlib.decompress(first.problem)).hexdigest()]
      digest.update(json.dumps(truth).encode())
    self.digest = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> Task:
    if not 0 <= index < len(self):
      raise IndexError(f'game {index}: {self.split} has {len(self)} official games')
    record = self._records[index]
    aim = read_aim(record.game_id)
    task_id = f'official/{record.game_id}'
    problem = zlib.decompress(record.problem).decode()
    return Task(
      task_id=task_id,
      task_type=aim.task_type,
      goal=record.goal,
      metadata=aim.metadata,
      payload=Game(problem, record.goal, record.grammar, source=task_id),
    )


def read_aim(game_id: str) -> aims.Aim:
  """What a game asks for, by its id (split/type-Object-Movable-Target-scene/trial)."""
  parts = game_id.split('/')[1].split('-')
  if len(parts) != 5:
    raise ValueError(f'its id {game_id[:80]} does not name type, object and target')
  task_type, name, _, target, _ = parts
  if task_type == aims.LOOK:
    return aims.Aim(task_type, name, '', target)
  return aims.Aim(task_type, name, target, aims.tool_of(task_type))


def _read(root: Path, split: str, grammar: str) -> Iterator[_Record]:
  """All playable games of a split, in no particular order."""
  if root.is_file():
    return _read_packed(root, split, grammar)
  for folder in (*(root / release for release in RELEASES), root):
    if (folder / split).is_dir():
      return _read_folder(folder, split, grammar)
    for suffix in PACKED:
      if (folder / f'{split}{suffix}').is_file():
        return _read_packed(folder / f'{split}{suffix}', split, grammar)
  raise GameError(
    f'official games: {root} has neither {RELEASES[0]}/{split}/ nor'
    f' {split}{PACKED[0]} (config.world.data_dir)'
  )


def _playable(game_id: str) -> bool:
  """Whether the official loader would take a game with this id."""
  kind = game_id.split('/')[1].partition('-')[0]
  return (
    kind in aims.TASK_TYPES and 'movable' not in game_id and 'Sliced' not in game_id
  )


def _read_folder(folder: Path, split: str, grammar: str) -> Iterator[_Record]:
  """Games as alfworld-download lays them out: <split>/<task>/<trial>/game.tw-pddl."""
  inside = os.path.realpath(folder)
  for path in sorted((folder / split).glob(f'*/*/{GAME_FILE}')):
    with _naming(str(path)):
      game_id = _checked_id(path.parent.relative_to(folder).as_posix())
      if not _playable(game_id):
        continue
      if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
        raise ValueError(f'leads out of {folder}; copy the game instead of linking it')
      if path.stat().st_size > MAX_BYTES:
        raise ValueError(f'larger than {MAX_BYTES} bytes')
      game = json.loads(path.read_bytes())
      if not isinstance(game, dict):
        raise ValueError('not a JSON object')
      if game.get('solvable') is not True:
        continue
      record = _folder_record(game_id, game, grammar)
    yield record


def _folder_record(game_id: str, game: dict, grammar: str) -> _Record:
  """Takes from a game file what is played."""
  text = _text(game, 'grammar')
  found = _GOAL.search(text)
  goal = json.loads(f'"{found[1]}"') if found else 'UNKNOWN GOAL'
  if 'UNKNOWN GOAL' in goal:
    raise ValueError("its grammar states no goal ('Your task is to: ...')")
  if grammar == 'file':
    if _NEW_COMMAND not in text and _OLD_COMMAND not in text:
      raise ValueError(f'its grammar has neither {_NEW_COMMAND!r} nor {_OLD_COMMAND!r}')
    grammar = 'new' if _NEW_COMMAND in text else 'old'
  return _record(game_id, goal, grammar, _text(game, 'pddl_problem'))


def _read_packed(path: Path, split: str, grammar: str) -> Iterator[_Record]:
  """Games of one split from a file of JSON lines."""
  if grammar == 'file':
    raise GameError(f"{path}: packed games carry no grammar; use 'new' or 'old'")
  openers = {'.xz': lzma.open, '.gz': gzip.open}
  opener = openers[path.suffix] if path.suffix in openers else open
  number = 0
  with _naming(str(path)), opener(path, 'rb') as lines:
    while line := lines.readline(MAX_BYTES):
      number += 1
      with _naming(f'{path}, line {number}'):
        record = _packed_record(line, split, grammar)
      if record is not None:
        yield record


def _packed_record(line: bytes, split: str, grammar: str) -> _Record | None:
  """Reads one line of a packed file; None for a game that is not played."""
  row = json.loads(line)
  game_id = _checked_id(_text(row, 'id'))
  if not game_id.startswith(f'{split}/') or not _playable(game_id):
    return None
  return _record(game_id, _text(row, 'task'), grammar, _text(row, 'pddl_problem'))


def _checked_id(game_id: str) -> str:
  """Refuses ids that could mean a path elsewhere."""
  parts = game_id.split('/')
  if not _SAFE_ID.fullmatch(game_id) or len(parts) < 2 or {'.', '..'} & set(parts):
    raise ValueError(f'{game_id[:80]!r} is not a game id (letters, digits, _.-/ only)')
  return game_id


def _text(row: dict, key: str) -> str:
  """A required string of a game."""
  if not isinstance(row, dict) or not isinstance(row.get(key), str):
    raise ValueError(f'has no text {key!r}')
  return row[key]


def _record(game_id: str, goal: str, grammar: str, problem: str) -> _Record:
  """Compresses a game after a cheap look at whether it is whole."""
  read_aim(game_id)
  whole = '(:init' in problem and '(:goal' in problem
  if not whole or problem.count('(') != problem.count(')'):
    raise ValueError('its pddl_problem is not whole')
  goal.encode()  # refuses lone surrogates here rather than in the middle of a run
  return _Record(game_id, goal, grammar, zlib.compress(problem.encode(), 1))


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
  """Turns damage into one line that names its place."""
  try:
    yield
  except GameError:
    raise
  except _DAMAGE as error:
    reason = ' '.join(str(error).split())[:200]
    raise GameError(f'{source}: damaged game: {reason}') from None
