"""The TextWorld back end: faults without TextWorld, parity with it."""

import pickle

import problems
import pytest

from benchmarks import textworld_backend
from benchmarks.textworld_backend import BackendError, TextWorldEnv
from sdar_jax.envs.alfworld.engine import AlfworldEnv, Game
from sdar_jax.envs.alfworld.pddl import parse_problem
from sdar_jax.envs.base import Task

PROBLEM = problems.build('pick', 'Apple', 'Desk')
needs_textworld = pytest.mark.skipif(
  not textworld_backend.available(), reason='needs the extra textworld'
)


def task_of(problem=PROBLEM, grammar='new', goal='put a apple in desk.'):
  return Task('t', 'any', goal, {}, Game(problem, goal, grammar))


def test_without_textworld_it_says_what_to_install(monkeypatch):
  monkeypatch.setattr(textworld_backend, 'available', lambda: False)
  with pytest.raises(BackendError, match=r'sdar-jax\[textworld\]'):
    TextWorldEnv()


@pytest.fixture
def installed(monkeypatch):
  """Lets the process start even where TextWorld is absent."""
  monkeypatch.setattr(textworld_backend, 'available', lambda: True)


def test_what_it_cannot_play_is_refused_before_a_process_starts(installed):
  env = TextWorldEnv()
  with pytest.raises(ValueError, match="grammar 'old'"):
    env.reset(task_of(grammar='old'))
  with pytest.raises(ValueError, match='PDDL text'):
    env.reset(task_of(problem=parse_problem(PROBLEM)))
  assert env._process is None


def test_a_missed_deadline_ends_the_process(installed):
  env = TextWorldEnv(deadline=0.0)
  with pytest.raises(TimeoutError, match=r'reset in 0\.0 s'):
    env.reset(task_of())
  assert env._process is None
  env.close()


def test_what_textworld_raises_comes_back_as_one_line(installed):
  env = TextWorldEnv()
  with pytest.raises(BackendError, match='TextWorld failed in a reset') as caught:
    env.reset(task_of('(define (problem broken)'))
  assert '\n' not in str(caught.value) and env._process is None


@needs_textworld
def test_a_dead_process_is_a_fault_and_the_next_reset_works():
  env = TextWorldEnv()
  first = env.reset(task_of())
  env._process.kill()
  with pytest.raises(BackendError, match='died during a step'):
    env.step('look')
  assert env.reset(task_of()) == first
  env.close()


@needs_textworld
def test_it_agrees_with_our_engine_and_survives_pickling():
  theirs, ours = TextWorldEnv(), AlfworldEnv()
  task = task_of(goal='{1/0} #look# [put] a apple.')
  assert theirs.reset(task) == ours.reset(task)
  script = ('look', 'go to fridge 1', 'open fridge 1', 'take apple 2 from fridge 1')
  for command in script:
    assert theirs.step(command) == ours.step(command)
  theirs.close()
  again = pickle.loads(pickle.dumps(theirs))
  for command in ('inventory', 'go to desk 1', 'move apple 2 to desk 1'):
    result = ours.step(command)
    assert again.step(command) == result
  assert result.success
  again.close()
