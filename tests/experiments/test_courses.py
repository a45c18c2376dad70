"""How runs went, in one file: what is kept of them, and the table of collapses."""

import numpy as np
import pytest

from experiments import courses
from sdar_jax.look.course import Course

NAMES = list(courses.METRICS.values())


def run(method, seed, success, **more):
  """A course whose metrics but success are the step's number over 100."""
  lines = []
  for step, rate in enumerate(success, 1):
    lines.append({'step': step, **dict.fromkeys(NAMES, step / 100), NAMES[0]: rate})
    lines[-1] |= {'train/other': 1.0, **more}
  return Course(f'{method}-{seed}', method, seed, tuple(lines), (), ())


def test_a_file_keeps_every_number_of_every_step(tmp_path):
  runs = [run('grpo', 3, [0.1 + 0.2, 1 / 3]), run('sdar', 0, [np.pi / 4])]
  path = tmp_path / 'runs.csv'
  path.write_text(courses.written(runs))
  for one, back in zip(runs, courses.read(path), strict=True):
    assert (back.method, back.seed) == (one.method, one.seed)
    for name in NAMES:
      for got, want in zip(back.curve(name), one.curve(name), strict=True):
        np.testing.assert_array_equal(got, want)


def test_the_table_has_collapses_and_both_ends():
  falls = [0.1] * 5 + [0.8] * 5 + [0.3] * 5
  runs = [run('grpo', 0, falls), run('grpo', 1, [0.5] * 15), run('sdar', 0, [0.4] * 15)]
  head, _, *lines = courses.table(runs)
  assert head == '|  | grpo (2) | sdar (1) |'
  cells = dict(line.strip('| ').split(' | ', 1) for line in lines)
  assert cells['collapsed at step'] == '11, never | never'
  assert cells['success in training, best five steps'].startswith('65.0 % [50.0, 80.0]')
  assert cells['success in training, last five steps'].startswith('40.0 % [30.0, 50.0]')
  assert cells['entropy, first five steps'].startswith('0.030 [0.030, 0.030]')
  assert cells['valid actions, last five steps'].startswith('13.0 % [13.0, 13.0]')


def test_a_number_that_no_step_has_is_a_dash():
  runs = [run('grpo', 0, [0.5] * 9, **{NAMES[3]: None}), run('sdar', 0, [0.5] * 4)]
  cells = dict(line.strip('| ').split(' | ', 1) for line in courses.table(runs))
  assert cells['repeated actions, last five steps'] == '– | –'
  assert cells['entropy, last five steps'].endswith('| –')


def test_costs_are_of_steps_that_compiled_nothing(tmp_path, capsys):
  def costing(method, seed, busy):
    metrics = [
      {'step': s, 'rollout/rows': 10.0 * s, 'rollout/sampled_tokens': 50.0}
      | {'rollout/prompt_tokens_mean': 7.0}
      for s in (1, 2, 3)
    ]
    timing = [
      {'step': s, 'perf/cpu_seconds': cost, 'perf/compile_seconds': 5.0 * (s == 1)}
      for s, cost in enumerate(busy, 1)
    ]
    return Course(f'{method}-{seed}', method, seed, tuple(metrics), tuple(timing), ())

  runs = [costing('grpo', 0, [90, 2, 4]), costing('sdar', 0, [90, 5, 7])]
  runs.append(costing('sdar', 1, [90, 6, 60]))
  want = [
    '| grpo | 20 | 50 | 190 | 3.0 (1.00) |',
    '| sdar | 20 | 50 | 190 | 6.5 (2.17) |',
  ]
  assert courses.costs(runs)[2:] == want
  path = tmp_path / 'costs.csv'
  path.write_text(courses.written(runs, courses.COSTS))
  assert courses.main(['--costs', str(path)]) == 0
  assert capsys.readouterr().out.splitlines()[2:] == want


@pytest.mark.parametrize(
  'text, said',
  [
    ('', 'its columns must be method, seed, step'),
    ('method,step\n', 'its columns must be'),
    (f'method,seed,step,{",".join(NAMES)}\ngrpo,0,x,1,1,1,1,1\n', 'line 2: not a step'),
    (f'method,seed,step,{",".join(NAMES)}\ngrpo,0,1,1,1\n', 'line 2: not a step'),
  ],
)
def test_other_files_are_one_line(tmp_path, capsys, text, said):
  path = tmp_path / 'other.csv'
  path.write_text(text)
  assert courses.main([str(path)]) == 2
  error = capsys.readouterr().err
  assert f'{path}' in error and said in error and error.count('\n') == 1


def test_files_that_cannot_be_read_or_written_are_one_line(tmp_path, capsys):
  missing = tmp_path / 'none.csv'
  for words in ([str(missing)], [str(tmp_path)], ['--output', str(tmp_path), 'run']):
    assert courses.main(words) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and error.count('\n') == 1
