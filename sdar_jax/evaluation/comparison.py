"""Methods against a baseline, over seeds and tasks: the numbers. No JAX."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from sdar_jax.evaluation import runs as runs_lib
from sdar_jax.evaluation import statistics
from sdar_jax.evaluation.runs import Evaluation, RunError, RunRecord
from sdar_jax.evaluation.statistics import Estimate

BASELINE = 'grpo'  # Where none is named and there is one of this name.
METRICS = ('success', 'score')


@dataclasses.dataclass(frozen=True)
class Paired:
  """A method minus the baseline, on the same seeds and tasks.

  Attributes:
    seeds: that both have.
    difference: at the compared step.
    area: of the areas under the learning curves.
    p_seeds: of a permutation test that takes each seed's difference for one number;
      S seeds give none below 2 / 2^S.
    improvement: chance that a new seed beats one of the baseline, and its interval,
      from all seeds of both.
    detectable: the difference that these seeds and tasks detect with power 0.8.
    comparisons: with the baseline by this metric, of which this is one.
    corrected: the difference with an interval that covers 1 - 0.05 / comparisons.
    settled: what is settled by itself: 1 better, -1 worse, 0 nothing.
    held: what is settled where the level is shared among the comparisons.
  """

  seeds: tuple[int, ...]
  difference: Estimate
  area: Estimate
  p_seeds: float
  improvement: tuple[float, float, float]
  detectable: float
  comparisons: int
  corrected: Estimate
  settled: int
  held: int

  @property
  def verdict(self) -> str:
    """Puts a settled difference into words.

    What would not hold if the level were shared among all comparisons (Bonferroni) is
    'uncorrected'.
    """
    if not self.settled:
      return 'not settled'
    single = 'better' if self.settled > 0 else 'worse'
    return single if self.held else f'{single} (uncorrected)'


@dataclasses.dataclass(frozen=True)
class ComparedRow:
  """One method by one metric; `paired` is None for the baseline."""

  metric: str
  method: str
  seeds: tuple[int, ...]
  final: Estimate
  area: Estimate
  curve: tuple[Estimate, ...]
  paired: Paired | None


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A comparison of runs at one step.

  Attributes:
    step: compared at.
    steps: of the learning curves.
    baseline: label of the method that others are compared with.
    methods: label -> runs by seed, the baseline first.
    tasks: ids of the tasks that count, all of which every run played.
    rows: by metric, the baseline first, then the best first.
    warnings: one line each.
  """

  step: int
  steps: tuple[int, ...]
  baseline: str
  methods: dict[str, list[RunRecord]]
  tasks: tuple[str, ...]
  rows: tuple[ComparedRow, ...]
  warnings: tuple[str, ...]

  @property
  def evaluation(self) -> Evaluation:
    """One of the evaluations compared: panel and settings are those of all."""
    return self.methods[self.baseline][0].evaluations[self.step]


def compare(
  runs: Sequence[RunRecord], baseline: str | None = None, step: int | None = None
) -> Comparison:
  """Compares runs at their last evaluation.

  Args:
    runs: at least one.
    baseline: label of a method, or its algorithm's name where that is unambiguous; None
      means `BASELINE`, or the first run's method where there is none.
    step: compare at this step instead; curves end there.

  Raises:
    RunError: the runs cannot be compared fairly, or no method has the baseline's name.
  """
  step = runs_lib.compared_step(runs, step)
  shared = set.intersection(*(set(run.evaluations) for run in runs))
  steps = tuple(sorted(s for s in shared if s <= step))
  runs_lib.check_comparable(runs, steps)
  methods = runs_lib.by_method(runs)
  baseline = _baseline(methods, baseline, runs[0])
  warnings = runs_lib.cautions(methods, step)
  tasks, dropped = _tasks(runs, steps)
  if dropped:
    warnings.append(
      f'{dropped} tasks left out: an environment fault took them from a run'
    )
  all_steps = {s for run in runs for s in run.evaluations if s <= step}
  if len(all_steps) > len(steps):
    warnings.append(f'runs were evaluated at different steps; curves use {steps}')
  every = [evaluation for run in runs for evaluation in _of(run, steps)]
  scored = all(evaluation.has_score for evaluation in every)
  if not scored and any(r.score is not None for e in every for r in e.results):
    warnings.append('score left out: some of these episodes have none')
  rows = []
  for metric in METRICS if scored else METRICS[:1]:
    rows += _rows(metric, methods, baseline, steps, tasks)
  warnings += [line for row in rows for line in _doubts(row, baseline, methods)]
  ordered = {row.method: methods[row.method] for row in rows}
  return Comparison(
    step, steps, baseline, ordered, tasks, tuple(rows), tuple(dict.fromkeys(warnings))
  )


def success_rate(evaluation: Evaluation) -> tuple[float, float, float]:
  """Counts a run's success, with its 95 % interval for new tasks.

  Returns:
    The rate, and the ends of its interval; episodes lost to faults do not count.
  """
  tries: dict[str, list[bool]] = {}
  for result in evaluation.results:
    if not result.outcome.is_fault:
      tries.setdefault(result.task_id, []).append(result.success)
  won, played = [sum(t) for t in tries.values()], [len(t) for t in tries.values()]
  return sum(won) / sum(played), *statistics.rate_interval(won, played)


def _baseline(
  methods: Mapping[str, list[RunRecord]], name: str | None, first: RunRecord
) -> str:
  if name in methods:
    return name
  named = [m for m, members in methods.items() if members[0].method == name]
  if len(named) == 1:
    return named[0]
  if name is not None:
    raise RunError(
      f'--baseline {name!r}: must be one of {", ".join(map(repr, methods))}'
    )
  if BASELINE in methods:
    return BASELINE
  return next(label for label, members in methods.items() if first in members)


