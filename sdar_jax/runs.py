"""Run directories as a comparison reads them, and which of them it may compare.

What is read is what training leaves: config.json, run.json and eval/<step>.json.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from sdar_jax import files, ledger
from sdar_jax.trajectory import Outcome

# Keys and sections that decide no trained or evaluated number, or that are checked by
# themselves: runs that differ in nothing else are seeds of one method.
NEUTRAL = (
  'seed',
  'steps',
  'pool',
  'mesh',
  'checkpoint',
  'log',
  'eval.every',
  'eval.seed',
  'eval.split',
  'eval.tasks',
)
_SCHEMA = 1
_ABSENT = '(absent)'
_EQUAL = ('panel_digest', 'temperature', 'attempts')  # Of all evaluations compared.


class RunError(ValueError):
  """Runs that cannot be read or compared: one line naming them and what to change."""


@dataclasses.dataclass(frozen=True)
class Result:
  """One episode of an evaluation; `score` is None where the world grades none."""

  task_id: str
  attempt: int
  task_type: str
  success: bool
  score: float | None
  outcome: Outcome
  turns: int


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One eval/<step>.json."""

  path: pathlib.Path
  step: int
  panel: str
  panel_digest: str
  temperature: float
  attempts: int
  seed: int
  has_score: bool
  results: tuple[Result, ...]


@dataclasses.dataclass(frozen=True)
class Run:
  """One run directory.

  Attributes:
    path: the directory.
    seed: of the run.
    method: the name of its algorithm.
    steps: how far it was to train.
    config: flattened, key -> value.
    world_digest: what its episodes consisted of.
    model_digest: what its initial policy was.
    code_versions: of the code that trained it; several if it was resumed by another.
    evaluations: step -> evaluation, in order of steps.
  """

  path: pathlib.Path
  seed: int
  method: str
  steps: int
  config: dict[str, Any]
  world_digest: str
  model_digest: str
  code_versions: tuple[str, ...]
  evaluations: dict[int, Evaluation]

  @property
  def last_step(self) -> int:
    """The step of the last evaluation."""
    return max(self.evaluations)


def read(path: pathlib.Path) -> Run:
  """Reads a run directory.

  Raises:
    RunError: it is none, it was not evaluated, or a file is damaged.
  """
  for name, why in (
    ('config.json', 'it is no run directory'),
    ('run.json', 'it was trained by an earlier version; train it again'),
  ):
    if not (path / name).exists():
      raise RunError(f'{path} has no {name}: {why}')
  config, identity = _load(path / 'config.json'), _load(path / 'run.json')
  reports = sorted((path / 'eval').glob('*.json'))
  if not reports:
    raise RunError(f'{path} has no evaluation in eval/: let it run')
  _check_ledger(path)
  evaluations = [_parse(report, _evaluation) for report in reports]
  try:
    _check_schema(identity)
    return Run(
      path=path,
      seed=identity['seed'],
      method=_printable(identity['method']),
      steps=config['steps'],
      config=config,
      world_digest=identity['world_digest'],
      model_digest=identity['model_digest'],
      code_versions=tuple(identity['code_versions']),
      evaluations={e.step: e for e in evaluations},
    )
  except (ValueError, KeyError, TypeError) as error:
    raise _damaged(path, error) from error


def _check_ledger(path: pathlib.Path) -> None:
  try:
    missing = ledger.check(path)
  except files.FileError as error:
    raise RunError(str(error)) from error
  if missing:
    raise RunError(
      f'{path / "eval" / missing[0]} is gone: restore it, or take its entry out of'
      f' {path / ledger.NAME}'
    )


def _load(path: pathlib.Path) -> Any:
  return _parse(path, lambda _, value: value)


def _parse(path: pathlib.Path, make: Any) -> Any:
  try:
    return make(path, json.loads(path.read_text(encoding='utf-8')))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> RunError:
  what = f'no {error}' if isinstance(error, KeyError) else files.one_line(error)
  return RunError(f'{path} is damaged ({what}): restore it or leave the run out')


def _check_schema(record: dict[str, Any]) -> None:
  if record['schema'] != _SCHEMA:
    raise ValueError(f'schema {record["schema"]}, this version reads {_SCHEMA}')


def _printable(value: Any) -> str:
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def _evaluation(path: pathlib.Path, report: dict[str, Any]) -> Evaluation:
  _check_schema(report)
  scored = 'mean_score' in report
  results = tuple(_result(record, scored) for record in report['tasks'])
  return Evaluation(
    path=path,
    step=report['step'],
    panel=_printable(report['panel']),
    panel_digest=report['panel_digest'],
    temperature=report['temperature'],
    attempts=report['attempts'],
    seed=report['seed'],
    has_score=scored,
    results=results,
  )


