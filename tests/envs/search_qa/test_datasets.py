"""Questions and corpora from files, whole and damaged."""

import gzip
import json
import lzma

import pytest
from shared import shared_path

from sdar_jax.envs.search_qa import datasets
from sdar_jax.envs.search_qa.datasets import (
  DATA_SETS,
  DataError,
  Question,
  read_corpus,
  read_questions,
  read_split,
)
from sdar_jax.envs.search_qa.retrieval import Passage

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
  opener = {'.gz': gzip.open, '.xz': lzma.open}.get(path.suffix, open)
  path.parent.mkdir(parents=True, exist_ok=True)
  with opener(path, 'wt', encoding='utf-8') as file:
    file.write(text)
  return path


@pytest.mark.parametrize('suffix', datasets.SUFFIXES)
def test_every_format_reads_the_same(tmp_path, suffix):
  assert read_questions(write(tmp_path / f'q{suffix}', ROWS)) == QUESTIONS
  rows = [{'id': '0', 'contents': '"A B"\nsome\ntext'}, {'title': 'T', 'text': ''}]
  assert read_corpus(write(tmp_path / f'c{suffix}', rows)) == [
    Passage('A B', 'some\ntext'),
    Passage('T', ''),
  ]


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
    with pytest.raises(DataError, match=complaint) as caught:
      read_questions(path)
    assert str(caught.value).startswith(f'{path}, {place}: ')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'name, content, complaint',
  [
    ('a.jsonl', b'', 'has no passage'),
    ('a.json', b'[]', 'has no passage'),
    ('a.json', b'', 'Expecting value'),
    ('a.json', b'{"title": "a"}', 'not a JSON list'),
    ('a.jsonl', b'{"title": "a", "text": "b"}\n\n{"title":', 'line 3: Expecting value'),
    ('a.jsonl', b'<html>\n', 'line 1: Expecting value'),
    ('a.jsonl', b'[1]\n', "line 1: has no text 'title'"),
    ('a.jsonl', b'{"contents": " "}', "line 1: its 'contents' is empty"),
    ('a.jsonl', b'{"title": "a\xff", "text": "b"}', "line 1: 'utf-8' codec"),
    ('a.jsonl', b'[' * 100_000, 'line 1: maximum recursion'),
    ('a.jsonl.gz', b'no gzip', 'gzip'),
    ('a.jsonl.xz', lzma.compress(b'{"title": "a", "text": "b"}\n' * 999)[:-9], 'ended'),
    ('a.parquet', b'', 'must end in one of .jsonl'),
    ('missing.jsonl', None, 'No such file'),
  ],
)
def test_a_damaged_file_is_one_line(tmp_path, name, content, complaint):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(DataError, match=complaint) as caught:
    read_corpus(path)
  assert str(caught.value).startswith(str(path)) and '\n' not in str(caught.value)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(datasets, 'MAX_LINE', 100)
  path = write(tmp_path / 'c.jsonl', [{'contents': 'x' * 200}])
  with pytest.raises(DataError, match='line 1: is longer than 100 bytes'):
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
  with pytest.raises(DataError, match=complaint):
    read_split(str(tmp_path), split, data_sets)


def test_the_seven_data_sets():
  assert sum(each.test_size for each in DATA_SETS.values()) == 51_713
  assert [*DATA_SETS][::6] == ['nq', 'bamboogle']


def test_real_files():
  folder = shared_path('data/search_qa')
  questions = read_questions(folder / 'hotpot100_questions.json', 'hotpotqa')
  assert len(questions) == 100
  assert len({question.question_id for question in questions}) == 100
  assert len(read_corpus(folder / 'hotpot100_corpus.json')) == 1000
