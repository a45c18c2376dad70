"""Adding a world by docs/adding_a_world.md: cut out of the page, it is played."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import fakes
import numpy as np
import pytest

from sdar_jax import config as config_lib
from sdar_jax.envs import base, worlds
from sdar_jax.envs.pool import pool
from sdar_jax.prompts import fitting, skills
from sdar_jax.rollout import episodes
from sdar_jax.trajectory import Outcome

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """The listings as files, importable here and in workers."""
  text = (ROOT / 'docs/adding_a_world.md').read_text()
  listings = re.findall(r'^`(guess/\S+)`:\n\n```\w+\n(.*?)^```$', text, re.M | re.S)
  folder = tmp_path_factory.mktemp('fourth')
  (folder / 'guess').mkdir()
  for name, content in listings:
    (folder / name).write_text(content)
  sys.path.append(str(folder))
  yield folder
  sys.path.remove(str(folder))


@pytest.fixture(scope='module')
def world(folder):
  return worlds.make('guess.world:GuessWorld', {'limit': 40})


class _Player(fakes.ScriptedSampler):
  """Completes with what an expert of each episode would write."""

  def __init__(self, world, kind, tasks):
    super().__init__(None, 0)
    self.world, self.experts = world, {}
    for i, task in enumerate(tasks):
      self.experts[i] = world.expert(kind, seed=i)
      self.experts[i].reset(task, None)

  def _complete(self, request):
    lines = bytes(request.prompt_ids.astype(np.uint8)).decode().splitlines()
    expert = self.experts[request.request_id[0]]
    if len(lines) > 2:
      action, answer = lines[-2].split(': ')
      expert.observe(action, _Seen(answer))
    response = self.world.response(*expert.plan(_Seen('', self.world.limit)))
    self.script = lambda identity: response
    return super()._complete(request)


class _Seen:
  def __init__(self, text, limit=0):
    self.text = text
    self.admissible = [f'guess {i}' for i in range(1, limit + 1)]


@pytest.mark.parametrize(
  'kind, workers', [('halving', 0), ('halving', 2), ('blind', 0)]
)
def test_its_experts_play_it(world, kind, workers):
  tasks = [world.tasks('valid_unseen')[i] for i in range(100)]
  with pool.make(world, workers=workers, deadline=60, retries=0) as environments:
    groups = episodes.collect(
      environments,
      tasks,
      _Player(world, kind, tasks),
      fakes.agent(),
      group_size=1,
      identity=(0,),
    )
  played = [group.trajectories[0] for group in groups]
  assert all(turn.valid and turn.admissible for t in played for turn in t.turns)
  won = sum(t.outcome is Outcome.SUCCESS for t in played)
  assert won == 100 if kind == 'halving' else won < 40


def test_its_prompts_fit(world):
  """At any limit that holds the bare task, with what the newest answer was."""
  task = world.tasks('train')[0]
  past = [base.Exchange('it is lower', f'guess {i}') for i in range(9, 1, -1)]
  newest = base.Observation('it is higher')
  prompt = lambda text: fakes.prompt(text, task, 0)
  whole = fitting.fit(world, prompt, task, past, newest, max_tokens=10**4)
  for limit in range(len(world.instruction) + 100, len(whole.text)):
    text = fitting.fit(world, prompt, task, past, newest, max_tokens=limit).text
    assert len(text) <= limit and task.goal in text and 'it is higher' in text
    hidden = int(text.partition('not shown: ')[2].split()[0])
    assert hidden + text.count('guess ') - text.count('guess N') == len(past)


def test_its_tasks_and_settings(world, folder):
  names = {split: world.tasks(split) for split in ('train', 'valid_seen')}
  assert names['train'][7] == names['train'][7] != names['valid_seen'][7]
  assert len({names['train'][i].payload for i in range(300)}) == 40
  assert len({t.digest for t in names.values()}) == 2
  with pytest.raises(ValueError, match=r'config\.world\.limit=1'):
    worlds.make('guess.world:GuessWorld', {'limit': 1})
  config = config_lib.default('guess.world:GuessWorld')
  assert config.world.limit == 40 and config.world.max_turns == 6
  bank = skills.SkillBank.load(world.skills_path)
  assert [s.id for s in bank.retrieve(names['train'][0].metadata)] == ['halve']
  expert = importlib.import_module('guess.world').Halving(blind=False, seed=0)
  expert.reset(names['train'][0], None)
  parsed = world.parse(
    world.response(*expert.plan(None)), world.make_env().reset(names['train'][0])
  )
  assert parsed.valid and parsed.action == 'guess 20'


def test_main_plays_it(folder):
  """The world, its config and the command of the page, with the small model."""
  paths = os.pathsep.join((str(ROOT), str(folder)))
  command = [sys.executable, '-m', 'sdar_jax.main', '--mode=play']
  done = subprocess.run(
    [*command, f'--config={folder}/guess/config.py', '--config.world.limit=9'],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': paths, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'find the number from 1 to 9' in done.stdout
  assert re.search(r'^(success|max_turns) after \d turns$', done.stdout, re.M)
