"""Run directories, read and checked for a comparison.

What is read is what training leaves: config.json, run.json and eval/<step>.json; or
what an earlier comparison left, results.csv.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.storage import identity, ledger
from sdar_jax.trajectory import Outcome

# Keys and sections that decide no trained or evaluated number, or that are checked by
# themselves: runs that differ in nothing else are seeds of one method.
NEUTRAL = (
  'seed',
  'steps',
  'pool',
  'mesh',
  'hosts',
  'checkpoint',
  'log',
  'export',
  'eval.every',
  'eval.seed',
  'eval.split',
  'eval.tasks',
)
_RUN_SCHEMA, _REPORT_SCHEMA = 1, 2
_ABSENT = '(absent)'
# Of all evaluations compared.
_EQUAL = {
  'panel_digest': (str,),
  'world_digest': (str,),
  'attempts': (int,),
  'temperature': (int, float),
  'top_p': (int, float),
  'top_k': (int,),
  'max_response_tokens': (int,),
}
# What a run was made of besides its config and world, and words for several.
_INPUTS = {k: known.several for k, known in identity.INPUTS.items() if known.several}
# Among seeds.
_SAME_INPUTS = ('model_digest', 'tokenizer_digest', 'skills_digest', 'teacher_digest')
_LIMIT = 2**30  # Bytes of a file that are read: a report of 5 million episodes.


class RunError(ValueError):
  """Runs not to be read or compared: one line with names and remedy."""


@dataclasses.dataclass(frozen=True)
class Result:
  """One episode of an evaluation; `score` is None without grades."""

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
  composition: dict[str, int]
  world_digest: str
  temperature: float
  top_p: float
  top_k: int
  max_response_tokens: int
  attempts: int
  seed: int
  has_score: bool
  results: tuple[Result, ...]


@dataclasses.dataclass(frozen=True)
class RunRecord:
  """One run directory.

  Attributes:
    path: the directory.
    seed: of the run.
    method: the name of its algorithm.
    steps: how far it was to train.
    config: flattened, key -> value; {} where that is not known.
    inputs: name -> digest of what it was made of, of those that are known.
    code_versions: of the code that trained it; several if it was resumed by another.
    evaluations: step -> evaluation, in order of steps.
  """

  path: pathlib.Path
  seed: int
  method: str
  steps: int
  config: dict[str, Any]
  inputs: dict[str, str]
  code_versions: tuple[str, ...]
  evaluations: dict[int, Evaluation]

  @property
  def last_step(self) -> int:
    """The step of the last evaluation."""
    return max(self.evaluations)


def read(path: pathlib.Path) -> RunRecord:
  """Reads a run directory.

  Raises:
    RunError: it is none, it was not evaluated, or a file is damaged.
  """
  if not path.exists():
    raise RunError(f'{path}: there is no such directory')
  for name, why in (
    ('config.json', 'it is no run directory, nor are there results.csv'),
    ('run.json', 'it was trained by an earlier version; train it again'),
  ):
    if not (path / name).exists():
      raise RunError(f'{path} has no {name}: {why}')
  config = _parse(path / 'config.json', lambda values: values)
  steps = _parse(path / 'config.json', lambda values: field(values, 'steps', int))
  reports = sorted((path / 'eval').glob('*.json'))
  if not reports:
    raise RunError(f'{path} has no evaluation in eval/: let it run')
  _check_ledger(path)
  evaluations = [_parse(r, functools.partial(_evaluation, r)) for r in reports]

  def make(identity: dict[str, Any]) -> RunRecord:
    _check_schema(identity, _RUN_SCHEMA)
    return RunRecord(
      path=path,
      seed=field(identity, 'seed', int),
      method=printable(field(identity, 'method', str)),
      steps=steps,
      config=config,
      inputs=inputs(identity),
      code_versions=tuple(field(identity, 'code_versions', list)),
      evaluations={e.step: e for e in evaluations},
    )

  return _parse(path / 'run.json', make)


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


def inputs(record: dict[str, Any]) -> dict[str, str]:
  """The digests of inputs that `record` has; earlier versions wrote fewer."""
  known = [key for key in _INPUTS if key in record and record[key] is not None]
  return {key: printable(record[key]) for key in known}


def field(record: dict[str, Any], key: str, *kinds: type) -> Any:
  """An entry of a record.

  Raises:
    KeyError: there is none.
    TypeError: it is of no such type.
  """
  value = record[key]
  if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
    names = ' or '.join(kind.__name__ for kind in kinds)
    raise TypeError(f'{key}={str(value)[:40]!r}: must be {names}')
  return value


def _parse(path: pathlib.Path, make: Callable[[dict[str, Any]], Any]) -> Any:
  try:
    return make(files.read_json(path, limit=_LIMIT))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise damaged(path, error) from error


def damaged(path: pathlib.Path, error: Exception) -> RunError:
  """Makes an error naming the file."""
  what = f'no {error}' if isinstance(error, KeyError) else files.one_line(error)
  what = what.removeprefix(f'{path}: ')
  return RunError(f'{path} is damaged ({what}): restore it or leave it out')


def _check_schema(record: dict[str, Any], known: int) -> None:
  if record['schema'] != known:
    raise ValueError(f'schema {record["schema"]}, this version reads {known}')


def printable(value: Any) -> str:
  """Escapes a text for terminals and tables."""
  return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value))


def _evaluation(path: pathlib.Path, report: dict[str, Any]) -> Evaluation:
  _check_schema(report, _REPORT_SCHEMA)
  scored = 'mean_score' in report
  results = tuple(_result(r, scored) for r in field(report, 'tasks', list))
  if path.stem != f'{(step := field(report, "step", int)):06d}':
    raise ValueError(f'it says it is of step {step}')
  return make_evaluation(path, report, step, results)


def make_evaluation(
  path: pathlib.Path, settings: dict[str, Any], step: int, results: Sequence[Result]
) -> Evaluation:
  """One evaluation, checked.

  Raises:
    ValueError: an episode occurs twice.
    KeyError: a setting is missing.
    TypeError: a setting is of another type.
  """
  if len({(r.task_id, r.attempt) for r in results}) != len(results):
    raise ValueError('an attempt at a task occurs twice')
  return Evaluation(
    path=path,
    step=step,
    panel=printable(field(settings, 'panel', str)),
    composition={printable(k): v for k, v in settings['composition'].items()},
    seed=field(settings, 'seed', int),
    **{key: field(settings, key, *kinds) for key, kinds in _EQUAL.items()},
    has_score=all(r.score is not None for r in results),
    results=tuple(results),
  )


def _result(record: dict[str, Any], scored: bool) -> Result:
  return Result(
    task_id=field(record, 'task_id', str),
    attempt=field(record, 'attempt', int),
    task_type=field(record, 'type', str),
    success=field(record, 'success', bool),
    # An episode that was not finished has no score: it counts 0, as in WebShop's own.
    score=float(record['score'] or 0) if scored else None,
    outcome=Outcome(record['outcome']),
    turns=field(record, 'turns', int),
  )


def compared_step(runs: Sequence[RunRecord], step: int | None) -> int:
  """Finds the last step, which all runs must have reached.

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


