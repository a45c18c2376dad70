"""Reports: the numbers that are drawn, the page, and runs that lack something."""

import builtins
import json

import numpy as np
import pytest
from run_cases import make_run, study

from sdar_jax.look import charts, course, folder, report


def _course(path, seed=0, steps=3, method='sdar', **changes):
  """A run directory of numbers alone."""
  path.mkdir(parents=True)
  identity = {'schema': 1, 'method': method, 'seed': seed}
  (path / 'run.json').write_text(json.dumps(identity))
  lines = [
    {
      'step': step,
      'rollout/success_rate': 0.1 * step + seed,
      'train/gap': None if step == 2 else -1.0,
      'train/gate_histogram': [0.25, 0.75],
      'train/gap_by_turn': [float(step)] * step,
      **changes,
    }
    for step in range(1, steps + 1)
  ]
  times = [
    {'step': s, 'perf/rollout_seconds': s, 'perf/step_seconds': 2 * s}
    | {f'perf/{n}_tokens_per_second': 100.0 * s for n in ('decode', 'train')}
    for s in range(1, steps + 1)
  ]
  for name, found in (('metrics', lines), ('timing', times)):
    text = ''.join(json.dumps(line) + '\n' for line in found)
    (path / f'{name}.jsonl').write_text(text)
  return path


def test_numbers_are_those_of_the_files(tmp_path):
  one = course.read(_course(tmp_path / 'one'))
  _, values = one.curve('rollout/success_rate')
  np.testing.assert_allclose(values, [0.1, 0.2, 0.3])
  np.testing.assert_array_equal(one.curve('train/gap')[0], [1, 3])  # Null is no value.
  np.testing.assert_array_equal(one.curve('perf/step_seconds')[1], [2, 4, 6])
  _, table = one.table('train/gap_by_turn')
  nan = np.nan
  np.testing.assert_array_equal(table, [[1, nan, nan], [2, 2, nan], [3, 3, 3]])
  assert len(one.curve('train/nothing')[0]) == len(one.table('train/nothing')[0]) == 0


@pytest.mark.parametrize(
  'success, step',
  [
    ([0.5] * 20, None),
    ([0.1] * 5 + [0.8] * 5 + [0.3] * 5, 11),
    ([0.8] * 5 + [0.41] * 10, None),  # Above half of the best.
    ([0.8] * 5 + [0.0] + [0.8] * 6, None),  # A single step is no collapse.
    ([0.8] * 5 + [0.0] + [0.8] * 3 + [0.0] * 5, 8),  # 0.8, 0.8, 0, 0, 0.
    ([0.8] * 5 + [0.0] * 4, None),  # Not five steps yet.
    ([0.0] * 12, None),
  ],
)
def test_a_collapse_is_found_where_the_rule_says(tmp_path, success, step):
  run = _course(tmp_path / 'run', steps=len(success))
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').open()]
  for line, value in zip(lines, success, strict=True):
    line['rollout/success_rate'] = value
  (run / 'metrics.jsonl').write_text(''.join(json.dumps(d) + '\n' for d in lines))
  assert course.collapse(course.read(run)) == step

  def of(first):  # By loops: the mean of five, the best of those before.
    return sum(success[first : first + 5]) / 5

  fallen = [
    s
    for s in range(5, len(success) - 4)
    if of(s) < 0.5 * max(of(before) for before in range(s - 4))
  ]
  assert step == (fallen[0] + 1 if fallen else None)


def test_a_band_is_of_the_steps_that_all_have(tmp_path):
  runs = [
    course.read(_course(tmp_path / str(i), seed=i, steps=4 - i)) for i in range(3)
  ]
  steps, mean, low, high = course.band(runs, 'rollout/success_rate')
  np.testing.assert_array_equal(steps, [1, 2])
  np.testing.assert_allclose(mean, [1.1, 1.2])
  np.testing.assert_allclose([low, high], [[0.1, 0.2], [2.1, 2.2]])
  assert [*course.by_method(runs)] == ['sdar']


