"""A run that is killed and started again equals one that was never interrupted."""

import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS = 4
FLAGS = [
  '--config=experiments/alfworld.py:model=tiny',
  f'--config.steps={STEPS}',
  '--config.rollout.tasks_per_step=2',
  '--config.rollout.group_size=2',
  '--config.rollout.slots=4',
  '--config.world.max_turns=3',
  '--config.train.minibatch_rows=8',
  '--config.train.microbatch_rows=8',
  '--config.train.length_buckets=(184,)',
  '--config.train.teacher_buckets=(248,)',
  '--config.rollout.prefill_buckets=(160,)',
  '--config.optimizer.learning_rate=0.003',
  '--config.eval.tasks=4',
  '--config.eval.every=2',
  '--config.checkpoint.every=1',
]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """One compilation cache for all processes of this file."""
  return tmp_path_factory.mktemp('xla')


def _start(cache, workdir, *flags, moment='never', count=1):
  command = [sys.executable, 'tests/run_killed.py', moment, str(count)]
  return subprocess.Popen(
    [*command, *FLAGS, *flags, f'--workdir={workdir}'],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={
      **os.environ,
      'PYTHONPATH': str(ROOT),
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(cache),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0',
    },
  )


def _run(cache, workdir, *flags, expect=0, **kwargs):
  process = _start(cache, workdir, *flags, **kwargs)
  out, err = process.communicate(timeout=600)
  assert process.returncode == expect, (process.returncode, out, err[-3000:])
  return err


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
def unbroken(cache, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('unbroken') / 'run'
  _run(cache, workdir)
  return workdir


def test_the_reference_run_is_complete(unbroken):
  result = _result(unbroken)
  assert [json.loads(line)['step'] for line in result['metrics']] == [1, 2, 3, 4]
  assert sorted(result['reports']) == [f'{i:06d}.json' for i in (0, 2, 4)]
  assert result['host']['host']['task_cursor'] == 2 * STEPS
  assert len(result['weights']) > 10


@pytest.mark.parametrize(
  'moment, count',
  [('rollout', 17), ('score', 3), ('update', 2), ('save', 3), ('eval', 2)],
)
def test_killed_and_started_again(cache, unbroken, tmp_path, moment, count):
  workdir = tmp_path / 'run'
  # Neither does it matter who played the environments.
  workers = f'--config.pool.workers={2 if moment == "rollout" else 0}'
  _run(cache, workdir, workers, moment=moment, count=count, expect=-signal.SIGKILL)
  _run(cache, workdir)
  assert _result(workdir) == _result(unbroken)


@pytest.mark.slow
@pytest.mark.parametrize('part', ['params', 'opt_state', 'step', 'task_cursor'])
def test_every_saved_part_is_needed(cache, unbroken, tmp_path, part):
  """The control: a resume that forgets one part is not the unbroken run."""
  workdir = tmp_path / 'run'
  _run(cache, workdir, '--config.steps=2')
  process = _start(cache, workdir, moment=f'forget:{part}')
  _, err = process.communicate(timeout=600)
  if process.returncode == 0:
    assert _result(workdir)['weights'] != _result(unbroken)['weights']
  else:  # A forgotten step counter makes old lines come twice, which is refused.
    assert part == 'step' and 'step' in err


@pytest.mark.slow
def test_quarantine_survives_a_restart(cache, tmp_path):
  """Both training tasks are played at every step; the first is in quarantine."""
  few = '--config.world.train_tasks=2'
  whole, resumed, forgetful = (tmp_path / name for name in ('a', 'b', 'c'))
  _run(cache, whole, few, moment='quarantine')
  for workdir in (resumed, forgetful):
    _run(cache, workdir, few, '--config.steps=2', moment='quarantine')
  _run(cache, resumed, few)
  _run(cache, forgetful, few, moment='forget:quarantine')
  assert _result(resumed) == _result(whole)
  assert len(_result(whole)['host']['host']['quarantine']) == 1
  assert _result(forgetful)['weights'] != _result(whole)['weights']
  lines = [json.loads(line) for line in _result(resumed)['metrics']]
  assert [line['rollout/faults'] for line in lines] == [2.0] * STEPS


def test_the_same_command_again_has_nothing_to_do(cache, unbroken):
  before = _result(unbroken)
  _run(cache, unbroken)
  assert _result(unbroken) == before


def test_sigterm_saves_and_exits_zero(cache, unbroken, tmp_path):
  workdir = tmp_path / 'run'
  process = _start(cache, workdir)
  while not (workdir / 'metrics.jsonl').exists() or (
    not (workdir / 'metrics.jsonl').read_text()
  ):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=120)
  assert process.returncode == 0, err[-3000:]
  assert 'stopped on request' in out
  _run(cache, workdir)
  assert _result(workdir) == _result(unbroken)


def test_a_second_run_in_the_workdir_is_refused(cache, tmp_path):
  workdir = tmp_path / 'run'
  first = _start(cache, workdir)
  while not (workdir / 'config.json').exists():
    assert first.poll() is None
    time.sleep(0.05)
  error = _run(cache, workdir, expect=2)
  first.kill()
  first.communicate()
  lines = [line for line in error.splitlines() if line.startswith('error:')]
  assert len(lines) == 1 and str(first.pid) in lines[0]


def test_another_seed_is_another_run(cache, unbroken, tmp_path):
  error = _run(cache, unbroken, '--config.seed=5', expect=2)
  assert 'seed' in error.splitlines()[-1]


def test_three_bad_updates_in_a_row_stop_the_run_with_the_last_good_state(
  cache, tmp_path
):
  """Two updates a step; from the third on every gradient is not a number."""
  workdir = tmp_path / 'run'
  error = _run(
    cache, workdir, '--config.checkpoint.keep=4', moment='poison', count=3, expect=70
  )
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
