"""A run that is killed and started again equals one that was never interrupted."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import micro_run
import pytest
import run_killed
from ml_collections import ConfigDict

from sdar_jax import main
from sdar_jax.learner import learner
from sdar_jax.process import signals
from sdar_jax.storage.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 4
FLAGS = [
  '--config=experiments/alfworld.py:model=tiny',
  f'--config.steps={STEPS}',
  '--config.rollout.tasks_per_step=2',
  '--config.rollout.group_size=2',
  '--config.rollout.slots=4',
  '--config.rollout.max_prompt_tokens=64',
  '--config.rollout.max_response_tokens=8',
  '--config.rollout.prefill_chunk=16',
  '--config.skills.token_budget=24',
  '--config.world.max_turns=3',
  '--config.train.minibatch_rows=8',
  '--config.train.microbatch_rows=8',
  '--config.train.length_buckets=(72,)',
  '--config.train.teacher_buckets=(96,)',
  '--config.optimizer.learning_rate=0.003',
  '--config.eval.tasks=4',
  '--config.eval.every=2',
  '--config.checkpoint.every=1',
]


@pytest.fixture(scope='module', autouse=True)
def shared_programs():
  """What runs here and what is killed elsewhere is compiled alike."""
  with micro_run.compiling():
    yield


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')


def _words(model, workdir, flags):
  place = [f'--workdir={workdir}'] if workdir else []
  every = (*FLAGS, f'--config.model.path={model}', *flags, *place)
  # A flag of a test's own replaces that of FLAGS.
  return [*{flag.partition('=')[0]: flag for flag in every}.values()]


def _start(model, workdir, *flags, moment='never', count=1):
  """Starts a process that ends at a moment."""
  command = [sys.executable, 'tests/run_killed.py', moment, str(count)]
  return subprocess.Popen(
    [*command, *_words(model, workdir, flags)],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
  )


def _run(model, workdir, *flags, expect=0, **kwargs):
  """Runs a process to its end; returns what it wrote to stderr."""
  process = _start(model, workdir, *flags, **kwargs)
  out, err = process.communicate(timeout=600)
  assert process.returncode == expect, (process.returncode, out, err[-3000:])
  return err


def _run_here(model, workdir, *flags, expect=0):
  """Runs the same command in this process, which has the programs: (out, err)."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.chdir(ROOT), contextlib.redirect_stdout(out):
    with contextlib.redirect_stderr(err):
      code = main.main(_words(model, workdir, flags))
  assert code == expect, (code, out.getvalue(), err.getvalue()[-3000:])
  return out.getvalue(), err.getvalue()


def _result(workdir):
  """Everything that the seed decides: metric lines, episodes, reports, weights."""
  checkpoint = workdir / 'checkpoints' / str(STEPS)
  host = json.loads((checkpoint / 'host.json').read_text())
  reports = {p.name: p.read_bytes() for p in (workdir / 'eval').glob('*.json')}
  episodes = {p.name: p.read_bytes() for p in (workdir / 'trajectories').iterdir()}
  return {
    'metrics': (workdir / 'metrics.jsonl').read_text().splitlines(),
    'reports': reports,
    'episodes': {k: hashlib.sha256(v).hexdigest() for k, v in episodes.items()},
    'host': host,
    'weights': _weights(checkpoint),
  }


def _weights(checkpoint):
  """A digest of every saved array, read back by orbax."""
  import numpy as np
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    tree = reader.restore(checkpoint / 'state')
  return {
    name: hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
    for name, leaf in tree.items()
  }


