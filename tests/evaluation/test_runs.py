"""Run directories: what is read, what is refused and what is said about them."""

import json

import fakes
import pytest
from run_cases import DIGESTS, compared, episode, make_run

from sdar_jax import compare
from sdar_jax.evaluation import evaluate, panels, runs
from sdar_jax.evaluation.runs import RunError
from sdar_jax.logs import writers
from sdar_jax.storage import ledger, workdir


def _refused(capsys, *arguments):
  assert compare.main([str(a) for a in arguments]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith('error: ') and err.count('\n') == 1
  return err


def test_methods_are_told_apart_by_the_settings_that_differ(tmp_path):
  curve = {0: [0, 1, 0, 1]}
  paths = [make_run(tmp_path / 'plain', 'sdar', seed, curve) for seed in range(3)]
  for beta in (1.0, 0.0):
    setting = {'algorithm.gate_beta': beta, 'log.trajectories_every': 0}
    root = tmp_path / str(beta)
    paths += [make_run(root, 'sdar', seed, curve, config=setting) for seed in range(3)]
  paths += [make_run(tmp_path, 'grpo', seed, curve) for seed in range(3)]
  got = compared(paths, 'sdar gate_beta=5.0')
  labels = {f'sdar gate_beta={beta}' for beta in (0.0, 1.0, 5.0)} | {'grpo'}
  assert set(got.methods) == labels and got.rows[0].method == 'sdar gate_beta=5.0'
  assert compared(paths).baseline == 'grpo'
  assert compared(paths[:9]).baseline == 'sdar gate_beta=5.0'  # The first run's.
  assert compared(paths[:3]).baseline == 'sdar'
  with pytest.raises(RunError, match="--baseline 'sdar': must be one of 'grpo', 'sdar"):
    compared(paths, 'sdar')


@pytest.mark.parametrize(
  'key, changed',
  [
    ('world_digest', {'report': {'world_digest': 'x' * 64}}),
    ('panel_digest', {'report': {'panel_digest': 'q' * 64}}),
    ('temperature', {'report': {'temperature': 1.0}}),
    ('attempts', {'report': {'attempts': 2}}),
    ('top_p', {'report': {'top_p': 0.9}}),
    ('top_k', {'report': {'top_k': 5}}),
    ('max_response_tokens', {'report': {'max_response_tokens': 11}}),
  ],
)
def test_unlike_runs_are_refused_by_name(tmp_path, capsys, key, changed):
  a = make_run(tmp_path, 'grpo', 0, {0: [0, 1], 5: [1, 1]})
  b = make_run(tmp_path, 'sdar', 0, {0: [0, 1], 5: [1, 1]}, **changed)
  error = _refused(capsys, a, b)
  assert str(a) in error and str(b) in error and key in error


def test_a_panel_that_changed_within_a_run_is_refused(tmp_path, capsys):
  run = make_run(tmp_path, 'grpo', 0, {0: [0, 1], 5: [1, 1]})
  path = run / 'eval' / '000005.json'
  path.write_text(path.read_text().replace('p' * 64, 'q' * 64))
  assert '000000.json' in (error := _refused(capsys, run)) and '000005.json' in error


def test_other_tasks_under_one_digest_are_refused(tmp_path, capsys):
  a = make_run(tmp_path, 'grpo', 0, {5: [1, 1]})
  b = make_run(tmp_path, 'sdar', 0, {5: [1, 1, 0]})
  assert 'other tasks' in _refused(capsys, a, b)


def test_two_runs_with_one_seed_are_refused(tmp_path, capsys):
  a = make_run(tmp_path / 'a', 'grpo', 0, {5: [1, 1]})
  b = make_run(tmp_path / 'b', 'grpo', 0, {5: [1, 0]})
  error = _refused(capsys, a, b)
  assert str(a) in error and str(b) in error and 'grpo, seed 0' in error


def test_an_unfinished_run_is_refused_unless_a_step_is_given(tmp_path, capsys):
  a = make_run(tmp_path, 'grpo', 0, {0: [0, 1], 5: [1, 1], 10: [1, 0]})
  b = make_run(tmp_path, 'sdar', 0, {0: [0, 1], 5: [1, 1]})
  error = _refused(capsys, a, b)
  assert str(a) in error and str(b) in error and '--step' in error
  got = compared([a, b], step=5)
  assert (got.step, got.steps, got.rows[0].final.mean) == (5, (0, 5), 1.0)
  assert any('configured for 10' in line for line in got.warnings)
  assert 'evaluated at steps 0, 5' in _refused(capsys, a, b, '--step', 10)
  assert compared([a], step=5).steps == (0, 5)


@pytest.mark.parametrize(
  'file, content, message',
  [
    ('config.json', None, 'no run directory'),
    ('run.json', None, 'earlier version'),
    ('eval/000005.json', None, 'no evaluation'),
    ('config.json', '{', 'is damaged'),
    ('config.json', '{}', "no 'steps'"),
    ('run.json', '[]', 'is damaged'),
    ('run.json', '{"schema": 2}', 'schema 2, this version reads 1'),
    ('eval/000005.json', '{"schema": 1}', 'schema 1, this version reads 2'),
    ('eval/000005.json', '{"schema": 2}', "no 'tasks'"),
    ('eval/000005.json', '\x00', 'is damaged'),
    ('eval/000005.json', '[1]', 'is damaged'),
  ],
)
def test_a_directory_that_cannot_be_read(tmp_path, capsys, file, content, message):
  run = make_run(tmp_path, 'grpo', 0, {5: [1, 1]})
  (run / file).unlink() if content is None else (run / file).write_text(content)
  error = _refused(capsys, run)
  assert message in error and str(run) in error


def test_an_unknown_outcome_is_damage(tmp_path, capsys):
  run = make_run(tmp_path, 'grpo', 0, {5: [episode(0, 0, outcome='bored'), 1]})
  assert "'bored'" in _refused(capsys, run)


def test_a_difference_in_more_than_the_algorithm_is_said(tmp_path):
  curve, other = {5: [1, 0, 1]}, {'optimizer.learning_rate': 0.2, 'skills.path': 'x'}
  paths = [make_run(tmp_path, 'grpo', seed, curve) for seed in range(3)]
  paths += [make_run(tmp_path, 'sdar', seed, curve, config=other) for seed in range(3)]
  got = compared(paths)
  (line,) = (line for line in got.warnings if 'more than the algorithm' in line)
  assert line.endswith('algorithm: optimizer.learning_rate')


def test_other_inputs_code_and_evaluation_seeds_are_said(tmp_path):
  ours = {f'{name}_digest': name for name in ('tokenizer', 'skills')}
  a = make_run(tmp_path, 'grpo', 0, {5: [1, 0]}, identity={**ours, 'numerics': 'x64'})
  theirs = {'model_digest': 'x', 'tokenizer_digest': 'x', 'skills_digest': 'x'}
  b = make_run(
    *(tmp_path, 'sdar', 0, {5: [1, 0]}),
    report={'seed': 7},
    identity={**theirs, 'numerics': 'x32', 'code_versions': ['y']},
  )
  text = '\n'.join(compared([a, b]).warnings)
  for what in (
    *('2 initial models', '2 tokenizers', '2 skill banks', '2 numerics'),
    *('2 code versions', '2 evaluation seeds'),
  ):
    assert what in text
  unsaid = dict.fromkeys((*ours, 'numerics'))
  earlier = make_run(tmp_path, 'gspo', 0, {5: [1, 0]}, identity=unsaid)
  text = '\n'.join(compared([a, earlier]).warnings)
  assert 'tokenizers' not in text and 'skill banks' not in text


@pytest.mark.parametrize('name', ['model', 'tokenizer', 'skills', 'teacher'])
def test_seeds_that_began_from_other_things_are_no_seeds_of_a_method(
  tmp_path, capsys, name
):
  key = f'{name}_digest'
  runs = [
    make_run(tmp_path, 'sdar', seed, {5: [1, 0]}, identity={key: digest})
    for seed, digest in enumerate(('a' * 64, None, 'b' * 64))
  ]
  compared(runs[:2])
  error = _refused(capsys, *runs)
  assert key in error and str(runs[0]) in error and str(runs[2]) in error


@pytest.mark.parametrize(
  'file, change',
  [
    ('config.json', {'steps': 'many'}),
    ('config.json', {'steps': True}),
    ('run.json', {'seed': '0'}),
    ('run.json', {'method': 3}),
    ('run.json', {'code_versions': 'abc'}),
    ('eval/000005.json', {'tasks': {}}),
    ('eval/000005.json', {'tasks': [1]}),
    ('eval/000005.json', {'step': 10}),
    ('eval/000005.json', {'temperature': 'warm'}),
    ('eval/000005.json', {'composition': [1]}),
    ('eval/000005.json', {'tasks': [episode(0, 1), episode(0, 0)]}),
    ('eval/000005.json', {'tasks': [episode(0, 1) | {'turns': None}]}),
    ('eval/000005.json', {'tasks': [episode(0, 1) | {'success': 'yes'}]}),
  ],
)
def test_a_value_that_cannot_be_names_its_file(tmp_path, capsys, file, change):
  run = make_run(tmp_path, 'grpo', 0, {5: [1, 1]})
  path = run / file
  path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
  error = _refused(capsys, run)
  assert str(path) in error


def test_tasks_that_a_fault_took_from_a_run_count_for_none(tmp_path):
  fault = episode(1, 0, outcome='env_error')
  a = make_run(tmp_path, 'grpo', 0, {5: [1, 1, 0, 1]})
  b = make_run(tmp_path, 'sdar', 0, {5: [0, fault, 0, 1]})
  got = compared([a, b])
  assert got.tasks == ('task 0', 'task 2', 'task 3')
  assert [row.final.mean for row in got.rows] == pytest.approx([2 / 3, 1 / 3])
  assert any(line.startswith('1 tasks left out') for line in got.warnings)


def test_runs_that_share_few_tasks_are_no_comparison(tmp_path, capsys):
  """Each lost a third, and others than the others did."""
  fault = lambda i: episode(i, 0, outcome='timeout')
  runs = []
  for seed in range(3):
    records = [fault(i) if i % 3 == seed else episode(i, 1) for i in range(6)]
    runs.append(make_run(tmp_path, 'grpo', seed, {5: records}))
  assert '0 of 6 tasks were played in all of 3 runs' in _refused(capsys, *runs)
  assert '2 of 6' in _refused(capsys, *runs[:2])


def test_one_faulty_attempt_of_several_is_left_out(tmp_path):
  records = [episode(i, 1, a) for i in range(3) for a in range(2)]
  records[1] = episode(0, 0, 1, outcome='timeout')
  run = make_run(tmp_path, 'grpo', 0, {5: records}, report={'attempts': 2})
  got = compared([run])
  assert (len(got.tasks), got.rows[0].final.mean) == (3, 1.0)


def test_curves_use_the_steps_that_all_have(tmp_path):
  a = make_run(tmp_path, 'grpo', 0, {0: [0, 0], 5: [1, 0], 10: [1, 1]})
  b = make_run(tmp_path, 'sdar', 0, {0: [0, 0], 10: [1, 1]})
  got = compared([a, b])
  assert got.steps == (0, 10)
  assert any('different steps; curves use (0, 10)' in line for line in got.warnings)


class _World(fakes.World):
  def tasks(self, split):
    tasks = type('Tasks', (list,), {'digest': 'abc'})(fakes.tasks())
    return tasks


def test_a_report_of_the_evaluation_can_be_read(tmp_path):
  world = _World()
  panel = panels.make_panel(world, 'valid', 0)
  plan = evaluate.Plan(panel, fakes.agent(), 2, 0, False, 'w' * 64)
  sampler = fakes.ScriptedSampler(lambda identity: str(1 + identity[-1] % 3), 0)
  weights = {'step': 5}
  report, _ = evaluate.evaluate(plan, fakes.in_process(world), sampler, weights)
  run = make_run(tmp_path, 'grpo', 0, {5: []})
  (run / 'eval' / '000005.json').write_text(json.dumps(report))
  row = compared([run]).rows[0]
  assert row.final.mean == pytest.approx(report['success_rate'])


def test_run_json_lists_every_code_that_worked_on_the_run(tmp_path, monkeypatch):
  version = writers.code_version()
  assert version == writers.code_version() and len(version) == 64
  for _ in range(2):
    writers.write_run(tmp_path, method='sdar', seed=3, **DIGESTS)
    record = json.loads((tmp_path / 'run.json').read_text())
    expected = {'schema': 1, 'method': 'sdar', 'seed': 3, **DIGESTS}
    assert record == {**expected, 'code_versions': [version]}
  monkeypatch.setattr(writers, 'code_version', lambda: 'next')
  writers.write_run(tmp_path, method='sdar', seed=3, **DIGESTS)
  record = json.loads((tmp_path / 'run.json').read_text())
  assert record['code_versions'] == [version, 'next']
  (tmp_path / 'run.json').write_text('{')
  with pytest.raises(ValueError, match=r'run\.json: not JSON'):
    writers.write_run(tmp_path, method='sdar', seed=3, **DIGESTS)


def test_reports_that_were_changed_or_lost_are_refused(tmp_path):
  run = make_run(tmp_path, 'grpo', 0, {0: [0, 1], 5: [1, 1]})
  path = run / 'eval' / '000005.json'
  whole = json.loads(path.read_text())
  ledger.write_report(path.parents[1], path.name, whole)
  assert runs.read(run).last_step == 5
  path.write_text(path.read_text().replace('"success": true', '"success": false', 1))
  with pytest.raises(RunError, match=r'000005\.json: changed since'):
    runs.read(run)
  path.unlink()
  with pytest.raises(RunError, match=r'000005\.json is gone'):
    runs.read(run)


def test_what_may_change_in_a_run_makes_no_other_method_of_it():
  assert set(workdir.HARMLESS) - {'eval'} <= set(runs.NEUTRAL)
