import logging
import os
import pathlib
import random
import resource
import shutil
import subprocess
import sys
import textwrap
import time

import checkpoint_cases as cases
import orbax.checkpoint as ocp
import pytest

from sdar_jax import files
from sdar_jax.learner import checkpoint
from sdar_jax.learner.checkpoint import CheckpointStore, SaveError

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """A store with steps 1 and 2, to be copied and damaged."""
  directory = tmp_path_factory.mktemp('two') / 'checkpoints'
  cases.fill(directory, [1, 2])
  return directory


@pytest.fixture
def store_path(two_steps, tmp_path):
  return pathlib.Path(shutil.copytree(two_steps, tmp_path / 'checkpoints'))


class Killed(BaseException):
  """Stands for kill -9: nothing catches it, nothing cleans up."""


def _die_at(monkeypatch, count):
  """Dies at the count-th file operation of the protocol, half-way through it."""
  left = [count]

  def wrap(function, partly):
    def wrapped(*args, **kwargs):
      if left[0] == 0:
        partly(*args)
        raise Killed
      left[0] -= 1
      return function(*args, **kwargs)

    return wrapped

  def nothing(*args):
    pass

  def half_removed(path, *args):
    for file in [p for p in pathlib.Path(path).rglob('*') if p.is_file()][::2]:
      file.unlink()

  def half_written(path, data):
    path.with_name(f'.{path.name}.tmp').write_bytes(data[: len(data) // 2])

  def half_saved(self, directory, *args):
    (directory.parent / f'{directory.name}.orbax-checkpoint-tmp').mkdir()

  monkeypatch.setattr(os, 'rename', wrap(os.rename, nothing))
  monkeypatch.setattr(shutil, 'rmtree', wrap(shutil.rmtree, half_removed))
  # Within an unfinished directory one moment of death is as good as another.
  sync, dying = files.sync, wrap(files.sync, nothing)
  staged = lambda path: '.tmp-' in str(path)
  either = lambda path: sync(path) if staged(path) else dying(path)
  monkeypatch.setattr(files, 'sync', either)
  monkeypatch.setattr(files, 'write_atomic', wrap(files.write_atomic, half_written))
  save = wrap(ocp.Checkpointer.save, half_saved)
  monkeypatch.setattr(ocp.Checkpointer, 'save', save)


@pytest.mark.parametrize('again', [False, True])
def test_death_at_any_point_of_a_save_loses_nothing(
  two_steps, tmp_path, monkeypatch, again
):
  """The step before or the new one is there whole, and the run goes on."""
  step = 2 if again else 3
  outcomes = []
  for count in range(200):
    path = tmp_path / str(count)
    shutil.copytree(two_steps, path)
    if again:
      shutil.rmtree(path / '1')  # The step to be replaced is all there is.
    store = CheckpointStore(path, 2)
    cases.check(store.restore(cases.state(0)), 2)
    with monkeypatch.context() as patch:
      _die_at(patch, count)
      try:
        store.save(step, cases.state(step), cases.host(step))
        died = False
      except Killed:
        died = True
    store = CheckpointStore(path, 2)
    assert all(name.isdecimal() for name in cases.names(path))
    restored = store.restore(cases.state(0))
    cases.check(restored, restored.step)
    outcomes.append(restored.step)
    assert store.save(step, cases.state(step), cases.host(step))
    assert store.save(step + 1, cases.state(step + 1), cases.host(step + 1))
    assert cases.names(path) == [str(step), str(step + 1)]
    shutil.rmtree(path)
    if not died:
      break
  assert not died and count > 5
  assert set(outcomes) == ({2} if again else {2, 3})


def _limited(limit, function):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
  try:
    return function()
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# A thread of Orbax's complains that its event loop is gone.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_save_that_fails_is_survived(tmp_path, caplog):
  """RLIMIT_FSIZE stands for a full disk: writing fails half-way."""
  store = CheckpointStore(tmp_path, 2)
  small, big = cases.state(1), cases.state(2, size=40_000)
  assert store.save(1, small, cases.host(1))
  save = lambda step: store.save(step, big, cases.host(step))
  for step in (2, 3):
    caplog.clear()
    assert _limited(500_000, lambda step=step: save(step)) is False
    (record,) = caplog.records  # And no page of the libraries'.
    assert record.name == checkpoint.__name__
    assert record.levelno == logging.WARNING
    assert f'{tmp_path / str(step)} not saved' in record.getMessage()
    assert '\n' not in record.getMessage() and len(record.getMessage()) < 400
    assert cases.names(tmp_path) == [
      '1'
    ]  # Its own leftovers removed, the old step kept.
  assert save(4)  # Space again: the count of failures starts anew.
  assert _limited(500_000, lambda: save(5)) is False
  assert _limited(500_000, lambda: save(6)) is False
  with pytest.raises(SaveError, match='failure 3 in a row') as caught:
    _limited(500_000, lambda: save(7))
  assert '\n' not in str(caught.value)
  restored = checkpoint.load(tmp_path, big)
  assert restored.step == 4
  cases.same(restored.state, big)


def test_a_failure_while_replacing_puts_the_old_one_back(store_path, monkeypatch):
  store = CheckpointStore(store_path, 2)
  store.restore(cases.state(0))
  rename = os.rename

  def full(source, target):
    if pathlib.Path(source).name.startswith('.tmp-'):
      raise OSError(28, 'No space left on device')
    rename(source, target)

  monkeypatch.setattr(os, 'rename', full)
  assert store.save(2, cases.state(5), cases.host(5)) is False
  monkeypatch.undo()
  assert cases.names(store_path) == ['1', '2']
  cases.check(checkpoint.load(store_path, cases.state(0)), 2)


CHILD = """
  import sys, jax, numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
  from sdar_jax.learner.checkpoint import CheckpointStore, load
  directory = sys.argv[1]
  devices = np.array(jax.devices())

  def make(step, shape, spec):
    mesh = Mesh(devices[:shape[0] * shape[1]].reshape(shape), ('a', 'b'))
    random = np.random.default_rng(step)
    values = {
      'w': random.normal(size=(256, 512)).astype(np.float32),
      'm': random.integers(0, 2**32, size=(64, 8), dtype=np.uint32),
    }
    return jax.device_put(values, NamedSharding(mesh, spec))

  def check(restored, like):
    for name, leaf in restored.state.items():
      assert leaf.sharding == like[name].sharding
      assert np.asarray(leaf).tobytes() == np.asarray(like[name]).tobytes()
"""

KILLED = """
  store = CheckpointStore(directory, 2)
  restored = store.restore(make(0, (2, 2), P('a', 'b')))
  step = 0
  if restored is not None:
    step = restored.step
    assert restored.host == {'step': step}
    check(restored, make(step, (2, 2), P('a', 'b')))
  print('resumed', step, flush=True)
  while True:
    step += 1
    assert store.save(step, make(step, (2, 2), P('a', 'b')), {'step': step})
    print('saved', step, flush=True)
"""

RESHARDED = """
  store = CheckpointStore(directory, 2)
  assert store.save(1, make(1, (2, 4), P('a', 'b')), {})
  for shape, spec in (
    ((1, 1), P()), ((4, 1), P('a')), ((1, 8), P('b', 'a')), ((2, 2), P(None, 'b')),
    ((8, 1), P()),
  ):
    like = make(1, shape, spec)
    check(load(directory, like), like)
  print('equal', flush=True)
"""


def _child(body, directory):
  flags = '--xla_force_host_platform_device_count=8'
  code = textwrap.dedent(CHILD) + textwrap.dedent(body)
  return subprocess.Popen(
    [sys.executable, '-c', code, str(directory)],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
    stdout=subprocess.PIPE,
    text=True,
  )


def test_kill_9_during_saves_loses_no_committed_step(tmp_path):
  """What `save` returned from is there after the kill, bit for bit."""
  random_, committed = random.Random(0), 0
  for _ in range(2):
    process = _child(KILLED, tmp_path)
    word, step = process.stdout.readline().split()
    assert word == 'resumed' and int(step) >= committed
    for _ in range(2):  # However slow the machine is, it saves something.
      committed = int(process.stdout.readline().split()[1])
    time.sleep(random_.uniform(0.0, 0.3))
    process.kill()
    for line in process.stdout:
      committed = int(line.split()[1])
    process.wait()
  assert committed >= 4


def test_restore_onto_other_meshes_is_bit_equal(tmp_path):
  process = _child(RESHARDED, tmp_path)
  out, _ = process.communicate(timeout=600)
  assert process.returncode == 0 and out == 'equal\n'
