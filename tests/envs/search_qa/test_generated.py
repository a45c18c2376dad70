"""The generated library and its questions, checked by reading the library's texts."""

import collections
import os
import re
import subprocess
import sys

import pytest

from sdar_jax.envs.search_qa import generated, relations, world
from sdar_jax.envs.search_qa.generated import GeneratedQuestions

SPLITS = ('train', 'valid_seen', 'valid_unseen')
# What the texts say, written down apart from the generator: relation -> text.
TEXTS = {
  'birthplace': r'(.+) was a native of (.+?)\.',
  'deathplace': r'(.+) passed away in (.+?)\.',
  'teacher': r'(.+) was a pupil of (.+?)\.',
  'founder': r'(.+) was established by (.+?)\.',
  'seat': r'(.+) keeps its headquarters in (.+?)\.',
  'author': r'(.+) was penned by (.+?)\.',
  'setting': r'(.+) unfolds in (.+?)\.',
  'river': r'(.+) lies on the banks of the (.+?)\.',
}
# And what the questions ask: task type -> examples.
QUESTIONS = {
  'birthplace': ('Where was X born?', 'Which town is the birthplace of X?'),
  'deathplace': ('Where did X die?', 'In which town did the life of X end?'),
  'teacher': ('Who taught X?', 'Who was the teacher of X?'),
  'founder': ('Who founded X?', 'Who was the founder of X?'),
  'seat': ('Where is X based?', 'Which town is the seat of X?'),
  'author': ('Who wrote X?', 'Who was the author of X?'),
  'setting': ('Where does X take place?', 'Which town is the setting of X?'),
  'river': ('Which river flows through X?', 'On which river does X stand?'),
  'founder_birthplace': (
    'Where was the founder of X born?',
    'Which town is the birthplace of the founder of X?',
  ),
  'founder_teacher': (
    'Who taught the founder of X?',
    'Who was the teacher of the founder of X?',
  ),
  'author_birthplace': (
    'Where was the author of X born?',
    'Which town is the birthplace of the author of X?',
  ),
  'author_deathplace': (
    'Where did the author of X die?',
    'In which town did the life of the author of X end?',
  ),
  'teacher_deathplace': (
    'Where did the teacher of X die?',
    'In which town did the life of the teacher of X end?',
  ),
  'seat_river': (
    'Which river flows through the seat of X?',
    'On which river does the seat of X stand?',
  ),
  'setting_river': (
    'Which river flows through the setting of X?',
    'On which river does the setting of X stand?',
  ),
  'birthplace_river': (
    'Which river flows through the birthplace of X?',
    'On which river does the birthplace of X stand?',
  ),
}


@pytest.fixture(scope='module')
def told():
  """(relation, subject) -> value, as the texts tell it."""
  facts = {}
  for passage in generated.passages():
    for name, pattern in TEXTS.items():
      if match := re.match(pattern, passage.text):
        assert match[1] == passage.title and (name, match[1]) not in facts
        facts[name, match[1]] = match[2]
  return facts


@pytest.fixture(scope='module')
def retriever():
  return world.open_library()


def subject_of(task):
  """The entity that a question starts from."""
  for example in QUESTIONS[task.task_type]:
    head, tail = example.split('X')
    if task.goal.startswith(head) and task.goal.endswith(tail):
      return task.goal[len(head) : len(task.goal) - len(tail)]
  raise AssertionError(f'{task.task_type}: {task.goal}')


def path(task, told):
  """Every entity from the question's to the answer."""
  entities = [subject_of(task)]
  for name in task.task_type.split('_'):
    entities.append(told[name, entities[-1]])
  return entities


def test_sizes():
  assert len(generated.passages()) == 300 * (4 * 6 + 7)
  assert {name: len(GeneratedQuestions(name)) for name in SPLITS} == {
    'train': 7296,
    'valid_seen': 1024,
    'valid_unseen': 1280,
  }


def test_every_question_is_answered_by_the_texts(told):
  for split in SPLITS:
    for task in GeneratedQuestions(split):
      assert task.payload.golden_answers == (path(task, told)[-1],)
      assert task.payload.question == task.goal


def test_questions_read_back():
  for task_type, examples in QUESTIONS.items():
    chain = relations.CHAINS[task_type]
    for wording, example in enumerate(examples):
      assert relations.ask(chain, 'X', wording) == example
      assert relations.read(example.replace('X', 'Port Xyz')) == (task_type, 'port xyz')
  assert set(relations.CHAINS) == set(QUESTIONS)
  assert relations.read('Who wrote the author of Silver Candle?') is None
  assert relations.read('How high is Mount Malbus?') is None


