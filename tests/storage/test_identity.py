"""What a run was started with: every input is compared, and nothing else is."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import pytest

from experiments import alfworld
from sdar_jax import numerics, parts, train
from sdar_jax.methods import table
from sdar_jax.process.team import ALONE
from sdar_jax.storage import identity

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def config(tmp_path):
  """The small experiment with a model of its own to change."""
  folder = shutil.copytree(ROOT / 'experiments/tiny/alfworld', tmp_path / 'model')
  c = alfworld.get_config('model=tiny')
  c.model.path = c.model.tokenizer = str(folder)
  c.skills.path = str(folder / 'skills.json')
  return c


def start(config, saved=None):
  """A run without a device; it goes on from `saved`."""
  run = object.__new__(train.Run)
  run.cursor, run.state, run.team = 0, None, ALONE
  run.memory, run.writer = {}, types.SimpleNamespace(digests=dict)
  run.console = types.SimpleNamespace(line=print)
  run.evaluator = types.SimpleNamespace(sort=lambda: None)
  state = types.SimpleNamespace(skipped_in_a_row=0)
  restored = types.SimpleNamespace(host=saved, step=2, state=state)
  host = parts.host_parts(config)
  run.parts = types.SimpleNamespace(
    **vars(host),
    directory=pathlib.Path('runs/x'),
    inputs=parts.inputs_of(host, 'c'),
    store=types.SimpleNamespace(restore=lambda *like: saved and restored),
  )
  return run


def _edit(path, change):
  record = json.loads(path.read_text())
  change(record)
  path.write_text(json.dumps(record))


def _swap_two_words(record):
  vocab = record['model']['vocab']
  a, b = [word for word in vocab if len(word) > 6][:2]
  vocab[a], vocab[b] = vocab[b], vocab[a]


def _flip_a_bit(folder):
  data = bytearray((folder / 'model.safetensors').read_bytes())
  data[-2] ^= 1
  (folder / 'model.safetensors').write_bytes(data)


CHANGES = {
  'skills': (
    'skills_digest',
    lambda f: _edit(f / 'skills.json', lambda r: r.update(heading='Advice:')),
  ),
  'words': (
    'tokenizer_digest',
    lambda f: _edit(f / 'tokenizer.json', _swap_two_words),
  ),
  'template': (
    'tokenizer_digest',
    lambda f: _edit(
      f / 'tokenizer_config.json',
      lambda r: r.update(chat_template=r['chat_template'].replace('assistant', 'me')),
    ),
  ),
  'end': (
    'tokenizer_digest',
    lambda f: _edit(
      f / 'generation_config.json', lambda r: r['eos_token_id'].append(887)
    ),
  ),
  'weights': ('model_digest', _flip_a_bit),
  'rope': (
    'model_digest',
    lambda f: _edit(f / 'config.json', lambda r: r['rope_parameters'].update(
      rope_theta=9999.0)),
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', CHANGES)
def test_another_input_is_refused_by_name(config, name):
  saved = json.loads(json.dumps(start(config)._host()))
  assert set(identity.INPUTS) - {'teacher_digest'} <= set(saved)
  saved['quarantine'] = ()
  key, change = CHANGES[name]
  change(pathlib.Path(config.model.path))
  with pytest.raises(identity.InputError, match=key) as caught:
    start(config, saved)._restore()
  message = str(caught.value)
  assert identity.INPUTS[key].name in message and saved[key] in message
  assert '\n' not in message and 'runs/x' in message


def test_what_decides_no_number_may_change(config):
  saved = start(config)._host()
  folder = pathlib.Path(config.model.path)
  for name in ('.DS_Store', 'README.md', 'LICENSE'):
    (folder / name).write_text('edited')
  _edit(folder / 'config.json', lambda r: r.update(transformers_version='9'))
  _edit(folder / 'tokenizer_config.json', lambda r: r.update(model_max_length=1))
  moved = folder.rename(folder.with_name('moved'))
  config.model.path = config.model.tokenizer = str(moved)
  config.skills.path = str(moved / 'skills.json')
  assert start(config, saved)._restore()


def test_a_checkpoint_that_does_not_say_is_refused(config):
  saved = start(config)._host()
  del saved['tokenizer_digest']
  with pytest.raises(identity.InputError, match='has no tokenizer_digest'):
    start(config, saved)._restore()


def test_run_json_has_every_input(config, tmp_path):
  run = start(config)
  run.parts.directory = tmp_path
  run.identify()
  record = json.loads((tmp_path / 'run.json').read_text())
  assert {key: record[key] for key in run.parts.inputs} == run.parts.inputs
  assert set(identity.INPUTS) - set(run.parts.inputs) == {'teacher_digest'}


def test_a_given_teacher_is_an_input(config, tmp_path):
  teacher = shutil.copytree(config.model.path, tmp_path / 'teacher')
  changes = table.find('retire-opd').all_settings
  config.update_from_flattened_dict({**changes, 'algorithm.name': 'retire-opd'})
  config.model.teacher = str(teacher)
  saved = json.loads(json.dumps(start(config)._host()))
  saved['quarantine'] = ()
  assert start(config, saved)._restore()
  _flip_a_bit(teacher)
  with pytest.raises(identity.InputError, match='the given teacher') as caught:
    start(config, saved)._restore()
  assert saved['teacher_digest'] in str(caught.value)


def test_settings_of_jax_are_pinned_or_recorded(monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  numerics.pin()
  want = jax.random.bits(jax.random.key(0), (4,)).tolist()
  usual = numerics.describe()
  jax.config.update('jax_threefry_partitionable', False)
  jax.config.update('jax_default_prng_impl', 'rbg')
  assert numerics.describe() != usual
  numerics.pin()
  assert jax.random.bits(jax.random.key(0), (4,)).tolist() == want
  assert numerics.describe() == usual
  with jax.default_matmul_precision('bfloat16'):
    assert numerics.describe() != usual
  monkeypatch.setenv('XLA_FLAGS', '--xla_force_host_platform_device_count=4')
  assert numerics.describe() == usual
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=true')
  assert usual in numerics.describe() != usual


@pytest.mark.slow
def test_the_environment_does_not_change_what_is_played(tmp_path):
  """JAX_THREEFRY_PARTITIONABLE once changed every sampled token."""
  command = [sys.executable, '-m', 'sdar_jax.main', '--mode=play']
  command += ['--config=experiments/alfworld.py:model=tiny']
  command += ['--config.eval.temperature=1.0']
  played = []
  for setting in ({}, {'JAX_THREEFRY_PARTITIONABLE': '0', 'JAX_ENABLE_X64': '1'}):
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **setting}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True)
    played.append(done.stdout)
  assert played[0] == played[1]
