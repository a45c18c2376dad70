"""Sweeps: what is tried, what is chosen by which evaluations, what is then trained."""

import json
import pathlib

import pytest
import study_cases
from study_cases import fake_training, make_study

from experiments import cells, runner, sweep, tables
from sdar_jax import files

SWEPT = {'sdar': {'algorithm': {'distill_coef': (0.1, 0.4, 0.2)}}}
# Tasks that are solved of 6, by the coefficient and the seed: 0.4 wins on average, 0.1
# with seed 100 alone. What the reported split would say is the opposite.
SOLVED = {0.1: {100: 6, 101: 1}, 0.4: {100: 4, 101: 5}, 0.2: {100: 3, 101: 4}}


@pytest.fixture(autouse=True)
def graded(monkeypatch):
  """Makes the stand-in for training as good as its coefficient."""
  old = "(i + spec['seed']) % 3 > 0 or spec['method'] == 'sdar'"
  assert old in study_cases.FAKE
  solved = (
    f"i < {SOLVED!r}.get(spec['config']['algorithm.distill_coef'], {{}})"
    ".get(spec['seed'], 3) if spec['config']['eval.split'] == 'valid_seen'"
    " else i < 6 - 6 * spec['config']['algorithm.distill_coef']"
  )
  monkeypatch.setattr(study_cases, 'FAKE', study_cases.FAKE.replace(old, solved))


def tuned(**changes):
  return make_study(**{'sweep': SWEPT, 'sweep_seeds': (100, 101)} | changes)


def call(tmp_path, study=None, **how):
  command = fake_training(tmp_path / 'fake.py', **how)
  code = runner.run(study or tuned(), tmp_path / 'out', 2, command)
  return code, json.loads((tmp_path / 'out' / 'study.json').read_text())


def test_the_best_on_the_tuning_split_is_trained_on_other_seeds(tmp_path, capsys):
  code, record = call(tmp_path)
  assert code == 0
  got = record['sweep']['sdar']
  assert got['chosen'] == {'algorithm.distill_coef': 0.4}
  assert [one['successes'] for one in got['tried']] == [
    [1.0, 1 / 6],
    [4 / 6, 5 / 6],
    [3 / 6, 4 / 6],
  ]
  assert [one['mean'] for one in got['tried']] == pytest.approx(
    [7 / 12, 9 / 12, 7 / 12]
  )
  tried, reported = record['sweep_cells'], record['cells']
  assert len(tried) == 6 and {cell['seed'] for cell in tried} == {100, 101}
  assert {cell['method'] for cell in tried} == {'sdar'}
  assert [(c['method'], c['seed']) for c in reported] == [
    *(('grpo', 0), ('sdar', 0), ('grpo', 1), ('sdar', 1))
  ]
  read = lambda cell: json.loads(
    (pathlib.Path(cell['workdir']) / 'config.json').read_text()
  )
  assert {read(cell)['eval.split'] for cell in tried} == {'valid_seen'}
  assert {read(cell)['eval.split'] for cell in reported} == {'valid_unseen'}
  assert [read(c)['algorithm.distill_coef'] for c in reported] == [0.01, 0.4] * 2
  out = capsys.readouterr().out
  assert '75.0 %' in out and 'chosen' in out and 'at an end' in out
  comparison = tmp_path / 'out' / 'comparison'
  assert tables.main(['--sweep', str(comparison)]) == 0
  *_, row = capsys.readouterr().out.splitlines()
  tried = '0.1: 58.3; 0.4: 75.0; 0.2: 58.3'
  assert row == f'| sdar | distill\\_coef | {tried} | 0.4 |'
  code, again = call(tmp_path)  # Nothing is trained anew, nor forgotten.
  assert code == 0 and again == record


def test_equals_go_to_the_value_that_was_named_first():
  names = [{'a': 3}, {'a': 1}, {'a': 2}]
  choice = sweep.Choice('m', tuple(names), ((0.5, 0.5), (0.2, 0.8), (0.1, 0.1)))
  assert choice.best == {'a': 3} and choice.at_an_end
  inner = sweep.Choice('m', tuple(names), ((0.1,), (0.2,), (0.3,)))
  assert inner.best == {'a': 2} and not inner.at_an_end
  words = sweep.Choice('m', ({'g': 'a'}, {'g': 'b'}, {'g': 'c'}), ((1,), (0,), (0,)))
  assert not words.at_an_end