def test_splits_are_disjoint(told):
  asked = {
    split: {(task.task_type, subject_of(task)) for task in GeneratedQuestions(split)}
    for split in SPLITS
  }
  assert not asked['train'] & asked['valid_seen']
  entities = {
    split: {name for task in GeneratedQuestions(split) for name in path(task, told)}
    for split in SPLITS
  }
  assert not entities['valid_unseen'] & (entities['train'] | entities['valid_seen'])
  ids = [task.task_id for split in SPLITS for task in GeneratedQuestions(split)]
  goals = [task.goal for split in SPLITS for task in GeneratedQuestions(split)]
  assert len(set(ids)) == len(set(goals)) == len(ids)


def test_the_sides_never_mention_each_other():
  entities = generated.library().entities
  names = {
    side: {
      name for (where, _), group in entities.items() if where == side for name in group
    }
    for side in generated.SIDES
  }
  assert not names['seen'] & names['unseen']
  for (_, subject), value in generated.library().facts.items():
    assert (subject in names['seen']) == (value in names['seen'])
    assert subject != value


def test_task_types_take_turns():
  tasks = GeneratedQuestions('valid_seen')
  types = [tasks[index].task_type for index in range(160)]
  assert types[:16] * 10 == types and len(set(types[:16])) == 16
  for task in (tasks[0], tasks[1]):
    hops = 'multi_hop' if '_' in task.task_type else 'single_hop'
    assert task.metadata == {'task_type': hops, 'object': task.task_type}


def test_texts_are_short():
  for passage in generated.passages():
    assert 1 <= len(re.findall(r'[.?!](?= |$)', passage.text)) <= 3
    assert '\n' not in passage.title + passage.text
  words = collections.Counter(
    word
    for passage in generated.passages()
    for word in re.findall(r'[a-z]+', passage.text.lower())
  )
  assert len(words) <= 450


def test_a_key_is_a_word_of_its_own_relations_texts_and_of_no_question():
  keys = set(relations.KEYS)
  assert len(keys) == len(relations.RELATIONS)
  for passage in generated.passages():
    words = set(re.findall(r'[a-z]+', passage.text.lower()))
    assert len(words & keys) == (0 if '?' in passage.text else 1)
  for split in SPLITS:
    for task in GeneratedQuestions(split):
      assert not set(re.findall(r'[a-z]+', task.goal.lower())) & keys


def rate(retriever, told, queries):
  """How often a fact is among the documents of a query."""
  hits = retriever.search_many([query for _, query in queries], 3)
  found = [
    any(re.match(TEXTS[name], hit.text) and hit.title == subject for hit in answer)
    for ((name, subject), _), answer in zip(queries, hits, strict=True)
  ]
  assert len(found) >= 300
  return sum(found) / len(found)


def test_the_right_word_finds_the_fact_and_the_questions_words_do_not(retriever, told):
  facts = list(told)[::7]
  keys = {name: relations.RELATIONS[name].key for name in TEXTS}
  others = {
    name: next(
      other.key
      for other in relations.of_kind(relations.RELATIONS[name].subject)
      if other.name != name
    )
    for name in TEXTS
  }
  right = [((n, s), f'{s} {keys[n]}') for n, s in facts]
  wrong = [((n, s), f'{s} {others[n]}') for n, s in facts]
  naive = [((n, s), QUESTIONS[n][0].replace('X', s)) for n, s in facts]
  assert rate(retriever, told, right) >= 0.99
  assert rate(retriever, told, wrong) <= 0.4
  assert rate(retriever, told, naive) <= 0.1


def digests():
  tasks = [GeneratedQuestions(split) for split in SPLITS]
  return [generated.library().digest, *(task.digest for task in tasks)]


def test_the_library_does_not_depend_on_the_process():
  folders = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
  result = subprocess.run(
    [sys.executable, '-c', 'import test_generated as t; print(t.digests())'],
    env={**os.environ, 'PYTHONHASHSEED': '1', 'PYTHONPATH': folders},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == str(digests())
  assert len(set(digests())) == 4


def test_what_does_not_exist_is_one_line():
  with pytest.raises(ValueError, match=r"^split 'test': .*seen, valid_unseen$"):
    GeneratedQuestions('test')
  with pytest.raises(IndexError, match='task 1024: valid_seen has 1024 tasks'):
    GeneratedQuestions('valid_seen')[1024]