def _result(record: dict[str, Any], scored: bool) -> Result:
  return Result(
    task_id=record['task_id'],
    attempt=record['attempt'],
    task_type=record['type'],
    success=record['success'],
    # An episode that was not finished has no score: it counts 0, as in WebShop's own.
    score=float(record['score'] or 0) if scored else None,
    outcome=Outcome(record['outcome']),
    turns=record['turns'],
  )


def compared_step(runs: Sequence[Run], step: int | None) -> int:
  """The step to compare at: the last one, which all runs must have reached.

  Args:
    runs: at least one.
    step: a step to compare at instead; None for the last.

  Raises:
    RunError: a run was not evaluated then.
  """
  ahead = max(runs, key=lambda run: run.last_step)
  for run in runs:
    if step is not None and step not in run.evaluations:
      steps = ', '.join(map(str, run.evaluations))
      raise RunError(f'--step {step}: {run.path} was evaluated at steps {steps}')
    if step is None and run.last_step != ahead.last_step:
      raise RunError(
        f'{run.path} was last evaluated at step {run.last_step}, {ahead.path} at'
        f' step {ahead.last_step}: let it finish or give --step'
      )
  return ahead.last_step if step is None else step


def check_comparable(runs: Sequence[Run], steps: Sequence[int]) -> None:
  """Raises RunError, naming two, unless worlds and panels are the same everywhere."""
  first = runs[0]
  for run in runs:
    _check_equal('world_digest', first, run)
    for step in steps:
      a, b = first.evaluations[steps[0]], run.evaluations[step]
      for key in _EQUAL:
        _check_equal(key, a, b)
      if sorted(_keys(a)) != sorted(_keys(b)):
        raise RunError(f'{a.path} and {b.path}: one panel, but other tasks in them')


def _keys(evaluation: Evaluation) -> list[tuple[str, int]]:
  return [(r.task_id, r.attempt) for r in evaluation.results]


def _check_equal(key: str, a: Run | Evaluation, b: Run | Evaluation) -> None:
  values = [getattr(a, key), getattr(b, key)]
  if values[0] != values[1]:
    one, other = (v[:12] if isinstance(v, str) else v for v in values)
    raise RunError(
      f'{a.path} and {b.path} cannot be compared: {key} {one} and {other}; compare'
      ' runs of one world on one panel'
    )


def by_method(runs: Sequence[Run]) -> dict[str, list[Run]]:
  """Label -> its runs by seed.

  A label is the algorithm's name and the settings in which runs of that name differ.

  Raises:
    RunError: two runs have the same label and seed.
  """
  out: dict[str, list[Run]] = {}
  for name in sorted({run.method for run in runs}):
    members = [run for run in runs if run.method == name]
    keys = differing_keys(members)
    for run in members:
      settings = [f'{_short(key)}={_plain(run, key)}' for key in keys]
      out.setdefault(' '.join([name, *settings]), []).append(run)
  for label, members in out.items():
    members.sort(key=lambda run: run.seed)
    for a, b in itertools.pairwise(members):
      if a.seed == b.seed:
        raise RunError(f'{a.path} and {b.path}: both are {label}, seed {a.seed}')
  return out


def differing_keys(runs: Sequence[Run]) -> list[str]:
  """Config keys that matter and in which the runs differ."""
  keys = sorted({key for run in runs for key in run.config})
  return [
    key
    for key in keys
    if not any(key == name or key.startswith(f'{name}.') for name in NEUTRAL)
    and len({_plain(run, key) for run in runs}) > 1
  ]


def _short(key: str) -> str:
  return key.removeprefix('algorithm.')


def _plain(run: Run, key: str) -> str:
  return _printable(run.config[key] if key in run.config else _ABSENT)


def cautions(methods: dict[str, list[Run]], step: int) -> list[str]:
  """What a reader should know about runs that may be compared all the same."""
  runs = [run for members in methods.values() for run in members]
  out = []
  few = [f'{label} {len(m)}' for label, m in methods.items() if len(m) < 3]
  if few:
    out.append(f'fewer than 3 seeds: {", ".join(few)}; train more before you conclude')
  stopped = [run for run in runs if step < run.steps]
  if stopped:
    out.append(
      f'compared at step {step}, but {stopped[0].path} is configured for'
      f' {stopped[0].steps} ({len(stopped)} of {len(runs)} runs)'
    )
  unequal = differing_keys([members[0] for members in methods.values()])
  unequal = [key for key in unequal if not key.startswith(('algorithm.', 'skills.'))]
  if unequal:
    out.append(f'methods differ in more than the algorithm: {", ".join(unequal)}')
  for name, values in (
    ('initial models', {run.model_digest for run in runs}),
    ('code versions', {v for run in runs for v in run.code_versions}),
    ('evaluation seeds', {run.evaluations[step].seed for run in runs}),
  ):
    if len(values) > 1:
      out.append(f'{len(values)} {name} among these runs')
  return out
