"""A wrong command line is one line that says what to write; no word is ignored."""

import collections
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from experiments import foreign
from experiments.tiny import build
from sdar_jax import compare, files, hub, main
from sdar_jax import config as config_lib
from sdar_jax.cli import command_line, describe, tools
from sdar_jax.envs import worlds
from sdar_jax.process import terminal
from sdar_jax.process.flags import Parser, UsageError

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = '--config=experiments/alfworld.py:model=tiny'
PLAY = [CONFIG, '--mode=play']


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
  monkeypatch.chdir(ROOT)


def _error(*words: str) -> str:
  with pytest.raises(ValueError) as caught:
    command_line.parse(words)
  text = str(caught.value)
  assert '\n' not in text and len(text) < 800
  return text


def test_a_right_command_line():
  command = command_line.parse(
    [*PLAY, '--config.steps', '7', '--noconfig.model.enable_thinking']
  )
  assert (command.mode, command.config.steps, command.workdir) == ('play', 7, None)
  assert command.config.train.length_buckets == (48, 56, 64, 80, 128, 184)


@pytest.mark.parametrize(
  'word, right',
  [
    ('config.seed=7', 'write --config.seed=7'),
    ('seed=7', 'write --config.seed=7'),
    ('+rollout.group_size=4', 'write --config.rollout.group_size=4'),
    ('mode=eval', 'write --mode=eval'),
    ('nonsense', 'nonsense: no flags'),
    ('--rollout.group_size=4', 'did you mean --config.rollout.group_size?'),
    ('--config.rollout.group_sise=4', 'did you mean --config.rollout.group_size?'),
    ('--chekpoint=x', 'did you mean --checkpoint?'),
    ('-workdir=x', 'did you mean --workdir?'),
    ('--undefok=stepz', '--undefok=stepz: no such flag'),
    ('--flagfile=x', '--flagfile=x: no such flag'),
    ('--config.rollout=4', 'is a section'),
    ('--mode=play', '--mode is given 2 times'),
    ('--checkpoint=', '--checkpoint is empty'),
    ('--output=x', '--output: --mode=play does not read it'),
    ('--config.steps=', '--config.steps=: must be a whole number'),
    ('--config.steps=1e3', '--config.steps=1e3: must be a whole number'),
    ('--config.model.enable_thinking=maybe', 'must be true or false'),
    ('--config.train.length_buckets=(1,"a")', 'config.train.length_buckets='),
    ('--config.train.length_buckets=(1,', 'must be a tuple'),
    ('--config.model.path=', 'config.model.path'),
    ('--config.world.name=elsewhere', 'must be one of alfworld'),
    ('--config.world.name=webshop', 'settings are others'),
    ('--config.world.name=json:dumps', 'config.world.name'),
  ],
)
def test_no_word_is_ignored(word, right):
  assert right in _error(*PLAY, word)


def test_a_key_is_given_once_however_it_is_spelled():
  assert 'config.model.enable_thinking is given 2 times' in _error(
    *PLAY, '--config.model.enable_thinking=true', '--noconfig.model.enable_thinking'
  )
  assert 'config.seed is given 2' in _error(
    *PLAY, '-config.seed', '1', '--config.seed=1'
  )


def test_flags_that_a_mode_needs():
  assert '--workdir is missing' in _error(CONFIG)
  assert '--output is missing' in _error(CONFIG, '--mode=export')
  assert '--config=experiments/webshop.py' in _error('experiments/webshop.py')
  assert '--checkpoint' not in _error('--workdir=x')
  assert _error('--mode=play').endswith(', or --checkpoint=RUN')


@pytest.mark.parametrize(
  'text, argument, says',
  [
    ('def get_config(:', '', 'line 1: SyntaxError'),
    ('x = 1', '', 'has no function get_config'),
    ('get_config = 3', '', 'has no function get_config'),
    ('def get_config(): pass', '', 'get_config() returns NoneType'),
    ('def get_config():\n  return 1 / 0', '', 'line 2: ZeroDivisionError'),
    ('def get_config(): return {}', ':small', 'takes no argument'),
    ('def get_config(size): return {}', '', 'needs an argument'),
    ('import nowhere', '', "ModuleNotFoundError: No module named 'nowhere'"),
    ('raise SystemExit(3)', '', 'SystemExit: 3'),
    ('\0', '', 'SyntaxError'),
    ('def get_config():\n  return get_config()', '', 'RecursionError'),
  ],
)
def test_wrong_config_files(tmp_path, text, argument, says):
  path = tmp_path / 'mine.py'
  path.write_text(text)
  error = _error(f'--config={path}{argument}', '--mode=play')
  assert says in error and str(path) in error


def test_config_paths_that_are_no_python_file(tmp_path):
  (tmp_path / 'a.json').write_text('{}')
  assert 'is a directory' in _error(f'--config={tmp_path}', '--mode=play')
  assert 'no such file' in _error(f'--config={tmp_path}/b.py', '--mode=play')
  assert 'named .py' in _error(f'--config={tmp_path}/a.json', '--mode=play')
  assert 'remote' in _error('--config=gs://bucket/a.py', '--mode=play')