def _of(run: RunRecord, steps: Sequence[int]) -> list[Evaluation]:
  return [run.evaluations[step] for step in steps]


def _tasks(
  runs: Sequence[RunRecord], steps: Sequence[int]
) -> tuple[tuple[str, ...], int]:
  """Selects tasks played by every run; counts the others."""
  every = dict.fromkeys(r.task_id for r in runs[0].evaluations[steps[0]].results)
  kept = set(every)
  for run in runs:
    for evaluation in _of(run, steps):
      kept &= {r.task_id for r in evaluation.results if not r.outcome.is_fault}
  if len(every) < 2:
    raise RunError(f'{runs[0].path}: a panel of 1 task: a comparison needs at least 2')
  if len(kept) < max(2, len(every) / 2):
    raise RunError(
      f'{len(kept)} of {len(every)} tasks were played in all of {len(runs)} runs, from'
      f' {runs[0].path} to {runs[-1].path}: run again those that faults took'
    )
  return tuple(task for task in every if task in kept), len(every) - len(kept)


def _values(run: RunRecord, steps: Sequence[int], tasks: Sequence[str], metric: str):
  """[E, K]: the mean over attempts at each task in each evaluation."""
  index = {task: i for i, task in enumerate(tasks)}
  sums = np.zeros((2, len(steps), len(tasks)))
  for row, evaluation in enumerate(_of(run, steps)):
    for result in evaluation.results:
      if result.task_id in index and not result.outcome.is_fault:
        value = float(getattr(result, metric))
        sums[:, row, index[result.task_id]] += value, 1
  return sums[0] / sums[1]


def _rows(
  metric: str,
  methods: Mapping[str, list[RunRecord]],
  baseline: str,
  steps: Sequence[int],
  tasks: Sequence[str],
) -> list[ComparedRow]:
  values = {
    label: {run.seed: _values(run, steps, tasks, metric) for run in members}
    for label, members in methods.items()
  }
  known = set(values[baseline])
  paired = [
    label for label in methods if label != baseline and known & set(values[label])
  ]
  weights = statistics.curve_weights(steps)
  rows = [_row(metric, label, values, baseline, weights, paired) for label in methods]
  return sorted(rows, key=lambda r: (r.method != baseline, -r.final.mean, r.method))


def _row(
  metric: str,
  method: str,
  values: Mapping[str, Mapping[int, np.ndarray]],
  baseline: str,
  weights: np.ndarray,
  paired: Sequence[str],
) -> ComparedRow:
  """Makes the row of a method, paired with the baseline where possible."""
  ours = values[method]
  table = np.stack(list(ours.values()))  # [S, E, K]
  pair = None
  if method in paired:
    pair = _paired(ours, values[baseline], weights, len(paired))
  return ComparedRow(
    metric=metric,
    method=method,
    seeds=tuple(ours),
    final=statistics.two_way_interval(table[:, -1]),
    area=statistics.two_way_interval(np.einsum('e,sek->sk', weights, table)),
    curve=tuple(statistics.two_way_interval(table[:, i]) for i in range(len(weights))),
    paired=pair,
  )


def _paired(
  ours: Mapping[int, np.ndarray],
  theirs: Mapping[int, np.ndarray],
  weights: np.ndarray,
  comparisons: int,
) -> Paired:
  seeds = tuple(seed for seed in ours if seed in theirs)
  table = np.stack([ours[seed] - theirs[seed] for seed in seeds])  # [S, E, K]
  last = table[:, -1]
  bounds, level = (-1.0, 1.0), statistics.LEVEL / comparisons
  difference = statistics.two_way_interval(last, bounds)
  areas = np.einsum('e,sek->sk', weights, table)
  settled = statistics.settled(last)
  return Paired(
    seeds=seeds,
    difference=difference,
    area=statistics.two_way_interval(areas, bounds),
    p_seeds=statistics.sign_flip_test(last.mean(1)),
    improvement=statistics.probability_of_improvement(
      [value[-1].mean() for value in ours.values()],
      [value[-1].mean() for value in theirs.values()],
    ),
    detectable=statistics.detectable_difference(
      seed_variance=difference.seed_variance,
      task_variance=difference.task_variance,
      seeds=len(seeds),
      tasks=last.shape[-1],
    ),
    comparisons=comparisons,
    corrected=statistics.two_way_interval(last, bounds, 1 - level),
    settled=settled,
    held=settled and statistics.settled(last, level),
  )


def _doubts(
  row: ComparedRow, baseline: str, methods: Mapping[str, list[RunRecord]]
) -> list[str]:
  """Warnings about one row's difference."""
  if row.method == baseline:
    return []
  theirs = {run.seed for run in methods[baseline]}
  odd = sorted(set(row.seeds) ^ theirs)
  out = []
  if row.paired is None:
    return [f'{row.method} and {baseline} share no seed: no paired difference']
  if odd:
    out.append(
      f'{row.method} against {baseline}: seeds {", ".join(map(str, odd))} are not in'
      ' both and are left out of the paired difference'
    )
  pair = row.paired
  if not abs(pair.difference.mean) >= pair.detectable:
    out.append(_unsettled(row.metric, row.method, pair))
  return out


def _unsettled(metric: str, method: str, pair: Paired) -> str:
  observed = f'{method}: {metric} differs by {100 * pair.difference.mean:+.1f} pp'
  if len(pair.seeds) < 2:
    return f'{observed}; one shared seed detects nothing'
  return f'{observed}, {len(pair.seeds)} seeds detect {100 * pair.detectable:.1f} pp'
