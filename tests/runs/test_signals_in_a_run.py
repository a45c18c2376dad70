"""Requests to stop in every phase of a run, once and twice.

Run with `pytest -m slow tests/runs/test_signals_in_a_run.py`: three CPU minutes.
"""

import itertools
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import time

import micro_run
import pytest

from sdar_jax import build
from sdar_jax.evaluation import evaluate
from sdar_jax.learner import checkpoint, learner
from sdar_jax.process import signals
from sdar_jax.rollout import episodes
from sdar_jax.storage import manifest

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 3
# Phase -> where it begins, and which time it comes is the one.
PHASES = {
  'load': (build, 'load_weights', 1),
  'rollout': (episodes, '_advance', 7),
  'score': (learner.Learner, 'score', 2),
  'update': (learner.Learner, 'finish_step', 2),
  'save': (checkpoint.CheckpointStore, '_publish', 2),
  'eval': (evaluate, 'summarise', 2),
  'last save': (checkpoint.CheckpointStore, '_publish', STEPS),
  'last eval': (evaluate, 'summarise', 1 + STEPS),
}
ONCE_CPU_SECONDS, TWICE_CPU_SECONDS = 30.0, 5.0
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  model = micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')
  with micro_run.compiling():
    yield micro_run.config(model, 'sdar', STEPS, skills_retrieval='ucb')


@pytest.fixture(scope='module')
def unbroken(config, tmp_path_factory):
  outcome = micro_run.start(config, tmp_path_factory.mktemp('whole') / 'run')
  assert not outcome.error and outcome.saved[0] == STEPS
  return outcome


def _signal_at(monkeypatch, phase, times):
  """Makes the process signal itself; returns where its CPU time is then noted."""
  owner, name, count = PHASES[phase]
  original, calls, at = getattr(owner, name), itertools.count(1), []

  def wrapper(*args, **kwargs):
    if next(calls) == count:
      at.append(time.process_time())
      for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)
    return original(*args, **kwargs)

  monkeypatch.setattr(owner, name, wrapper)
  return at


def _newest(path):
  """The newest whole checkpoint of a run; 0 where there is none."""
  store = path / 'checkpoints'
  return max(
    (s for s in manifest.steps(store) if manifest.verify(store, s) is None), default=0
  )


@pytest.mark.parametrize('times', [1, 2])
@pytest.mark.parametrize('phase', PHASES)
def test_a_request_in_any_phase_is_answered_and_loses_nothing(
  config, unbroken, tmp_path, monkeypatch, capfd, phase, times
):
  path = tmp_path / 'run'
  with monkeypatch.context() as patch:
    at = _signal_at(patch, phase, times)
    first = micro_run.start(config, path)
    spent = time.process_time() - at[0]
  assert first.error == ('' if times == 1 else f'SystemExit: {128 + signal.SIGTERM}')
  assert spent < (ONCE_CPU_SECONDS, TWICE_CPU_SECONDS)[times - 1]
  said = capfd.readouterr().out
  assert said.count(signals.ACKNOWLEDGED) == 1
  if times == 1:
    lines = (path / 'metrics.jsonl').read_text().splitlines()
    assert _newest(path) == len(lines)
    assert 'stopped on request' in said or phase == 'last eval'
  again = micro_run.start(config, path)
  assert not again.error and again.files == unbroken.files
  assert _newest(path) == STEPS
  # After the last save nothing is left to be saved.
  assert (again.saved or first.saved) == unbroken.saved


FLAGS = [
  '--config=experiments/alfworld.py:model=tiny',
  '--config.steps=4',
  '--config.rollout.tasks_per_step=2',
  '--config.rollout.group_size=2',
  '--config.rollout.slots=4',
  '--config.world.max_turns=2',
  '--config.train.length_buckets=(184,)',
  '--config.train.teacher_buckets=(248,)',
  '--config.eval.tasks=1',
  '--config.eval.every=1',
  '--config.checkpoint.every=1',
]


def _main(workdir, phase='never', times=1):
  """A process of its own; its exit code and CPU seconds from the signal to the end."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = subprocess.run(
    [sys.executable, 'tests/run_signalled.py', phase, str(times), *FLAGS]
    + [f'--workdir={workdir}'],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  if phase == 'never':
    assert done.returncode == 0, done.stderr[-2000:]
    return done.returncode, 0.0
  assert signals.ACKNOWLEDGED in done.stdout, (done.stdout, done.stderr[-2000:])
  return done.returncode, cpu - float(re.search(r'signal at (\S+) s', done.stderr)[1])


def test_processes_that_are_signalled_from_phase_to_phase_are_one_run(tmp_path):
  """Compilation included, where the main thread is far from any handler of Python's."""
  _main(tmp_path / 'whole')
  path = tmp_path / 'run'
  for phase in ('load', 'compile', 'rollout', 'update', 'save', 'eval'):
    for times, code in ((2, 128 + signal.SIGTERM), (1, 0)):
      ended, spent = _main(path, phase, times)
      assert (phase, ended) == (phase, code)
      assert spent < (ONCE_CPU_SECONDS, TWICE_CPU_SECONDS)[times - 1], (phase, spent)
  _main(path)
  assert _newest(path) == _newest(tmp_path / 'whole') == 4
  assert micro_run.files_of(path) == micro_run.files_of(tmp_path / 'whole')
