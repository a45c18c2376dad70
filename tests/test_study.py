"""Studies with a stand-in for training: what runs, what is skipped, what survives."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from experiments import study
from sdar_jax.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Leaves what training leaves; counts its calls; does what its last word says.
FAKE = """
import json, pathlib, signal, sys, time
workdir, digest, steps, how = sys.argv[1:]
workdir = pathlib.Path(workdir)
(workdir / 'eval').mkdir(parents=True, exist_ok=True)
calls = workdir / 'calls'
calls.write_text(calls.read_text() + 'x' if calls.exists() else 'x')
(workdir / 'run.json').write_text(json.dumps({'config_digest': digest}))
(workdir / 'began').write_text(str(time.monotonic()))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
if how == 'crash' or (how == 'crash once' and calls.read_text() == 'x'):
  sys.exit('it broke')
time.sleep(60 if how == 'hang' else 0.3)
(workdir / 'eval' / f'{int(steps):06d}.json').write_text('{}')
(workdir / 'ended').write_text(str(time.monotonic()))
"""


def cells(tmp_path, *how, methods=('grpo', 'sdar')):
  fake = tmp_path / 'fake.py'
  fake.write_text(FAKE)
  made = study.make_cells(_study(methods), tmp_path / 'out')
  for cell, behaviour in zip(made, how, strict=True):
    digest = Workdir(cell.workdir, cell.config).digest
    cell.command = [
      sys.executable,
      str(fake),
      str(cell.workdir),
      digest,
      '1',
      behaviour,
    ]
  return made


def _study(methods=('grpo', 'sdar'), seeds=(0, 1), **changes):
  c = study.load('small')
  c.methods, c.seeds = methods, seeds
  with c.overrides.unlocked():
    c.overrides.steps = 1
  for key, value in changes.items():
    c[key] = value
  return c


def run(made, tmp_path, jobs=2, cell_seconds=0.0):
  lines = []
  runner = study.Runner(
    made,
    tmp_path / 'out',
    jobs=jobs,
    retries=1,
    cell_seconds=cell_seconds,
    say=lines.append,
  )
  runner.run()
  return lines


def calls(cell):
  file = cell.workdir / 'calls'
  return len(file.read_text()) if file.exists() else 0


def times(cell):
  return [float((cell.workdir / name).read_text()) for name in ('began', 'ended')]


def test_cells_run_side_by_side_once_and_are_then_skipped(tmp_path):
  made = cells(tmp_path, *['fine'] * 4)
  run(made, tmp_path)
  assert [cell.state for cell in made] == ['done'] * 4
  spans = sorted(times(cell) for cell in made)
  alive = [sum(a <= began < b for a, b in spans) for began, _ in spans]
  assert max(alive) == 2  # They overlap, and never more than two.
  again = cells(tmp_path, *['fine'] * 4)
  for cell in again:
    cell.check()
  run(again, tmp_path)
  assert [calls(cell) for cell in again] == [1] * 4
  record = json.loads((tmp_path / 'out' / 'study.json').read_text())
  assert [cell['state'] for cell in record['cells']] == ['done'] * 4
  assert [(c['method'], c['seed']) for c in record['cells']] == [
    ('grpo', 0),
    ('sdar', 0),
    ('grpo', 1),
    ('sdar', 1),
  ]


def test_a_failed_cell_is_tried_again_and_others_go_on(tmp_path):
  made = cells(tmp_path, 'crash', 'crash once', 'fine', 'fine')
  run(made, tmp_path)
  assert [cell.state for cell in made] == ['failed', 'done', 'done', 'done']
  assert [calls(cell) for cell in made] == [2, 2, 1, 1]
  assert made[0].error == 'it broke' and made[0].exit_code == 1


def test_a_cell_over_its_budget_is_stopped(tmp_path):
  made = cells(tmp_path, 'hang', 'fine', 'fine', 'fine')
  run(made, tmp_path, cell_seconds=2.0)
  assert [cell.state for cell in made] == ['over budget', 'done', 'done', 'done']
  assert calls(made[0]) == 1


def test_stopped_in_the_middle_and_gone_on(tmp_path):
  made = cells(tmp_path, 'fine', 'hang', 'hang', 'fine')
  runner = study.Runner(
    made, tmp_path / 'out', jobs=2, retries=1, cell_seconds=0.0, say=lambda line: None
  )

  def stop():
    hanging = [made[1].workdir / 'began', made[2].workdir / 'began']
    while not all(file.exists() for file in hanging):
      time.sleep(0.05)
    time.sleep(0.3)
    runner.stop()

  thread = threading.Thread(target=stop)
  thread.start()
  began = time.monotonic()
  runner.run()
  thread.join()
  assert time.monotonic() - began < 30
  assert [cell.state for cell in made] == ['done', 'stopped', 'stopped', 'stopped']
  again = cells(tmp_path, *['fine'] * 4)
  for cell in again:
    cell.check()
  run(again, tmp_path)
  assert [cell.state for cell in again] == ['done'] * 4
  assert calls(again[0]) == 1 and calls(again[1]) == 2


def test_a_run_of_another_config_is_left_alone(tmp_path):
  made = cells(tmp_path, *['fine'] * 4)
  run(made, tmp_path)
  other = study.make_cells(_study(), tmp_path / 'out')
  with other[0].config.unlocked():
    other[0].config.rollout.group_size = 4
  other[0].check()
  assert other[0].state == 'blocked' and 'choose --output' in other[0].error
  longer = study.make_cells(_study(), tmp_path / 'out')
  with longer[1].config.unlocked():
    longer[1].config.steps = 9  # The same run, not yet at its end.
  longer[1].check()
  assert longer[1].state == 'waiting'


def test_names_of_methods_become_names_of_directories():
  methods = ('skill-grpo', 'skill-grpo*', 'gigpo+sdar', 'skill-grpo_')
  names = [study._directory(method, methods) for method in methods]
  assert names == ['skill-grpo', 'skill-grpo_', 'gigpo+sdar', 'skill-grpo__']


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'methods': ('grpo', 'magic')}, "algo='magic'"),
    ({'world': 'chess'}, "study.world='chess'"),
    ({'baseline': 'rloo'}, "study.baseline='rloo'"),
  ],
)
def test_wrong_studies_are_named(tmp_path, changes, says):
  with pytest.raises(study.StudyError) as error:
    study.make_cells(_study(**changes), tmp_path)
  assert says in str(error.value) and '\n' not in str(error.value)


def test_studies_that_ship_are_whole(tmp_path):
  for name in ('small', 'full'):
    made = study.make_cells(study.load(name), tmp_path)
    assert len({cell.workdir for cell in made}) == len(made)
    seeds = [cell.seed for cell in made]
    assert seeds == sorted(seeds)  # Seed by seed.


@pytest.mark.slow
def test_a_study_of_two_cells_ends_in_a_comparison(tmp_path):
  config = tmp_path / 'pair.py'
  config.write_text(
    'from experiments.studies import small\n'
    'def get_config():\n'
    '  c = small.get_config()\n'
    "  c.methods, c.seeds = ('grpo', 'sdar'), (0,)\n"
    "  sizes = {'steps': 1, 'eval.tasks': 8, 'rollout.tasks_per_step': 2}\n"
    '  c.overrides.update(sizes)\n'
    '  return c\n'
  )
  command = [sys.executable, '-m', 'experiments.study', f'--study={config}']
  command += [f'--output={tmp_path / "out"}']
  for _ in range(2):
    done = subprocess.run(command, cwd=ROOT, env=os.environ, timeout=600, check=False)
    assert done.returncode == 0
  table = (tmp_path / 'out' / 'comparison' / 'comparison.md').read_text()
  assert 'sdar (1)' in table and 'grpo (1)' in table
  record = json.loads((tmp_path / 'out' / 'study.json').read_text())
  assert [cell['attempts'] for cell in record['cells']] == [0, 0]  # Skipped.
