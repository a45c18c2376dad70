"""What docs/hardware.md says fits, compiled for chips that are not here.

Run with `pytest -m slow tests/learner/test_fits.py`: minutes of CPU for each row. It
wants libtpu, or jax's CUDA plugin, as that page says.
"""

import json

import pytest

from benchmarks import fits_table
from benchmarks.fits_table import Fit


def compiled(row, *more):
  """A row's figures; skips where its compiler is not installed."""
  try:
    return fits_table.compiled(row, *more)
  except ValueError as error:
    if 'XLA cannot compile' in str(error):
      pytest.skip(str(error))
    raise


@pytest.mark.slow
@pytest.mark.parametrize('row', fits_table.ROWS, ids=lambda row: row.name)
def test_the_rows_of_the_table_fit(row):
  assert compiled(row)['fits']


@pytest.mark.slow
@pytest.mark.parametrize('chip', ['h100', 'v5e'])
def test_an_update_holds_weights_and_moments_once(chip):
  row = Fit(chip, 1, 'qwen2.5-0.5b', 'train.microbatch_rows=1 rollout.slots=8')
  programs = compiled(row, '--programs=update')['programs']
  assert programs['update']['temporaries'] < 0.1


def test_the_figures_are_of_every_row_and_all_fit():
  found = json.loads(fits_table.FIGURES.read_text())
  assert set(found) == {row.name for row in fits_table.ROWS}
  for name, figures in found.items():
    held = [sum(parts.values()) for parts in figures['phases'].values()]
    assert figures['fits'] and max(held) <= figures['usable'], name


def test_a_row_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
  """What was compiled is kept by row; `--again` compiles it anew."""
  held = {
    name: {'weights': 1.0, 'temporaries': temporaries}
    for name, temporaries in (('rollout', 0.5), ('scoring', 1.5), ('gradient', 2.25))
  }
  asked, path = [], tmp_path / 'fits.json'
  rows = (Fit('v5e', 4, 'qwen3-0.6b', 'a=1'), Fit('h100', 1, 'qwen2.5-0.5b,b=2', ''))

  def answer(row):
    asked.append(row)
    return {'phases': held, 'fits': True}

  monkeypatch.setattr(fits_table, 'ROWS', rows)
  monkeypatch.setattr(fits_table, 'compiled', answer)
  monkeypatch.setattr(fits_table.importlib.metadata, 'version', lambda name: '1.2.3')
  path.write_text(json.dumps({rows[0].name: {'phases': held, 'fits': True}}))
  assert fits_table.main([f'--output={path}']) == 0
  assert asked == [rows[1]]
  assert set(json.loads(path.read_text())) == {row.name for row in rows}
  assert capsys.readouterr().out.splitlines() == [
    'Qwen3-0.6B, 4 v5e | `a=1` | 1.5 | 2.5 | 3.2 | 2.2',
    'Qwen2.5-0.5B, one H100 | the argument `b=2` | 1.5 | 2.5 | 3.2 | 2.2',
  ]
  assert fits_table.main([f'--output={path}', '--again']) == 0
  assert asked[1:] == [*rows]


def test_a_row_that_cannot_be_compiled_is_one_line():
  row = Fit('abacus', 1, 'qwen2.5-0.5b', '')
  with pytest.raises(ValueError, match=r'abacus 1 qwen2.5-0.5b: .*must be cpu, h100'):
    fits_table.compiled(row)
