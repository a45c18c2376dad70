"""Questions and corpora from the user's files.

Questions: {id, question, golden_answers, data_source} as Search-R1 has them, or rows as
each of the seven sets publishes its own (see `golden`). Corpora: {id, contents} with
contents 'title\\ntext', or {title, text}, the text whole or in sentences. Either as
JSON lines, a JSON list, or a table (.csv, .tsv) whose first line names the columns;
each may be compressed (.gz, .xz, .bz2).
"""

import array
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdar_jax import files
from sdar_jax.envs import base, records
from sdar_jax.envs.search_qa import golden
from sdar_jax.envs.search_qa.retrieval.base import Passage, quoted
from sdar_jax.files import FileError

_FORMATS = ('.jsonl', '.json', '.tsv', '.csv')
_PACKED = ('', '.gz', '.xz', '.bz2')
SUFFIXES = tuple(form + pack for form in _FORMATS for pack in _PACKED)
_TRIVIA = re.compile(rb'\s*\{\s*"(?:Data|Domain|VerifiedEval|Version)"\s*:')


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


@dataclasses.dataclass(frozen=True)
class Question:
  """A question and its gold answers.

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


class OfficialQuestions(base.Tasks):
  """Questions of public data sets as tasks.

  Reports are broken down by data set (`Task.task_type`); skills are looked up by the
  kind of question (`metadata['task_type']`).

  Args:
    questions: in the order of their indices.
    split: the middle part of task ids.
  """

  def __init__(self, questions: Sequence[Question], split: str):
    digest = hashlib.sha256(split.encode())
    for question in questions:
      digest.update(f'{json.dumps(dataclasses.astuple(question))}\n'.encode())
    super().__init__(split, len(questions), self._make, digest=digest.hexdigest())
    self._questions = questions

  def _make(self, index: int) -> base.Task:
    question = self._questions[index]
    source = question.data_source
    return base.Task(
      task_id=f'{source}/{self.split}/{question.question_id}',
      task_type=source,
      goal=question.question,
      metadata={'task_type': DATA_SETS[source].task_type, 'object': ''},
      payload=question,
    )


def read_split(
  data_dir: str, split: str, data_sets: Iterable[str]
) -> OfficialQuestions:
  """Reads the questions of some data sets, set after set.

  Args:
    data_dir: a folder with `<data set>/<split>.jsonl`, or with one `<split>.jsonl`
      whose rows name their data_source; or either in another of `SUFFIXES`.
    split: 'train', 'test', 'dev', or what else the files are called.
    data_sets: keys of `DATA_SETS`.

  Raises:
    FileError: one line that names the file and what is wrong with it.
  """
  root, questions = files.local_path(data_dir, 'config.world.data_dir'), []
  common: list[Question] | None = None
  for name in data_sets:
    if name not in DATA_SETS:
      known = ', '.join(DATA_SETS)
      raise FileError(f'config.world.data_sets: {name!r} is not one of {known}')
    path = _find(root / name, split)
    if path is not None:
      questions += read_questions(path, name)
      continue
    if common is None:
      path = _find(root, split)
      if path is None:
        raise FileError(
          f'{root} has neither {name}/{split}.jsonl nor {split}.jsonl'
          ' (config.world.data_dir)'
        )
      common = read_questions(path)
    mine = [question for question in common if question.data_source == name]
    if not mine:
      raise FileError(f'{path}: no question has data_source {name!r}')
    questions += mine
  if not questions:
    raise FileError('config.world.data_sets is empty: name at least one')
  return OfficialQuestions(questions, split)


def read_questions(path: str | Path, data_source: str = '') -> list[Question]:
  """Reads a file of questions; logs the number without an answer.

  Args:
    path: JSON lines, a JSON list or a table, perhaps compressed.
    data_source: the data set of rows that do not name one.

  Raises:
    FileError: one line that names the file and its line (or item, from 1).
  """
  path = files.local_path(str(path), 'questions')
  omitted = records.Omitted()
  aliases = _Aliases(path, omitted)
  found, seen = [], set()
  for index, (place, row) in enumerate(_rows(path, 'questions')):
    with records.naming(place):
      question = _question(records.fields(row), data_source, index, aliases)
      if question is None:
        omitted.add('questions left out: marked as having no answer', place)
        continue
      key = (question.data_source, question.question_id)
      if key in seen:
        raise ValueError(f'the id {question.question_id[:80]!r} occurs twice')
    seen.add(key)
    found.append(question)
  omitted.say(path)
  if not found:
    raise FileError(f'{path}: has no question')
  return found


def read_corpus(path: str | Path) -> list[Passage]:
  """Reads a file of passages into memory (about 1 kB a passage).

  Where most of a corpus's `contents` have their titles in quotation marks, as those of
  wiki-18, the marks are the corpus's and dropped; elsewhere they are the titles' own.

  Raises:
    FileError: one line that names the file and its line (or item, from 1).
  """
  path = files.local_path(str(path), 'config.world.corpus')
  passages: list[Passage] = []
  joined, enclosed, marked = 0, 0, array.array('q')
  for place, row in _rows(path, 'passages'):
    with records.naming(place):
      passage = _passage(records.fields(row))
    if 'contents' in row:
      joined += 1
      enclosed += quoted(passage.title)
      if passage.title[:1] == passage.title[-1:] == '"' and len(passage.title) > 2:
        marked.append(len(passages))
    passages.append(passage)
  if not passages:
    raise FileError(f'{path}: has no passage')
  for index in marked if 2 * enclosed > joined else ():
    title, text, score = passages[index]
    passages[index] = Passage(title[1:-1], text, score)
  return passages


def _find(folder: Path, split: str) -> Path | None:
  """Finds the only file of a split, in any format."""
  paths = [folder / f'{split}{suffix}' for suffix in SUFFIXES]
  paths = [path for path in paths if path.is_file()]
  if len(paths) > 1:
    raise FileError(f'{paths[0]} and {paths[1].name} are both there: keep one')
  for path in sorted(folder.glob(f'{split}*.parquet')) if not paths else ():
    with records.opened(path):  # Says what to do with it.
      pass
  return paths[0] if paths else None


def _rows(path: Path, what: str) -> Iterator[tuple[str, Any]]:
  """Yields (place, parsed row) of a file in any of the formats."""
  name = path.name
  for pack in _PACKED[1:]:
    name = name.removesuffix(pack)
  if name.endswith('.parquet'):
    with records.opened(path):
      pass
  if not name.endswith(_FORMATS):
    raise FileError(f'{path}: must end in one of {", ".join(_FORMATS)}, perhaps .gz')
  if name.endswith('.json'):
    with records.opened(path) as file:
      start = file.read(4096)
    if not start.lstrip().startswith(b'{'):
      return records.items(path, what)
    if _TRIVIA.match(start):
      return records.items(path, what, under='Data')
  elif not name.endswith('.jsonl'):
    return records.table(path, '\t' if name.endswith('.tsv') else ',')
  return _json_lines(path)


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
  for place, line in records.lines(path):
    yield place, files.parse_json(line, place, object)


class _Aliases:
  """Looks up further answers by `answer_id` beside the questions."""

  def __init__(self, questions: Path, omitted: records.Omitted):
    self._path = questions.with_name(golden.ALIASES)
    self._omitted = omitted
    self._known: Mapping[str, tuple[str, ...]] | None = None

  def __call__(self, answer_id: str) -> tuple[str, ...]:
    if self._known is None:
      there = self._path.exists()
      self._known = golden.read_aliases(self._path) if there else {}
    if not self._known:
      reason = f'answers without their aliases: there is no {self._path}'
      self._omitted.add(reason, answer_id)
    return self._known.get(answer_id, ())


def _question(
  row: Mapping[str, Any], data_source: str, index: int, aliases: golden.Aliases
) -> Question | None:
  """Reads one question; `index` names it if it has no id."""
  source = data_source
  if 'data_source' in row:
    source = records.text(row, 'data_source').removeprefix('searchR1_')  # As in verl.
  if source not in DATA_SETS:
    raise ValueError(f'data_source {source!r} is not one of {", ".join(DATA_SETS)}')
  asked = records.text(row, 'question' if 'Question' not in row else 'Question')
  gold = golden.answers(row, aliases)
  if gold is None:
    return None
  names = ('id', '_id', 'question_id', 'QuestionId')
  name = next((name for name in names if name in row), None)
  question_id = f'{index:06d}' if name is None else row[name]
  if type(question_id) is not int:
    records.checked_text(question_id, name or 'id')
  question = Question(str(question_id), asked, gold, source)
  json.dumps(dataclasses.astuple(question), ensure_ascii=False).encode()
  return question


def _passage(row: Mapping[str, Any]) -> Passage:
  """Reads one passage, its title with all its marks."""
  if 'contents' in row:
    title, _, text = records.text(row, 'contents').partition('\n')
    return Passage(title.strip(), text)
  if isinstance(row.get('text'), list):  # Sentences, each with the space before it.
    text = ''.join(records.checked_texts(row['text'], 'text', blank=True))
  else:
    text = records.text(row, 'text', blank=True)
  title = ' '.join(records.text(row, 'title', blank=bool(text.strip())).splitlines())
  return Passage(title, text)
