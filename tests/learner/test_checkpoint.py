import json
import pathlib
import random
import shutil

import checkpoint_cases as cases
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sdar_jax.learner import checkpoint
from sdar_jax.learner.checkpoint import CheckpointError, CheckpointStore
from sdar_jax.storage import manifest as manifests


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """A store with steps 1 and 2, to be copied and damaged."""
  directory = tmp_path_factory.mktemp('two') / 'checkpoints'
  cases.fill(directory, [1, 2])
  return directory


@pytest.fixture
def store_path(two_steps, tmp_path):
  return pathlib.Path(shutil.copytree(two_steps, tmp_path / 'checkpoints'))


def test_round_trip_is_bit_equal(store_path):
  cases.check(CheckpointStore(store_path, 2).restore(cases.state(9)), 2)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    cases.state(9),
  )
  cases.check(checkpoint.load(store_path, like), 2)


def test_a_part_of_the_state_can_be_loaded(store_path):
  like = {'params': cases.state(9)['params']}
  restored = checkpoint.load(store_path, like, subset=True)
  cases.same(restored.state, {'params': cases.state(2)['params']})


def test_retention_keeps_the_newest(tmp_path):
  cases.fill(tmp_path / 'a', [1, 2, 3, 5, 8])
  assert cases.names(tmp_path / 'a') == ['5', '8']
  cases.fill(tmp_path / 'b', [1, 2, 3, 5, 8], keep=3)
  assert cases.names(tmp_path / 'b') == ['3', '5', '8']
  with pytest.raises(CheckpointError, match=r'config\.checkpoint\.keep=1'):
    CheckpointStore(tmp_path / 'c', 1)


def test_retention_does_not_count_what_is_damaged(store_path):
  (store_path / '2' / 'host.json').write_text('{}')
  store = CheckpointStore(store_path, 2)
  cases.check(store.restore(cases.state(0)), 1)
  assert store.save(3, cases.state(3), cases.host(3))
  assert '1' in cases.names(store_path)  # With 3 the only other one that is good.
  assert store.save(4, cases.state(4), cases.host(4))
  assert cases.names(store_path) == ['3', '4']


def test_retention_keeps_what_nobody_verified_until_enough_is(store_path):
  store = CheckpointStore(store_path, 3)
  cases.check(store.restore(cases.state(0)), 2)  # Whether 1 is good was not looked at.
  assert store.save(3, cases.state(3), cases.host(3))
  assert cases.names(store_path) == ['1', '2', '3']
  assert store.save(4, cases.state(4), cases.host(4))
  assert cases.names(store_path) == ['2', '3', '4']


def test_an_empty_or_absent_store_is_a_fresh_start(tmp_path):
  assert CheckpointStore(tmp_path / 'new', 2).restore(cases.state(0)) is None
  assert checkpoint.load(tmp_path / 'absent', cases.state(0)) is None


def test_what_a_killed_first_save_left_is_a_fresh_start(tmp_path):
  (tmp_path / '.tmp-1' / 'state.orbax-checkpoint-tmp').mkdir(parents=True)
  (tmp_path / '.trash-0').mkdir()
  store = CheckpointStore(tmp_path, 2)
  assert cases.names(tmp_path) == []
  assert store.restore(cases.state(0)) is None


