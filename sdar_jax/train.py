"""The training loop, its phases, and what of a run changes."""

import collections
import contextlib
import itertools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax import parts as parts_lib
from sdar_jax.batching import packing
from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs.pool import pool
from sdar_jax.evaluation.evaluator import Evaluator
from sdar_jax.hosts import dealing, replica
from sdar_jax.learner import compilations, profile, recovery
from sdar_jax.learner.checkpoint import SaveError
from sdar_jax.logs import sinks, tokens, writers
from sdar_jax.logs import step as step_lib
from sdar_jax.logs.console import Console
from sdar_jax.methods import interface
from sdar_jax.methods.credit import assign_credit, remembered
from sdar_jax.process.signals import StopSignal
from sdar_jax.process.team import ALONE, Alone, PeerError
from sdar_jax.prompts import cuts
from sdar_jax.prompts import teacher as teacher_lib
from sdar_jax.rollout import collecting, episodes, order, refills
from sdar_jax.rollout.patience import EmptyStepError, Patience, fault_of_all, not_empty
from sdar_jax.storage import identity
from sdar_jax.storage.workdir import Workdir

_Stop = Callable[[], bool]


class Run:
  """A run: its parts, its durable state and the phases of its loop."""

  def __init__(
    self, config: ConfigDict, workdir: Workdir, stop: _Stop, team: Alone, collect: Any
  ):
    self._collect = dealing.collector(team, collect)
    host = parts_lib.host_parts(config)
    self.parts, self.state = parts_lib.training_parts(
      host, workdir.path, workdir.digest, team
    )
    self._signal, self.team = stop, team
    p = self.parts
    self._replica = replica.Replica(p.model, p.mesh, config.model.dtype)
    self.console = Console(config.steps, sys.stdout if team.leads else None)
    traced = config.log.profile_steps if team.leads else ()
    self.profiler = profile.Profiler(workdir.path / 'profile', traced)
    self.clock = step_lib.Clock(self._show, self.profiler.phase, compilations.seconds)
    wanted = config.train.compile_ahead
    self.ahead = compilations.Ahead(p.learner, p.packing, wanted)
    self.patience = Patience(config.pool.patience_seconds, self.console.line, stop)
    self.evaluator = Evaluator(
      workdir.path,
      host.plan,
      {name: p.inputs[name] for name in ('model_digest', 'config_digest')},
      host.pool,
      patience=self.patience,
      console=self.console,
      should_stop=stop,
      progress=self._progress,
      team=team,
      collect=dealing.collector(team),
      keep=tokens.keeper(config.log.eval_episodes, p.chat.spell, host.plan.goals),
    )
    self.cursor = 0  # Next task in the training order.
    self.memory: dict[str, float] = {}  # What the method keeps of past steps.
    self.resumed = self._restore()
    self.step = int(self.state.step)
    self.saves = recovery.Saves(p.store, p.directory, self._host, self.step)
    self.sampler = self.parts.make_sampler(self.policy())
    self.console.resume(self.step)

  def _restore(self) -> dict[str, Any] | None:
    """Takes over the last checkpoint; returns the host's part of it."""
    p = self.parts
    restored = recovery.restore(p.store, self.state, p.directory, self.console.line)
    if restored is None:
      return None
    identity.check(restored.host, p.inputs, restored.step, p.directory)
    self.state = restored.state
    self.cursor = restored.host['task_cursor']
    self.memory = restored.host.get('method', {})  # Not in those of earlier versions.
    p.pool.quarantine = restored.host['quarantine']
    p.teacher.retriever.restore(restored.host['retrieval'])
    return restored.host

  def stop(self) -> bool:
    """Tells whether a process of the run was asked to stop."""
    return self.team.any(self._signal())

  def _show(self, phase: str) -> None:
    if phase == 'rollout':  # The first of a step.
      self.profiler.begin(self.step + 1)
    self.team.beat()
    self.console.phase(phase)

  def _progress(self, ended: int, wanted: int) -> None:
    self.team.beat()
    self.console.episodes(ended, wanted)

  def policy(self) -> Any:
    """Gives the weights that sample, on this process's devices."""
    p = self.parts
    return self._replica(p.learner.policy(self.state, p.initial))

  def _host(self) -> dict[str, Any]:
    """Makes the host's part of a checkpoint."""
    return {
      'task_cursor': self.cursor,
      'quarantine': self.parts.pool.quarantine,
      'retrieval': self.parts.teacher.retriever.state(),
      'method': self.memory,
      'digests': self.writer.digests(),
      **self.parts.inputs,
    }

  def open_writer(self) -> None:
    """Goes on with the files of numbers and episodes, or begins them."""
    if not self.team.leads:
      self.writer = writers.Mute()
      return
    path, config, known = self.parts.directory, self.parts.config, self.resumed or {}
    step = self.step if known else None
    others = sinks.make(path, step, config.log, config_lib.flatten(config))
    self.writer = writers.MetricsWriter(path, step, others, known.get('digests'))
    self.console.aside(self.writer.aside)

  def identify(self) -> None:
    """Writes run.json and sets reports of other evaluation settings aside."""
    if not self.team.leads:
      return
    self.evaluator.sort()
    method = self.parts.config.algorithm.name
    writers.write_run(self.parts.directory, method=method, **self.parts.inputs)

  def collect(self) -> tuple[list[Any], list[Any]]:
    """Plays the step: groups to train on, and all that were played.

    Waits where no environment answers.
    """
    self.parts.teacher.retriever.begin_step(self.step)
    self.sampler.statistics()  # What an evaluation did counts elsewhere.
    groups, played, self.cursor = self.patience.until_played(
      f'step {self.step}',
      self._play,
      lambda result: fault_of_all(result[0], self.parts.pool),
    )  # A cursor not moved before: a run stopped while it plays plays the same again.
    self.sampled = self.sampler.statistics()
    self.sampler.release()  # The update needs the memory.
    return groups, played

  def _play(self) -> tuple[list[Any], list[Any], int]:
    """Plays groups; returns the trained, all, and the cursor behind them."""
    p, cursor, occurrences = self.parts, self.cursor, collections.Counter()
    c, seed = p.config.rollout, p.config.seed

    def play() -> list[Any]:
      nonlocal cursor
      tasks = order.tasks_at(p.tasks, seed=seed, cursor=cursor, count=c.tasks_per_step)
      cursor += c.tasks_per_step
      return self._collect(
        p.pool,
        tasks,
        self.sampler,
        p.agent,
        group_size=c.group_size,
        identity=(seed, self.step),
        success_reward=c.success_reward,
        should_stop=self._signal,
        progress=self._progress,
        played=occurrences,
      )

    groups, played = refills.with_refills(play, c.refills)
    return groups, played, cursor

  def rows(self, groups: list[Any]) -> list[rows_lib.Row]:
    """Makes one row per turn."""
    p = self.parts
    penalty = p.config.algorithm.invalid_penalty
    rows = rows_lib.rows(groups, invalid_penalty=penalty)
    return not_empty(rows, self.step, p.agent.max_prompt_tokens)

  def teacher_prompts(self, rows: list[rows_lib.Row]) -> tuple[Any, Any]:
    """Makes the rows' privileged prompts and views; none without teacher."""
    p, seen = self.parts, self._sees_skills(rows)
    if not p.algorithm.needs_teacher(p.hyper):
      return (), None
    control = p.hyper.context if self.memory.get('share', 1.0) else 'nothing'
    given = {'sees_skills': seen, 'control': control, 'tasks': p.tasks}
    kinds = p.algorithm.distillation.contexts
    return teacher_lib.lessons_of(kinds, p.teacher, rows, **given)

  def _sees_skills(self, rows: list[rows_lib.Row]) -> list[bool]:
    return [self.parts.algorithm.sees_skills(row.trajectory.member) for row in rows]

  def pack(self, rows: list[rows_lib.Row], prompts: Any) -> tuple[list[Any], list[Any]]:
    """Packs the rows into minibatches, and the teacher's to be scored."""
    p, learner = self.parts, self.parts.learner
    scores = learner.scores_apart and self.memory.get('share', 1.0) != 0
    how = {'compares': learner.reads_distributions, 'scores': scores}
    return packing.pack(rows, prompts, p.packing, step=self.step, **how)

  def score(
    self, rows: list[rows_lib.Row], batch: list[Any], privileged: list[Any]
  ) -> dict[str, Any]:
    """Scores the rows' tokens under pre-update weights, [B, R] each."""
    sheets, p = list(itertools.chain(*batch)), self.parts
    own, theirs = p.learner.score(self.state, p.initial, sheets, privileged)
    sampled = rows_lib.sampler_logprobs(rows)
    names = p.algorithm.teacher_scores(p.hyper)
    return rows_lib.gather_step((sheets, own), (privileged, theirs), names, sampled)

  def credit(
    self, rows: list[rows_lib.Row], views: Any, scores: dict[str, Any]
  ) -> dict[str, Any]:
    """Assigns advantages to the scored rows; what is known of them, [B, R]."""
    p = self.parts
    thought_ends = None
    if p.algorithm.needs_actions(p.hyper):
      turns = (row.turn for row in rows)
      thought_ends = [p.chat.thought_end(t.response_ids, t.response) for t in turns]
    data = interface.step_data(
      rows,
      scores,
      sees_skills=self._sees_skills(rows),
      taught=None if views is None else teacher_lib.taught(views),
      thought_ends=thought_ends,
      step=self.step,
      memory=self.memory,
    )
    known = {'turn_ids': data.turn_ids, 'response_mask': data.response_mask}
    self.memory = remembered(p.algorithm, p.hyper, data)
    return {**scores, **known, **assign_credit(p.algorithm, p.hyper, data)}

  def report(self, groups, played, rows, prompts, views, known, sums) -> None:
    """Writes metrics, timings and trajectories; stops a diverged run."""
    p = self.parts
    self.profiler.end()
    values = step_lib.step_metrics(
      played,
      rows,
      views,
      known,
      jax.device_get(sums),
      invalid_penalty=p.config.algorithm.invalid_penalty,
      max_turns=p.world.max_turns,
    )
    faults = dealing.compare(self.team, self.step, values, rows, known, p.pool.faults())
    log = p.config.log
    if log.trajectories_every and self.step % log.trajectories_every == 0:
      records = tokens.step_records(
        *(groups, rows, known, prompts, views),
        log=log,
        identity=(p.config.seed, self.step),
        spell=p.chat.spell,
      )
      self.writer.trajectories(self.step, records)
    self._report_skills(rows, views)
    self.console.once('room', cuts.notice(t for g in played for t in g.trajectories))
    timings = self.clock.timings(
      played,
      rows,
      env_faults=sum(faults.values()),
      failed_saves=p.store.failed_saves,
    ) | step_lib.sampler_shares(self.sampled)
    self.console.faults(self.step, faults)
    self.writer.write(self.step, values, timings)
    self.console.step(self.step, {**values, **timings}, step_lib.hint(values, views))
    if int(self.state.skipped_in_a_row) >= recovery.SKIPS_IN_A_ROW:
      self.save()
      raise recovery.diverged(p.directory, self.step)

  def _report_skills(self, rows: list[rows_lib.Row], views: Any) -> None:
    """Records the skills shown; retrieval may learn from them."""
    teacher = self.parts.teacher
    own = teacher_lib.student_views(teacher, rows, self._sees_skills(rows))
    if counts := step_lib.skill_counts(views or [], own):
      self.writer.teacher(self.step, counts)
    teacher.retriever.learn(step_lib.shown_by_episode(rows, views or own, own))

  def evaluate(self) -> dict[str, Any]:
    """Plays the panel and writes eval/<step>.json; reads it if it is there."""
    with self.clock('eval'):
      return self.evaluator.report(self.step, self.sampler)

  def maybe_evaluate(self) -> None:
    """Evaluates before the first step and after every so many."""
    every = self.parts.config.eval.every
    if self.step == 0 or (every and self.step % every == 0):
      self.evaluate()

  def finish(self) -> None:
    """Evaluates the final policy and shows it beside the initial one."""
    self.evaluator.show(self.evaluate())

  def maybe_checkpoint(self) -> None:
    """Saves after every so many steps; counts and reports a failure."""
    if self.step % self.parts.config.checkpoint.every == 0:
      self.saves.attempt(self.step, self.state)

  def save(self) -> None:
    """Saves the state; raises SaveError where the disk refuses it."""
    while self.saves.last != self.step:
      self.saves.attempt(self.step, self.state)


