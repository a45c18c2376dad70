"""Published results: every episode of some runs in results.csv. No JAX.

`results.json` beside it says what the episodes are of: panel, settings, and what each
run was made of. Without it the episodes can be compared, and nothing is known of them.
"""

import collections
import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.evaluation import runs
from sdar_jax.evaluation.runs import Evaluation, Result, RunError, RunRecord
from sdar_jax.trajectory import Outcome

NAME, ABOUT = 'results.csv', 'results.json'
_SCHEMA = 1
_COLUMNS = (
  *('method', 'seed', 'step', 'task_id', 'attempt', 'type', 'success', 'score'),
  *('outcome', 'turns'),
)
_OPTIONAL = 'score'
UNKNOWN = '(unknown)'
_SETTINGS: dict[str, Any] = {  # Of an evaluation of which nothing is said.
  'panel': UNKNOWN,
  'panel_digest': UNKNOWN,
  'composition': {},
  'world_digest': UNKNOWN,
  'attempts': 0,
  'temperature': 0.0,
  'top_p': 0.0,
  'top_k': 0,
  'max_response_tokens': 0,
}


def write(
  methods: Mapping[str, Sequence[RunRecord]], steps: Sequence[int]
) -> dict[str, str]:
  """Formats the files of published results: name -> content.

  Args:
    methods: label -> runs, which were evaluated alike.
    steps: whose evaluations are kept.
  """
  members = [(label, run) for label, group in methods.items() for run in group]
  episodes = [
    _record(label, run.seed, step, result)
    for label, run in members
    for step in steps
    for result in run.evaluations[step].results
  ]
  one = members[0][1].evaluations[steps[-1]]
  about = {
    'schema': _SCHEMA,
    'evaluation': {key: getattr(one, key) for key in _SETTINGS},
    'runs': [_about(label, run, steps) for label, run in members],
  }
  scored = any(_OPTIONAL in episode for episode in episodes)
  columns = [name for name in _COLUMNS if scored or name != _OPTIONAL]
  text = json.dumps(about, indent=1) + '\n'
  return {NAME: table(episodes, columns), ABOUT: text}


def _record(label: str, seed: int, step: int, result: Result) -> dict[str, Any]:
  return {
    'method': label,
    'seed': seed,
    'step': step,
    'task_id': result.task_id,
    'attempt': result.attempt,
    'type': result.task_type,
    'success': int(result.success),
    **({} if result.score is None else {_OPTIONAL: result.score}),
    'outcome': result.outcome.value,
    'turns': result.turns,
  }


def _about(label: str, run: RunRecord, steps: Sequence[int]) -> dict[str, Any]:
  return {
    'method': label,
    'seed': run.seed,
    'steps': run.steps,
    'evaluation_seed': run.evaluations[steps[-1]].seed,
    **run.inputs,
    'code_versions': list(run.code_versions),
  }


def table(records: Sequence[Mapping[str, Any]], columns: Iterable[str]) -> str:
  """Formats records as CSV, empty where a record lacks a field."""
  stream, kept = io.StringIO(), list(columns)
  # A carriage return is quoted by none but those that quote all, and ends a line.
  odd = any('\r' in str(record.get(name)) for record in records for name in kept)
  quoting = csv.QUOTE_ALL if odd else csv.QUOTE_MINIMAL
  writer = csv.DictWriter(
    stream, kept, restval='', lineterminator='\n', quoting=quoting
  )
  writer.writeheader()
  writer.writerows(records)
  return stream.getvalue()


def load(text: str) -> list[RunRecord]:
  """Reads the run of a work directory, or the runs of a results.csv.

  Args:
    text: path of the directory, of the file, or of the folder that holds it.

  Raises:
    ValueError: it is neither, or a file is damaged.
  """
  path = files.local_path(text, 'RUN')
  if path.is_file():
    return read(path)
  if (path / NAME).is_file() and not (path / 'config.json').exists():
    return read(path / NAME)
  return [runs.read(path)]


