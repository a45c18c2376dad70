"""The notebooks: what their generator writes, and what their cells do when they run."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import micro_run
import pytest
import quick

from experiments.notebooks import build, device
from sdar_jax.cli import command_line

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMOS = ('tpu_demo', 'gpu_demo')
# What the cell of parameters says here instead: minutes of a chip become seconds of a
# CPU, by shapes of which there is one each.
SMALL = """
MODEL, STEPS, WORLDS = 'tiny', 1, {worlds!r}
FLAGS = (
  *('--config.rollout.tasks_per_step=2', '--config.rollout.group_size=4'),
  *('--config.rollout.slots=16', '--config.world.max_turns=3'),
  *('--config.rollout.max_prompt_tokens=128', '--config.skills.token_budget=24'),
  *('--config.rollout.max_response_tokens=8', '--config.rollout.prefill_chunk=32'),
  *('--config.train.length_buckets=(136,)', '--config.train.teacher_buckets=(160,)'),
  *('--config.train.minibatch_rows=16', '--config.train.microbatch_rows=16'),
  *('--config.eval.tasks=4', '--config.eval.every=0'),
  '--config.model.path={model}',
)
SOURCE = EXTRAS = ''
PLATFORM, GIB, ENVIRONMENT = 'cpu', 0, {{'JAX_PLATFORMS': 'cpu'}}
"""
# Of the two that need no accelerator.
LITTLE = """
STEPS, TASKS, SEEDS, WORKDIR, RUNS = 1, 4, (0,), 'runs/notebook', 'runs/lab'
KEYS = {{
  **{{'rollout.tasks_per_step': 2, 'rollout.group_size': 4, 'rollout.slots': 16}},
  **{{'rollout.max_prompt_tokens': 128, 'rollout.max_response_tokens': 8}},
  **{{'rollout.prefill_chunk': 32, 'skills.token_budget': 24, 'world.max_turns': 3}},
  **{{'train.minibatch_rows': 16, 'train.microbatch_rows': 16}},
  **{{'train.length_buckets': (136,), 'train.teacher_buckets': (160,)}},
  'model.path': {model!r},
}}
"""
# Runs the cells of a notebook in order, as Jupyter would, with what they use of it.
# The first argument is the notebook, the second what replaces its parameters.
RUNNER = """
import json, sys, types
def show(value):
  begins = value.data[:40]
  if value.filename:
    with open(value.filename, 'rb') as file:
      begins = file.read(4)
  print('displayed', value.kind, value.filename, begins)
class Shown:
  def __init__(self, data='', filename=''):
    self.data, self.filename, self.kind = data, filename, type(self).__name__
class HTML(Shown): pass
class Image(Shown): pass
module = types.ModuleType('IPython.display')
module.HTML, module.Image, module.display = HTML, Image, show
module.get_ipython, module.version_info = lambda: None, (9, 0)
sys.modules['IPython'] = module
sys.modules['IPython.display'] = module
names = {'__name__': '__main__'}
cells = json.load(open(sys.argv[1], encoding='utf-8'))['cells']
sources = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
for source in [sys.argv[2], *sources[1:]]:
  exec(source, names)
