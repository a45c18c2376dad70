import json
import logging
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from sdar_jax import checkpoint, files
from sdar_jax.checkpoint import CheckpointError, CheckpointStore, SaveError

ROOT = pathlib.Path(__file__).resolve().parents[1]


def _state(seed, size=40):
  random_ = np.random.default_rng(seed)
  params = {
    'layers': {'kernel': jnp.asarray(random_.normal(size=(size, 25)), jnp.float32)},
    'bias': jnp.asarray(random_.normal(size=7), jnp.bfloat16),
  }
  return {
    'params': params,
    'opt_state': optax.adamw(1e-3).init(params),
    'step': jnp.int32(seed),
    'key': jax.random.key_data(jax.random.key(seed)),
  }


def _host(step):
  state = np.random.default_rng(step).bit_generator.state
  return {'cursor': step, 'numpy': state, 'rate': 0.1 + step, 'none': None}


def _same(left, right):
  assert jax.tree.structure(left) == jax.tree.structure(right)
  for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right)):
    assert a.dtype == b.dtype and a.sharding == b.sharding
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _check(restored, step):
  assert restored.step == step
  _same(restored.state, _state(step))
  assert restored.host == _host(step)


def _fill(directory, steps, keep=2):
  store = CheckpointStore(directory, keep)
  assert store.restore(_state(0)) is None
  for step in steps:
    assert store.save(step, _state(step), _host(step))
  return store


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """A store with steps 1 and 2, to be copied and damaged."""
  directory = tmp_path_factory.mktemp('two') / 'checkpoints'
  _fill(directory, [1, 2])
  return directory


@pytest.fixture
def store_path(two_steps, tmp_path):
  return pathlib.Path(shutil.copytree(two_steps, tmp_path / 'checkpoints'))


def _names(directory):
  return sorted(path.name for path in directory.iterdir())


def test_round_trip_is_bit_equal(store_path):
  _check(CheckpointStore(store_path, 2).restore(_state(9)), 2)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _state(9)
  )
  _check(checkpoint.load(store_path, like), 2)


def test_a_part_of_the_state_can_be_loaded(store_path):
  like = {'params': _state(9)['params']}
  restored = checkpoint.load(store_path, like, subset=True)
  _same(restored.state, {'params': _state(2)['params']})


def test_retention_keeps_the_newest(tmp_path):
  _fill(tmp_path / 'a', [1, 2, 3, 5, 8])
  assert _names(tmp_path / 'a') == ['5', '8']
  _fill(tmp_path / 'b', [1, 2, 3, 5, 8], keep=3)
  assert _names(tmp_path / 'b') == ['3', '5', '8']
  with pytest.raises(CheckpointError, match=r'config\.checkpoint\.keep=1'):
    CheckpointStore(tmp_path / 'c', 1)


def test_retention_does_not_count_what_is_damaged(store_path):
  (store_path / '2' / 'host.json').write_text('{}')
  store = CheckpointStore(store_path, 2)
  _check(store.restore(_state(0)), 1)
  assert store.save(3, _state(3), _host(3))
  assert '1' in _names(store_path)  # With 3 the only other one that is good.
  assert store.save(4, _state(4), _host(4))
  assert _names(store_path) == ['3', '4']


def test_retention_keeps_what_nobody_verified_until_enough_is(store_path):
  store = CheckpointStore(store_path, 3)
  _check(store.restore(_state(0)), 2)  # Whether 1 is good was not looked at.
  assert store.save(3, _state(3), _host(3))
  assert _names(store_path) == ['1', '2', '3']
  assert store.save(4, _state(4), _host(4))
  assert _names(store_path) == ['2', '3', '4']


def test_an_empty_or_absent_store_is_a_fresh_start(tmp_path):
  assert CheckpointStore(tmp_path / 'new', 2).restore(_state(0)) is None
  assert checkpoint.load(tmp_path / 'absent', _state(0)) is None


