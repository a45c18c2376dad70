"""Studies of any config file: how it is told method and seed, and what is refused."""

import pathlib
import subprocess
import sys

import pytest
from study_cases import make_study

from experiments import cells, sources, study
from sdar_jax import config as config_lib
from sdar_jax.cli import config_file
from sdar_jax.methods import table

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAIN = """
from experiments import alfworld
def get_config():
  c = alfworld.get_config('model=tiny,algo=sdar')
  c.algorithm.distill_coef = 0.3
  c.steps = 2
  return c
"""


@pytest.fixture
def plain(tmp_path):
  """A file of somebody's own, without arguments."""
  path = tmp_path / 'mine.py'
  path.write_text(PLAIN)
  return str(path)


def made(text, tmp_path, methods=('grpo', 'sdar'), **changes):
  changes |= {'world': '', 'config': text, 'methods': methods, 'baseline': methods[0]}
  return cells.make_cells(make_study(**changes), tmp_path / 'out')


def trained(cell):
  """What the cell's command makes of its config, as the training process reads it."""
  words = cells.training_command(cell)[3:]
  config = next(w.partition('=')[2] for w in words if w.startswith('--config='))
  keys = [word for word in words if word.startswith('--config.')]
  return config_lib.flatten(config_file.read(config, keys))


@pytest.mark.parametrize('methods', [('grpo', 'sdar'), ('gigpo+sdar', 'opid', 'ppo')])
def test_a_cells_command_trains_what_the_study_checked(plain, tmp_path, methods):
  for text in (plain, 'experiments/webshop.py', 'experiments/alfworld.py:model=tiny'):
    for cell in made(text, tmp_path, methods):
      got = trained(cell)
      assert got == config_lib.flatten(cell.config)
      assert (got['algorithm.name'], got['seed']) == (cell.method, cell.seed)


def test_a_file_that_listens_says_the_numbers_of_its_methods(tmp_path):
  source = sources.find('experiments/alfworld.py:model=tiny')
  assert source.listens and source.settings('sdar', 3) == {}
  grpo, sdar = made('experiments/alfworld.py:model=tiny', tmp_path)[:2]
  assert sdar.text == 'experiments/alfworld.py:model=tiny,algo=sdar,seed=0'
  # The small model's own coefficient, and not the one of the table's row.
  assert sdar.config.algorithm.distill_coef == 0.5
  shipped = cells.make_cells(make_study(), tmp_path / 'out')
  assert config_lib.digest(shipped[0].config) == config_lib.digest(grpo.config)
  assert [cell.workdir for cell in shipped[:2]] == [grpo.workdir, sdar.workdir]


def test_a_plain_file_has_its_own_method_as_it_stands_and_others_by_their_rows(
  plain, tmp_path
):
  assert not sources.find(plain).listens
  grpo, sdar, opid = made(plain, tmp_path, ('grpo', 'sdar', 'opid'))[:3]
  assert sdar.config.algorithm.distill_coef == 0.3
  # What only the file's method reads is gone, or the config would be refused.
  assert (
    grpo.config.algorithm.distill_coef == opid.config.algorithm.distill_coef == 0.01
  )
  row = table.find('opid').all_settings
  assert opid.config.algorithm.gap_coef == row['algorithm.gap_coef']
  assert grpo.config.world == sdar.config.world  # And nothing else differs.
  own = {'grpo': {'algorithm': {'clip_high': 0.3}}}
  changed = made(plain, tmp_path, method_overrides=own)
  assert [c.config.algorithm.clip_high for c in changed[:2]] == [0.3, 0.2]


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('experiments/alfworld.py:model=tiny,algo=sdar', 'leave out algo=sdar'),
    ('experiments/alfworld.py:seed=3,model=tiny', 'leave out seed=3'),
    ('experiments/alfworld.py:model=tinny', "model='tinny'"),
    ('experiments/nosuch.py', 'no such file'),
    ('gs://bucket/a.py', 'remote'),
    ('PLAIN:x', 'takes no argument'),
  ],
)
def test_wrong_files_are_named(plain, tmp_path, text, says):
  with pytest.raises(cells.StudyError, match=says) as error:
    made(text.replace('PLAIN', plain), tmp_path)
  assert '\n' not in str(error.value)


def test_a_world_and_a_file_are_one_too_many(plain, tmp_path):
  with pytest.raises(cells.StudyError, match=r"set study\.world=''"):
    cells.make_cells(make_study(config=plain), tmp_path)
  with pytest.raises(cells.StudyError, match=r'or study\.config a file'):
    cells.make_cells(make_study(world=''), tmp_path)


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    (['--methods=grpo'], '--methods: needs --config'),
    (['--config.steps=3'], '--config.steps=3: needs --config'),
    (['--study=small', '--config=PLAIN'], 'give one of them'),
    (['--config=PLAIN', '--seeds=0'], 'needs --methods'),
    (['--config=PLAIN', '--methods=grpo', '--seeds=a'], '--seeds=a'),
    (['--config=PLAIN', '--methods=grpo,x', '--seeds=0'], "called 'x'"),
    (['--config=PLAIN', '--methods=grpo,grpo', '--seeds=0'], 'each once'),
    (['--config=PLAIN', '--methods=grpo', '--seeds=0', 'steps=3'], 'steps=3'),
    (
      ['--config=PLAIN', '--methods=grpo', '--seeds=0', '--config.stepss=3'],
      'did you mean --config.steps',
    ),
    (
      ['--config=PLAIN', '--methods=grpo', '--seeds=0', '--config.seed=3'],
      'may not change seed',
    ),
  ],
)
def test_wrong_words_are_named(plain, tmp_path, capsys, words, says):
  words = [word.replace('PLAIN', plain) for word in words]
  assert study.main([f'--output={tmp_path / "out"}', *words]) == 2
  error = capsys.readouterr().err
  assert says in error and error.count('\n') == 1
  assert not (tmp_path / 'out').exists()


def test_a_study_of_words_is_the_study_of_a_file(plain, tmp_path, monkeypatch):
  seen = []
  monkeypatch.setattr('experiments.runner.run', lambda *given: seen.append(given) or 0)
  words = [f'--config={plain}', '--methods=sdar,grpo', '--seeds=4,7']
  words += ['--config.train.length_buckets=(64, 184)', '--noconfig.eval.with_skills']
  assert study.main([*words, f'--output={tmp_path / "out"}']) == 0
  got = cells.make_cells(seen[0][0], tmp_path / 'out')
  assert [str(cell) for cell in got] == [
    f'{method}, seed {seed}' for seed in (4, 7) for method in ('sdar', 'grpo')
  ]
  assert seen[0][0].baseline == 'sdar'
  assert {cell.config.train.length_buckets for cell in got} == {(64, 184)}
  assert trained(got[1])['train.length_buckets'] == [64, 184]


@pytest.mark.slow
def test_a_study_of_somebodys_file_runs(plain, tmp_path):
  command = [sys.executable, '-m', 'experiments.study', f'--config={plain}']
  command += ['--methods=grpo,sdar', '--seeds=3', f'--output={tmp_path / "out"}']
  command += ['--config.steps=1', '--config.eval.tasks=8']
  command += ['--config.rollout.tasks_per_step=2']
  done = subprocess.run(command, cwd=ROOT, timeout=600, check=False)
  assert done.returncode == 0
  assert 'sdar (1)' in (tmp_path / 'out' / 'comparison' / 'comparison.md').read_text()
