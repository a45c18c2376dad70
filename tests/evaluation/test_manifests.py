"""Published manifests as panels: invented files of the same form."""

import dataclasses
import hashlib
import json
import math

import pytest

from sdar_jax.envs import base
from sdar_jax.envs.webshop import goals
from sdar_jax.envs.webshop import published as webshop
from sdar_jax.evaluation import manifests, panels


class _World(base.World):
  name, splits = 'fake', {'train': 3, 'test': 4}

  def task(self, split, index):
    kind = 'odd' if index % 2 else 'even'
    return base.Task(f'{split}/{index}', kind, f'goal {index}', {}, None)

  def published(self, rows):
    return [self.task('test', row['metadata']['goal_idx']) for row in rows]


def _write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n\n' for row in rows))
  return str(path)


def _row(index):
  return {'text': f'goal {index}', 'metadata': {'goal_idx': index, 'split': 'valid'}}


def test_a_panel_is_the_manifest_s_tasks_in_its_order(tmp_path):
  path = _write(tmp_path / 'evaluation.jsonl', [_row(i) for i in (3, 0, 2)])
  panel = manifests.make_panel(_World(), path)
  assert [task.task_id for task in panel.tasks] == ['test/3', 'test/0', 'test/2']
  theirs = hashlib.sha256((tmp_path / 'evaluation.jsonl').read_bytes()).hexdigest()
  assert panel.name == f'fake/evaluation/3, file {theirs[:12]}'
  assert panel.composition == {'even': 2, 'odd': 1} and len(panel.digest) == 64
  other = _write(tmp_path / 'other.jsonl', [_row(i) for i in (0, 3, 2)])
  assert manifests.make_panel(_World(), other).digest != panel.digest
  assert manifests.make_panel(_World(), path) == panel


def test_settings_choose_the_manifest_or_the_split(tmp_path):
  path = _write(tmp_path / 'x.jsonl', [_row(1)])
  settings = type('Settings', (), {'panel': '', 'split': 'test', 'tasks': 0})
  assert manifests.panel_of(_World(), settings) == panels.make_panel(
    _World(), 'test', 0
  )
  settings.panel = path
  assert len(manifests.panel_of(_World(), settings).tasks) == 1


@pytest.mark.parametrize(
  'text, line',
  [
    ('', 'there is no task in it'),
    ('{"metadata": {"goal_idx": 1}}\nno\n', 'line 2 is no task in JSON'),
    ('[1]\n', 'line 1 is no task in JSON'),
    ('{"metadata": 3}\n', 'line 1 is no task in JSON'),
    ('[' * 99_999 + '\n', 'line 1 is no task in JSON'),
    ('{"metadata": {"goal_idx": ' + '9' * 9_999 + '}}\n', 'line 1 is no task in JSON'),
    ('{"metadata": {"goal_idx": 1}}\n' * 2, 'test/1 is in it twice'),
  ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, text, line):
  path = tmp_path / 'bad.jsonl'
  path.write_text(text)
  with pytest.raises(ValueError, match=line) as caught:
    manifests.make_panel(_World(), str(path))
  assert str(caught.value).startswith(f'config.eval.panel={str(path)!r}: ')


def test_lines_end_where_json_lines_do(tmp_path):
  row = {**_row(1), 'text': 'a \u2028 goal \x85'}
  path = tmp_path / 'x.jsonl'
  text = f'\ufeff{json.dumps(row, ensure_ascii=False)}\r\n{json.dumps(_row(0))}\r\n'
  path.write_text(text, 'utf-8', newline='')
  assert manifests.read(str(path))[0] == [row, _row(0)]


def test_a_manifest_that_is_not_there_is_one_line(tmp_path):
  path = str(tmp_path / 'nothing.jsonl')
  with pytest.raises(ValueError, match='No such file') as caught:
    manifests.make_panel(_World(), path)
  assert '\n' not in str(caught.value) and path in str(caught.value)


def test_a_world_without_published_panels_says_so(tmp_path):
  class Other(_World):
    published = base.World.published

  path = _write(tmp_path / 'x.jsonl', [_row(1)])
  with pytest.raises(ValueError, match='world fake knows no published panels'):
    manifests.make_panel(Other(), path)


# WebShop, by words.


def _goal(words, bound):
  said = (
    words if bound is None else f'{words}, and price lower than {bound:.2f} dollars'
  )
  goal = goals.Goal(
    goal_id=words,
    asin='B0',
    category='c',
    query='q',
    name='n',
    product_category='p',
    instruction_text=said,
    attributes=('soft',),
    options=(),
    price_upper=bound or 1e6,
  )
  return goal.task(f'official/test/{words}')


TASKS = {
  'test': [_goal('find me a soft towel', 30.0), _goal('find me two cups', 10.0)],
  'train': [_goal('find me a lamp', None), _goal('Find  me two cups', 50.0)],
}


def _find(*texts):
  rows = [{'text': text, 'metadata': {'goal_idx': i}} for i, text in enumerate(texts)]
  return webshop.find(rows, TASKS, TASKS.get)


def test_a_goal_is_found_by_its_words_and_takes_their_price_bound():
  towel, lamp = _find(
    'Find me a  soft towel, and price lower than 70.00 dollars\n', 'find me a lamp'
  )
  assert towel.task_id == 'official/test/find me a soft towel'
  assert towel.payload.price_upper == 70.0
  assert towel.goal == towel.payload.instruction_text
  assert towel.goal == 'Find me a  soft towel, and price lower than 70.00 dollars'
  assert lamp.payload.price_upper == goals.NO_BOUND and math.isfinite(goals.NO_BOUND)
  same = dataclasses.replace(
    TASKS['test'][0].payload, price_upper=70.0, instruction_text=towel.goal
  )
  assert towel.payload == same


@pytest.mark.parametrize(
  'text, line',
  [
    ('find me a boat', r'row 1 \(goal_idx 0\): .* is that of 0 goals'),
    ('find me two cups', r'is that of 2 goals in data_dir'),
    ('', 'is that of 0 goals'),
    ('find me a lamp, and price lower than 1.2.3 dollars', 'is that of 0 goals'),
  ],
)
def test_words_of_no_goal_or_of_several_are_refused(text, line):
  with pytest.raises(ValueError, match=line):
    _find(text)
