"""What a run says at its end: every command can be pasted into a shell."""

import io
import os
import pathlib
import shlex
import sys

import pytest

from sdar_jax.cli import command_line
from sdar_jax.logs import ending
from sdar_jax.look import view
from sdar_jax.storage import ledger

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILE = f'{ROOT}/experiments/alfworld.py:model=tiny'
MANY = [f'--config.{key}' for key in ('seed=7', 'eval.tasks=9', 'eval.attempts=2')]
CONFIG = (
  f'--config={FILE}',
  '--config.log.token_rows=3',
  *MANY,
  '--noconfig.train.shuffle_rows',
)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


def _run(name, *, saved, evaluated):
  directory = pathlib.Path(name)
  directory.mkdir()
  for name in ('eval', 'checkpoints', 'trajectories'):
    (directory / name).mkdir()
  (directory / 'metrics.jsonl').touch()
  if saved:
    ledger.note_checkpoint(directory, saved)
  if evaluated:
    ledger.write_report(directory, f'{evaluated:06d}.json', {})
  return directory


def _shown(words, workdir, steps):
  """What is written, and the words of each command as a shell reads them."""
  stream = io.StringIO()
  ending.show(words, workdir, steps, stream)
  text = stream.getvalue()
  for line in text.splitlines():
    assert len(line) <= 80 or FILE in line.split()[0]  # One word is as long.
  lines = text.replace('\\\n', '').splitlines()
  written = [line[2:] for line in lines if os.path.exists(line[2:])]
  commands = [shlex.split(line) for line in lines if ' -m sdar_jax.' in line]
  return written, [words[1:] for words in commands]


def _parsed(words):
  assert words[:2] == ['-m', 'sdar_jax.main']
  return command_line.parse(words[2:])


def test_a_run_that_is_done_goes_on_is_compared_and_exported():
  workdir = _run('run', saved=6, evaluated=6)
  words = [*CONFIG, '--config.steps=6', f'--workdir={workdir}']
  written, (more, compare, export) = _shown(words, workdir, 6)
  names = ('metrics.jsonl', 'trajectories/', 'eval/', 'checkpoints/')
  assert written == [f'{workdir}/{name}' for name in names]
  command = _parsed(more)
  assert (command.mode, command.workdir, command.config.steps) == ('train', workdir, 12)
  assert command.config.log.token_rows == 3 and not command.config.train.shuffle_rows
  assert compare == ['-m', 'sdar_jax.compare', str(workdir)]
  command = _parsed(export)
  assert (command.mode, command.checkpoint) == ('export', workdir)
  assert command.output == workdir / 'export-6'
  assert command.config.log.token_rows == 3 and not command.config.train.shuffle_rows


def test_a_run_that_was_stopped_goes_on_is_evaluated_and_exported():
  workdir = _run("it's a run", saved=4, evaluated=0)
  words = ['--config', FILE, '--config.steps', '6', '--workdir', str(workdir)]
  _, (more, evaluate, export) = _shown(words, workdir, 6)
  command = _parsed(more)
  assert (command.mode, command.workdir, command.config.steps) == ('train', workdir, 6)
  command = _parsed(evaluate)
  assert (command.mode, command.checkpoint) == ('eval', workdir)
  assert _parsed(export).output == workdir / 'export-4'


def test_a_run_without_a_checkpoint_can_only_go_on():
  workdir = _run('run', saved=0, evaluated=0)
  _, commands = _shown([*CONFIG, f'--workdir={workdir}'], workdir, 6)
  assert [_parsed(words).mode for words in commands] == ['train']


def test_a_run_with_episodes_can_be_looked_at():
  workdir = _run('run', saved=0, evaluated=0)
  (workdir / 'trajectories' / '000001.jsonl').touch()
  _, (_, look) = _shown([*CONFIG, f'--workdir={workdir}'], workdir, 6)
  assert look[:3] == ['-m', 'sdar_jax.main', 'view']
  options = view.arguments(look[3:])
  assert (str(options.run), options.html) == ('run', 'run/episodes.html')


@pytest.mark.parametrize('found', [None, '/usr/bin/python', sys.executable])
def test_the_interpreter_is_the_one_that_ran(monkeypatch, found):
  monkeypatch.setattr(ending.shutil, 'which', lambda name: found)
  workdir = _run('run', saved=0, evaluated=0)
  _, command = next(ending.commands(list(CONFIG), workdir, 6))
  expected = 'python' if found == sys.executable else sys.executable
  assert command[0] in (expected, os.path.relpath(expected))
