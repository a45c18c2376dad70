"""A run's own configuration: read back, moved, of another version, overridden."""

import json
import pathlib
import shutil

import pytest

from experiments import alfworld, search_qa, webshop
from sdar_jax import config as config_lib
from sdar_jax.cli import command_line
from sdar_jax.storage import recorded
from sdar_jax.storage.workdir import Workdir, WorkdirError

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / 'experiments/tiny/alfworld'


def _run(path, config):
  with Workdir(path, config) as workdir:
    workdir.record()
  return path


def _changed(path, change):
  record = json.loads((path / 'config.json').read_text())
  change(record)
  (path / 'config.json').write_text(json.dumps(record))
  return path


@pytest.fixture
def run(tmp_path):
  return _run(tmp_path / 'runs/one', alfworld.get_config('model=tiny'))


@pytest.mark.parametrize(
  'config',
  [
    alfworld.get_config('model=tiny,algo=gigpo+sdar,seed=3'),
    alfworld.get_config('model=qwen2.5-3b,preset=paper'),
    search_qa.get_config('model=tiny'),
    webshop.get_config('model=tiny'),
  ],
)
def test_what_was_recorded_is_read(tmp_path, config):
  config.rollout.success_reward = 3.0
  config.algorithm.view_margin = 0.7  # Unlike its neighbours, of its own.
  read = recorded.read(_run(tmp_path / 'run', config))
  assert config_lib.digest(read) == config_lib.digest(config)
  assert isinstance(read.train.length_buckets, tuple)


def test_what_follows_another_key_still_does(run):
  read = recorded.read(run)
  read.rollout.success_reward = 30.0
  assert read.algorithm.invalid_penalty == pytest.approx(0.3)


def test_the_command_line_needs_no_config_beside_a_run(run):
  (run / 'checkpoints').mkdir()
  words = [f'--checkpoint={run}', '--config.eval.tasks=7', '--mode=eval']
  command = command_line.parse(words)
  assert command.config.eval.tasks == 7 and command.config.rollout.slots == 64
  assert command.checkpoint == run
  with pytest.raises(ValueError, match=r'did you mean --config\.eval\.tasks'):
    command_line.parse([f'--checkpoint={run}', '--config.eval.task=7', '--mode=eval'])
  for words in (['--workdir=x'], ['--mode=describe']):
    with pytest.raises(ValueError, match='--config is missing'):
      command_line.parse([f'--checkpoint={run}', *words])
  with pytest.raises(ValueError, match='no such directory of a run'):
    command_line.parse([f'--checkpoint={run}/none', '--mode=eval'])


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda r: r.pop('world.name'), 'not the configuration of a run'),
    (lambda r: r.update({'rollout.gone': 1}), 'this one has no config.rollout.gone;'),
    (lambda r: r.update({'world.name': 'mars'}), 'must be one of alfworld'),
    (lambda r: r.update({'world.name': 'a.b:C'}), "No module named 'a'"),
    (lambda r: r.update({'rollout.slots': 'many'}), "config.rollout.slots='many'"),
    (lambda r: r.update({'train.length_buckets': {}}), 'config.train.length_buckets'),
  ],
)
def test_another_version_is_one_line(run, change, says):
  with pytest.raises(ValueError) as error:
    recorded.read(_changed(run, change))
  text = str(error.value)
  assert says in text and str(run) in text and '--config' in text and '\n' not in text


@pytest.mark.parametrize('text', ['', '[1]', '{"a": NaN}', '{"seed": 1', '[' * 10**5])
def test_a_damaged_record_is_one_line(run, text):
  (run / 'config.json').write_text(text)
  with pytest.raises(WorkdirError, match=r'config\.json.*--config') as error:
    recorded.read(run)
  assert '\n' not in str(error.value)


def test_keys_that_an_earlier_version_lacked_are_said_to_take_the_default(run, caplog):
  def older(record):
    del record['log.token_rows'], record['eval.attempts']

  config = recorded.read(_changed(run, older))
  assert config.log.token_rows == 8
  assert 'config.eval.attempts, config.log.token_rows: at the default' in caplog.text


def test_relative_paths_are_found_from_where_the_run_began(tmp_path, monkeypatch):
  project = tmp_path / 'project'
  shutil.copytree(MODEL, project / 'models/mine')
  config = alfworld.get_config('model=tiny')
  config.model.path = 'models/mine'
  run = _run(project / 'runs/one', config)
  monkeypatch.chdir(tmp_path)
  words = [f'--checkpoint={run}', '--mode=play']
  assert command_line.parse(words).config.model.path == str(project / 'models/mine')
  monkeypatch.chdir(project)  # Where it began it keeps its name.
  assert command_line.parse(words).config.model.path == 'models/mine'
  moved = tmp_path / 'elsewhere/one'
  shutil.move(run, moved)
  monkeypatch.chdir(tmp_path)
  assert recorded.read(moved).model.path == 'models/mine'  # Perhaps the hub's.
  shipped = _run(tmp_path / 'two', alfworld.get_config('model=tiny'))
  assert recorded.read(shipped).model.path == 'experiments/tiny/alfworld'


def test_a_model_is_no_run(run):
  assert not recorded.is_run(MODEL)
  (run / 'checkpoints').mkdir()
  assert recorded.is_run(run)
