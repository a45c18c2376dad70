"""Comparisons whose result is known, and the files that they leave."""

import csv
import io
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import rich.console
from run_cases import compared, episode, make_run, study
from scipy import stats

from sdar_jax import compare
from sdar_jax.evaluation import comparison, presentation, results, statistics

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_comparison_worked_out_by_hand(tmp_path):
  ours = {0: [0, 0, 0, 0], 10: [1, 1, 0, 0], 20: [1, 1, 1, 0]}
  theirs = {0: [0, 0, 0, 0], 10: [0, 0, 0, 0], 20: [1, 0, 0, 0]}
  paths = [
    make_run(tmp_path, 'grpo', 0, theirs),
    make_run(tmp_path, 'grpo', 1, theirs | {20: [1, 1, 0, 0]}),
    make_run(tmp_path, 'sdar', 0, ours),
    make_run(tmp_path, 'sdar', 1, ours | {20: [1, 1, 1, 1]}),
  ]
  got = compared(paths)
  base, row = got.rows
  assert (got.step, got.steps, got.baseline) == (20, (0, 10, 20), 'grpo')
  assert (base.method, base.paired, row.method) == ('grpo', None, 'sdar')
  assert (base.final.mean, row.final.mean) == (3 / 8, 7 / 8)
  # Areas: widths 1/4, 1/2, 1/4 of means 0, 1/2, 7/8 and 0, 0, 3/8.
  assert row.area.mean == pytest.approx(1 / 4 + 7 / 32)
  assert base.area.mean == pytest.approx(3 / 32)
  pair = row.paired
  assert pair.seeds == (0, 1)
  assert pair.difference.mean == 1 / 2
  assert pair.area.mean == pytest.approx(1 / 4 + 4 / 32)
  assert pair.p_seeds == 1 / 2  # Two seeds that agree can give no less.
  assert pair.improvement[0] == 1.0
  assert [e.mean for e in row.curve] == [0, 1 / 2, 7 / 8]
  expected = statistics.two_way_interval(
    np.array([[0, 1, 1, 0], [0, 0, 1, 1]], float), (-1.0, 1.0)
  )
  assert pair.difference == expected


def test_numbers_are_those_of_the_statistics(tmp_path):
  got = compared(study(tmp_path, seeds=7, tasks=60))
  table = {
    name: np.array(
      [
        [r['success'] for r in json.loads(path.read_text())['tasks']]
        for path in sorted(tmp_path.glob(f'{name}-*/eval/000010.json'))
      ],
      float,
    )
    for name in ('grpo', 'sdar')
  }
  row = got.rows[1]
  difference = table['sdar'] - table['grpo']
  by_seed = difference.mean(1)
  test = stats.permutation_test(
    (by_seed,), np.mean, permutation_type='samples', n_resamples=np.inf
  )
  assert row.final == statistics.two_way_interval(table['sdar'])
  assert row.paired.difference == statistics.two_way_interval(difference, (-1.0, 1.0))
  assert row.paired.p_seeds == pytest.approx(test.pvalue)
  u = stats.mannwhitneyu(table['sdar'].mean(1), table['grpo'].mean(1)).statistic
  assert row.paired.improvement[0] == pytest.approx(u / 49)
  assert row.paired.verdict == 'better'


def test_attempts_are_averaged_before_tasks_are_compared(tmp_path):
  records = [episode(i, (i + a) % 3 == 0, a) for i in range(4) for a in range(3)]
  report = {'attempts': 3}
  paths = [make_run(tmp_path, 'grpo', s, {5: records}, report=report) for s in range(2)]
  row = compared(paths).rows[0]
  assert row.final.mean == pytest.approx(1 / 3)
  assert row.final.task_variance == pytest.approx(0, abs=1e-12)


def test_the_order_of_arguments_changes_nothing(tmp_path):
  paths = study(tmp_path / 'runs')
  for name, order in (('a', paths), ('b', paths[::-1])):
    assert compare.main([*map(str, order), '--output', str(tmp_path / name)]) == 0
  names = sorted(path.name for path in (tmp_path / 'a').iterdir())
  assert {'comparison.md', 'comparison.csv', 'results.csv'} <= set(names)
  for name in names:
    assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_few_and_unequal_seeds_are_said(tmp_path):
  curve = {5: [1, 0, 1, 1, 0, 1]}
  paths = [make_run(tmp_path, 'grpo', seed, curve) for seed in (0, 1, 2)]
  paths += [make_run(tmp_path, 'sdar', seed, curve) for seed in (1, 5)]
  got = compared(paths)
  assert got.rows[1].paired.seeds == (1,) and got.rows[1].seeds == (1, 5)
  text = '\n'.join(got.warnings)
  assert 'fewer than 3 seeds: sdar 2' in text and 'grpo 3' not in text
  assert 'seeds 0, 2, 5 are not in both' in text
  assert 'one shared seed detects nothing' in text
  paths[3:] = [make_run(tmp_path, 'gspo', 7, curve)]
  got = compared(paths)
  assert got.rows[1].paired is None
  assert 'gspo and grpo share no seed: no paired difference' in got.warnings