def test_damaged_files_cost_what_is_behind_the_damage(tmp_path):
  path = _course(tmp_path / 'run')
  with open(path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "rollout/suc')
  (path / 'timing.jsonl').write_bytes(b'\xff\xfe\x00')
  (path / 'eval').mkdir()
  whole = {'step': 1, 'success_rate': 0.5, 'interval': [0.4, 0.6], 'by_type': {}}
  for place, text in enumerate(
    (
      '{',
      '{"step": "one"}',
      json.dumps(whole | {'interval': None}),
      json.dumps(whole | {'by_type': {'a': {'success_rate': 'x', 'interval': [0, 1]}}}),
      json.dumps(whole | {'by_type': [1]}),
    )
  ):
    (path / 'eval' / f'{place:06d}.json').write_text(text)
  run = course.read(path)
  assert len(run.metrics) == 3 and run.timing == run.reports == ()
  # What a run is writing is no damage; each other loss is said, with its place.
  assert [note.partition(f'{path}/')[2] for note in run.notes] == [
    'eval/000000.json: not JSON'
    ' (Expecting property name enclosed in double quotes: line 1 column 2 (char 1))',
    'eval/000001.json: has no step',
    'eval/000002.json: a rate has no interval',
    'eval/000003.json: a rate or its interval is no number',
    'eval/000004.json: by_type is no object',
  ]
  lines = (path / 'metrics.jsonl').read_text().split('\n')
  (path / 'metrics.jsonl').write_text('\n'.join([lines[0], '{', '{}', *lines[1:]]))
  (path / 'timing.jsonl').write_text('{}\n{"step": 1}\n')
  run = course.read(path)
  assert len(run.metrics) == len(run.timing) == 1
  assert 'metrics.jsonl line 2: not JSON' in run.notes[0]
  assert 'nothing from there on is shown' in run.notes[0]
  assert 'timing.jsonl: left out 1 lines without a step' in run.notes[1]
  with pytest.raises(folder.LookError, match=r'neither a line in metrics\.jsonl nor'):
    course.read(tmp_path)


def test_there_is_a_chart_for_what_there_is(tmp_path):
  whole = course.read(_course(tmp_path / 'one'))
  assert {*charts.charts([whole], None)} == {
    *('training', 'gap', 'gates', 'by_turn', 'phases', 'speed')
  }
  bare = course.read(_course(tmp_path / 'two', **{'train/gap_by_turn': None}))
  assert 'by_turn' not in charts.charts([bare], None)


def test_the_same_runs_give_the_same_bytes(tmp_path):
  pytest.importorskip('matplotlib')
  run = course.read(_course(tmp_path / 'one', method='a$b$<'))
  chart = charts.charts([run], None)['gates']
  first = charts.render(chart, 'dark')
  assert charts.render(chart, 'dark') == first != charts.render(chart, 'light')
  assert first['png'].startswith(b'\x89PNG') and b'<dc:date>' not in first['svg']


def test_curves_are_drawn_where_they_are(tmp_path):
  figure = pytest.importorskip('matplotlib.figure').Figure()
  runs = [course.read(_course(tmp_path / str(i), seed=i)) for i in range(2)]
  charts.charts(runs, None)['training'].draw(figure)
  (axes,) = figure.axes
  (line,) = axes.lines
  np.testing.assert_allclose(line.get_ydata(), [0.6, 0.7, 0.8])
  corners = axes.collections[0].get_paths()[0].vertices
  assert corners[:, 1].min() == pytest.approx(0.1)
  assert corners[:, 1].max() == pytest.approx(1.3)


def test_a_report_is_one_page_and_its_charts(tmp_path, capsys):
  pytest.importorskip('matplotlib')
  paths = [str(path) for path in study(tmp_path / 'runs')]
  out = tmp_path / 'out'
  assert report.main([*paths, f'--out={out}']) == 0
  page = (out / 'report.html').read_text()
  assert 'success.svg' in {p.name for p in out.iterdir()}
  assert page.count('<tr>') == 1 + len(paths) and '95 % band' in page
  assert page.count('data:image/svg+xml;base64,') == 2 * page.count('<figure>') > 0
  assert "default-src 'none'" in page and 'http' not in page.split('base64')[0].replace(
    'http-equiv', ''
  )


def test_what_a_report_leaves_out_stands_on_it(tmp_path, capsys):
  path = _course(tmp_path / 'run')
  with open(path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 4, "rollout/suc\n')
  assert report.main([str(path), f'--out={tmp_path}/out']) == 0
  said = 'metrics.jsonl line 4: not JSON'
  assert f'note: {path}/{said}' in capsys.readouterr().out
  assert said in (tmp_path / 'out' / 'report.html').read_text()


def test_reports_of_other_panels_share_no_heading(tmp_path, capsys):
  pytest.importorskip('matplotlib')
  rates = {'n': 4, 'success_rate': 0.5, 'interval': [0.2, 0.8]}
  said = {**rates, 'by_type': {'a': rates}}
  runs = [
    make_run(tmp_path, 'sdar', seed, {5: [1, 0]}, report={**said, **changes})
    for seed, changes in enumerate(
      ({}, {}, {'panel': 'world/test/9', 'panel_digest': 'x'}, {'temperature': 1.0})
    )
  ]
  chart = charts.charts([*map(course.read, runs[:2])], None)['types']
  assert 'evaluation on world/valid/4 by type of task' in chart.caption
  for other in runs[2:]:
    assert 'types' not in charts.charts(
      [course.read(runs[0]), course.read(other)], None
    )
  assert report.main([*map(str, runs[1:3]), f'--out={tmp_path / "out"}']) == 0
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert 'at step 5 on world/valid/4' in page and 'on world/test/9' in page
  assert 'No learning curve: ' in page


def test_wild_names_stay_text(tmp_path):
  pytest.importorskip('matplotlib')
  wild = '<script>alert(1)</script>&{{table}}"\u202e'
  path = _course(tmp_path / wild.replace('/', '|'), method=wild)
  assert report.main([str(path), f'--out={tmp_path / "out"}']) == 0
  page = (tmp_path / 'out' / 'report.html').read_text()
  assert page.count('<script>') == 1 and '&lt;script&gt;alert(1)' in page
  assert 'No learning curve: ' in page  # It was not evaluated, and the page says so.


def test_what_cannot_be_is_one_line(tmp_path, capsys, monkeypatch):
  path = _course(tmp_path / 'run')
  plain = builtins.__import__

  def without(name, *args):
    if name.partition('.')[0] == 'matplotlib':
      raise ImportError(name)
    return plain(name, *args)

  for words, said in (
    ([str(tmp_path / 'none'), f'--out={tmp_path / "out"}'], 'neither a line'),
    ([str(path)], '--out is missing'),
    ([str(path), f'--out={path / "run.json"}'], 'is no directory'),
  ):
    assert report.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1
  monkeypatch.setattr(builtins, '__import__', without)
  assert report.main([str(path), f'--out={tmp_path / "out"}']) != 0
  assert "pip install 'sdar-jax[plot]'" in capsys.readouterr().err