def train(
  config: ConfigDict,
  path: str | pathlib.Path,
  team: Alone = ALONE,
  collect: collecting.Collector | None = None,
  stop: _Stop | None = None,
) -> None:
  """Trains until `config.steps`, from the workdir's last checkpoint.

  Args:
    config: of the run.
    path: of the work directory.
    team: the processes of the run, which all call this.
    collect: plays the training episodes; None plays the config's world.
    stop: whether to end after this step; None does as signals say.

  Raises:
    PeerError: another process ended with an error.
    recovery.NonFiniteError: three updates in a row were not finite.
    EmptyStepError: a step had nothing to train on.
    checkpoint.SaveError: three saves in a row failed.
    files.DiskError: the disk refuses a file of the run.
    ValueError: one line naming what in the config or the files is wrong.
  """
  told = StopSignal() if stop is None else contextlib.nullcontext(stop)
  with told as stop, Workdir(path, config, leads=team.leads) as workdir:
    dealing.meet(team, workdir)
    run = Run(config, workdir, stop, team, collect)
    workdir.record()
    run.identify()
    run.open_writer()
    if run.step >= config.steps:
      run.console.line(f'nothing to train: all {run.step} steps are done')
    try:
      with run.console, team.together():
        loop(run)
    except episodes.Interrupted:
      run.save()
      run.console.line(f'stopped on request after step {run.saves.last}')
    except (EmptyStepError, pool.PoolError, files.DiskError, PeerError):
      with contextlib.suppress(SaveError):
        run.save()  # What was learned is not lost with what could not be done.
      raise
    finally:
      run.profiler.end()
      run.parts.pool.close()
      run.writer.close()


def loop(run: Run) -> None:
  """Trains step by step: one pass is one training step."""
  learner, initial = run.parts.learner, run.parts.initial
  while run.step < run.parts.config.steps:
    run.maybe_evaluate()
    with run.clock('rollout'):
      groups, played = run.collect()
    with run.clock('batch'):
      rows = run.rows(groups)
      prompts, views = run.teacher_prompts(rows)
      batch, privileged = run.pack(rows, prompts)
    with run.clock('score'):
      run.ahead.scores(run.state, initial)  # Compiles, once, where asked for.
      scores = run.score(rows, batch, privileged)
      known = run.credit(rows, views, scores)
    with run.clock('update'):
      run.ahead.gradients(run.state, initial, known)
      sums = []
      for minibatch in batch:
        arrays = learner.to_device(minibatch, known)
        run.state, summed = learner.train_step(run.state, arrays, initial)
        sums.append(summed)
      run.state = learner.finish_step(run.state)
      run.step = int(run.state.step)  # Waits for the device.
    run.sampler.update(run.policy())
    run.report(groups, played, rows, prompts, views, known, sums)
    run.maybe_checkpoint()
    if run.stop():
      raise episodes.Interrupted
  run.save()
  run.finish()