@pytest.mark.parametrize('name', ['4', 'README', 'state.orbax-checkpoint-tmp'])
def test_never_a_silent_fresh_start(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(CheckpointError, match='holds no whole checkpoint') as caught:
    CheckpointStore(tmp_path, 2).restore(cases.state(0))
  assert name in str(caught.value) and '\n' not in str(caught.value)


def test_saving_into_an_unread_store_is_refused(store_path):
  with pytest.raises(CheckpointError, match='restore from it'):
    CheckpointStore(store_path, 2).save(3, cases.state(3), cases.host(3))


def test_a_directory_with_a_step_for_a_name_is_no_checkpoint(store_path, caplog):
  (store_path / '9').mkdir()
  shutil.copytree(store_path / '1', store_path / '7')  # Another step's content.
  cases.check(CheckpointStore(store_path, 2).restore(cases.state(0)), 2)
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
    cases.check(checkpoint.load(store_path, cases.state(0)), 1)
    (line,) = [r.getMessage() for r in caplog.records if 'skipped' in r.getMessage()]
    assert str(store_path / '2') in line and path.name in line and '\n' not in line
    path.write_bytes(data)
    tried += 1
  cases.check(checkpoint.load(store_path, cases.state(0)), 2)
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
    detected += manifests.verify(store_path, 2) is not None
    if i % 20 == 0:
      cases.check(checkpoint.load(store_path, cases.state(0)), 1)
    in_data += 'd' in path.parts
    in_manifest += path.name.startswith('manifest-')
    data[place] ^= 1 << bit
    path.write_bytes(data)
  assert detected == 200
  assert in_data > 20 and in_manifest > 3
  assert manifests.verify(store_path, 2) is None


def test_damage_to_what_the_manifest_says_of_itself_is_detected(store_path):
  path = store_path / '2' / 'manifest-2.json'
  data = path.read_bytes()
  assert b'"format"' in data[-40:] and b'"step"' in data[-40:]
  for place in range(len(data) - 40, len(data)):
    for bit in range(8):
      flipped = bytearray(data)
      flipped[place] ^= 1 << bit
      path.write_bytes(flipped)
      assert manifests.verify(store_path, 2) is not None


def test_an_added_file_is_noticed(store_path):
  (store_path / '2' / 'state' / 'd' / 'more').write_text('x')
  assert 'not in the manifest' in manifests.verify(store_path, 2)


def test_no_good_step_at_all_is_an_error(store_path):
  for step in (1, 2):
    (store_path / str(step) / 'host.json').write_text('')
  with pytest.raises(CheckpointError) as caught:
    CheckpointStore(store_path, 2).restore(cases.state(0))
  assert '2: host.json is damaged' in str(caught.value)
  assert cases.names(store_path) == ['1', '2']  # Nothing deleted.


def _changed(change):
  state = cases.state(0)
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
  assert cases.names(tmp_path) == []


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
  store.restore(cases.state(0))
  with pytest.raises(ValueError, match='step 1 is below'):
    store.save(1, cases.state(1), cases.host(1))


def test_saving_a_step_again_replaces_it(store_path):
  store = CheckpointStore(store_path, 2)
  store.restore(cases.state(0))
  assert store.save(2, cases.state(5), cases.host(5))
  restored = checkpoint.load(store_path, cases.state(0))
  assert restored.step == 2 and restored.host == cases.host(5)
  cases.same(restored.state, cases.state(5))
  assert cases.names(store_path) == ['1', '2']


def test_a_damaged_step_can_be_saved_again(store_path):
  (store_path / '2' / 'host.json').unlink()
  store = CheckpointStore(store_path, 2)
  cases.check(store.restore(cases.state(0)), 1)
  assert store.save(2, cases.state(2), cases.host(2))
  cases.check(checkpoint.load(store_path, cases.state(0)), 2)


def test_an_unreadable_but_verified_step_is_one_line(store_path, monkeypatch):
  def fail(*args, **kwargs):
    raise Exception('TensorStore says\n' + 'very much\n' * 100)

  monkeypatch.setattr(ocp.Checkpointer, 'restore', fail)
  with pytest.raises(CheckpointError, match='TensorStore says') as caught:
    checkpoint.load(store_path, cases.state(0))
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 500


def test_another_format_is_an_error(store_path):
  path = store_path / '2' / 'host.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'format': 99}))
  manifest = store_path / '2' / 'manifest-2.json'
  listing = manifests.listing(store_path / '2', 2)
  manifest.write_bytes(manifests.as_bytes(2, listing))
  with pytest.raises(CheckpointError, match='format 99, this version reads 1'):
    checkpoint.load(store_path, cases.state(0))
