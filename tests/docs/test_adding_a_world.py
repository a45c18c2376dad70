"""Adding a world by docs/adding_a_world.md: cut out of the page, it is played."""

import os
import pathlib
import re
import subprocess
import sys

import fakes
import numpy as np
import pytest
import quick

from sdar_jax import config as config_lib
from sdar_jax.cli import command_line
from sdar_jax.envs import base, worlds
from sdar_jax.envs.pool import pool
from sdar_jax.look import skills
from sdar_jax.prompts import bank_file, fitting, retrieval
from sdar_jax.prompts.skills import SkillBank, SkillError
from sdar_jax.rollout import episodes
from sdar_jax.trajectory import Outcome

ROOT = pathlib.Path(__file__).resolve().parents[2]


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
  """Guesses the middle of what the answers in its prompt leave, or the largest."""

  def __init__(self, world, halves):
    super().__init__(None, 0)
    self.world, self.halves = world, halves

  def _complete(self, request):
    text = bytes(request.prompt_ids.astype(np.uint8)).decode()
    low, high = 1, self.world.limit
    if self.halves:
      guesses = map(int, re.findall(r'you did: guess (\d+)', text))
      answers = re.findall(r'you see: it is (\w+)|you saw: it is (\w+)', text)
      for guess, answer in zip(guesses, map(''.join, answers), strict=True):
        low, high = (guess + 1, high) if answer == 'higher' else (low, guess - 1)
    guess = (low + high) // 2 if self.halves else high
    response = self.world.response(f'{low} to {high}', f'guess {guess}')
    self.script = lambda identity: response
    return super()._complete(request)


@pytest.mark.parametrize('halves, workers', [(True, 0), (True, 2), (False, 0)], ids=str)
def test_it_is_played(world, halves, workers):
  tasks = [world.tasks('valid_unseen')[i] for i in range(100)]
  with pool.make(world, workers=workers, deadline=60, retries=0) as environments:
    groups = episodes.collect(
      environments,
      tasks,
      _Player(world, halves),
      fakes.agent(),
      group_size=1,
      identity=(0,),
    )
  played = [group.trajectories[0] for group in groups]
  assert all(turn.valid and turn.admissible for t in played for turn in t.turns)
  won = sum(t.outcome is Outcome.SUCCESS for t in played)
  assert won == 100 if halves else won < 10


def test_its_prompts_fit(world):
  """At any limit that holds the bare task, with what the newest answer was."""
  task = world.tasks('train')[0]
  past = [base.Exchange('it is lower', f'guess {i}') for i in range(9, 1, -1)]
  newest = base.Observation('it is higher')
  prompt = lambda text: fakes.prompt(text, task, 0)
  whole = fitting.fit(world, prompt, task, past, newest, max_tokens=10**4)
  for limit in range(len(world.instruction) + 140, len(whole.text)):
    text = fitting.fit(world, prompt, task, past, newest, max_tokens=limit).text
    assert len(text) <= limit and task.goal in text and 'it is higher' in text
    shown = text.count('you did: ')
    assert f'Turns taken so far: {len(past)}.' in text and shown < len(past)
    assert f'Turn {len(past)}, you did: {past[-1].action}' in text or not shown


def test_its_tasks_and_settings(world, folder):
  names = {split: world.tasks(split) for split in ('train', 'valid_seen')}
  assert names['train'][7] == names['train'][7] != names['valid_seen'][7]
  assert len({names['train'][i].payload for i in range(300)}) == 40
  assert len({t.digest for t in names.values()}) == 2
  with pytest.raises(ValueError, match=r'config\.world\.limit=1'):
    worlds.make('guess.world:GuessWorld', {'limit': 1})
  config = config_lib.default('guess.world:GuessWorld')
  assert config.world.limit == 40 and config.world.max_turns == 6
  env = world.make_env()
  observation = env.reset(names['train'][0])
  parsed = world.parse(world.response('any', 'guess 20'), observation)
  assert parsed.valid and parsed.action == 'guess 20'
  assert env.step('sing').observation.text == 'nothing happens'


def test_its_commands_are_accepted(folder, monkeypatch):
  monkeypatch.chdir(folder)
  page = (ROOT / 'docs/adding_a_world.md').read_text().replace('\\\n', ' ')
  found = re.findall(r'^python -m sdar_jax\.main (.+)$', page, re.M)
  play, train = [command_line.parse(line.split()) for line in found]
  assert (play.mode, train.mode) == ('play', 'train')
  assert train.config.algorithm.name == 'sdar' and train.config.steps == 1


def test_its_skills_reach_every_task(world, folder, monkeypatch):
  monkeypatch.chdir(folder)
  config = command_line.parse(['--config=guess/config.py', '--mode=play']).config
  bank = bank_file.load(world.skills_path)
  retriever = retrieval.Retriever(bank, config.skills.retrieval)
  task = world.tasks('train')[0]
  retriever.check([task])
  shown = retriever.order(task, '')
  assert [skill.title for skill in shown] == ['Narrow', 'Halve']


def test_a_world_without_skills_shows_none(world, monkeypatch):
  """Prompts stay plain, and a method whose teacher needs skills says so."""
  bank = SkillBank.empty(world.name)
  task = world.tasks('train')[0]
  assert bank.everything() == ()
  with pytest.raises(SkillError, match=r'guess \(no config.skills.path\): no skills'):
    retrieval.Retriever(bank, 'task').check([task])
  with pytest.raises(SkillError, match=r'config\.skills\.path'):
    retrieval.Retriever(bank, 'random').check([task])
  monkeypatch.setattr(base.World, 'skills_path', None)
  run = {'skills.path': '', 'world.name': 'guess.world:GuessWorld', 'world.limit': 9}
  assert skills.of(run).everything() == ()


@pytest.mark.long
def test_main_plays_it(folder):
  """The command of the page in the page's folder, elsewhere than in a checkout."""
  command = [sys.executable, '-m', 'sdar_jax.main', '--mode=play']
  fast = {  # What is compiled runs for a second.
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': quick.FLAGS,
  }
  done = subprocess.run(
    [*command, '--config=guess/config.py', '--config.world.limit=9'],
    cwd=folder,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', **fast},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert 'find the number from 1 to 9' in done.stdout
  assert re.search(r'^(success|max_turns) after \d turns$', done.stdout, re.M)