def test_what_could_not_be_detected_is_said(tmp_path):
  got = compared(study(tmp_path / 'small', gains=(('grpo', 0), ('sdar', 0.05))))
  pair = got.rows[1].paired
  assert abs(pair.difference.mean) < pair.detectable
  (line,) = (line for line in got.warnings if line.startswith('sdar: success'))
  assert line.endswith(f'3 seeds detect {100 * pair.detectable:.1f} pp')
  got = compared(study(tmp_path / 'large', tasks=400, gains=(('grpo', 0), ('a', 0.5))))
  assert got.rows[1].paired.verdict == 'better' and got.warnings == ()


def test_graded_scores_are_a_metric_of_their_own(tmp_path):
  rows = [episode(i, i == 3, score=s) for i, s in enumerate((0.5, None, 0.25, 1.0))]
  report = {'mean_score': 0.4375}
  paths = [make_run(tmp_path, 'grpo', s, {5: rows}, report=report) for s in range(3)]
  got = compared(paths)
  assert [row.metric for row in got.rows] == ['success', 'score']
  assert [row.final.mean for row in got.rows] == [0.25, 1.75 / 4]
  assert '| method (seeds) | score |' in presentation.markdown(got)
  others = [make_run(tmp_path, 'rloo', s, {5: rows}, report=report) for s in range(3)]
  text = presentation.markdown(
    compared(paths + others)
  )  # One comparison by each metric.
  assert 'Difference: method minus grpo' in text and 'Bonferroni' not in text
  first = results.write(got.methods, got.steps)['results.csv'].splitlines()[:2]
  assert first[0].split(',')[7] == 'score' and first[1].split(',')[7] == '0.5'
  paths.append(make_run(tmp_path, 'sdar', 0, {5: [1, 0, 0, 1]}))
  mixed = compared(paths)
  assert {row.metric for row in mixed.rows} == {'success'}
  assert 'score left out: some of these episodes have none' in mixed.warnings
  assert not any('score' in line for line in compared(paths[-1:]).warnings)


def test_files_hold_the_numbers(tmp_path, capsys):
  paths = study(tmp_path / 'runs', seeds=3, gains=(('grpo', 0), ('a', 0.3), ('b', 0.1)))
  assert compare.main([*map(str, paths), '--output', str(tmp_path / 'out')]) == 0
  shown = capsys.readouterr().out
  got = compared(paths)
  table = list(csv.DictReader((tmp_path / 'out' / 'comparison.csv').open()))
  assert [row['method'] for row in table] == [row.method for row in got.rows]
  for record, row in zip(table, got.rows):
    assert float(record['mean']) == row.final.mean
    assert record['difference'] == (
      str(row.paired.difference.mean) if row.paired else ''
    )
  episodes = list(csv.DictReader((tmp_path / 'out' / 'results.csv').open()))
  assert len(episodes) == 2 * 3 * 3 * 40 and {r['step'] for r in episodes} == {
    '0',
    '10',
  }
  for method in got.methods:
    rows = [r for r in episodes if (r['method'], r['step']) == (method, '10')]
    won = [int(r['success']) for r in rows]
    (row,) = (row for row in got.rows if row.method == method)
    assert np.mean(won) == pytest.approx(row.final.mean)
  text = (tmp_path / 'out' / 'comparison.md').read_text()
  for line in (*presentation.notes(got), *got.warnings):
    assert line in shown and presentation._escape(line) in text
  assert '2 comparisons' in text
  for row in got.rows:
    assert all(presentation._escape(cell) in text for cell in presentation.cells(row))


@pytest.mark.parametrize('width, dropped', [(80, True), (140, False)])
def test_a_terminal_shows_every_verdict_whole(tmp_path, width, dropped):
  gains = (('grpo', 0), ('grpo+opsd-released', 0.1), ('a', 0.25), ('b', 0.0))
  got = compared(study(tmp_path, tasks=80, gains=gains))
  console = rich.console.Console(file=io.StringIO(), width=width, markup=False)
  presentation.show(got, console)
  table = console.file.getvalue().partition('Mean:')[0]
  assert all(len(line) <= width for line in table.splitlines()[1:])
  for row in got.rows[1:]:
    assert f' {row.paired.verdict} ' in table
    assert f' {100 * row.paired.detectable:.1f} ' in table
  assert ('P(win)' in table.splitlines()[2]) is not dropped
  assert ('(--output): P(win)' in table) is dropped