@pytest.fixture(scope='module')
def unbroken(model, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('unbroken') / 'run'
  _run_here(model, workdir)
  return workdir


def test_the_reference_run_is_complete(unbroken):
  result = _result(unbroken)
  assert [json.loads(line)['step'] for line in result['metrics']] == [1, 2, 3, 4]
  assert sorted(result['reports']) == [f'{i:06d}.json' for i in (0, 2, 4)]
  assert result['host']['host']['task_cursor'] == 2 * STEPS
  assert len(result['weights']) > 10


KILLED = -signal.SIGKILL


def test_killed_and_started_again(model, unbroken, tmp_path):
  """A run that dies in a rollout, an update and a save, each life after the last."""
  workdir = tmp_path / 'run'
  # Neither does it matter who played the environments.
  workers = '--config.pool.workers=2'
  _run(model, workdir, workers, moment='rollout', count=17, expect=KILLED)
  for moment, count in (('update', 2), ('save', 1)):
    _run(model, workdir, moment=moment, count=count, expect=KILLED)
  _run_here(model, workdir)
  assert _result(workdir) == _result(unbroken)


@pytest.mark.slow
def test_killed_at_every_moment_and_started_again(model, unbroken, tmp_path):
  """Run with `pytest -m slow tests/runs/test_resume.py -k every_moment`."""
  workdir = tmp_path / 'run'
  _run(model, workdir, moment='rollout', count=17, expect=KILLED)
  for moment, count in (('score', 2), ('update', 1), ('save', 1), ('eval', 1)):
    _run(model, workdir, moment=moment, count=count, expect=KILLED)
  _run(model, workdir)
  assert _result(workdir) == _result(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize('part', ['params', 'opt_state', 'step', 'task_cursor'])
def test_every_saved_part_is_needed(model, unbroken, tmp_path, part):
  """The control: a resume that forgets one part is not the unbroken run."""
  workdir = tmp_path / 'run'
  _run(model, workdir, '--config.steps=2')
  process = _start(model, workdir, moment=f'forget:{part}')
  _, err = process.communicate(timeout=600)
  if process.returncode == 0:
    assert _result(workdir)['weights'] != _result(unbroken)['weights']
  else:  # A forgotten step counter makes old lines come twice, which is refused.
    assert part == 'step' and 'step' in err


@pytest.mark.slow
def test_quarantine_survives_a_restart(model, tmp_path):
  """Both training tasks are played at every step; the first is in quarantine."""
  few = '--config.world.train_tasks=2'
  whole, resumed, forgetful = (tmp_path / name for name in ('a', 'b', 'c'))
  _run(model, whole, few, moment='quarantine')
  for workdir in (resumed, forgetful):
    _run(model, workdir, few, '--config.steps=2', moment='quarantine')
  _run(model, resumed, few)
  _run(model, forgetful, few, moment='forget:quarantine')
  assert _result(resumed) == _result(whole)
  assert len(_result(whole)['host']['host']['quarantine']) == 1
  assert _result(forgetful)['weights'] != _result(whole)['weights']
  lines = [json.loads(line) for line in _result(resumed)['metrics']]
  assert [line['rollout/faults'] for line in lines] == [2.0] * STEPS


def test_the_same_command_again_has_nothing_to_do(model, unbroken):
  before = _result(unbroken)
  out, _ = _run_here(model, unbroken)
  assert 'all 4 steps are done' in out
  assert _result(unbroken) == before


@pytest.mark.long
def test_sigterm_saves_and_exits_zero(model, unbroken, tmp_path):
  workdir = tmp_path / 'run'
  process = _start(model, workdir)
  while not (workdir / 'metrics.jsonl').exists() or (
    not (workdir / 'metrics.jsonl').read_text()
  ):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=600)
  assert process.returncode == 0, err[-3000:]
  assert 'stopped on request' in out and signals.ACKNOWLEDGED in out
  _run_here(model, workdir)
  assert _result(workdir) == _result(unbroken)


def test_a_second_run_in_the_workdir_is_refused_before_anything_heavy(tmp_path):
  with Workdir(tmp_path, ConfigDict({'seed': 0})):
    command = [sys.executable, '-X', 'importtime', '-m', 'sdar_jax.main', *FLAGS]
    before = _children_seconds()
    done = subprocess.run(
      [*command, f'--workdir={tmp_path}'], cwd=ROOT, capture_output=True, text=True
    )
  lines = [x for x in done.stderr.splitlines() if not x.startswith('import time:')]
  assert done.returncode == 2 and len(lines) == 1
  assert lines[0].startswith('error: ') and f'pid {os.getpid()}' in lines[0]
  # Neither Orbax nor the trainer, which take longer than the rest together.
  assert (
    'sdar_jax.storage.workdir' in done.stderr and 'sdar_jax.train\n' not in done.stderr
  )
  assert '| orbax' not in done.stderr
  assert _children_seconds() - before < 2  # Of computing, with what -X costs.


def _children_seconds():
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def test_another_seed_is_another_run(model, unbroken, tmp_path):
  _, error = _run_here(model, unbroken, '--config.seed=5', expect=2)
  assert 'seed' in error.splitlines()[-1]


def test_three_bad_updates_in_a_row_stop_the_run_with_the_last_good_state(
  model, monkeypatch, tmp_path
):
  """Two updates a step; from the third on every gradient is not a number."""
  workdir = tmp_path / 'run'
  keep = '--config.checkpoint.keep=4'
  monkeypatch.setattr(learner.Learner, 'train_step', learner.Learner.train_step)
  run_killed.poison(3)
  _, error = _run_here(model, workdir, keep, expect=70)
  assert '3 updates in a row were not finite at step 3' in error
  assert str(workdir / 'checkpoints') in error and 'Traceback' not in error
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').open()]
  assert [line['train/updates_skipped'] for line in lines] == [0, 1, 1]
  saved = {
    step: {
      name: digest
      for name, digest in _weights(workdir / 'checkpoints' / str(step)).items()
      if 'params' in name or 'opt_state' in name
    }
    for step in (1, 2, 3)
  }
  assert len(saved[1]) > 10 and saved[1] == saved[2] == saved[3]
  # Started again, it does not count down to the end: it goes back and says so.
  run_killed.poison(1)
  out, error = _run_here(model, workdir, keep, expect=70)
  assert 'goes back to step 1' in out
  assert '3 updates in a row were not finite at step 3' in error


@pytest.mark.long
def test_a_full_disk_ends_the_run_with_74_and_the_same_command_goes_on(
  model, unbroken, tmp_path
):
  """No file may grow any more from the second step on, as on a full disk."""
  workdir = tmp_path / 'run'
  once = '--config.eval.every=0'
  error = _run(model, workdir, once, moment='full', count=2, expect=74)
  assert error.count('error: ') == 1 and 'failure 3 in a row' in error
  assert 'Traceback' not in error and str(workdir) in error.splitlines()[-1]
  assert [p.name for p in (workdir / 'checkpoints').iterdir()] == ['1']
  _run_here(model, workdir)
  assert _result(workdir) == _result(unbroken)


@pytest.mark.slow
def test_what_the_error_of_a_diverged_run_advises_works(model, tmp_path):
  """Run with `pytest -m slow tests/runs/test_resume.py -k advises`."""
  workdir, exported = tmp_path / 'run', tmp_path / 'model'
  error = _run(model, workdir, moment='poison', count=3, expect=70)
  export = f'--mode=export --checkpoint={workdir} --output=DIR'
  assert export in error and '--config.model.path=DIR' in error
  _run(model, '', *export.replace('DIR', str(exported)).split())
  advice = [f'--config.model.path={exported}', '--config.optimizer.learning_rate=1e-4']
  _run(model, tmp_path / 'new', *advice)
  assert len((tmp_path / 'new' / 'metrics.jsonl').read_text().splitlines()) == STEPS


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_at_fifty_random_moments(model, unbroken, tmp_path):
  """Run with `pytest -m slow tests/runs/test_resume.py -k fifty`: half an hour."""
  random_, workdir, kills = random.Random(0), tmp_path / 'run', 0
  while kills < 50:
    process = _start(model, workdir)
    try:
      process.communicate(timeout=random_.uniform(2.0, 25.0))
    except subprocess.TimeoutExpired:
      process.kill()
      process.communicate()
      kills += 1
      continue
    assert process.returncode == 0 and _result(workdir) == _result(unbroken)
    shutil.rmtree(workdir)
  _run(model, workdir)
  assert _result(workdir) == _result(unbroken)
