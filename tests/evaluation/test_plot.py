"""Figures: the same bytes for the same runs, and what they show."""

import sys
import xml.etree.ElementTree as ElementTree

import pytest
from run_cases import compared, episode, make_run, study

from sdar_jax.evaluation import plot, presentation


def test_the_same_comparison_gives_the_same_bytes(tmp_path):
  pytest.importorskip('matplotlib')
  paths = study(tmp_path / 'runs')
  first = plot.learning_curves(compared(paths))
  assert set(first) == {'curves.png', 'curves.svg'}
  assert plot.learning_curves(compared(paths)) == first
  assert first['curves.png'].startswith(b'\x89PNG\r\n')
  assert set(first) <= set(presentation.write(compared(paths), tmp_path / 'out'))
  for name, data in first.items():
    assert (tmp_path / 'out' / name).read_bytes() == data
  other = plot.learning_curves(compared(paths[1:]))
  assert other['curves.png'] != first['curves.png']


def test_the_svg_is_sound_and_says_nothing_of_the_machine(tmp_path):
  pytest.importorskip('matplotlib')
  data = plot.learning_curves(compared(study(tmp_path)))['curves.svg']
  ElementTree.fromstring(data)
  assert b'<dc:date>' not in data


def test_curves_and_bands_are_the_estimates(tmp_path):
  figure = pytest.importorskip('matplotlib.figure').Figure()
  comparison = compared(study(tmp_path, gains=(('grpo', 0.0), ('a$b$', 0.3))))
  axes = figure.add_subplot()
  plot._draw(axes, comparison.steps, comparison.rows)
  assert len(axes.lines) == len(axes.collections) == len(comparison.rows) == 2
  for line, band, row in zip(axes.lines, axes.collections, comparison.rows):
    assert line.get_label() == f'{row.method} (3 seeds)'
    expected = [100 * estimate.mean for estimate in row.curve]
    assert line.get_ydata().tolist() == pytest.approx(expected)
    corners = band.get_paths()[0].vertices
    for step, estimate in zip(comparison.steps, row.curve):
      heights = corners[corners[:, 0] == step, 1]
      assert heights.min() == pytest.approx(100 * estimate.low)
      assert heights.max() == pytest.approx(100 * estimate.high)


def test_of_many_methods_each_meets_the_baseline_on_its_own_axes(tmp_path):
  make = pytest.importorskip('matplotlib.figure').Figure
  gains = [(name, 0.1 * i) for i, name in enumerate(('b', 'grpo', 'a', 'c', 'd', 'e'))]
  comparison = compared(study(tmp_path, seeds=2, gains=gains))
  figure = plot._figure(make, comparison, 'success')
  curves = {row.method: [100 * e.mean for e in row.curve] for row in comparison.rows}
  assert len(figure.axes) == 5  # One per method but the baseline, on a grid of 8.
  for axes in figure.axes:
    method = axes.get_title().removesuffix(' (2 seeds)')
    gray, blue = axes.lines
    assert gray.get_ydata().tolist() == pytest.approx(curves['grpo'])
    assert blue.get_ydata().tolist() == pytest.approx(curves.pop(method))
    assert len(axes.collections) == 2
  assert list(curves) == ['grpo']
  assert 'gray: grpo (2 seeds)' in figure.get_suptitle()


def test_a_single_seed_has_the_band_of_new_tasks(tmp_path):
  make = pytest.importorskip('matplotlib.figure').Figure
  run = make_run(tmp_path, 'grpo', 0, {0: [0, 1, 0, 0], 5: [1, 1, 0, 1]})
  (axes,) = plot._figure(make, compared([run]), 'success').axes
  assert axes.lines[0].get_label() == 'grpo (1 seed, new tasks)'
  corners = axes.collections[0].get_paths()[0].vertices
  for step, rate in ((0, 0.25), (5, 0.75)):
    # Wilson's, as the ends where the score test of a rate is on its edge.
    ends = [rate, *(corners[corners[:, 0] == step, 1] / 100)]
    for end in (min(ends), max(ends)):
      assert abs(end - rate) == pytest.approx(1.959964 * (end * (1 - end) / 4) ** 0.5)


def test_a_score_of_a_single_seed_is_a_line_without_a_band(tmp_path):
  make = pytest.importorskip('matplotlib.figure').Figure
  tasks = [episode(i, i, score=0.5) for i in range(2)]
  scored = {'mean_score': 0.5}
  run = make_run(tmp_path, 'grpo', 0, {0: tasks, 5: tasks}, report=scored)
  (axes,) = plot._figure(make, compared([run]), 'score').axes
  assert axes.lines[0].get_label() == 'grpo (1 seed)'
  assert axes.lines[0].get_ydata().tolist() == [50, 50]
  assert not axes.collections[0].get_paths()


def test_a_missing_matplotlib_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'matplotlib', None)
  with pytest.raises(plot.PlotError, match=r"pip install 'sdar-jax\[plot\]'"):
    plot.learning_curves(compared(study(tmp_path)))
