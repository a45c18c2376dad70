"""Panels: the whole split, or a sample of it that has every type in proportion."""

import collections
import functools
import hashlib
import json
import os
import pathlib
import subprocess
import sys

import fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.envs import base, worlds
from sdar_jax.envs.search_qa import datasets
from sdar_jax.envs.tasks import task_types
from sdar_jax.evaluation import panels

ROOT = pathlib.Path(__file__).resolve().parents[2]


class _Tasks(list):
  digest = 'abc'


class _World(fakes.World):
  def __init__(self, tasks=None):
    self._tasks = _Tasks(fakes.tasks() if tasks is None else tasks)

  def tasks(self, split):
    return self._tasks


def _typed(counts):
  """Tasks stored type after type."""
  return [
    base.Task(f'{kind}/{i}', kind, 'goal', {}, None)
    for kind, count in counts.items()
    for i in range(count)
  ]


SETS = dict(zip(datasets.DATA_SETS, (3610, 11313, 14267, 7405, 12576, 2417, 125)))


def test_panel_digest_names_its_content():
  panel = panels.make_panel(_World(), 'valid', 0)
  assert panel.name == 'counting/valid/3' and panel.composition == {'kind': 3}
  assert [task.task_id for task in panel.tasks] == ['task 1', 'task 2', 'task 3']
  assert panel.digest == panels.make_panel(_World(), 'other', 3).digest
  assert panel.digest != panels.make_panel(_World(), 'valid', 2).digest
  turned = _World(fakes.tasks()[::-1])
  assert panel.digest != panels.make_panel(turned, 'valid', 0).digest
  changed = _World()
  changed._tasks.digest = 'abd'
  assert panel.digest != panels.make_panel(changed, 'valid', 0).digest


def test_panel_refuses_what_a_split_does_not_have():
  with pytest.raises(ValueError, match=r"config\.eval\.tasks=4: split 'valid'.*has 3"):
    panels.make_panel(_World(), 'valid', 4)
  twice = _World([fakes.tasks()[0]] * 2)
  with pytest.raises(ValueError, match='occurs twice'):
    panels.make_panel(twice, 'valid', 0)
  with pytest.raises(ValueError, match=r"config\.eval\.split='valid'.*no task"):
    panels.make_panel(_World([]), 'valid', 0)


def test_part_of_a_split_has_every_data_set_in_proportion():
  """The public test file is stored set after set: its head is one of them."""
  world = _World(_typed(SETS))
  total = sum(SETS.values())
  panel = panels.make_panel(world, 'test', 500)
  assert panel.name == f'counting/test/500 of {total}'
  counts = collections.Counter(task.task_type for task in panel.tasks)
  assert counts == panel.composition and len(panel.tasks) == 500
  for name, count in SETS.items():
    assert abs(counts[name] - 500 * count / total) < 1
  assert len({task.task_id for task in panel.tasks}) == 500
  indices = [int(t.task_id.split('/')[1]) for t in panel.tasks if t.task_type == 'nq']
  assert indices == sorted(indices) and max(indices) > SETS['nq'] * 0.8
  assert panels.make_panel(world, 'test', 7).composition == dict.fromkeys(
    sorted(SETS), 1
  )


def test_sample_is_drawn_without_regard_to_where_a_task_lies():
  """Chi-square of the places within one type, in ten splits of other content."""
  places = np.zeros(10)
  for number in range(10):
    world = _World(_typed({'a': 1000, 'b': 500}))
    world._tasks.digest = str(number)
    panel = panels.make_panel(world, 'x', 300)
    for task in panel.tasks:
      if task.task_type == 'a':
        places[int(task.task_id[2:]) // 100] += 1
  expected = places.sum() / 10
  assert ((places - expected) ** 2 / expected).sum() < 27.9  # 0.999 of 9 degrees.


def test_sample_depends_on_content_alone():
  code = (
    'import sys; sys.path.insert(0, "tests/evaluation"); import test_panels as t\n'
    'p = t.panels.make_panel(t._World(t._typed(t.SETS)), "x", 300); print(p.digest)'
  )
  found = {
    subprocess.run(
      [sys.executable, '-c', code],
      cwd=ROOT,
      env={**os.environ, 'PYTHONHASHSEED': seed, 'PYTHONPATH': f'{ROOT}:{ROOT}/tests'},
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()
    for seed in ('1', '2')
  }
  assert len(found) == 1
  # Who is in it, by hand.
  world = _World(_typed({'a': 30, 'b': 10}))
  panel = panels.make_panel(world, 'x', 8)
  rank = lambda i: hashlib.sha256(f'{panels.PANEL_VERSION}/abc/{i}'.encode()).digest()
  chosen = sorted(sorted(range(30), key=rank)[:6] + sorted(range(30, 40), key=rank)[:2])
  assert [t.task_id for t in panel.tasks] == [
    world.tasks('x')[i].task_id for i in chosen
  ]


def test_a_panel_with_fewer_tasks_than_types_says_which_it_lacks():
  panel = panels.make_panel(_World(_typed({'a': 5, 'b': 3, 'c': 1})), 'x', 2)
  assert panel.composition == {'a': 1, 'b': 1, 'c': 0}
  assert panels.composed(panel.composition) == 'a 1, b 1; none of c'


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=9), st.data())
def test_shares_are_proportional_and_none_is_empty(counts, data):
  counts = {f'type {i}': count for i, count in enumerate(counts)}
  total = sum(counts.values())
  size = data.draw(st.integers(1, total))
  shares = panels.allot(size, counts)
  assert sum(shares.values()) == size and shares.keys() == counts.keys()
  assert all(0 <= shares[name] <= counts[name] for name in counts)
  if size >= len(counts):
    assert min(shares.values()) >= 1
  if all(size * count >= total for count in counts.values()):  # No quota below 1.
    assert all(abs(shares[n] - size * c / total) < 1 for n, c in counts.items())


@pytest.mark.parametrize(
  'name, split', [('alfworld', 'valid_unseen'), ('search_qa', 'valid_seen')]
)
def test_types_are_those_of_the_tasks(name, split):
  tasks = worlds.make(name, worlds.settings(name)).tasks(split)
  types = task_types(tasks)
  assert len(types) == len(tasks)
  for i in range(0, len(tasks), 97):
    assert types[i] == tasks[i].task_type


@functools.cache
def _official():
  folder = ROOT.parent / 'shared' / 'data' / 'alfworld'
  if not folder.exists():
    pytest.skip('needs ../shared')
  values = {'source': 'official', 'data_dir': str(folder)}
  return worlds.make('alfworld', {**worlds.settings('alfworld'), **values})


def test_seventy_official_games_hold_all_six_types():
  world = _official()
  whole = panels.make_panel(world, 'valid_seen', 0)
  assert whole.tasks == tuple(world.tasks('valid_seen'))
  panel = panels.make_panel(world, 'valid_seen', 70)
  assert panel.name == 'alfworld/valid_seen/70 of 140'
  for kind, count in whole.composition.items():
    assert abs(panel.composition[kind] - count / 2) < 1
  assert json.dumps(panel.composition)