@pytest.mark.parametrize(
  'words',
  [
    ['--workdir=gs://bucket/run'],
    ['--mode=eval', '--checkpoint=gs://bucket/run'],
    ['--mode=eval', '--output=s3://bucket/a.json'],
    ['--mode=play', '--config.model.path=gs://bucket/model'],
    ['--mode=play', '--config.model.tokenizer=gs:/bucket/model'],
    ['--mode=play', '--config.skills.path=https://host/skills.json'],
    ['--mode=play', '--config.world.data_dir=gs://bucket/data'],
    ['--mode=play', '--config.model.path=~nobody-of-this-name/model'],
  ],
)
def test_remote_paths_are_refused_in_every_flag_and_key(words):
  key = words[-1].partition('=')[0].lstrip('-')
  assert key in _error(CONFIG, *words)


def test_the_home_directory_is_meant_in_every_flag_and_key(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'model').mkdir()
  (tmp_path / 'run').mkdir()
  (tmp_path / 'skills.json').write_text('{}')
  (tmp_path / 'mine.py').write_text(
    f'import sys\nsys.path.append({str(ROOT)!r})\nfrom experiments import alfworld\n'
    'get_config = alfworld.get_config'
  )
  command = command_line.parse(
    [
      *('--config=~/mine.py:model=tiny', '--mode=eval', '--checkpoint=~/run'),
      *('--output=~/a.json', '--config.model.path=~/model'),
      *('--config.model.tokenizer=~/model', '--config.skills.path=~/skills.json'),
      '--config.world.data_dir=~/data',
    ]
  )
  c = command.config
  assert command.checkpoint == tmp_path / 'run'
  assert command.output == tmp_path / 'a.json'
  assert c.model.path == c.model.tokenizer == str(tmp_path / 'model')
  assert c.skills.path == str(tmp_path / 'skills.json')
  assert c.world.data_dir == str(tmp_path / 'data')


def test_small_models_are_found_from_anywhere(tmp_path, monkeypatch):
  inside = command_line.parse(PLAY).config
  monkeypatch.chdir(tmp_path)
  outside = command_line.parse(
    [f'--config={ROOT}/experiments/alfworld.py:model=tiny', '--mode=play']
  ).config
  assert outside.model.path == 'experiments/tiny/alfworld'
  assert config_lib.digest(outside) == config_lib.digest(inside)
  found = hub.folder(outside.model.path, hub.MODEL_FILES)
  assert found == ROOT / 'experiments/tiny/alfworld'


def test_where_a_result_goes_is_checked_first(tmp_path):
  file = tmp_path / 'file'
  file.write_text('')
  evaluate, export = [CONFIG, '--mode=eval'], [CONFIG, '--mode=export']
  assert 'is a directory' in _error(*evaluate, f'--output={tmp_path}')
  assert 'is no directory' in _error(*evaluate, f'--output={file}/a.json')
  assert 'is no directory' in _error(*export, f'--output={file}')
  assert 'cannot be written' in _error(*export, '--output=/proc/nowhere/model')
  assert 'cannot be written' in _error(*evaluate, f'--output={"a" * 300}/a.json')
  assert 'is no directory' in _error(CONFIG, f'--workdir={file}')
  assert 'no such directory' in _error(*evaluate, f'--checkpoint={tmp_path}/none')
  (tmp_path / 'config.json').write_text('{}')
  assert 'holds a model already' in _error(*export, f'--output={tmp_path}')
  command = command_line.parse([*evaluate, f'--output={tmp_path}/new/dir/a.json'])
  assert not command.output.parent.exists()  # Nothing is left of the check.
  assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json', 'file']


def test_other_programs_read_flags_alike(tmp_path, capsys):
  parser = Parser('program', 'Does something.')
  parser.add_argument('--baseline')
  parser.add_argument('runs', nargs='*')
  for words, says in (
    (['--base=x'], 'no such flag; did you mean --baseline?'),
    (['--baseline=x', '--baseline', 'y'], 'given 2 times'),
    (['--baseline='], '--baseline is empty'),
    (['a', ''], '--runs is empty'),
    (['baseline=x'], 'write --baseline=x'),
    (['a', '--config.seed=1'], '--config.seed=1: no such flag'),
  ):
    with pytest.raises(UsageError, match=says.replace('?', r'\?')):
      parser.parse_all(words)
  for program, *words in (
    (compare, 'gs://bucket/run'),
    (compare, str(tmp_path), '--output=gs://b/c'),
    (compare, '--steps=3'),
    (foreign, '--output=gs://b/c'),
    (build, '--output=gs://b/c'),
  ):
    assert program.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1