def test_what_a_killed_first_save_left_is_a_fresh_start(tmp_path):
  (tmp_path / '.tmp-1' / 'state.orbax-checkpoint-tmp').mkdir(parents=True)
  (tmp_path / '.trash-0').mkdir()
  store = CheckpointStore(tmp_path, 2)
  assert _names(tmp_path) == []
  assert store.restore(_state(0)) is None


@pytest.mark.parametrize('name', ['4', 'README', 'state.orbax-checkpoint-tmp'])
def test_never_a_silent_fresh_start(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(CheckpointError, match='holds no whole checkpoint') as caught:
    CheckpointStore(tmp_path, 2).restore(_state(0))
  assert name in str(caught.value) and '\n' not in str(caught.value)


def test_saving_into_an_unread_store_is_refused(store_path):
  with pytest.raises(CheckpointError, match='restore from it'):
    CheckpointStore(store_path, 2).save(3, _state(3), _host(3))


def test_a_directory_with_a_step_for_a_name_is_no_checkpoint(store_path, caplog):
  (store_path / '9').mkdir()
  shutil.copytree(store_path / '1', store_path / '7')  # Another step's content.
  _check(CheckpointStore(store_path, 2).restore(_state(0)), 2)
  skipped = [r.getMessage() for r in caplog.records if 'skipped' in r.getMessage()]
  assert len(skipped) == 2
  assert '9 skipped: no manifest-9.json' in skipped[0]


def _damage(path, kind):
  data = path.read_bytes()
  if kind == 'deleted':
    path.unlink()
  else:
    path.write_bytes(data[: len(data) // 2] if kind == 'halved' else b'')


@pytest.mark.parametrize('kind', ['deleted', 'halved', 'emptied'])
def test_every_damaged_file_leads_to_the_step_before(store_path, caplog, kind):
  paths = [path for path in (store_path / '2').rglob('*') if path.is_file()]
  assert len(paths) > 10
  tried = 0
  for path in paths:
    data = path.read_bytes()
    if not data and kind != 'deleted':
      continue
    caplog.clear()
    _damage(path, kind)
    _check(checkpoint.load(store_path, _state(0)), 1)
    (line,) = [r.getMessage() for r in caplog.records if 'skipped' in r.getMessage()]
    assert str(store_path / '2') in line and path.name in line and '\n' not in line
    path.write_bytes(data)
    tried += 1
  _check(checkpoint.load(store_path, _state(0)), 2)
  assert tried > 10


def test_all_of_200_bit_flips_are_detected(store_path):
  random_ = random.Random(0)
  paths = sorted(path for path in (store_path / '2').rglob('*') if path.is_file())
  paths = [path for path in paths if path.stat().st_size]
  detected, in_data, in_manifest = 0, 0, 0
  for i in range(200):
    path = random_.choice(paths)
    data = bytearray(path.read_bytes())
    place, bit = random_.randrange(len(data)), random_.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    detected += checkpoint.verify(store_path, 2) is not None
    if i % 20 == 0:
      _check(checkpoint.load(store_path, _state(0)), 1)
    in_data += 'd' in path.parts
    in_manifest += path.name.startswith('manifest-')
    data[place] ^= 1 << bit
    path.write_bytes(data)
  assert detected == 200
  assert in_data > 20 and in_manifest > 3
  assert checkpoint.verify(store_path, 2) is None


def test_damage_to_what_the_manifest_says_of_itself_is_detected(store_path):
  path = store_path / '2' / 'manifest-2.json'
  data = path.read_bytes()
  assert b'"format"' in data[-40:] and b'"step"' in data[-40:]
  for place in range(len(data) - 40, len(data)):
    for bit in range(8):
      flipped = bytearray(data)
      flipped[place] ^= 1 << bit
      path.write_bytes(flipped)
      assert checkpoint.verify(store_path, 2) is not None


def test_an_added_file_is_noticed(store_path):
  (store_path / '2' / 'state' / 'd' / 'more').write_text('x')
  assert 'not in the manifest' in checkpoint.verify(store_path, 2)


def test_no_good_step_at_all_is_an_error(store_path):
  for step in (1, 2):
    (store_path / str(step) / 'host.json').write_text('')
  with pytest.raises(CheckpointError) as caught:
    CheckpointStore(store_path, 2).restore(_state(0))
  assert '2: host.json is damaged' in str(caught.value)
  assert _names(store_path) == ['1', '2']  # Nothing deleted.


def _changed(change):
  state = _state(0)
  change(state)
  return state


@pytest.mark.parametrize(
  'change, words',
  [
    (
      lambda s: s['params'].update(bias=jnp.zeros(7, jnp.float32)),
      ['params.bias', 'bfloat16[7]', 'float32[7]'],
    ),
    (
      lambda s: s['params']['layers'].update(kernel=jnp.zeros((40, 26))),
      ['params.layers.kernel', 'float32[40,25]', 'float32[40,26]'],
    ),
    (lambda s: s['params'].update(more=jnp.zeros(3)), ['no leaf params.more']),
    (lambda s: s.pop('key'), ['leaf key has no place']),
  ],
)
def test_a_state_that_does_not_fit_is_an_error_not_a_fallback(
  store_path, change, words
):
  with pytest.raises(CheckpointError) as caught:
    CheckpointStore(store_path, 2).restore(_changed(change))
  for word in [*words, str(store_path / '2')]:
    assert word in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'leaf, word',
  [
    (np.zeros(3), 'ndarray'),
    (1.5, 'float'),
    (jax.random.key(0), 'key_data'),
    (jnp.zeros((0, 3)), 'empty'),
  ],
)
def test_a_leaf_that_cannot_be_saved_is_named(tmp_path, leaf, word):
  store = CheckpointStore(tmp_path, 2)
  with pytest.raises(ValueError, match=rf'^state leaf a\.b .*{word}'):
    store.save(1, {'a': {'b': leaf}}, {})
  assert _names(tmp_path) == []


def test_a_donated_leaf_is_named(tmp_path):
  leaf = jnp.zeros(3)
  jax.jit(lambda x: x + 1, donate_argnums=0)(leaf)
  with pytest.raises(ValueError, match=r'^state leaf a was donated'):
    CheckpointStore(tmp_path, 2).save(1, {'a': leaf}, {})


@pytest.mark.parametrize(
  'value', [(1, 2), {1: 2}, float('nan'), [np.float32(1)], {'a': {2, 3}}]
)
def test_host_state_that_json_would_change_is_refused(tmp_path, value):
  with pytest.raises(ValueError, match=r"^host\['cursor'\] does not survive JSON"):
    CheckpointStore(tmp_path, 2).save(1, {'a': jnp.zeros(3)}, {'cursor': value})


def test_an_older_step_is_refused(store_path):
  store = CheckpointStore(store_path, 2)
  store.restore(_state(0))
  with pytest.raises(ValueError, match='step 1 is below'):
    store.save(1, _state(1), _host(1))


def test_saving_a_step_again_replaces_it(store_path):
  store = CheckpointStore(store_path, 2)
  store.restore(_state(0))
  assert store.save(2, _state(5), _host(5))
  restored = checkpoint.load(store_path, _state(0))
  assert restored.step == 2 and restored.host == _host(5)
  _same(restored.state, _state(5))
  assert _names(store_path) == ['1', '2']


def test_a_damaged_step_can_be_saved_again(store_path):
  (store_path / '2' / 'host.json').unlink()
  store = CheckpointStore(store_path, 2)
  _check(store.restore(_state(0)), 1)
  assert store.save(2, _state(2), _host(2))
  _check(checkpoint.load(store_path, _state(0)), 2)


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
    _check(store.restore(_state(0)), 2)
    with monkeypatch.context() as patch:
      _die_at(patch, count)
      try:
        store.save(step, _state(step), _host(step))
        died = False
      except Killed:
        died = True
    store = CheckpointStore(path, 2)
    assert all(name.isdecimal() for name in _names(path))
    restored = store.restore(_state(0))
    _check(restored, restored.step)
    outcomes.append(restored.step)
    assert store.save(step, _state(step), _host(step))
    assert store.save(step + 1, _state(step + 1), _host(step + 1))
    assert _names(path) == [str(step), str(step + 1)]
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
  small, big = _state(1), _state(2, size=40_000)
  assert store.save(1, small, _host(1))
  save = lambda step: store.save(step, big, _host(step))
  for step in (2, 3):
    caplog.clear()
    assert _limited(500_000, lambda step=step: save(step)) is False
    (record,) = [r for r in caplog.records if r.name == checkpoint.__name__]
    assert record.levelno == logging.WARNING
    assert f'{tmp_path / str(step)} not saved' in record.getMessage()
    assert '\n' not in record.getMessage() and len(record.getMessage()) < 400
    assert _names(tmp_path) == ['1']  # Its own leftovers removed, the old step kept.
  assert save(4)  # Space again: the count of failures starts anew.
  assert _limited(500_000, lambda: save(5)) is False
  assert _limited(500_000, lambda: save(6)) is False
  with pytest.raises(SaveError, match='failure 3 in a row') as caught:
    _limited(500_000, lambda: save(7))
  assert '\n' not in str(caught.value)
  restored = checkpoint.load(tmp_path, big)
  assert restored.step == 4
  _same(restored.state, big)


def test_a_failure_while_replacing_puts_the_old_one_back(store_path, monkeypatch):
  store = CheckpointStore(store_path, 2)
  store.restore(_state(0))
  rename = os.rename

  def full(source, target):
    if pathlib.Path(source).name.startswith('.tmp-'):
      raise OSError(28, 'No space left on device')
    rename(source, target)

  monkeypatch.setattr(os, 'rename', full)
  assert store.save(2, _state(5), _host(5)) is False
  monkeypatch.undo()
  assert _names(store_path) == ['1', '2']
  _check(checkpoint.load(store_path, _state(0)), 2)


def test_an_unreadable_but_verified_step_is_one_line(store_path, monkeypatch):
  def fail(*args, **kwargs):
    raise Exception('TensorStore says\n' + 'very much\n' * 100)

  monkeypatch.setattr(ocp.Checkpointer, 'restore', fail)
  with pytest.raises(CheckpointError, match='TensorStore says') as caught:
    checkpoint.load(store_path, _state(0))
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


def test_another_format_is_an_error(store_path):
  path = store_path / '2' / 'host.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'format': 99}))
  manifest = store_path / '2' / 'manifest-2.json'
  listing = checkpoint._listing(store_path / '2', 2)
  manifest.write_bytes(checkpoint._manifest_bytes(2, listing))
  with pytest.raises(CheckpointError, match='format 99, this version reads 1'):
    checkpoint.load(store_path, _state(0))


CHILD = """
  import sys, jax, numpy as np
  from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
  from sdar_jax.checkpoint import CheckpointStore, load
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
  random_ = random.Random(0)
  committed, kills, interrupted = 0, 0, 0
  deadline = time.monotonic() + 12
  while kills < 3 or time.monotonic() < deadline:
    process = _child(KILLED, tmp_path)
    word, step = process.stdout.readline().split()
    assert word == 'resumed' and int(step) >= committed
    time.sleep(random_.uniform(0.05, 0.6))
    process.send_signal(signal.SIGKILL)
    for line in process.stdout:
      committed = int(line.split()[1])
    process.wait()
    kills += 1
    interrupted += any(name.startswith('.') for name in _names(tmp_path))
  assert kills >= 3 and committed >= 3


def test_restore_onto_other_meshes_is_bit_equal(tmp_path):
  process = _child(RESHARDED, tmp_path)
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 0 and out == 'equal\n'