def test_one_seed_has_no_interval_anywhere(tmp_path):
  paths = study(tmp_path, seeds=1)
  got = compared(paths)
  row = got.rows[1]
  assert math.isnan(row.final.low) and math.isnan(row.paired.detectable)
  assert row.paired.verdict == 'not settled'
  assert presentation.cells(row)[1] == f'{100 * row.final.mean:.1f}'
  record = list(csv.DictReader(presentation.summary_csv(got).splitlines()))[1]
  assert record['mean_low'] == record['detectable'] == ''


def test_what_does_not_hold_among_many_comparisons_is_uncorrected(tmp_path):
  gains = (('grpo', 0.0), ('a', 0.25))
  alone = compared(study(tmp_path / 'two', seeds=3, tasks=80, gains=gains)).rows[1]
  gains += tuple((name, 0.0) for name in 'bcdefghij')
  paths = study(tmp_path / 'many', seeds=3, tasks=80, gains=gains)
  got = compared(paths)
  among = next(row for row in got.rows if row.method == 'a')
  assert (alone.paired.comparisons, among.paired.comparisons) == (1, 10)
  assert alone.paired.corrected == alone.paired.difference == among.paired.difference
  assert among.paired.corrected.low < 0 < among.paired.difference.low
  assert alone.paired.verdict == 'better'
  assert among.paired.verdict == 'better (uncorrected)'
  assert any('10 comparisons' in note for note in presentation.notes(got))
  worse = compared(paths, 'a').rows  # All the other way round.
  assert {row.paired.verdict for row in worse if row.method == 'grpo'} == {
    'worse (uncorrected)'
  }


def test_a_verdict_asks_for_the_test_of_tasks_too(tmp_path):
  """Seeds that happen to agree make a narrow interval: the tasks decide."""
  for wins, verdict in ((1, 'not settled'), (2, 'better')):
    paths = []
    for seed in range(3):
      row = np.zeros(60, int)
      paths.append(make_run(tmp_path / str(wins), 'grpo', seed, {5: row}))
      row = row.copy()
      row[wins * seed : wins * (seed + 1)] = 1  # On tasks of its own.
      paths.append(make_run(tmp_path / str(wins), 'sdar', seed, {5: row}))
    pair = compared(paths).rows[1].paired
    assert pair.difference.low > 0 and pair.verdict == verdict
    assert pair.p_seeds == 0.25


def test_results_that_were_written_give_the_same_comparison(tmp_path, capsys):
  """From the file alone, its folder, and the runs: every number and every line."""
  gains = (('grpo', 0), ('sdar', 0.2), ('a', 0.1))
  paths = study(tmp_path / 'runs', gains=gains)
  out = tmp_path / 'out'
  assert compare.main([*map(str, paths), '--output', str(out)]) == 0
  capsys.readouterr()
  for again in (out, out / 'results.csv'):
    copy = tmp_path / f'{again.name} again'
    assert compare.main([str(again), '--output', str(copy)]) == 0
    for name in ('comparison.md', 'comparison.csv', 'results.csv', 'results.json'):
      assert (copy / name).read_bytes() == (out / name).read_bytes()
  (out / 'results.json').unlink()  # As files of earlier versions are.
  bare = results.load(str(out))
  got, whole = comparison.compare(bare), compared(paths)
  assert got.rows == whole.rows and got.steps == (0, 10)
  assert 'that no results.json names; a 20, b 20' in presentation.title(got)


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda text: text.replace('seed', 'sead', 1), 'line 1: it has no column seed'),
    (lambda text: text.replace(',10,task 0,0,', ',10,task 0,x,', 1), "'x'"),
    (lambda text: text.replace('task 0,0,a,0', 'task 0,0,a,2', 1), 'must be 0 or 1'),
    (lambda text: text.replace(',10,task 0,0,', ',10,task 0,-1,', 1), 'attempt=-1'),
    (lambda text: text.replace(',max_turns', ',success', 1), "outcome='success'"),
    (lambda text: text.replace(',max_turns', ',bored', 1), "'bored'"),
    (lambda text: text + text.splitlines()[-1] + '\n', 'occurs twice'),
    (lambda text: text + 'grpo,0\n', 'more or fewer fields'),
    (lambda text: text.splitlines()[0] + '\n', 'no episode'),
    (lambda text: '', 'no column'),
    (lambda text: text[:50] + '\udcff' + text[50:], 'line'),
  ],
)
def test_a_damaged_results_file_is_named(tmp_path, capsys, change, message):
  paths = study(tmp_path / 'runs', seeds=2, tasks=4)
  assert compare.main([*map(str, paths), '--output', str(tmp_path / 'out')]) == 0
  path = tmp_path / 'out' / 'results.csv'
  path.write_bytes(change(path.read_text()).encode(errors='surrogateescape'))
  capsys.readouterr()
  assert compare.main([str(path)]) == 2
  out, err = capsys.readouterr()
  assert str(path) in err and message in err and err.count('\n') == 1 and not out