def test_describe_names_every_key_with_its_meaning():
  config = command_line.parse([CONFIG, '--mode=describe', '--config.seed=3']).config
  lines = describe.table(config).splitlines()[1:]
  names = [line[2:].partition(' = ')[0] for line in lines[::2]]
  assert names == list(config_lib.flatten(config))
  assert all(meaning.strip() for meaning in lines[1::2])
  assert '* seed = 3' in lines and '  algorithm.clip_low = 0.2' in lines
  turns = lines[lines.index('* world.max_turns = 12') + 1].strip()
  assert turns.startswith('turns per episode') and turns.endswith('; ref: 50')
  assert describe.keys('alfworld')['world.train_tasks'].allowed == '[1, 10000000]'


def test_the_reference_has_every_key_of_every_world_once():
  text = describe.markdown()
  rows = [line for line in text.splitlines() if line.startswith('| `')]
  cells = [re.split(r'(?<!\\)\|', row)[1:-1] for row in rows]
  assert {len(row) for row in cells} == {5}
  assert all(row[3].strip() for row in cells)
  named = collections.Counter(row[0].strip(' `') for row in cells)
  wanted = set()
  for world in worlds.WORLDS:
    wanted |= config_lib.flatten(config_lib.default(world)).keys()
  settings = [worlds.settings(world) for world in worlds.WORLDS]
  shared = collections.Counter(f'world.{key}' for own in settings for key in own)
  for key, count in named.items():
    once = len(worlds.WORLDS) if key == 'world.name' else shared.get(key, 1)
    assert count == once, key
  assert set(named) == wanted
  nouns = next(row[3] for row in cells if row[0] == ' `world.noun_source` ')
  assert nouns.strip().startswith('of the reward')  # Not what the attribute is.
  assert any('a search then needs a query and a' in row for row in rows)
  row = next(row for row in rows if row.startswith('| `optimizer.b1`'))
  assert "`0.9` | [0, 0.99999] | decay of Adam's first moment" in row


def test_exit_codes_and_tracebacks(capsys, monkeypatch):
  assert main.main([CONFIG]) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: --workdir is missing') and error.count('\n') == 1
  monkeypatch.setenv('SDAR_TRACEBACK', '1')
  with pytest.raises(UsageError):
    main.main([CONFIG])


def _python(code, *, shell='{}', **environment):
  """Runs Python code that may use `terminal` in a process of its own."""
  command = shell.format(f'{sys.executable} -c "$CODE"')
  return subprocess.run(
    ['bash', '-c', command],
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'CODE': code, **environment},
    capture_output=True,
    timeout=600,
  )


_RUN = """
import os, signal, sys
from sdar_jax.process import terminal
def main(argv):
  {}
  return 0
terminal.run(main)
"""


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'utf-8'])
def test_terminals_that_lack_characters(encoding):
  done = _python(_RUN.format(r"print('a\u2026\udc80b')"), PYTHONIOENCODING=encoding)
  dots = '…' if encoding == 'utf-8' else r'\u2026'
  assert (done.returncode, done.stderr) == (0, b'')
  assert done.stdout.decode(encoding) == f'a{dots}\\udc80b\n'


def test_readers_that_go_away_and_closed_streams():
  code = _RUN.format("[print('x' * 9999, flush=True) for _ in range(99)]; open(3, 'w')")
  done = _python(code, shell='({} 3>&1 1>&4 | head -c 1) 4>&1; echo ${{PIPESTATUS[0]}}')
  assert b'Traceback' not in done.stderr
  code = _RUN.format("[print('x' * 9999, flush=True) for _ in range(99)]")
  done = _python(code, shell='set -o pipefail; {} | head -c 1')
  assert (done.returncode, done.stdout, done.stderr) == (0, b'x', b'')
  done = _python(code, shell='{} >&- 2>&-')
  assert done.returncode == 0


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_one_line_and_waits_for_what_is_being_written(number):
  code = _RUN.format(f'os.kill(os.getpid(), {int(number)}); print("on")')
  done = _python(code)
  assert done.returncode == 128 + number and not done.stdout
  assert done.stderr == f'stopped by {number.name}: nothing was written\n'.encode()
  code = _RUN.format(
    f'with terminal.uninterrupted(): os.kill(os.getpid(), {int(number)})'
    '\n  print("whole")'
  )
  assert _python(code).stdout == b'whole\n'


def test_checks_of_places_leave_nothing(tmp_path):
  files.check_directory(tmp_path / 'a/b', '--x')
  files.check_file(tmp_path / 'a/b', '--x')
  assert list(tmp_path.iterdir()) == []
  assert not isinstance(terminal.Stopped(15), Exception)


@pytest.mark.parametrize('name', tools.TOOLS)
def test_a_word_is_a_tool_with_flags_of_its_own(name, capsys):
  assert main.main([name, 'x', '--nonsense=1']) == 2
  assert re.fullmatch('error: .+\n', capsys.readouterr().err)
  with pytest.raises(SystemExit) as ended:
    main.main([name, '--help'])
  assert not ended.value.code and name in capsys.readouterr().out