"""


def notebook(name):
  path = ROOT / 'experiments' / 'notebooks' / f'{name}.ipynb'
  return json.loads(path.read_text(encoding='utf-8'))


def source(name, kind):
  cells = [cell for cell in notebook(name)['cells'] if cell['cell_type'] == kind]
  return [''.join(cell['source']) for cell in cells]


def play(name, folder, parameters):
  """Runs a notebook's cells in a process of their own, on a copy of what it needs."""
  for part in ('sdar_jax', 'experiments', 'pyproject.toml'):
    (folder / part).symlink_to(ROOT / part)
  (folder / 'start').mkdir()  # As Jupyter does, it begins in a folder below.
  path = folder / 'experiments' / 'notebooks' / f'{name}.ipynb'
  # Programs that run for seconds are compiled fast instead of well.
  fast = {
    'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
    'XLA_FLAGS': quick.FLAGS,
  }
  done = subprocess.run(
    [sys.executable, '-c', RUNNER, str(path), parameters],
    cwd=folder / 'start',
    env={**os.environ, 'PYTHONPATH': str(folder), **fast},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
  return done.stdout


def check_run(said, folder, world):
  """The memory, the steps, the curve and the episode of a world."""
  curve = f'displayed Image runs/{world}-curve/curves.png {bytes([0x89]) + b"PNG"}'
  assert curve in said and 'displayed HTML  <iframe srcdoc="&lt;!doctype html' in said
  page = (folder / 'runs' / f'{world}.html').read_text()
  record = folder / 'runs' / world / 'trajectories' / '000001.jsonl'
  episodes = [json.loads(line) for line in record.read_text().splitlines()]
  assert len(episodes) == 8
  # Every token of all of them is on the page.
  found = re.findall(r'<script type="application/json" id="e\d+">(.*?)</script>', page)
  told = [json.loads(block)['turns'] for block in found]
  texts = lambda turns: [turn['tokens']['texts'] for turn in turns]
  wanted = [[t['tokens']['token_texts'] for t in e['turns']] for e in episodes]
  assert sorted(map(texts, told)) == sorted(wanted)


def small(folder, *worlds):
  """The parameters of a notebook for a device, here."""
  return SMALL.format(worlds=worlds, model=micro_run.write_model(folder / 'model'))


@pytest.mark.parametrize('name', build.NOTEBOOKS)
def test_the_files_are_what_the_generator_writes(name):
  (path,) = [path for path in build.contents() if path.stem == name]
  assert path.read_text() == build.contents()[path], (
    'python -m experiments.notebooks.build'
  )


@pytest.mark.parametrize('name', build.NOTEBOOKS)
def test_files_are_valid_and_hold_no_output(name):
  """By the keys that format 4.4 asks for, and by nbformat where it is installed."""
  made = notebook(name)
  assert set(made) == {'cells', 'metadata', 'nbformat', 'nbformat_minor'}
  assert (made['nbformat'], made['nbformat_minor']) == (4, 4)
  device = {'accelerator', 'colab'} if name in DEMOS else set()
  assert set(made['metadata']) == device | {
    'kernelspec',
    'language_info',
  }
  for cell in made['cells']:
    assert cell['metadata'] == {} and ''.join(cell['source']).strip()
    assert all(line.endswith('\n') for line in cell['source'][:-1])
    rest = {k: v for k, v in cell.items() if k not in ('metadata', 'source')}
    code = {'cell_type': 'code', 'execution_count': None, 'outputs': []}
    assert rest in ({'cell_type': 'markdown'}, code)
  try:
    import nbformat
  except ImportError:
    return
  nbformat.validate(made)


def test_the_notebooks_differ_in_what_names_the_device_only():
  tpu, gpu = ([*map(str, build.cells(name))] for name in DEMOS)
  assert len(tpu) == len(gpu)
  assert [i for i, pair in enumerate(zip(tpu, gpu)) if pair[0] != pair[1]] == [0, 2]


@pytest.mark.parametrize('name', DEMOS)
def test_links_and_commands_of_the_text_are_good(name, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  text = '\n'.join(source(name, 'markdown'))
  for target in re.findall(r'\]\(([^)\s]+)\)', text):
    assert (ROOT / 'experiments' / 'notebooks' / target).resolve().is_file(), target
  (block,) = re.findall(r'^```\n(.*?)^```$', text, re.M | re.S)
  commands = [
    shlex.split(line, comments=True) for line in block.replace('\\\n', ' ').splitlines()
  ]
  ours = [words[3:] for words in commands if words[1:3] == ['-m', 'sdar_jax.main']]
  placed = lambda word: re.sub(r'=(runs/[\w-]+|exported)$', f'={tmp_path}', word)
  parsed = [command_line.parse([*map(placed, words)]) for words in ours]
  assert [command.config.steps for command in parsed] == [40, 20, 20, 20]


def test_a_device_of_another_kind_or_size_is_one_line(capsys):
  chip = SimpleNamespace(
    platform='tpu',
    device_kind='TPU v5 lite',
    memory_stats=lambda: {'bytes_limit': 2**34},
  )
  device.check([chip], 'tpu', 16)
  with pytest.raises(ValueError, match=r'TPU v5 lite \(tpu\) with 16.0 GiB.*17 GiB'):
    device.check([chip], 'tpu', 17)
  with pytest.raises(ValueError, match='this notebook wants gpu with 13 GiB'):
    device.check([chip], 'gpu', 13)
  assert device.main(['--platform=cpu']) == 0
  assert 'cpu' in capsys.readouterr().out
  assert device.main(['--platform=tpu', '--gib=15']) == 2
  assert capsys.readouterr().err.count('\n') == 1


def test_the_tpu_notebook_runs(tmp_path):
  said = play('tpu_demo', tmp_path, small(tmp_path, 'alfworld'))
  assert 'step 1/1' in said and re.search(r'^together +\d', said, re.M)
  check_run(said, tmp_path, 'alfworld')


@pytest.mark.slow
def test_the_gpu_notebook_runs(tmp_path):
  said = play('gpu_demo', tmp_path, small(tmp_path, 'webshop', 'alfworld'))
  for world in ('webshop', 'alfworld'):
    check_run(said, tmp_path, world)


def test_a_command_that_fails_ends_its_cell_and_a_loaded_jax_the_first(
  capfd, monkeypatch
):
  (cell,) = [text for text in source('tpu_demo', 'code') if 'def run(' in text]
  monkeypatch.setitem(sys.modules, 'jax', SimpleNamespace())
  names = {}
  with pytest.raises(RuntimeError, match='restart the runtime'):
    exec(cell, names)  # Its functions come first.
  names['run'](sys.executable, '-c', 'print("fine")')
  with pytest.raises(RuntimeError, match='ended with code 3'):
    names['run'](sys.executable, '-c', 'import sys; print("wrong"); sys.exit(3)')
  assert re.findall('^(fine|wrong)$', capfd.readouterr().out, re.M) == ['fine', 'wrong']


def test_the_quickstart_finds_what_it_has_just_installed(monkeypatch):
  (cell,) = [text for text in source('quickstart', 'code') if 'find_spec' in text]
  asked = []
  monkeypatch.chdir(ROOT / 'experiments' / 'notebooks')
  monkeypatch.setattr(subprocess, 'run', lambda words, check: asked.append(words))
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(sys, 'path', ['elsewhere'])
  exec(cell, {})
  assert [words[-1] for words in asked] == [f'{ROOT}[plot]']
  assert sys.path == [str(ROOT), 'elsewhere']


def test_the_quickstart_runs(tmp_path):
  pytest.importorskip('matplotlib')
  model = micro_run.write_model(tmp_path / 'model')
  said = play('quickstart', tmp_path, LITTLE.format(model=str(model)))
  assert 'step 1/1' in said and 'displayed HTML' in said
  assert (tmp_path / 'start' / 'runs' / 'notebook' / 'episodes.html').is_file()
  assert len(re.findall(r'\(-[0-9.]+ nats\)$', said, re.M)) == 3


def test_the_lab_trains_with_its_own_gate(tmp_path):
  model = micro_run.write_model(tmp_path / 'model', scale=1)
  said = play('method_lab', tmp_path, LITTLE.format(model=str(model)))
  shut = re.findall(
    r'^(sdar.*?) +seed 0: open .*, shut (\d+)%; \d of 4 solved$', said, re.M
  )
  assert [name for name, _ in shut] == ['sdar', 'sdar, unsure']
  assert int(shut[1][1]) > int(shut[0][1])  # It is 0 wherever the student is sure.