def test_results_are_read_as_spreadsheets_and_worlds_write_them(tmp_path):
  paths = study(tmp_path / 'runs', seeds=2, tasks=4)
  got = compared(paths)
  text = results.write(got.methods, got.steps)['results.csv']
  (tmp_path / 'results.csv').write_bytes(b'\xef\xbb\xbf' + text.encode())
  assert comparison.compare(results.load(str(tmp_path))).rows == got.rows
  wild = [{'task_id': 'a\rb'}, {'task_id': 'a,\n"b'}]
  read = csv.DictReader(io.StringIO(results.table(wild, ['task_id']), newline=''))
  assert [*read] == wild


def test_a_panel_of_one_task_is_no_comparison(tmp_path, capsys):
  paths = study(tmp_path / 'runs', seeds=2, tasks=1)
  assert compare.main([*map(str, paths)]) == 2
  assert 'a panel of 1 task: a comparison needs at least 2' in capsys.readouterr().err


def test_results_and_runs_of_other_panels_are_refused(tmp_path, capsys):
  paths = study(tmp_path / 'runs', seeds=2, tasks=4)
  assert compare.main([*map(str, paths), '--output', str(tmp_path / 'out')]) == 0
  other = make_run(tmp_path / 'x', 'rloo', 0, {0: [1] * 4, 10: [1] * 4})
  assert compare.main([str(tmp_path / 'out'), str(other)]) == 0
  capsys.readouterr()
  changed = {'panel_digest': 'q' * 64}
  other = make_run(tmp_path / 'y', 'rloo', 0, {10: [1] * 4}, report=changed)
  assert compare.main([str(tmp_path / 'out'), str(other)]) == 2
  assert 'panel_digest pppppppppppp and qqqqqqqqqqqq' in capsys.readouterr().err
  assert compare.main([str(tmp_path / 'nowhere')]) == 2
  assert 'no such directory' in capsys.readouterr().err


def test_single_runs_are_shown_before_between_and_after(tmp_path):
  curve = {step: [step > 9, step > 5, 1, 0] for step in (0, 2, 6, 8, 12)}
  got = compared([make_run(tmp_path, 'grpo', 3, curve)])
  assert presentation.run_headings(got) == [
    'method',
    'seed',
    'before',
    'step 6',
    'step 12',
  ]
  interval = stats.binomtest(1, 4).proportion_ci(method='wilson')
  low, high = (f'{100 * end:.1f}' for end in interval)
  (row,) = presentation.run_cells(got)
  assert row[:3] == ['grpo', '3', f'25.0 % [{low}, {high}]']
  assert [cell.split(' ')[0] for cell in row[2:]] == ['25.0', '50.0', '75.0']


def test_it_runs_without_jax_and_without_matplotlib(tmp_path):
  paths = study(tmp_path / 'runs')
  code = (
    'import runpy, sys\n'
    'for name in ("jax", "flax", "matplotlib"): sys.modules[name] = None\n'
    'runpy.run_module("sdar_jax.compare", run_name="__main__")\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, *map(str, paths), '--output', 'out'],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stderr
  assert "no figure: it needs matplotlib: pip install 'sdar-jax[plot]'" in done.stdout
  written = {path.name for path in (tmp_path / 'out').iterdir()}
  names = {'comparison.md', 'comparison.csv', 'results.csv', 'results.json'}
  assert written == names


def test_names_cannot_break_the_table(tmp_path, capsys):
  curve = {5: [1, 0, 1]}
  config = {'skills.path': 'a|b\x1b[2J'}
  paths = [make_run(tmp_path, 'sdar', seed, curve) for seed in range(2)]
  paths.append(make_run(tmp_path / 'x', 'sdar', 0, curve, config=config))
  assert compare.main([*map(str, paths), '--output', str(tmp_path / 'out')]) == 0
  assert '\x1b' not in capsys.readouterr().out
  text = (tmp_path / 'out' / 'comparison.md').read_text()
  assert '\x1b' not in text and 'a\\|b' in text
