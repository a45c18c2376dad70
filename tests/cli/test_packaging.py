"""What an installation holds and how it finds it, without making one."""

import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

import sdar_jax
from sdar_jax.cli import command_line
from sdar_jax.process import shipped

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())


def test_the_wheel_puts_experiments_where_they_are_looked_for():
  wheel = PROJECT['tool']['hatch']['build']['targets']['wheel']
  target = pathlib.Path('sdar_jax', shipped._INSTALLED.name, 'experiments')
  assert wheel['sources'] == {'experiments': target.as_posix()}
  assert 'experiments' in wheel['only-include']
  assert wheel['exclude'] == ['/experiments/results']


def test_there_is_one_version():
  assert PROJECT['project']['dynamic'] == ['version']
  assert PROJECT['tool']['hatch']['version']['path'] == 'sdar_jax/__init__.py'
  assert sdar_jax.__version__.count('.') == 2


@pytest.mark.parametrize(
  'name, extra',
  [
    ('tensorboardX', 'track'),
    ('wandb', 'track'),
    ('trackio', 'track'),
    ('matplotlib', 'plot'),
    ('faiss-cpu', 'dense'),
    ('textworld[pddl]', 'textworld'),
  ],
)
def test_the_extras_that_errors_name_bring_what_is_missing(name, extra):
  brought = PROJECT['project']['optional-dependencies'][extra]
  assert [need for need in brought if need.startswith(f'{name}>')]
  files = [*ROOT.glob('sdar_jax/**/*.py'), *ROOT.glob('benchmarks/*.py')]
  said = ''.join(file.read_text() for file in files)
  assert f"pip install 'sdar-jax[{extra}]'" in said
  # No other way of saying it, but for packages without what they depend on.
  assert not re.search(r'pip install (?!--no-deps )[^\s\'"]', said)


@pytest.mark.parametrize('name', PROJECT['project']['scripts'])
def test_console_scripts_say_the_version_from_anywhere(name, tmp_path):
  module, function = PROJECT['project']['scripts'][name].split(':')
  assert callable(getattr(importlib.import_module(module), function))
  code = f'import sys; from {module} import {function}; sys.exit({function}())'
  done = subprocess.run(
    [sys.executable, '-c', code, '--version'],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.stdout == f'sdar-jax {sdar_jax.__version__}\n', done.stderr


def test_experiments_of_the_package_are_found_from_an_empty_folder(
  tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  words = ['--config=experiments/webshop.py:model=tiny', '--mode=play']
  config = command_line.parse(words).config
  for path in (config.model.path, config.skills.path):
    assert shipped.find(path) == ROOT / path and not os.path.isabs(path)
  with pytest.raises(ValueError, match='no such file'):
    command_line.parse(['--config=experiments/nosuch.py', '--mode=play'])
  with pytest.raises(ValueError, match='no such file'):
    command_line.parse(['--config=tests/fakes.py', '--mode=play'])


def test_an_experiment_that_lies_here_is_meant(tmp_path, monkeypatch):
  """It may import those of the package, whose folder it shadows."""
  (tmp_path / 'experiments').mkdir()
  (tmp_path / 'experiments/webshop.py').write_text(
    'from experiments import search_qa\n\n\ndef get_config(argument):\n'
    '  c = search_qa.get_config(argument)\n  c.steps = 77\n  return c\n'
  )
  monkeypatch.chdir(tmp_path)
  words = ['--config=experiments/webshop.py:model=tiny', '--mode=play']
  config = command_line.parse(words).config
  assert (config.world.name, config.steps) == ('search_qa', 77)


def test_a_checkout_and_an_installation_have_each_their_root(tmp_path, monkeypatch):
  assert shipped.root() == ROOT
  there = tmp_path / '_shipped'
  (there / 'experiments').mkdir(parents=True)
  (there / 'experiments/mine.py').touch()
  monkeypatch.setattr(shipped, '_INSTALLED', there)
  assert shipped.root() == there
  name = pathlib.Path('experiments/mine.py')
  assert shipped.find(name) == shipped.find(str(name)) == there / name
  other = tmp_path / 'other'
  shutil.copytree(there, other)
  monkeypatch.setattr(sys, 'path', [*sys.path, str(other)])
  assert shipped.find(name) == other / name  # As `import experiments.mine` does.
  monkeypatch.chdir(there)
  assert shipped.find(name) == name  # The file that lies here.
  for path in ('elsewhere/mine.py', 'mine.py', str(tmp_path / 'experiments/mine.py')):
    assert shipped.find(pathlib.Path(path)) == pathlib.Path(path)
