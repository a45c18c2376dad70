"""Whatever file a disk refuses, one line names it, and the exit code is 74."""

import contextlib
import errno
import itertools
import os
import resource
import types

import ml_collections
import pytest
from run_cases import DIGESTS

from sdar_jax import files, train
from sdar_jax.envs.pool import pool
from sdar_jax.learner.checkpoint import CheckpointStore
from sdar_jax.logs import writers
from sdar_jax.storage import ledger
from sdar_jax.storage.workdir import Workdir, WorkdirError

CONFIG = ml_collections.ConfigDict({'seed': 0})


@contextlib.contextmanager
def full(limit=0):
  """No file may become longer: the kernel refuses as it does on a full disk."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _lines(path):
  writer, steps = writers.MetricsWriter(path, None), itertools.count(1)

  def act():
    writer.write(next(steps), {'train/loss': 1.0}, {})
    writer.digests()

  return act


def _record(path):
  held = Workdir(path, CONFIG)
  held.__enter__()
  return held.record


WRITES = {
  '': lambda path: Workdir(path, CONFIG).__enter__,
  'config.json': _record,
  'run.json': lambda path: (
    lambda: writers.write_run(path, method='sdar', seed=0, **DIGESTS)
  ),
  'metrics.jsonl': _lines,
  'ledger.json': lambda path: lambda: ledger.note_checkpoint(path, 3),
}


@pytest.mark.parametrize('name', WRITES)
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, name):
  act = WRITES[name](tmp_path)
  with full(), pytest.raises(files.DiskError) as caught:
    act()
  assert str(caught.value) == f'{tmp_path / name}: File too large'.replace('/:', ':')
  assert caught.value.exit_code == 74
  act()  # With space again.


def test_a_report_that_the_disk_refuses_leaves_nothing_half_written(tmp_path):
  ledger.note_checkpoint(tmp_path, 1)
  size = (tmp_path / ledger.NAME).stat().st_size
  report = {'tasks': ['x' * 1000]}
  with full(size + 200), pytest.raises(files.DiskError, match=r'eval/000002\.json: '):
    ledger.write_report(tmp_path, '000002.json', report)
  assert not list((tmp_path / 'eval').iterdir())
  ledger.write_report(tmp_path, '000002.json', report)
  assert ledger.read_report(tmp_path, '000002.json') == report


REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES)


@pytest.mark.parametrize('code', REFUSALS)
def test_every_refusal_of_a_disk_is_one(tmp_path, code, monkeypatch):
  def refuse(*args, **kwargs):
    raise OSError(code, os.strerror(code))

  for module, name, act in (
    (os, 'replace', lambda: files.write_atomic(tmp_path / 'x', b'')),
    (files.pathlib.Path, 'mkdir', lambda: Workdir(tmp_path / 'y', CONFIG).__enter__()),
    (files.pathlib.Path, 'mkdir', lambda: CheckpointStore(tmp_path / 'z', 2)),
    (os, 'rename', lambda: writers.MetricsWriter(tmp_path, None)),
  ):
    (tmp_path / 'metrics.jsonl').write_text('{}')
    with monkeypatch.context() as patch:
      patch.setattr(module, name, refuse)
      with pytest.raises(files.DiskError, match=os.strerror(code)) as caught:
        act()
    assert str(tmp_path) in str(caught.value)
  with pytest.raises(OSError) as caught, files.writing(tmp_path):
    raise OSError(errno.EINVAL, 'of another kind')
  assert not isinstance(caught.value, files.DiskError)
  with pytest.raises(WorkdirError):  # A path that cannot be a directory is wrong input.
    Workdir(tmp_path / 'metrics.jsonl' / 'run', CONFIG).__enter__()


class _Run:
  """What `train` needs of a run."""

  step = saved_step = 3

  def __init__(self, *args):
    self.done = []
    self.console = contextlib.nullcontext()
    pool = types.SimpleNamespace(close=lambda: self.done.append('pool'))
    self.parts = types.SimpleNamespace(pool=pool)
    self.profiler = types.SimpleNamespace(end=lambda: None)
    self.writer = types.SimpleNamespace(close=lambda: self.done.append('writer'))

  def __getattr__(self, name):
    return lambda: self.done.append(name)


@pytest.mark.parametrize(
  ('error', 'code'),
  [
    (train.EmptyStepError('away'), 70),
    (pool.PoolError('all dead'), 70),
    (files.DiskError(28, 'full', 'eval'), 74),
  ],
)
def test_what_ends_a_run_leaves_its_state_saved(tmp_path, monkeypatch, error, code):
  made = []
  monkeypatch.setattr(train, 'Run', lambda *args: made.append(_Run()) or made[0])

  def loop(run):
    raise error

  monkeypatch.setattr(train, 'loop', loop)
  with pytest.raises(type(error)) as caught:
    train.train(ml_collections.ConfigDict({'steps': 9}), tmp_path)
  assert caught.value.exit_code == code
  assert made[0].done == ['identify', 'open_writer', 'save', 'pool', 'writer']
