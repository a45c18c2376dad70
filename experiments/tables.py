"""Prints README's tables of results from the raw files, in Markdown.

  python -m experiments.tables                       # the three worlds
  python -m experiments.tables --study experiments/results/small
  python -m experiments.tables --study --baseline=sdar experiments/results/controls
  python -m experiments.tables --sweep runs/studies/tuned/comparison

Every cell follows from the results.csv of a folder; `--study` prints the one table of a
study, without single runs; `--sweep`, from its sweep.json, what its methods tried
before.
"""

import pathlib
from collections.abc import Sequence

from experiments import sweep
from sdar_jax.evaluation import comparison, presentation, results
from sdar_jax.process import flags, terminal

RESULTS = pathlib.Path(__file__).with_name('results')
WORLDS = {'alfworld': 'ALFWorld', 'search_qa': 'Search-QA', 'webshop': 'WebShop'}


def compared(
  folder: pathlib.Path, baseline: str | None = None
) -> comparison.Comparison:
  """Compares a folder's runs with those of a method, usually GRPO.

  Raises:
    ValueError: they cannot be read or compared.
  """
  return comparison.compare(results.load(str(folder)), baseline)


def runs_table(folders: Sequence[pathlib.Path]) -> list[str]:
  """Writes every run's success before, between and after."""
  return _joined(folders, presentation.run_headings, presentation.run_cells)


def methods_table(folders: Sequence[pathlib.Path]) -> list[str]:
  """Writes methods against the baseline by success."""
  return _joined(folders, lambda got: presentation.headings('success'), _success)


def study_table(folder: pathlib.Path, baseline: str | None = None) -> list[str]:
  """Writes the methods of one study by success."""
  got = _success(compared(folder, baseline))
  return presentation.table(presentation.headings('success'), got)


def sweep_table(folder: pathlib.Path) -> list[str]:
  """Writes what the methods of one study tried before it."""
  return sweep.table(sweep.read(folder / 'sweep.json'))


def _success(got: comparison.Comparison) -> list[list[str]]:
  return [presentation.cells(row) for row in got.rows if row.metric == 'success']


def _joined(folders: Sequence[pathlib.Path], headings, cells) -> list[str]:
  """Writes one table of several; what a folder has no file of is left empty."""
  got = {folder.name: compared(folder) for folder in folders}
  heads = {name: headings(one) for name, one in got.items()}
  every, rows = max(heads.values(), key=len), []
  if any(set(own) - set(every) for own in heads.values()):
    raise ValueError(f'{", ".join(got)}: evaluated at other steps, no one table')
  for name, one in got.items():
    for row in cells(one):
      known = dict(zip(heads[name], row, strict=True))
      rows.append([WORLDS.get(name, name), *(known.get(head, '') for head in every)])
  return presentation.table(['world', *every], rows)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints the tables that a command line asks for; returns the exit code."""
  parser = flags.Parser('python -m experiments.tables', __doc__)
  default = [str(RESULTS / name) for name in WORLDS]
  parser.add_argument('folders', nargs='*', metavar='FOLDER', default=default)
  kinds = parser.add_mutually_exclusive_group()
  kinds.add_argument('--study', action='store_true', help='of one study each')
  kinds.add_argument('--sweep', action='store_true', help='of what each study tuned')
  parser.add_argument('--baseline', metavar='METHOD', help='of --study (default: grpo)')
  options = parser.parse_all(argv)
  if options.baseline is not None and not options.study:
    raise flags.UsageError('--baseline: it needs --study')
  folders = [pathlib.Path(name) for name in options.folders]
  if options.sweep:
    tables = [sweep_table(folder) for folder in folders]
  elif options.study:
    tables = [study_table(folder, options.baseline) for folder in folders]
  else:
    tables = [runs_table(folders), methods_table(folders)]
  print('\n\n'.join('\n'.join(lines) for lines in tables))
  return 0


if __name__ == '__main__':
  main()
