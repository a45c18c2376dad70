"""Gathers how runs went: metrics, times and evaluations by step. No JAX."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdar_jax.look.folder import LookError, number_of, open_folder

COLLAPSE_STEPS = 5
COLLAPSE_SHARE = 0.5


@dataclasses.dataclass(frozen=True)
class Course:
  """Holds how a run went.

  Attributes:
    name: for people.
    metrics, timing: lines of the files, by step.
    reports: of evaluations, by step.
    notes: what was left out and why, a line each.
  """

  name: str
  method: str
  seed: int | None
  metrics: tuple[Mapping[str, Any], ...]
  timing: tuple[Mapping[str, Any], ...]
  reports: tuple[Mapping[str, Any], ...]
  notes: tuple[str, ...] = ()

  def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads steps and values of a number; steps without are left out."""
    lines = self.timing if name.startswith('perf/') else self.metrics
    found = [(line['step'], number_of(line.get(name))) for line in lines]
    known = [pair for pair in found if pair[1] is not None and np.isfinite(pair[1])]
    steps, values = zip(*known) if known else ((), ())
    return np.asarray(steps, int), np.asarray(values, float)

  def table(self, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads steps and [S, K] rows of numbers, NaN where there is none."""
    lines = [line for line in self.metrics if isinstance(line.get(name), list)]
    if not lines:
      return np.zeros(0, int), np.zeros((0, 0))
    width = max(len(line[name]) for line in lines)
    out = np.full((len(lines), width), np.nan)
    for row, line in zip(out, lines):
      values = [number_of(value) for value in line[name]]
      row[: len(values)] = [np.nan if value is None else value for value in values]
    return np.asarray([line['step'] for line in lines], int), out


def read(path: pathlib.Path) -> Course:
  """Reads a run directory, whichever of its files are there.

  Raises:
    LookError: none of them is.
  """
  run, notes = open_folder(path), []
  lines = {
    name: _by_step(run.lines(f'{name}.jsonl', notes), path / f'{name}.jsonl', notes)
    for name in ('metrics', 'timing')
  }
  reports = tuple(run.reports(notes))
  if not (lines['metrics'] or reports):
    raise LookError(f'{path} has neither a line in metrics.jsonl nor a report in eval/')
  seed = run.identity.get('seed')
  return Course(
    name=run.name,
    method=run.method or 'run',
    seed=seed if type(seed) is int else None,
    reports=reports,
    notes=tuple(notes),
    **lines,
  )


def _by_step(
  lines: Sequence[dict[str, Any]], path: pathlib.Path, notes: list[str]
) -> tuple[dict[str, Any], ...]:
  """Orders lines; those without a step go to `notes`, as a count."""
  known = [line for line in lines if type(line.get('step')) is int]
  if len(known) < len(lines):
    notes.append(f'{path}: left out {len(lines) - len(known)} lines without a step')
  return tuple(sorted(known, key=lambda line: line['step']))


def collapse(course: Course) -> int | None:
  """Finds the step at which a run's success in training collapsed.

  The first of five steps whose mean success is below half of the best mean of five
  steps that all lie before it; None where there is none.
  """
  steps, success = course.curve('rollout/success_rate')
  if len(steps) < 2 * COLLAPSE_STEPS:
    return None
  means = np.convolve(success, np.ones(COLLAPSE_STEPS) / COLLAPSE_STEPS, 'valid')
  best = np.maximum.accumulate(means)[:-COLLAPSE_STEPS]
  fallen = np.flatnonzero(means[COLLAPSE_STEPS:] < COLLAPSE_SHARE * best)
  return int(steps[fallen[0] + COLLAPSE_STEPS]) if len(fallen) else None


def by_method(courses: Sequence[Course]) -> dict[str, list[Course]]:
  """Groups runs by the name of their method, in order."""
  out: dict[str, list[Course]] = {}
  for course in courses:
    out.setdefault(course.method, []).append(course)
  return out


def band(
  courses: Sequence[Course], name: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Averages over runs: common steps, mean, lowest, highest, [S] each."""
  curves = [dict(zip(*map(list, course.curve(name)))) for course in courses]
  steps = sorted(set.intersection(*map(set, curves))) if curves else []
  values = np.asarray([[curve[step] for step in steps] for curve in curves])
  if not steps:
    return (np.zeros(0),) * 4
  return np.asarray(steps), values.mean(0), values.min(0), values.max(0)
