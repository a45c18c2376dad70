"""Studies with a stand-in for training: what runs, what is skipped, what survives."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import ml_collections
import pytest
from study_cases import fake_training, make_study

from experiments import cells as cells_lib
from experiments import runner, study
from sdar_jax.methods import table as table_lib
from sdar_jax.storage.workdir import Workdir

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def call(tmp_path):
  """Runs a study in tmp_path/out: exit code, and its record by method and seed."""

  def run(jobs=2, changes=(), **how):
    command = fake_training(tmp_path / 'fake.py', **how)
    out = tmp_path / 'out'
    code = runner.run(make_study(**dict(changes)), out, jobs, command)
    return code, record(out)

  return run


def record(out):
  cells = json.loads((out / 'study.json').read_text())['cells']
  return {f'{cell["method"]}_{cell["seed"]}': cell for cell in cells}


def states(cells):
  return [cell['state'] for cell in cells.values()]


def calls(cell):
  file = pathlib.Path(cell['workdir']) / 'calls'
  return len(file.read_text()) if file.exists() else 0


def moment(cell, name):
  return float((pathlib.Path(cell['workdir']) / name).read_text())


def test_all_cells_run_once_and_are_compared(call, tmp_path, capsys):
  code, cells = call(jobs=1)
  assert code == 0 and states(cells) == ['done'] * 4
  began = [moment(cell, 'began') for cell in cells.values()]
  assert list(cells) == ['grpo_0', 'sdar_0', 'grpo_1', 'sdar_1']  # Seed by seed...
  assert began == sorted(began)  # ...also in time.
  table = tmp_path / 'out' / 'comparison' / 'comparison.md'
  assert 'sdar (2)' in table.read_text() and 'Baseline: grpo' in table.read_text()
  assert '4 of 4' in capsys.readouterr().out
  table.unlink()
  code, again = call(jobs=1)
  assert code == 0 and [calls(cell) for cell in again.values()] == [1] * 4
  assert again == cells and table.exists()  # Seconds and attempts are kept.
  assert all(cell['seconds'] > 0.2 and cell['attempts'] == 1 for cell in again.values())
  assert '4 of 4 cells are done already' in capsys.readouterr().out


@pytest.mark.parametrize('jobs', [2, 3])
def test_jobs_overlap_and_are_never_more(call, jobs):
  _, cells = call(jobs=jobs, grpo_0='meet')  # The first.
  spans = [(moment(cell, 'began'), moment(cell, 'ended')) for cell in cells.values()]
  alive = [sum(a <= began < b for a, b in spans) for began, _ in spans]
  assert 2 <= max(alive) <= jobs


@pytest.mark.skipif(not runner._CONFINES, reason='no system call for it')
def test_cells_side_by_side_have_cores_of_their_own(call, tmp_path, capsys):
  ours = os.sched_getaffinity(0)
  _, cells = call()
  content = json.loads((tmp_path / 'out' / 'study.json').read_text())
  lanes = content['cores_per_cell']
  for cell in cells.values():
    seen = json.loads((pathlib.Path(cell['workdir']) / 'cores').read_text())
    assert seen == cell['cores'] and seen in lanes
  if len(ours) > 1:
    assert not set(lanes[0]) & set(lanes[1])
  assert os.sched_getaffinity(0) == ours
  assert content['environment']['JAX_COMPILATION_CACHE_DIR']
  jobs = len(ours) + 1
  call(jobs=jobs)
  line = f'{jobs} jobs on {len(ours)} cores: they will share them'
  assert line in capsys.readouterr().out


@pytest.mark.parametrize(
  ('cores', 'jobs', 'expected'),
  [
    ([0, 1, 2, 5, 6], 2, [[0, 1], [2, 5]]),
    ([0, 1, 2, 5, 6], 1, [[0, 1, 2, 5, 6]]),
    ([3, 4], 2, [[3], [4]]),
    ([3, 4], 3, [[3], [4], [3]]),
    ([], 2, [[], []]),
  ],
)
def test_all_jobs_have_as_many_cores(cores, jobs, expected):
  assert runner.share_out(cores, jobs) == expected


def test_a_failed_cell_is_tried_again_and_others_go_on(call, tmp_path, capsys):
  code, cells = call(grpo_0='crash', sdar_0='crash once')
  assert code == 1 and states(cells) == ['failed', 'done', 'done', 'done']
  assert [calls(cell) for cell in cells.values()] == [2, 2, 1, 1]
  assert [cell['attempts'] for cell in cells.values()] == [2, 2, 1, 1]
  failed = cells['grpo_0']
  assert (failed['error'], failed['exit_code']) == ('it broke', 1)
  assert 'grpo, seed 0: failed with exit code 1 (it broke)' in capsys.readouterr().out
  table = tmp_path / 'out' / 'comparison' / 'comparison.md'
  assert 'grpo (1)' in table.read_text() and 'sdar (2)' in table.read_text()
  code, cells = call()  # Another call tries again, and counts all attempts.
  assert code == 0 and [cell['attempts'] for cell in cells.values()] == [3, 2, 1, 1]
  assert cells['grpo_0']['error'] == '' and cells['grpo_0']['exit_code'] == 0


def test_retries_are_the_studys(call):
  _, cells = call(changes={'retries': 0}, grpo_0='crash once')
  assert states(cells)[0] == 'failed' and calls(cells['grpo_0']) == 1


def test_an_attempt_that_says_nothing_does_not_quote_an_earlier_one(call, tmp_path):
  call(grpo_0='crash')
  silent = lambda cell: [sys.executable, '-c', 'raise SystemExit(3)']
  runner.run(make_study(), tmp_path / 'out', 2, silent)
  cell = record(tmp_path / 'out')['grpo_0']
  assert (cell['error'], cell['exit_code']) == ('', 3)


def test_without_a_run_of_the_baseline_there_is_no_comparison(call, tmp_path, capsys):
  code, _ = call(grpo_0='crash', grpo_1='crash')
  assert code == 1 and not (tmp_path / 'out' / 'comparison').exists()
  assert 'no run of the baseline grpo is done' in capsys.readouterr().out


@pytest.mark.parametrize('how', ['hang', 'stubborn'])
def test_a_cell_over_its_budget_is_stopped(call, monkeypatch, how):
  monkeypatch.setattr(runner, '_GRACE_SECONDS', 0.5)
  began = time.monotonic()
  code, cells = call(changes={'cell_seconds': 2.0}, grpo_0=how)
  assert time.monotonic() - began < 30
  assert code == 1 and states(cells) == ['over budget', 'done', 'done', 'done']
  assert calls(cells['grpo_0']) == 1  # Not tried again.
  assert cells['grpo_0']['exit_code'] == (0 if how == 'hang' else -signal.SIGKILL)


def test_a_run_that_stops_unasked_is_not_done(call):
  code, cells = call(sdar_1='stop by itself')
  assert code == 1 and states(cells) == ['done', 'done', 'done', 'stopped']


def _study_process(tmp_path, **how):
  """The same study in a process of its own, which can be sent signals."""
  script = tmp_path / 'call.py'
  script.write_text(
    'import pathlib, sys, study_cases\n'
    'from experiments import runner\n'
    f'root = pathlib.Path({str(tmp_path)!r})\n'
    f'command = study_cases.fake_training(root / "fake.py", **{how!r})\n'
    'made = study_cases.make_study()\n'
    'sys.exit(runner.run(made, root / "out", 2, command))\n'
  )
  path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
  return subprocess.Popen(
    [sys.executable, str(script)],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': path},
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_and_gone_on(call, tmp_path, number):
  process = _study_process(tmp_path, sdar_0='hang', grpo_1='slow to stop')
  runs = tmp_path / 'out' / 'runs'
  while not all((runs / name / 'began').exists() for name in ('sdar-0', 'grpo-1')):
    assert process.poll() is None
    time.sleep(0.05)
  process.send_signal(number)
  out, _ = process.communicate(timeout=600)
  assert process.returncode == 0 and 'the same command goes on' in out
  cells = record(tmp_path / 'out')
  assert states(cells) == ['done', 'stopped', 'stopped', 'stopped']
  assert [cell['exit_code'] for cell in cells.values()] == [0, 0, 0, None]
  assert not (tmp_path / 'out' / 'comparison').exists()
  code, cells = call()
  assert code == 0 and states(cells) == ['done'] * 4
  assert [calls(cell) for cell in cells.values()] == [1, 2, 2, 1]


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='no system call')
def test_a_killed_study_takes_its_trainings_with_it(call, tmp_path):
  process = _study_process(tmp_path, sdar_0='stubborn', grpo_0='stubborn')
  began = [tmp_path / 'out' / 'runs' / name / 'began' for name in ('sdar-0', 'grpo-0')]
  while not all(path.exists() for path in began):
    assert process.poll() is None
    time.sleep(0.05)
  alive = lambda: [p for p in _command_lines() if str(tmp_path / 'fake.py') in p]
  assert len(alive()) == 2
  process.kill()
  process.communicate()
  until = time.monotonic() + 60
  while alive() and time.monotonic() < until:
    time.sleep(0.05)
  assert not alive()
  code, cells = call()  # The same command goes on.
  assert code == 0 and states(cells) == ['done'] * 4


def _command_lines():
  out = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      out.append(path.read_bytes().replace(b'\0', b' ').decode(errors='replace'))
    except OSError:
      pass  # It has ended meanwhile.
  return [line for line in out if line.split(' -I -S ')[1:]]


def test_a_signal_while_a_process_is_born_reaches_it(tmp_path):
  begin = fake_training(tmp_path / 'fake.py', grpo_0='hang')

  def command(cell):
    os.kill(os.getpid(), signal.SIGTERM)
    return begin(cell)

  before, began = signal.getsignal(signal.SIGTERM), time.monotonic()
  assert runner.run(make_study(), tmp_path / 'out', 1, command) == 0
  assert time.monotonic() - began < 30
  assert states(record(tmp_path / 'out')) == ['stopped'] * 4
  assert signal.getsignal(signal.SIGTERM) == before


def test_a_study_that_fails_itself_leaves_no_process(call, tmp_path, monkeypatch):
  asked = []
  monkeypatch.setattr(
    runner._Process, 'ask', lambda p: asked.append(p) or p.popen.kill()
  )
  first = runner.Runner.record

  def full(runner):
    if runner._running:
      raise OSError(28, 'No space left on device')
    first(runner)

  monkeypatch.setattr(runner.Runner, 'record', full)
  with pytest.raises(OSError, match='No space'):
    call(grpo_0='hang')
  assert len(asked) == 1


def test_a_second_call_at_the_same_time_is_refused(tmp_path, capsys, monkeypatch):
  made = make_study()
  monkeypatch.setattr(cells_lib, 'load', lambda name: made)
  with Workdir(tmp_path, made):
    assert study.main([f'--output={tmp_path}']) == 2
  error = capsys.readouterr().err
  assert f'pid {os.getpid()}' in error and error.count('\n') == 1


def test_a_run_of_another_config_is_left_alone(call, tmp_path, capsys):
  _, first = call()
  for key, value in (('rollout.group_size', 4), ('eval.tasks', 8)):
    changes = {'method_overrides': {'sdar': _dotted(**{key: value})}}
    code, cells = call(changes=changes)
    assert code == 1 and states(cells) == ['done', 'blocked'] * 2
    assert f'{key} was' in cells['sdar_0']['error']
    assert str(tmp_path / 'out' / 'runs' / 'sdar-0') in cells['sdar_0']['error']
    assert [calls(cell) for cell in cells.values()] == [1] * 4
  assert 'sdar, seed 1: blocked: ' in capsys.readouterr().out
  code, cells = call()
  assert code == 0 and states(cells) == states(first)


@pytest.mark.parametrize('damage', ['{', '[]'])
def test_damaged_runs_and_runs_at_work_are_left_alone(call, damage):
  _, cells = call()
  damaged, held = (pathlib.Path(cells[c]['workdir']) for c in ('grpo_0', 'sdar_0'))
  (damaged / 'config.json').write_text(damage)
  config = cells_lib.make_cells(make_study(), held.parents[1])[1].config
  with Workdir(held, config):
    code, cells = call()
  assert code == 1 and states(cells) == ['blocked', 'blocked', 'done', 'done']
  assert str(damaged) in cells['grpo_0']['error']
  assert 'in use' in cells['sdar_0']['error']
  assert calls(cells['grpo_0']) == calls(cells['sdar_0']) == 1


def test_a_longer_study_goes_on_with_its_runs_and_a_shorter_one_has_them(
  call, tmp_path
):
  alone = {'methods': ('grpo',)}
  call(changes=alone)
  longer = _dotted(**{**dict(make_study().overrides), 'steps': 3})
  code, cells = call(changes={**alone, 'overrides': longer})
  assert code == 0 and [calls(cell) for cell in cells.values()] == [2, 2]
  code, cells = call()  # Compared at the step that all have.
  assert code == 0 and [calls(cell) for cell in cells.values()] == [2, 1, 2, 1]
  table = tmp_path / 'out' / 'comparison' / 'comparison.md'
  assert 'step 1,' in table.read_text()


def test_a_damaged_record_is_named(call, tmp_path):
  call()
  cell = {'workdir': 'x', 'seconds': 1.0, 'attempts': 1, 'exit_code': 0}
  for record in ({}, {**cell, 'seconds': '1'}, {**cell, 'attempts': None}):
    (tmp_path / 'out' / 'study.json').write_text(json.dumps({'cells': [record]}))
    with pytest.raises(runner.StudyError, match=r'study\.json is damaged .*delete it'):
      call()


def _dotted(**values):
  return ml_collections.ConfigDict(values, allow_dotted_keys=True)


def test_the_command_says_what_the_config_is(tmp_path):
  own = {'sdar': {'optimizer': {'learning_rate': 1e-4}}}
  common = _dotted(**{'steps': 3, 'train.length_buckets': (184,)})
  changes = {'overrides': common, 'method_overrides': own}
  made = cells_lib.make_cells(make_study(**changes), tmp_path)
  grpo, sdar = made[:2]
  assert grpo.config.optimizer.learning_rate == 3e-4
  assert sdar.config.optimizer.learning_rate == 1e-4
  assert sdar.config.steps == grpo.config.steps == 3
  command = cells_lib.training_command(sdar)
  assert command[1:3] == ['-m', 'sdar_jax.main']
  expected = {
    f'--config={ROOT}/experiments/alfworld.py:model=tiny,algo=sdar,seed=0',
    f'--workdir={tmp_path}/runs/sdar-0',
    '--config.steps=3',
    '--config.train.length_buckets=(184,)',
    '--config.optimizer.learning_rate=0.0001',
  }
  assert set(command[3:]) == expected
  assert not any('learning_rate' in word for word in cells_lib.training_command(grpo))


def test_names_of_methods_become_names_of_directories():
  names = cells_lib.directory_name
  assert names('grpo+opsd-released') == 'grpo+opsd-released'
  wild = ['a*', 'a_', 'a__', 'a_2a_', 'A', 'a', '../a', 'a/b']
  methods = [*table_lib.ALGORITHMS, *wild]
  made = [names(method) for method in methods]
  assert len({name.lower() for name in made}) == len(methods)
  assert not any(set(name) & set('/.*\\: ') for name in made)


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'methods': ('grpo', 'magic', 'a,b')}, "called 'magic', 'a,b'"),
    ({'methods': ('grpo', 'sdar,seed=4')}, "called 'sdar,seed=4'"),
    ({'methods': ('grpo', 'grpo')}, 'study.methods='),
    ({'methods': ()}, 'study.methods='),
    ({'seeds': ()}, 'study.seeds='),
    ({'seeds': (-1,)}, "seed='-1'"),
    ({'world': 'chess'}, "study.world='chess'"),
    ({'baseline': 'rloo'}, 'study.baseline: rloo'),
    ({'method_overrides': {'rloo': {'steps': 1}}}, 'study.method_overrides: rloo'),
    ({'retries': -1}, 'study.retries=-1'),
    ({'retries': 'many'}, 'study: a value of another type'),
    ({'seeds': 3}, 'study: a value of another type'),
    ({'retry': 1}, 'retry missing or unknown'),
    ({'overrides': _dotted(seed=1)}, 'may not change seed'),
    ({'overrides': _dotted(**{'rollout.slot': 1})}, 'Key "slot" does not exist'),
    ({'overrides': _dotted(**{'rollout.slots': 'x'})}, "'slots'"),
    ({'overrides': _dotted(**{'rollout.group_size': 0})}, 'group_size'),
  ],
)
def test_wrong_studies_are_named(tmp_path, capsys, monkeypatch, changes, says):
  made = make_study(**changes)
  monkeypatch.setattr(cells_lib, 'load', lambda name: made)
  assert study.main([f'--output={tmp_path / "out"}']) == 2
  out, error = capsys.readouterr()
  assert says in error and error.startswith('error: ') and error.count('\n') == 1
  assert out == '' and not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    (None, 'no such file'),
    ('def get_config(', 'line 1: SyntaxError'),
    ('get_config = lambda: 3', 'get_config() returns int'),
    ('x = 1', 'has no function get_config'),
  ],
)
def test_wrong_study_files_are_named(tmp_path, capsys, text, says):
  path = tmp_path / 'mine.py'
  if text is not None:
    path.write_text(text)
  assert study.main([f'--study={path}', f'--output={tmp_path / "out"}']) == 2
  error = capsys.readouterr().err
  assert says in error and str(path) in error and error.count('\n') == 1


def test_studies_that_ship_are_whole(tmp_path):
  for name, count in (('small', 3), ('full', 5)):
    c = cells_lib.load(name)
    made = cells_lib.make_cells(c, tmp_path)
    assert [cell.seed for cell in made[:: len(c.methods)]] == list(range(count))
    assert len({cell.workdir for cell in made}) == len(made) == count * len(c.methods)
  assert set(cells_lib.load('small').methods) < set(c.methods)


def test_wrong_jobs_are_named(capsys):
  assert study.main(['--jobs=0']) == 2
  assert '--jobs=0' in capsys.readouterr().err


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
  cells = record(tmp_path / 'out')
  assert states(cells) == ['done'] * 2
  assert [cell['attempts'] for cell in cells.values()] == [1, 1]  # Skipped.
