"""From where a run goes on: never from what was lost, changed or past saving."""

import json
import shutil
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

from sdar_jax import files
from sdar_jax.learner import recovery
from sdar_jax.learner.checkpoint import CheckpointError, CheckpointStore, SaveError
from sdar_jax.storage import ledger
from sdar_jax.storage import manifest as manifests


class State(NamedTuple):
  weights: Any
  skipped_in_a_row: Any


def state(weight, skipped=0):
  return State(jnp.full(5, weight, jnp.float32), jnp.int32(skipped))


def host(step):
  return {'task_cursor': step, 'quarantine': [], 'retrieval': {}}


def fill(path, steps, keep=9):
  """Saves steps; `steps` maps each to its number of skipped updates."""
  store = CheckpointStore(path / 'checkpoints', keep)
  restore(path, store)
  for step, skipped in steps.items():
    record = lambda step=step: host(step)
    assert recovery.save(store, step, state(step, skipped), record, path)
  return store


def restore(path, store=None, said=None):
  store = store or CheckpointStore(path / 'checkpoints', 9)
  say = (said if said is not None else []).append
  return recovery.restore(store, state(0), path, say)


def test_a_streak_goes_back_to_the_state_before_it(tmp_path):
  fill(tmp_path, {1: 0, 2: 0, 3: 1, 4: 2, 5: 3})
  for _ in range(3):  # However often it is started.
    said = []
    restored = restore(tmp_path, said=said)
    assert restored.step == 2 and float(restored.state.weights[0]) == 2
    assert 'checkpoint 5' in said[0] and 'step 2' in said[0]
  store = CheckpointStore(tmp_path / 'checkpoints', 9)
  assert restore(tmp_path, store).step == 2
  record = lambda: host(3)
  assert recovery.save(
    store, 3, state(3.5), record, tmp_path
  )  # It went well this time.
  assert restore(tmp_path).step == 3
  for step in (4, 5, 6):
    record = lambda step=step: host(step)
    assert recovery.save(store, step, state(step + 0.5), record, tmp_path)
  restored = restore(tmp_path)
  assert restored.step == 6 and float(restored.state.weights[0]) == 6.5


def test_a_streak_without_an_earlier_state_is_refused_for_ever(tmp_path):
  fill(tmp_path, {4: 1, 5: 3})
  for _ in range(3):
    with pytest.raises(recovery.NonFiniteError) as caught:
      restore(tmp_path)
    text = str(caught.value)
    assert caught.value.exit_code == 70 and '\n' not in text
    assert f'--mode=export --checkpoint={tmp_path}' in text
    assert 'start a new workdir with a lower config.optimizer.learning_rate' in text


def test_a_streak_that_is_not_over_goes_on(tmp_path):
  fill(tmp_path, {1: 0, 2: 2})
  assert int(restore(tmp_path).state.skipped_in_a_row) == 2


def test_lost_checkpoints_are_no_fresh_start(tmp_path):
  assert restore(tmp_path) is None
  fill(tmp_path, {1: 0, 2: 0})
  for remove in (
    lambda: [shutil.rmtree(p) for p in (tmp_path / 'checkpoints').iterdir()],
    lambda: shutil.rmtree(tmp_path / 'checkpoints'),
  ):
    remove()
    with pytest.raises(CheckpointError, match='step 2 was saved there'):
      restore(tmp_path)


def damage(path, step, name, text):
  """Writes a file of a checkpoint, and a manifest that agrees with it."""
  directory = path / 'checkpoints' / str(step)
  (directory / name).write_text(text)
  if name == 'host.json':
    content = manifests.as_bytes(step, manifests.listing(directory, step))
    (directory / manifests.file_name(step)).write_bytes(content)


@pytest.mark.parametrize('name', ['host.json', 'manifest-2.json'])
@pytest.mark.parametrize(
  'text',
  ['', '[' * 200_000, '[]', '{}', 'null', '{"format": 1, "files": []}'],
)
def test_damaged_json_leads_to_the_step_before(tmp_path, name, text, caplog):
  fill(tmp_path, {1: 0, 2: 0})
  damage(tmp_path, 2, name, text)
  assert restore(tmp_path).step == 1
  assert 'checkpoint' in caplog.text and '2 skipped: ' in caplog.text


@pytest.mark.parametrize('key', ['task_cursor', 'quarantine', 'retrieval'])
def test_a_host_record_that_lacks_a_part_leads_to_the_step_before(tmp_path, key):
  fill(tmp_path, {1: 0, 2: 0})
  for step in (2, 1):
    file = tmp_path / 'checkpoints' / str(step) / 'host.json'
    record = json.loads(file.read_text())
    del record['host'][key]
    damage(tmp_path, step, 'host.json', json.dumps(record))
    if step == 2:
      assert restore(tmp_path).step == 1
  with pytest.raises(CheckpointError, match=key):
    restore(tmp_path)


def test_a_checkpoint_needs_its_lines_on_disk(tmp_path):
  store = fill(tmp_path, {1: 0})

  def refused():
    raise files.DiskError(28, 'No space left', str(tmp_path / 'metrics.jsonl'))

  for _ in range(2):
    assert recovery.save(store, 2, state(2), refused, tmp_path) is False
  with pytest.raises(SaveError, match=r'metrics\.jsonl') as caught:
    recovery.save(store, 2, state(2), refused, tmp_path)
  assert caught.value.exit_code == 74 and store.failed_saves == 3
  assert restore(tmp_path).step == 1


@pytest.mark.parametrize('text', ['', '{}', '[[[', '{"success_rate": 0.75}'])
def test_a_report_that_was_changed_is_refused(tmp_path, text):
  path = tmp_path / 'eval' / '000004.json'
  ledger.write_report(tmp_path, path.name, {'success_rate': 0.25, 'step': 4})
  assert ledger.read_report(tmp_path, path.name) == {'success_rate': 0.25, 'step': 4}
  path.write_text(text)
  for check in (
    lambda: restore(tmp_path),
    lambda: ledger.read_report(tmp_path, path.name),
  ):
    with pytest.raises(files.FileError) as caught:
      check()
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
  path.unlink()
  said = []
  assert restore(tmp_path, said=said) is None
  assert said == [f'{path} is gone: goes on without it']


@pytest.mark.parametrize('text', ['', '[]', '{"schema": 9}', '{"schema": 1}'])
def test_a_damaged_ledger_is_named(tmp_path, text):
  (tmp_path / ledger.NAME).write_text(text)
  with pytest.raises(files.FileError, match=r'ledger\.json'):
    restore(tmp_path)