def read(path: pathlib.Path) -> list[RunRecord]:
  """The runs of a results.csv.

  Raises:
    RunError: one line that names the file and what is wrong with it.
  """
  episodes = _episodes(path)
  settings, known = _read_about(path.with_name(ABOUT), set(episodes))
  out = []
  for (method, seed), steps in episodes.items():
    about = known.get((method, seed), {})
    where = pathlib.Path(f'{path} ({method}, seed {seed})')
    evaluations = {
      step: _evaluation(where, path, settings | about, step, results)
      for step, results in sorted(steps.items())
    }
    out.append(
      RunRecord(
        path=where,
        seed=seed,
        method=method,
        steps=about.get('steps', max(evaluations)),
        config={},
        inputs=runs.inputs(about),
        code_versions=tuple(about.get('code_versions', ())),
        evaluations=evaluations,
      )
    )
  return out


def _evaluation(
  where: pathlib.Path,
  path: pathlib.Path,
  settings: dict[str, Any],
  step: int,
  results: Sequence[Result],
) -> Evaluation:
  if settings['panel'] == UNKNOWN:
    attempts = max(result.attempt for result in results) + 1
    types = dict(sorted((result.task_id, result.task_type) for result in results))
    composition = collections.Counter(sorted(types.values()))
    settings = {**settings, 'attempts': attempts, 'composition': composition}
  settings = {**settings, 'seed': settings.get('evaluation_seed', 0)}
  try:
    return runs.make_evaluation(where, settings, step, results)
  except (ValueError, KeyError, TypeError) as error:
    raise runs.damaged(path, error) from error


def _episodes(
  path: pathlib.Path,
) -> dict[tuple[str, int], dict[int, list[Result]]]:
  """{(method, seed): {step: episodes}}, in the file's order."""
  out: dict[tuple[str, int], dict[int, list[Result]]] = {}
  line = 1
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.DictReader(file, strict=True)
      missing = set(_COLUMNS) - {_OPTIONAL} - set(reader.fieldnames or ())
      if missing:
        raise ValueError(f'it has no column {", ".join(sorted(missing))}')
      for row in reader:
        line = reader.line_num
        if None in row or None in row.values():
          raise ValueError('it has more or fewer fields than the first')
        key = (runs.printable(row['method']), int(row['seed']))
        out.setdefault(key, {}).setdefault(int(row['step']), []).append(_result(row))
  except (ValueError, KeyError, TypeError, csv.Error, OSError) as error:
    what = error.strerror if isinstance(error, OSError) else files.one_line(error)
    raise RunError(f'{path}, line {line}: {what}') from error
  if not out:
    raise RunError(f'{path}: it has no episode')
  return out


def _result(row: Mapping[str, str]) -> Result:
  if row['success'] not in ('0', '1'):
    raise ValueError(f'success={row["success"]!r}: must be 0 or 1')
  score = row[_OPTIONAL] if _OPTIONAL in row else ''
  if score and not 0 <= float(score) <= 1:
    raise ValueError(f'score={score!r}: must lie in [0, 1]')
  outcome = Outcome(row['outcome'])
  if (outcome is Outcome.SUCCESS) != (row['success'] == '1'):
    raise ValueError(f'success={row["success"]}, outcome={outcome.value!r}')
  return Result(
    task_id=row['task_id'],
    attempt=_count(row, 'attempt'),
    task_type=row['type'],
    success=row['success'] == '1',
    score=float(score) if score else None,
    outcome=outcome,
    turns=_count(row, 'turns'),
  )


def _count(row: Mapping[str, str], key: str) -> int:
  if int(row[key]) < 0:
    raise ValueError(f'{key}={row[key]}: must be at least 0')
  return int(row[key])


def _read_about(
  path: pathlib.Path, keys: set[tuple[str, int]]
) -> tuple[dict[str, Any], dict[tuple[str, int], dict[str, Any]]]:
  """Reads the evaluations and runs of a results.json."""
  if not path.exists():
    return _SETTINGS, {}
  try:
    record = files.read_json(path)
    if record['schema'] != _SCHEMA:
      raise ValueError(f'schema {record["schema"]}, this version reads {_SCHEMA}')
    known = {(runs.printable(r['method']), r['seed']): r for r in record['runs']}
    if set(known) != keys:
      raise ValueError(f'its runs are not those of {NAME}')
    for about in known.values():
      runs.field(about, 'steps', int)
      runs.field(about, 'evaluation_seed', int)
      runs.field(about, 'code_versions', list)
    return {key: record['evaluation'][key] for key in _SETTINGS}, known
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise runs.damaged(path, error) from error
