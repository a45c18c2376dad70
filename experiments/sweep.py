"""Chooses numbers of methods before a study: values x seeds on a tuning split.

  c.sweep = {'sdar': {'algorithm': {'distill_coef': (0.1, 0.5, 1.0)}}}

Each swept method is trained with each of its values and with seeds of the sweep's own,
and evaluated on `sweep_split` alone. The study then trains with the value of the
highest mean success at the last step, on seeds that no choice has seen, and reports on
another split. All swept methods try equally many values.
"""

import dataclasses
import itertools
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from experiments import cells as cells_lib
from experiments.cells import Cell, StudyError
from sdar_jax import files
from sdar_jax.evaluation import comparison, presentation, runs

SPLIT = 'eval.split'


@dataclasses.dataclass(frozen=True)
class Choice:
  """The value chosen for a method.

  Attributes:
    method: of the study.
    candidates: the values that were tried, in order, each flattened.
    successes: of each candidate, by seed.
    best: the candidate with the highest mean; the earlier one of equals.
  """

  method: str
  candidates: tuple[dict[str, Any], ...]
  successes: tuple[tuple[float, ...], ...]

  @property
  def means(self) -> list[float]:
    """Averages each candidate's success over the seeds."""
    return [statistics.fmean(values) for values in self.successes]

  @property
  def best(self) -> dict[str, Any]:
    """Picks the candidate to train with."""
    return self.candidates[self.means.index(max(self.means))]

  @property
  def at_an_end(self) -> bool:
    """Whether a better number may lie beyond three or more that were tried."""
    values = [value for one in self.candidates for value in one.values()]
    if len(values) != len(self.candidates) or not {*map(type, values)} <= {int, float}:
      return False
    return len(values) > 2 and {*self.best.values()} <= {min(values), max(values)}

  def record(self) -> dict[str, Any]:
    """Makes its entry in study.json."""
    rows = zip(self.candidates, self.means, self.successes, strict=True)
    return {
      'chosen': self.best,
      'tried': [{'values': v, 'mean': m, 'successes': list(s)} for v, m, s in rows],
    }


def candidates(study: Any, method: str) -> list[dict[str, Any]]:
  """Lists what a method tries: its keys' values, each with each."""
  keys = cells_lib.flatten(cells_lib.optional(study, 'sweep')[method])
  for key, values in keys.items():
    if not isinstance(values, tuple) or not values:
      raise StudyError(
        f'study.sweep.{method}.{key}={values!r}: must be a tuple of values'
      )
  return [dict(zip(keys, row)) for row in itertools.product(*keys.values())]


def make_cells(study: Any, output: pathlib.Path) -> list[Cell]:
  """Makes the cells of a study's sweep, seed by seed; none without one.

  Raises:
    StudyError: a value that there is not, unequal budgets, or seeds or a split that the
      study reports.
  """
  swept = list(cells_lib.optional(study, 'sweep'))
  if not swept:
    return []
  seeds = cells_lib.optional(study, 'sweep_seeds')
  split = cells_lib.optional(study, 'sweep_split')
  both = sorted({*seeds} & {*study.seeds})
  if both or not seeds or len({*seeds}) != len(seeds):
    raise StudyError(
      f'study.sweep_seeds={seeds}: must name some, each once and none of study.seeds'
    )
  tried = {method: candidates(study, method) for method in swept}
  counts = {method: len(values) for method, values in tried.items()}
  if len({*counts.values()}) > 1:
    raise StudyError(f'study.sweep: unequal budgets: {counts} values; try equally many')
  source = cells_lib.find_source(study)
  common = cells_lib.flatten(cells_lib.optional(study, 'sweep_overrides'))
  out = []
  for seed in seeds:
    for method in swept:
      for values in tried[method]:
        path = output / 'sweep' / _directory(method, values, seed)
        own = {**common, **values, SPLIT: split}
        cell = cells_lib.make_cell(study, source, method, seed, own, path)
        cell.candidate = values
        out.append(cell)
  return out


