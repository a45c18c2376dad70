"""What a game that hangs costs, on a clock that runs only while it hangs.

The machine's own clock would measure the machine: here every other answer is waited
for however long it takes, and no time passes.
"""

import json
import pathlib
import selectors
import time
from types import SimpleNamespace

import fakes
import faulty
import pytest

from sdar_jax.envs.pool import pool, worker
from sdar_jax.rollout import episodes

DEADLINE = 60.0
TRIES = 2  # Of a task that hangs, before it is in quarantine.


class Hanging(faulty.World):
  """One task hangs in every reset or step, and leaves a note before it does."""

  def __init__(self, folder, what):
    super().__init__(special={'stuck': what})
    self.folder = folder

  def make_env(self):
    return HangingEnv(self.special, self.folder)


class HangingEnv(faulty.Special):
  def __init__(self, special, folder):
    super().__init__(special)
    self.folder = folder

  def reset(self, task):
    self._note(task.task_id == 'stuck' and self.special['stuck'] == 'hang at reset')
    return super().reset(task)

  def step(self, action):
    self._note(self.what == 'hang')
    return super().step(action)

  def _note(self, hangs):
    if hangs:
      name = f'{time.monotonic_ns()}-{id(self)}'
      (pathlib.Path(self.folder) / name).touch()


class Clock:
  """Stands still until all workers that are waited for are known to hang."""

  def __init__(self, folder):
    self.now, self.folder, self.ended = 1000.0, folder, 0

  def monotonic(self):
    return self.now

  def hanging(self):
    """Workers that hang and have not been ended."""
    return len(list(self.folder.iterdir())) - self.ended


@pytest.fixture
def clock(tmp_path, monkeypatch):
  clock = Clock(tmp_path)

  class Selector(selectors.DefaultSelector):
    def select(self, timeout=None):
      while not (ready := super().select(0.05)):
        if clock.hanging() >= len(self.get_map()):
          clock.now += timeout + 1e-6
          break
      return ready

  class Worker(worker.Worker):
    def end(self, limit):
      clock.ended += self.kind == 'hang'
      super().end(limit)

  names = {n: getattr(selectors, n) for n in ('EVENT_READ', 'EVENT_WRITE')}
  fake = SimpleNamespace(DefaultSelector=Selector, **names)
  monkeypatch.setattr(pool, 'selectors', fake)
  monkeypatch.setattr(worker, 'time', clock)
  monkeypatch.setattr(pool, 'time', clock)
  monkeypatch.setattr(worker, 'Worker', Worker)
  return clock


def _play(environments):
  """A step's episodes; `Special` tells what happened in each."""
  sampler = fakes.ScriptedSampler(lambda identity: 'left', shuffle=0)
  return episodes.collect(
    environments,
    [faulty.task('stuck'), faulty.task('fine')],
    sampler,
    fakes.agent(100_000),
    group_size=4,
    identity=(0, 1),
  )


@pytest.mark.timeout(300)
@pytest.mark.parametrize('what, workers', [('hang', 1), ('hang at reset', 2)])
def test_a_hanging_game_costs_its_tries_and_then_nothing(
  clock, tmp_path, what, workers
):
  world = Hanging(tmp_path, what)
  make = lambda: pool.make(world, workers=workers, deadline=DEADLINE, retries=2)
  with make() as environments:
    groups = _play(environments)
    spent = clock.now - 1000.0
    # One try takes its deadline; workers that hang at the same time share it.
    assert DEADLINE < spent <= TRIES * DEADLINE + 5.0
    assert clock.ended == environments.faults()['hang'] <= TRIES * workers
    assert {t.outcome.value for t in groups[0].trajectories} == {'timeout'}
    assert not any(t.outcome.is_fault for t in groups[1].trajectories)
    saved = json.loads(json.dumps(environments.quarantine))
    assert saved == ['stuck']
    _play(environments)
  with make() as environments:  # After a restart, too.
    environments.quarantine = saved
    _play(environments)
  assert clock.now - 1000.0 == spent
