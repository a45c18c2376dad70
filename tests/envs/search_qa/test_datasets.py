"""Questions and corpora from files, whole and damaged."""

import bz2
import csv
import gzip
import json
import lzma

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared_path

from sdar_jax.envs.search_qa import datasets, golden
from sdar_jax.envs.search_qa.datasets import (
  DATA_SETS,
  Question,
  read_corpus,
  read_questions,
  read_split,
)
from sdar_jax.envs.search_qa.retrieval.base import Passage
from sdar_jax.files import FileError

ROWS = [
  {'id': 'q1', 'question': 'Who?', 'golden_answers': ['A', 'B'], 'data_source': 'nq'},
  {'id': 2, 'question': 'é', 'golden_answers': 'C', 'data_source': 'bamboogle'},
]
QUESTIONS = [
  Question('q1', 'Who?', ('A', 'B'), 'nq'),
  Question('2', 'é', ('C',), 'bamboogle'),
]


def write(path, rows):
  """Writes rows in the format that the name asks for."""
  lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
  text = lines if '.jsonl' in path.name else json.dumps(rows)
  openers = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}
  opener = openers.get(path.suffix, open)
  path.parent.mkdir(parents=True, exist_ok=True)
  with opener(path, 'wt', encoding='utf-8', newline='') as file:
    if '.tsv' in path.name or '.csv' in path.name:
      plain = [
        {k: v if isinstance(v, str | int) else json.dumps(v) for k, v in row.items()}
        for row in rows
      ]
      delimiter = '\t' if '.tsv' in path.name else ','
      table = csv.DictWriter(file, list(plain[0]), delimiter=delimiter)
      table.writeheader()
      table.writerows(plain)
    else:
      file.write(text)
  return path


@pytest.mark.parametrize('suffix', datasets.SUFFIXES)
def test_every_format_reads_the_same(tmp_path, suffix):
  assert read_questions(write(tmp_path / f'q{suffix}', ROWS)) == QUESTIONS
  rows = [{'id': '0', 'contents': '"A B"\nsome\ntext'}]
  expected = [Passage('A B', 'some\ntext')]
  if '.json' in suffix:
    rows.append({'title': 'T', 'text': ''})
    expected.append(Passage('T', ''))
  assert read_corpus(write(tmp_path / f'c{suffix}', rows)) == expected


def test_rows_without_id_or_source(tmp_path):
  path = write(tmp_path / 'q.json', [{'question': 'a', 'answer': 'b'}] * 2)
  assert read_questions(path, 'musique') == [
    Question('000000', 'a', ('b',), 'musique'),
    Question('000001', 'a', ('b',), 'musique'),
  ]