@pytest.mark.parametrize(
  ('record', 'said'),
  [
    ('{"sdar": {"tried": []}}', 'max'),
    ('[]', ''),
    ('{"sdar": {"chosen": {"a": 1}}}', "'tried'"),
    (
      '{"sdar": {"chosen": {"a": 1}, "tried": ['
      '{"values": {"a": 1}, "successes": [0.1]},'
      ' {"values": {"a": 2}, "successes": [0.2]}]}}',
      'sdar: what was chosen is not the best',
    ),
  ],
)
def test_a_record_that_is_none_is_one_line(tmp_path, record, said):
  path = tmp_path / 'sweep.json'
  path.write_text(record)
  with pytest.raises(files.FileError, match='no record of a sweep') as error:
    sweep.read(path)
  assert str(path) in str(error.value) and said in str(error.value)
  assert '\n' not in str(error.value)


def test_a_method_whose_sweep_is_not_done_waits_and_others_go_on(tmp_path):
  code, record = call(tmp_path, sdar_100='crash')
  assert code == 1 and record['sweep'] == {}
  by_method = {cell['method']: cell for cell in record['cells']}
  assert by_method['grpo']['state'] == 'done'
  assert by_method['sdar']['state'] == 'blocked'
  assert by_method['sdar']['error'] == 'its sweep is not done'
  code, record = call(tmp_path)
  assert code == 0 and record['sweep']['sdar']['chosen']
  assert [cell['attempts'] for cell in record['cells']] == [1] * 4


def test_records_of_the_study_survive_a_sweep_that_goes_on(tmp_path, monkeypatch):
  _, record = call(tmp_path)

  def stop(tuning):
    raise RuntimeError('killed here')

  monkeypatch.setattr(sweep, 'choose', stop)
  with pytest.raises(RuntimeError):
    call(tmp_path, tuned(sweep_seeds=(100, 101, 102)))
  kept = json.loads((tmp_path / 'out' / 'study.json').read_text())
  assert kept['cells'] == record['cells'] and len(kept['sweep_cells']) == 9


def test_keys_of_one_method_are_tried_together_and_dear_runs_can_be_short(tmp_path):
  both = {'distill_coef': (0.1, 0.5), 'gate_beta': (1.0, 5.0)}
  four = {'grpo': {'optimizer': {'learning_rate': (1e-5, 1e-4, 1e-3, 3e-3)}}}
  study = tuned(
    sweep={'sdar': {'algorithm': both}, **four}, sweep_overrides={'eval': {'tasks': 7}}
  )
  made = sweep.make_cells(study, tmp_path)
  assert len(made) == 2 * (4 + 4) and len({cell.workdir for cell in made}) == 16
  tried = [
    (c.config.algorithm.distill_coef, c.config.algorithm.gate_beta)
    for c in made
    if c.method == 'sdar' and c.seed == 100
  ]
  assert tried == [(0.1, 1.0), (0.1, 5.0), (0.5, 1.0), (0.5, 5.0)]
  assert {cell.config.eval.tasks for cell in made} == {7}
  assert {c.config.eval.tasks for c in cells.make_cells(study, tmp_path)} == {300}


def test_a_study_without_a_sweep_has_the_record_it_had(tmp_path):
  _, record = call(tmp_path, make_study())
  assert set(record) == {'schema', 'cores_per_cell', 'environment', 'cells'}
  assert 'candidate' not in record['cells'][0]


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'sweep_seeds': (1, 100)}, 'none of study.seeds'),
    ({'sweep_seeds': ()}, 'must name some'),
    ({'sweep_seeds': (100, 100)}, 'each once'),
    ({'sweep_split': 'valid_unseen'}, 'is reported on it'),
    ({'sweep_split': 7}, "'split'"),
    ({'sweep': {'rloo': {'steps': (1, 2)}}}, 'study.sweep: rloo'),
    ({'sweep': {'sdar': {'algorithm': {'distill_coef': 0.1}}}}, 'must be a tuple'),
    ({'sweep': {'sdar': {'algorithm': {'distil_coef': (0.1,)}}}}, 'distil_coef'),
    ({'sweep': {'sdar': {'algorithm': {'distill_coef': (-1.0,)}}}}, 'distill_coef=-1'),
    ({'sweep': {'sdar': {'algorithm': {'gap_coef': (0.1,)}}}}, 'nothing reads it'),
    ({'sweep': {'sdar': {'seed': (3,)}}}, 'may not change seed'),
    (
      {'sweep': {**SWEPT, 'grpo': {'optimizer': {'learning_rate': (1e-4,)}}}},
      'unequal budgets',
    ),
  ],
)
def test_wrong_sweeps_are_named_before_anything_runs(tmp_path, changes, says):
  with pytest.raises(ValueError, match=says) as error:
    runner.run(tuned(**changes), tmp_path / 'out', 1, None)
  assert '\n' not in str(error.value) and not (tmp_path / 'out').exists()
