"""Questions and corpora read from files that the user names.

Questions: JSON lines {id, question, golden_answers, data_source} as the public sets
have them, or a JSON list of {question, answer}. Corpora: JSON lines {id, contents} with
contents 'title\\ntext', or {title, text}; or a JSON list of either. Any of them may be
compressed (.gz, .xz).
"""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdar_jax.envs.base import Task
from sdar_jax.envs.search_qa.retrieval import Passage

SUFFIXES = ('.jsonl', '.jsonl.gz', '.jsonl.xz', '.json', '.json.gz', '.json.xz')
MAX_LINE = 16 * 2**20  # bytes
_OPENERS = {'.gz': gzip.open, '.xz': lzma.open}
_DAMAGE = (ValueError, OSError, EOFError, RecursionError, lzma.LZMAError, zlib.error)


class DataSet(NamedTuple):
  """A public data set.

  Attributes:
    test_size: questions of its test (or development) split as papers use it.
    task_type: the kind of question, for skill retrieval.
  """

  test_size: int
  task_type: str


# In the order of the public evaluation file.
DATA_SETS = {
  'nq': DataSet(3610, 'single_hop'),
  'triviaqa': DataSet(11313, 'single_hop'),
  'popqa': DataSet(14267, 'single_hop'),
  'hotpotqa': DataSet(7405, 'multi_hop'),
  '2wikimultihopqa': DataSet(12576, 'multi_hop'),
  'musique': DataSet(2417, 'multi_hop'),
  'bamboogle': DataSet(125, 'multi_hop'),
}


class DataError(ValueError):
  """A missing or damaged file; the message is one line that names file and line."""


@dataclasses.dataclass(frozen=True)
class Question:
  """A question and what counts as its answer.

  Attributes:
    question_id: unique within its data set.
    question: as the data set words it.
    golden_answers: any of them is right.
    data_source: the name of its data set.
  """

  question_id: str
  question: str
  golden_answers: tuple[str, ...]
  data_source: str


class QuestionTasks(Sequence[Task]):
  """Questions of public data sets as tasks; implements `envs.base.TaskSet`.

  Reports are broken down by data set (`Task.task_type`); skills are looked up by the
  kind of question (`metadata['task_type']`).

  Args:
    questions: in the order of their indices.
    split: the middle part of task ids.
  """

  def __init__(self, questions: Sequence[Question], split: str):
    self._questions = questions
    self._split = split
    digest = hashlib.sha256(split.encode())
    for question in questions:
      digest.update(f'{json.dumps(dataclasses.astuple(question))}\n'.encode())
    self.digest = digest.hexdigest()

  def __len__(self) -> int:
    return len(self._questions)

  def __getitem__(self, index: int) -> Task:
    if not 0 <= index < len(self):
      raise IndexError(f'question {index}: {self._split} has {len(self)} questions')
    question = self._questions[index]
    source = question.data_source
    return Task(
      task_id=f'{source}/{self._split}/{question.question_id}',
      task_type=source,
      goal=question.question,
      metadata={'task_type': DATA_SETS[source].task_type, 'object': ''},
      payload=question,
    )


def read_split(data_dir: str, split: str, data_sets: Iterable[str]) -> QuestionTasks:
  """The questions of some data sets, set after set.

  Args:
    data_dir: a folder with `<data set>/<split>.jsonl`, or with one `<split>.jsonl`
      whose lines name their data_source, or with neither but `.json`, `.gz`, `.xz`.
    split: 'train', 'test', 'dev', or what else the files are called.
    data_sets: keys of `DATA_SETS`.

  Raises:
    DataError: one line that names the file and what is wrong with it.
  """
  root, questions = Path(data_dir).expanduser(), []
  common: list[Question] | None = None
  for name in data_sets:
    if name not in DATA_SETS:
      known = ', '.join(DATA_SETS)
      raise DataError(f'config.world.data_sets: {name!r} is not one of {known}')
    path = _find(root / name, split)
    if path is not None:
      questions += read_questions(path, name)
      continue
    if common is None:
      path = _find(root, split)
      if path is None:
        raise DataError(
          f'{root} has neither {name}/{split}.jsonl nor {split}.jsonl'
          ' (config.world.data_dir)'
        )
      common = read_questions(path)
    mine = [question for question in common if question.data_source == name]
    if not mine:
      raise DataError(f'{path}: no question has data_source {name!r}')
    questions += mine
  if not questions:
    raise DataError('config.world.data_sets is empty: name at least one')
  return QuestionTasks(questions, split)