@pytest.mark.parametrize(
  'row, complaint',
  [
    ({'question': None}, "no text 'question'"),
    ({'question': ' '}, "'question' is empty"),
    ({'golden_answers': []}, 'not a list of texts'),
    ({'golden_answers': [1]}, 'not a text'),
    ({'golden_answers': None}, 'not a list of texts'),
    ({'data_source': 'squad'}, "'squad' is not one of nq, triviaqa"),
    ({'question': 'a\ud800'}, 'surrogates'),
    ({'id': 'q1', 'data_source': 'nq'}, "'q1' occurs twice"),
  ],
)
def test_a_wrong_question_is_named(tmp_path, row, complaint):
  rows = [ROWS[0], {**ROWS[1], **row}]
  for name, place in (('q.jsonl', 'line 2'), ('q.json', 'item 2')):
    path = write(tmp_path / name, rows)
    with pytest.raises(FileError, match=complaint) as caught:
      read_questions(path)
    assert str(caught.value).startswith(f'{path}, {place}: ')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'name, content, complaint',
  [
    ('a.jsonl', b'', 'is empty'),
    ('a.jsonl', b'\n', 'has no passage'),
    ('a.json', b'[]', 'has no passage'),
    ('a.json', b'', 'is empty'),
    ('a.json', b'"a"', 'must be a JSON list of passages'),
    ('a.json', b'{"title": "a"}', "line 1: has no text 'text'"),
    ('a.json', b'[{"title": "a", "text": "b"}', 'item 1: .* cut off'),
    ('a.jsonl', b'{"title": "a", "text": "b"}\n\n{"title":', 'line 3: not JSON'),
    ('a.jsonl', b'<html>\n', 'is a web page'),
    ('a.jsonl', b'[1]\n', r'line 1: must be an object, not \[1\]'),
    ('a.jsonl', b'{"contents": " "}', "line 1: its 'contents' is empty"),
    ('a.jsonl', b'{"title": "", "text": " "}', "line 1: its 'title' is empty"),
    ('a.jsonl', b'{"title": 3, "text": "b"}', "line 1: has no text 'title' but 3"),
    ('a.jsonl', b'{"title": "a", "text": [["b"]]}', "line 1: has no text 'text'"),
    ('a.jsonl', b'{"title": "a\xff", "text": "b"}', "line 1: not JSON .'utf-8' codec"),
    ('a.jsonl', b'[' * 100_000, 'line 1: not JSON .maximum recursion'),
    ('a.jsonl.gz', b'no gzip', 'line 1: not JSON'),
    ('a.tsv', b'id\ttext\ttitle\n1\tb\n', 'has not the 3 fields'),
    ('a.tsv', b'id\ttext\ttitle\n1\t"b\n', 'unexpected end of data'),
    (
      'a.tsv',
      b'id\ttext\ttitle\n1\t"b\tT\n2\tc\tU\n3\td"\tV\n',
      'a field begins with a quotation mark and goes on over other rows',
    ),
    ('a.csv', b'id\ttext\ttitle\n1\tb\tT\n', "has no text 'text'"),
    ('a.jsonl', b'PAR1...', 'is Parquet; write it as JSON lines'),
    ('a.parquet', b'PAR1...', 'is Parquet; write it as JSON lines'),
    ('a.jsonl.xz', lzma.compress(b'{"title": "a", "text": "b"}\n' * 999)[:-9], 'ended'),
    ('a.txt', b'', 'must end in one of .jsonl'),
    ('missing.jsonl', None, 'No such file'),
  ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, content, complaint):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(FileError, match=complaint) as caught:
    read_corpus(path)
  assert str(caught.value).startswith(str(path)) and '\n' not in str(caught.value)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets.records, 'MAX_RECORD', 100)
  path = write(tmp_path / 'c.jsonl', [{'contents': 'x' * 200}])
  with pytest.raises(FileError, match='line 1: is longer than 100 bytes'):
    read_corpus(path)


def test_a_split_is_its_data_sets_one_after_the_other(tmp_path):
  write(tmp_path / 'test.jsonl', ROWS)
  own = [{'id': i, 'question': f'q{i}', 'golden_answers': ['a']} for i in range(3)]
  write(tmp_path / 'popqa/test.jsonl.gz', own)
  tasks = read_split(str(tmp_path), 'test', ('bamboogle', 'popqa', 'nq'))
  ids = ['bamboogle/test/2', 'popqa/test/0', 'popqa/test/1', 'popqa/test/2']
  assert [task.task_id for task in tasks] == [*ids, 'nq/test/q1']
  assert tasks[4].payload == QUESTIONS[0] and tasks[4].task_type == 'nq'
  assert tasks[4].metadata == {'task_type': 'single_hop', 'object': ''}
  assert tasks[0].metadata['task_type'] == 'multi_hop'
  with pytest.raises(IndexError):
    tasks[5]
  again = read_split(str(tmp_path), 'test', ('bamboogle', 'popqa', 'nq'))
  other = read_split(str(tmp_path), 'test', ('popqa', 'bamboogle', 'nq'))
  assert tasks.digest == again.digest != other.digest


@pytest.mark.parametrize(
  'split, data_sets, complaint',
  [
    ('test', ('squad',), r'config\.world\.data_sets'),
    ('test', (), r'config\.world\.data_sets is empty'),
    ('dev', ('nq',), r'neither nq/dev\.jsonl nor dev\.jsonl \(config\.world\.data_dir'),
    ('test', ('musique',), "no question has data_source 'musique'"),
  ],
)
def test_a_missing_data_set_is_one_line(tmp_path, split, data_sets, complaint):
  write(tmp_path / 'test.jsonl', ROWS)
  with pytest.raises(FileError, match=complaint):
    read_split(str(tmp_path), split, data_sets)


