"""Evaluation of a run on its panel, once per step. No JAX."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from sdar_jax.envs.pool.pool import Pool
from sdar_jax.evaluation import display, evaluate
from sdar_jax.evaluation.evaluate import Plan
from sdar_jax.evaluation.reports import Evaluations
from sdar_jax.logs.console import Console
from sdar_jax.process.team import ALONE, Alone
from sdar_jax.prompts import cuts
from sdar_jax.rollout import episodes
from sdar_jax.rollout.patience import Patience
from sdar_jax.trajectory import Group, Trajectory


class Evaluator:
  """Evaluates a run's policy, at most once per step.

  Args:
    directory: of the run.
    plan: what is played and how.
    weights: what names the run's weights but for the step.
    pool: environments of the panel's world.
    patience: plays again where environments are away.
    console: for people.
    should_stop: asked between polls of the sampler.
    progress: told between them how many episodes have ended, of how many;
      the console by default.
    team: the processes of the run.
    collect: plays groups, as `episodes.collect` does, for all of them.
    keep: makes records of some of the episodes that were played, to be written.
  """

  def __init__(
    self,
    directory: pathlib.Path,
    plan: Plan,
    weights: Mapping[str, Any],
    pool: Pool,
    *,
    patience: Patience,
    console: Console,
    should_stop: Callable[[], bool],
    progress: Callable[[int, int], None] | None = None,
    team: Alone = ALONE,
    collect: Callable[..., list[Group]] = episodes.collect,
    keep: Callable[[list[Trajectory]], list[Any]] = lambda played: [],
  ):
    self._keep = keep
    self._reports = Evaluations(directory, {**plan.settings, **weights})
    self._plan, self._weights, self._pool = plan, weights, pool
    self._patience, self._console = patience, console
    self._should_stop = should_stop
    self._progress = progress or console.episodes
    self._team, self._collect = team, collect

  def sort(self) -> None:
    """Sets reports of other settings aside and brings matching ones back."""
    if count := self._reports.sort():
      self._console.line(
        f'evaluations of other settings or weights, now in eval/superseded/: {count}'
      )

  def report(self, step: int, sampler: episodes.TokenSampler) -> dict[str, Any]:
    """Reads the report of a step, or plays the panel for it.

    Args:
      step: of the weights that `sampler` holds.
      sampler: completes prompts.

    Raises:
      patience.EmptyStepError: environments were away for too long.
      rollout.Interrupted: the run was asked to stop.
    """
    if (known := self._team.first(lambda: self._reports.read(step))) is not None:
      return known
    report, played = self._patience.until_played(
      f'evaluation at step {step}',
      lambda: self._play(step, sampler),
      lambda played: None if isinstance(played, tuple) else str(played),
    )
    self._console.line(f'step {step}: {display.line(report)}')
    self._console.once('room', cuts.notice(played))
    if self._team.leads:
      self._reports.write(step, report, self._keep(played))
    return report

  def _play(
    self, step: int, sampler: episodes.TokenSampler
  ) -> tuple[dict[str, Any], list[Trajectory]] | evaluate.EvaluationError:
    try:
      return evaluate.evaluate(
        self._plan,
        self._pool,
        sampler,
        {'step': step, **self._weights},
        collect=self._collect,
        should_stop=self._should_stop,
        progress=self._progress,
      )
    except evaluate.EvaluationError as error:
      return error

  def show(self, after: Mapping[str, Any]) -> None:
    """Prints a report beside the initial policy's, if settings agree."""
    before = self._reports.read(0)
    if before is None:
      self._console.line(
        'the initial policy was not evaluated on this panel with these settings, and'
        ' its weights are gone: there is no before'
      )
    shown = {} if before is None else {'before': before}
    self._console.table(display.table({**shown, 'after': after}))