def read_questions(path: str | Path, data_source: str = '') -> list[Question]:
  """Reads a file of questions.

  Args:
    path: JSON lines or a JSON list, perhaps compressed.
    data_source: the data set of rows that do not name one.

  Raises:
    DataError: one line that names the file and its line (or item, from 1).
  """
  questions, seen = [], set()
  for place, row in _rows(path):
    with _naming(place):
      question = _question(row, data_source, len(questions))
      key = (question.data_source, question.question_id)
      if key in seen:
        raise ValueError(f'the id {question.question_id[:80]!r} occurs twice')
    seen.add(key)
    questions.append(question)
  if not questions:
    raise DataError(f'{path}: has no question')
  return questions


def read_corpus(path: str | Path) -> list[Passage]:
  """Reads a file of passages into memory (about 1 kB a passage).

  Raises:
    DataError: one line that names the file and its line (or item, from 1).
  """
  passages = []
  for place, row in _rows(path):
    with _naming(place):
      passages.append(_passage(row))
  if not passages:
    raise DataError(f'{path}: has no passage')
  return passages


def _find(folder: Path, split: str) -> Path | None:
  paths = (folder / f'{split}{suffix}' for suffix in SUFFIXES)
  return next((path for path in paths if path.is_file()), None)


def _rows(path: str | Path) -> Iterator[tuple[str, Any]]:
  """Yields (place, parsed row) of a file in any of the formats."""
  path = Path(path).expanduser()
  if not path.name.endswith(SUFFIXES):
    raise DataError(f'{path}: must end in one of {", ".join(SUFFIXES)}')
  opener = _OPENERS[path.suffix] if path.suffix in _OPENERS else open
  with _naming(str(path)), opener(path, 'rb') as file:
    if '.jsonl' not in path.suffixes:
      rows = json.load(file)
      if not isinstance(rows, list):
        raise ValueError('is not a JSON list')
      for number, row in enumerate(rows, start=1):
        yield f'{path}, item {number}', row
      return
    number = 0
    while line := file.readline(MAX_LINE + 1):
      number += 1
      place = f'{path}, line {number}'
      with _naming(place):
        if len(line) > MAX_LINE:
          raise ValueError(f'is longer than {MAX_LINE} bytes')
        row = json.loads(line) if line.strip() else None
      if row is not None:
        yield place, row


def _question(row: Any, data_source: str, index: int) -> Question:
  """Reads one question; `index` names it where it has no id."""
  source = _text(row, 'data_source') if _has(row, 'data_source') else data_source
  if source not in DATA_SETS:
    raise ValueError(f'data_source {source!r} is not one of {", ".join(DATA_SETS)}')
  golden = row['golden_answers'] if _has(row, 'golden_answers') else _value(row)
  golden = [golden] if isinstance(golden, str) else golden
  if not isinstance(golden, list) or not golden:
    raise ValueError("its 'golden_answers' is not a list of texts")
  if not all(isinstance(gold, str) for gold in golden):
    raise ValueError("its 'golden_answers' has something that is not a text")
  question_id = str(row['id']) if _has(row, 'id') else f'{index:06d}'
  question = Question(question_id, _text(row, 'question'), tuple(golden), source)
  json.dumps(dataclasses.astuple(question), ensure_ascii=False).encode()
  return question


def _value(row: Any) -> Any:
  if not _has(row, 'answer'):
    raise ValueError("has neither 'golden_answers' nor 'answer'")
  return row['answer']


def _passage(row: Any) -> Passage:
  if _has(row, 'contents'):
    return Passage.from_contents(_text(row, 'contents'))
  return Passage(_text(row, 'title'), _text(row, 'text', blank=True))


def _has(row: Any, key: str) -> bool:
  return isinstance(row, dict) and key in row


def _text(row: Any, key: str, blank: bool = False) -> str:
  """A required text of a row."""
  if not _has(row, key) or not isinstance(row[key], str):
    raise ValueError(f'has no text {key!r}')
  if not blank and not row[key].strip():
    raise ValueError(f'its {key!r} is empty')
  return row[key]


@contextlib.contextmanager
def _naming(place: str) -> Iterator[None]:
  """Turns damage into one line that names its place."""
  try:
    yield
  except DataError:
    raise
  except _DAMAGE as error:
    raise DataError(f'{place}: {" ".join(str(error).split())[:200]}') from None