def check_comparable(runs: Sequence[RunRecord], steps: Sequence[int]) -> None:
  """Raises RunError unless worlds and panels are the same everywhere."""
  first = runs[0]
  for run in runs:
    for step in steps:
      a, b = first.evaluations[steps[0]], run.evaluations[step]
      for key in _EQUAL:
        _check_equal(key, a, b)
      if sorted(_keys(a)) != sorted(_keys(b)):
        raise RunError(f'{a.path} and {b.path}: one panel, but other tasks in them')


def _keys(evaluation: Evaluation) -> list[tuple[str, int]]:
  return [(r.task_id, r.attempt) for r in evaluation.results]


def _check_equal(key: str, a: Evaluation, b: Evaluation) -> None:
  values = [getattr(a, key), getattr(b, key)]
  if values[0] != values[1]:
    one, other = (v[:12] if isinstance(v, str) else v for v in values)
    raise RunError(
      f'{a.path} and {b.path} cannot be compared: {key} {one} and {other}; compare'
      ' runs of one world on one panel'
    )


def by_method(runs: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
  """Label -> its runs by seed.

  A label is the algorithm's name and the settings in which runs of that name differ.

  Raises:
    RunError: two runs have the same label and seed, or unlike models, tokenizers or
      skill banks under one label.
  """
  out: dict[str, list[RunRecord]] = {}
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
    _check_inputs(label, members)
  return out


def _check_inputs(label: str, members: Sequence[RunRecord]) -> None:
  """Raises RunError if seeds of a method have different models or skills."""
  for key in _SAME_INPUTS:
    known = [run for run in members if key in run.inputs]
    for run in known:
      ours, theirs = known[0].inputs[key], run.inputs[key]
      if ours != theirs:
        raise RunError(
          f'{known[0].path} and {run.path} are no seeds of one {label}: {key}'
          f' {ours[:12]} and {theirs[:12]}'
        )


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
  """Lists relevant config keys with different values among runs."""
  runs = [run for run in runs if run.config]
  keys = sorted({key for run in runs for key in run.config})
  return [
    key
    for key in keys
    if not any(key == name or key.startswith(f'{name}.') for name in NEUTRAL)
    and len({_plain(run, key) for run in runs}) > 1
  ]


def _short(key: str) -> str:
  return key.removeprefix('algorithm.')


def _plain(run: RunRecord, key: str) -> str:
  return printable(run.config[key] if key in run.config else _ABSENT)


def cautions(methods: dict[str, list[RunRecord]], step: int) -> list[str]:
  """Lists cautions about comparable runs."""
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
    *(
      (name, {run.inputs[key] for run in runs if key in run.inputs})
      for key, name in _INPUTS.items()
    ),
    ('code versions', {v for run in runs for v in run.code_versions}),
    ('evaluation seeds', {run.evaluations[step].seed for run in runs}),
  ):
    if len(values) > 1:
      out.append(f'{len(values)} {name} among these runs')
  return out