def test_the_seven_data_sets():
  assert sum(each.test_size for each in DATA_SETS.values()) == 51_713
  assert [*DATA_SETS][::6] == ['nq', 'bamboogle']


# One question of each set, in the layout that the set itself publishes.
PUBLISHED = {
  'nq jsonl': (
    'NQ-open.jsonl',
    '{"question": "q", "answer": ["Ann", "Ann B"]}\n',
    ('Ann', 'Ann B'),
  ),
  'nq table': (
    'nq.csv',
    'question,answers\nq,"[\'Ann\', ""Ann\'s""]"\n',
    ('Ann', "Ann's"),
  ),
  'triviaqa': (
    'web.json',
    '{\n "Data": [{"Answer": {"Value": "Ann", "Aliases": ["Ann", "A."],'
    ' "NormalizedAliases": ["ann", "a"], "HumanAnswers": ["Annie"], "Type": "X"},'
    ' "Question": "q", "QuestionId": "tc_1"}],\n "Domain": "Web", "Version": 1.0}',
    ('Ann', 'A.', 'ann', 'a', 'Annie'),
  ),
  'triviaqa of the hub': (
    'tqa.jsonl',
    '{"question": "q", "question_id": "tc_1", "answer": {"aliases": ["A."],'
    ' "normalized_aliases": ["a"], "value": "Ann", "type": "X"}}',
    ('Ann', 'A.', 'a'),
  ),
  'popqa': (
    'popqa.tsv',
    'id\tobj\tquestion\tpossible_answers\n7\tx\tq\t"[""Ann"", ""A \\u00e9""]"\n',
    ('Ann', 'A é'),
  ),
  'hotpotqa': (
    'hotpot.json',
    '[{"_id": "5a", "answer": "Ann", "question": "q", "context": [["T", ["s"]]]}]',
    ('Ann',),
  ),
  '2wikimultihopqa': (
    '2wiki.json',
    '[{"_id": "5a", "answer": "Ann", "question": "q", "answer_id": "Q1"}]',
    ('Ann', 'A.', 'Annish'),
  ),
  'musique': (
    'musique.jsonl',
    '{"id": "2hop__1", "question": "q", "answer": "Ann", "answer_aliases": ["A."],'
    ' "answerable": true}\n{"id": "2hop__1", "question": "q", "answer": "Ann",'
    ' "answer_aliases": [], "answerable": false}\n',
    ('Ann', 'A.'),
  ),
  'bamboogle': ('bamboogle.csv', 'Question,Answer\r\nq,Ann\r\n', ('Ann',)),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_every_set_is_read_as_it_is_published(tmp_path, name, caplog):
  file, content, expected = PUBLISHED[name]
  (tmp_path / file).write_text(content)
  aliases = '{"Q_id": "Q1", "aliases": ["A.", "Ann"], "demonyms": ["Annish"]}\n'
  (tmp_path / 'id_aliases.json').write_text(aliases)
  (question,) = read_questions(tmp_path / file, name.split()[0])
  assert question.golden_answers == expected and question.question == 'q'
  left_out = '1 questions left out: marked as having no answer'
  assert (left_out in caplog.text) == (name == 'musique')


def test_a_missing_file_of_aliases_is_said(tmp_path, caplog):
  path = tmp_path / '2wiki.json'
  path.write_text(PUBLISHED['2wikimultihopqa'][1])
  (question,) = read_questions(path, '2wikimultihopqa')
  assert question.golden_answers == ('Ann',)
  (line,) = caplog.messages
  assert '1 answers without their aliases: there is no ' in line


@settings(deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_lists_as_text_are_read_back(items):
  arrays = np.empty(len(items), object)
  arrays[:] = items
  for text in (json.dumps(items), repr(items), str(arrays), repr(arrays)):
    assert golden.decoded(text) == items, text


@pytest.mark.parametrize(
  'text', ['[sic]', '[', '[1969]', "['a', b]", "['a' ... 'b']", "['a'", "['a''b']", 'x']
)
def test_other_text_is_no_list(text):
  assert golden.decoded(text) is None


@pytest.mark.parametrize(
  'row, complaint',
  [
    ({'golden_answers': "['a', b]"}, "its 'golden_answers' is no list of texts"),
    ({'answer': ' '}, "its 'answer' is empty"),
    ({'answer': 1969}, "its 'answer' is not a list of texts but 1969"),
    ({'answer': {'Type': 'x'}}, "its 'answer' has none of Value"),
    ({'answer': 'a', 'answer_aliases': 3}, 'not a list of texts but 3'),
    ({'answer': 'a', 'answerable': 'perhaps'}, 'not true or false'),
    ({'answer': 'a', 'answer_id': 3}, "has no text 'answer_id' but 3"),
    ({'answer': 'a', 'id': {'a': 1}}, "has no text 'id'"),
    ({'answer': 'a', 'id': None}, "has no text 'id'"),
    ({'question_decomposition': []}, 'has neither'),
  ],
)
def test_a_wrong_answer_is_named(tmp_path, row, complaint):
  path = write(tmp_path / 'q.jsonl', [{'question': 'q', **row}])
  with pytest.raises(FileError, match=complaint) as caught:
    read_questions(path, 'nq')
  assert str(caught.value).startswith(f'{path}, line 1: ')


def contents(*titles):
  return [
    {'id': str(n), 'contents': f'{title}\ntext'} for n, title in enumerate(titles)
  ]


@pytest.mark.parametrize(
  'titles, expected',
  [
    (['"Heroes" and "Villains"'], ['"Heroes" and "Villains"']),
    (['"What?" and "Who?"', 'B'], ['"What?" and "Who?"', 'B']),
    (['"Heroes"', 'Low', 'Lodger'], ['"Heroes"', 'Low', 'Lodger']),
    (
      ['"Aaron"', '""Heroes""', '"5" gun"', '"A"'],
      ['Aaron', '"Heroes"', '5" gun', 'A'],
    ),
    (['"Aaron"', '"The "X" Files"'], ['Aaron', 'The "X" Files']),
  ],
)
def test_titles_keep_their_own_quotation_marks(tmp_path, titles, expected):
  path = write(tmp_path / 'c.jsonl', contents(*titles))
  assert [passage.title for passage in read_corpus(path)] == expected


def test_public_corpora(tmp_path):
  rows = [
    {'_id': '1', 'title': 'T', 'text': 'body', 'metadata': {}},
    {'id': '2', 'title': 'A\nB', 'text': ['One.', ' Two.'], 'charoffset': []},
    {'_id': '3', 'title': '', 'text': 'body'},
  ]
  assert read_corpus(write(tmp_path / 'c.jsonl.bz2', rows)) == [
    Passage('T', 'body'),
    Passage('A B', 'One. Two.'),
    Passage('', 'body'),
  ]
  (tmp_path / 'p.tsv').write_text('id\ttext\ttitle\n1\t"a ""b"" c"\tT\n')
  assert read_corpus(tmp_path / 'p.tsv') == [Passage('T', 'a "b" c')]


def test_a_split_in_two_formats_or_in_parquet_is_refused(tmp_path):
  rows = [{'question': 'q', 'answer': 'a'}]
  write(tmp_path / 'nq/test.jsonl', rows)
  write(tmp_path / 'nq/test.csv', rows)
  with pytest.raises(FileError, match=r'test\.jsonl and test\.csv are both there'):
    read_split(str(tmp_path), 'test', ('nq',))
  (tmp_path / 'popqa').mkdir()
  (tmp_path / 'popqa/test-00000-of-00001.parquet').write_bytes(b'PAR1')
  with pytest.raises(FileError, match=r'test-00000.*Parquet; write it as JSON lines'):
    read_split(str(tmp_path), 'test', ('popqa',))


def test_real_files():
  folder = shared_path('data/search_qa')
  questions = read_questions(folder / 'hotpot100_questions.json', 'hotpotqa')
  assert len(questions) == 100
  assert len({question.question_id for question in questions}) == 100
  assert len(read_corpus(folder / 'hotpot100_corpus.json')) == 1000