def check_splits(reported: Sequence[Cell], tuning: Sequence[Cell]) -> None:
  """Raises StudyError where a choice would see what is reported."""
  split = tuning[0].config.eval.split
  for cell in reported:
    if cell.config.eval.split == split:
      raise StudyError(
        f"study.sweep_split='{split}': {cell} is reported on it: set it, or"
        f' overrides.{SPLIT}, to another'
      )


def _directory(method: str, values: Mapping[str, Any], seed: int) -> str:
  said = ''.join(f'-{key.rpartition(".")[2]}={value}' for key, value in values.items())
  return cells_lib.directory_name(f'{method}{said}-{seed}', also='.=')


def choose(tuning: Sequence[Cell]) -> dict[str, Choice]:
  """Chooses for each method whose cells are all done.

  Args:
    tuning: the sweep's cells, as `make_cells` orders them.

  Raises:
    RunError: one of them cannot be read.
  """
  out = {}
  for method in dict.fromkeys(cell.method for cell in tuning):
    own = [cell for cell in tuning if cell.method == method]
    if any(cell.state != 'done' for cell in own):
      continue
    tried: dict[str, list[Cell]] = {}
    for cell in own:
      tried.setdefault(json.dumps(cell.candidate), []).append(cell)
    out[method] = Choice(
      method,
      tuple(group[0].candidate for group in tried.values()),
      tuple(tuple(map(_success, group)) for group in tried.values()),
    )
  return out


def _success(cell: Cell) -> float:
  evaluation = runs.read(cell.workdir).evaluations[cell.config.steps]
  return comparison.success_rate(evaluation)[0]


def write(choices: Mapping[str, Choice], path: pathlib.Path) -> None:
  """Writes what was tried and chosen, as study.json has it."""
  content = {name: choice.record() for name, choice in choices.items()}
  files.write_atomic(path, (json.dumps(content, indent=1) + '\n').encode())


def read(path: pathlib.Path) -> dict[str, Choice]:
  """Reads what `write` wrote; what is best is chosen anew.

  Raises:
    files.FileError: one line naming the file and what is wrong with it.
  """
  content, out = files.read_json(path, object), {}
  try:
    for method, record in content.items():
      tried = record['tried']
      values = tuple(dict(one['values']) for one in tried)
      successes = tuple(tuple(map(float, one['successes'])) for one in tried)
      out[method] = Choice(method, values, successes)
      if out[method].best != record['chosen']:
        raise ValueError(f'{method}: what was chosen is not the best')
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    why = files.one_line(error)
    raise files.FileError(f'{path}: no record of a sweep: {why}') from None
  return out


def table(choices: Mapping[str, Choice]) -> list[str]:
  """Writes, in Markdown, the mean success of what each method tried."""
  rows = []
  for choice in choices.values():
    said = [', '.join(map(str, values.values())) for values in choice.candidates]
    means = zip(said, choice.means, strict=True)
    rows.append(
      [
        choice.method,
        ', '.join(key.removeprefix('algorithm.') for key in choice.best),
        '; '.join(f'{values}: {100 * mean:.1f}' for values, mean in means),
        said[choice.candidates.index(choice.best)],
      ]
    )
  return presentation.table(['method', 'number', 'value: success', 'chosen'], rows)


def show(choices: Mapping[str, Choice], console: rich.console.Console) -> None:
  """Prints what was tried and chosen."""
  table = rich.table.Table('method', 'tried', 'success', 'chosen')
  for choice in choices.values():
    for values, mean in zip(choice.candidates, choice.means, strict=True):
      said = ', '.join(f'{key}={value}' for key, value in values.items())
      mark = 'chosen' if values == choice.best else ''
      table.add_row(choice.method, said, f'{100 * mean:.1f} %', mark)
  console.print(table)
  for choice in choices.values():
    if choice.at_an_end:
      console.print(f'{choice.method}: the best value is at an end of those tried')
