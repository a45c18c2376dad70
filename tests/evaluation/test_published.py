"""Published cells (arXiv 2605.15155, table 1), recomputed from their own arithmetic."""

import itertools
import json
import math
import pathlib

import numpy as np
import pytest

_TABLE = json.loads(
  (pathlib.Path(__file__).parents[1] / 'golden' / 'published.json').read_text()
)
_REWARDED = (
  'GRPO',
  'Skill-GRPO',
  'Skill-GRPO*',
  'GRPO+OPSD',
  'Skill-SD',
  'RLSD',
  'SDAR',
)
_SETS = (
  'nq',
  'triviaqa',
  'popqa',
  'hotpotqa',
  '2wikimultihopqa',
  'musique',
  'bamboogle',
)


def column(name):
  """{(model, method): printed per cent}."""
  place = _TABLE['columns'].index(name)
  return {
    (model, method): cells[place]
    for model, rows in _TABLE['models'].items()
    for method, cells in rows.items()
  }


def printed(value):
  """A share as a percentage with one decimal."""
  return round(100 * value + 1e-9, 1)


def straddling():
  """Printed cell -> questions right, if 124 questions and 1 were averaged alike."""
  return {
    printed((k / 124 + last) / 2): k + last for last in (0, 1) for k in range(125)
  }


def test_28_of_30_bamboogle_cells_are_means_of_124_questions_and_of_one():
  grid, cells = straddling(), column('bamboogle')
  assert len(cells) == 30
  assert len(grid) == 249  # Of 1,001 decimals: chance would give 7 or 8 cells of 30.
  others = {key: value for key, value in cells.items() if value not in grid}
  assert others == {
    ('Qwen2.5-3B-Instruct', 'GRPO'): printed(33 / 125),
    ('Qwen2.5-7B-Instruct', 'GRPO'): printed(47 / 125),
  }


@pytest.mark.parametrize(
  'model, gain, corrected',
  [
    ('Qwen2.5-3B-Instruct', 7.0, 2.2),
    ('Qwen2.5-7B-Instruct', 7.0, 3.2),
    ('Qwen3-1.7B', 1.1, 1.0),
  ],
)
def test_search_gain_over_grpo_with_every_question_counted_once(model, gain, corrected):
  averages = column('search_qa/average')
  assert averages[model, 'SDAR'] - averages[model, 'GRPO'] == pytest.approx(gain)
  ours = {method: corrected_average(model, method) for method in ('SDAR', 'GRPO')}
  assert round(ours['SDAR'] - ours['GRPO'], 1) == corrected


def corrected_average(model, method):
  """Mean over the seven sets, per cent, Bamboogle per question."""
  cells = [column(name)[model, method] for name in _SETS]
  assert np.mean(cells) == pytest.approx(
    column('search_qa/average')[model, method], abs=0.06
  )
  right = straddling().get(cells[-1])
  if right is not None:
    cells[-1] = 100 * right / 125
  return float(np.mean(cells))


def test_grpo_with_opsd_is_not_below_sdar_on_corrected_averages_of_two_models():
  ahead = [
    model
    for model in _TABLE['models']
    if corrected_average(model, 'GRPO+OPSD') > corrected_average(model, 'SDAR')
  ]
  assert ahead == ['Qwen2.5-3B-Instruct', 'Qwen3-1.7B']


def test_alfworld_and_webshop_cells_are_counts_of_128_episodes():
  counts = {printed(k / 128) for k in range(129)}
  counts |= {math.floor(1000 * k / 128) / 10 for k in range(129)}
  cells = [*column('alfworld/average').values(), *column('webshop/success').values()]
  assert len(cells) == 60 and set(cells) <= counts
  assert len(counts) < 260  # Of 1,001 decimals.


def detected(one, other, episodes=128):
  """Difference found with probability 0.8 at the 5 % level, two single runs, points."""
  variance = (one * (1 - one) + other * (1 - other)) / episodes
  return 100 * (1.959964 + 0.841621) * math.sqrt(variance)


def test_most_rewarded_rows_of_alfworld_are_closer_than_one_run_each_tells_apart():
  assert detected(0.75, 0.89) == pytest.approx(13.2, abs=0.1)
  assert detected(0.41, 0.59) == pytest.approx(17.2, abs=0.1)
  averages = column('alfworld/average')
  pairs = [
    (a, b)
    for model, rows in _TABLE['models'].items()
    for a, b in itertools.combinations([(model, method) for method in rows], 2)
  ]
  rewarded = [p for p in pairs if all(method in _REWARDED for _, method in p)]
  with_sdar = [p for p in pairs if any(method == 'SDAR' for _, method in p)]

  def close(some):
    found = 0
    for a, b in some:
      one, other = averages[a] / 100, averages[b] / 100
      found += 100 * abs(one - other) < detected(one, other)
    return found, len(some)

  assert close(rewarded) == (47, 63)
  assert close(with_sdar) == (13, 27)
  assert close(pairs) == (59, 135)
