"""The training loop, and what a run is made of."""

import collections
import contextlib
import functools
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sdar_jax import batching, build, files, numerics
from sdar_jax.envs.pool import pool
from sdar_jax.evaluation import panels
from sdar_jax.evaluation.evaluator import Evaluator
from sdar_jax.learner import recovery
from sdar_jax.learner.checkpoint import CheckpointStore, SaveError
from sdar_jax.logs import step as step_lib
from sdar_jax.logs import writers
from sdar_jax.logs.console import Console
from sdar_jax.methods import objective
from sdar_jax.process.signals import StopSignal
from sdar_jax.prompts import fitting
from sdar_jax.prompts import teacher as teacher_lib
from sdar_jax.rollout import episodes
from sdar_jax.rollout.patience import EmptyStepError, Patience, fault_of_all
from sdar_jax.storage import identity
from sdar_jax.storage.workdir import Workdir


class Run:
  """A run's parts, its durable state, and the phases of its loop."""

  def __init__(self, config: ConfigDict, workdir: Workdir, stop: StopSignal):
    self.config, self.workdir, self.stop = config, workdir, stop
    self.console = Console(config.steps, sys.stdout)
    self.clock = step_lib.Clock(self.console.phase)
    self.patience = Patience(config.pool.patience_seconds, self.console.line, stop)
    # What needs no device comes first, so that wrong input is found at once.
    self.world = build.make_world(config)
    self.pool = build.make_pool(config, self.world)
    self.tasks = self.world.tasks('train')
    panel = panels.make_panel(self.world, config.eval.split, config.eval.tasks)
    self.chat = build.make_chat(config, self.world)
    self.teacher = build.make_teacher(config, self.world, self.chat)
    self.algorithm = build.make_algorithm(config)
    self.loss = build.make_loss_config(config)
    self.buckets = build.row_buckets(config, self.algorithm, self.loss)
    if self.algorithm.shows_skills(self.loss):
      self.teacher.retriever.check(build.first_tasks(config, self.tasks))
    agent = functools.partial(build.make_agent, config, self.chat, self.teacher)
    self.agent = agent(
      temperature=config.rollout.temperature, sees_skills=self.algorithm.sees_skills
    )
    eval_agent = agent(
      temperature=config.eval.temperature,
      sees_skills=lambda member: config.eval.with_skills,
    )
    plan = build.make_plan(config, self.world, panel, eval_agent)
    self._make_device_parts()
    weights = {'model_digest': self.model_digest, 'config_digest': workdir.digest}
    self.evaluator = Evaluator(
      workdir.path,
      plan,
      weights,
      self.pool,
      patience=self.patience,
      console=self.console,
      should_stop=stop,
    )

  def _make_device_parts(self) -> None:
    config = self.config
    mesh = build.make_mesh(config)
    self.model, params = build.load_model(config, mesh, self.chat)
    self.model_digest = build.model_digest(config)
    self.learner = build.make_learner(config, self.model, self.chat, mesh)
    self.initial = None
    if self.learner.needs_initial:  # Before the learner takes the weights over.
      self.initial = jax.tree.map(jnp.copy, params)
    self.state = self.learner.init_state(params)
    self.cursor = 0  # Next task in the training order.
    self.store = CheckpointStore(
      self.workdir.path / 'checkpoints', config.checkpoint.keep
    )
    resumed = self._restore()
    self.step = self.saved_step = int(self.state.step)
    self.sampler = build.make_sampler(
      config,
      self.model,
      self.state.policy,
      self.chat,
      mesh,
      with_skills=self.algorithm.student_sees_skills != 'none'
      or config.eval.with_skills,
    )
    self.resume_step = self.step if resumed else None
    self.console.resume(self.step)

  def open_writer(self) -> None:
    """Goes on with the files of numbers and episodes, or begins them."""
    path, step = self.workdir.path, self.resume_step
    sinks = build.make_sinks(self.config, path, step)
    self.writer = writers.MetricsWriter(path, step, sinks, digests=self._digests)
    if self.writer.aside is not None:
      self.console.line(f'no checkpoint: what was here is now in {self.writer.aside}')

  def _inputs(self) -> dict[str, Any]:
    """What identifies the run, for checkpoints and run.json."""
    return {
      'seed': self.config.seed,
      'config_digest': self.workdir.digest,
      'world_digest': self.world.digest,
      'model_digest': self.model_digest,
      'tokenizer_digest': self.chat.digest,
      'skills_digest': self.teacher.retriever.bank.digest,
      'numerics': numerics.describe(),
    }

  def _host(self) -> dict[str, Any]:
    return {
      'task_cursor': self.cursor,
      'quarantine': self.pool.quarantine,
      'retrieval': self.teacher.retriever.state(),
      **self._inputs(),
    }

  def _restore(self) -> bool:
    path, self._digests = self.workdir.path, None
    restored = recovery.restore(self.store, self.state, path, self.console.line)
    if restored is None:
      return False
    identity.check(restored.host, self._inputs(), restored.step, path)
    self.state = restored.state
    self.cursor = restored.host['task_cursor']
    self._digests = restored.host.get('digests')  # Not in those of earlier versions.
    self.pool.quarantine = restored.host['quarantine']
    self.teacher.retriever.restore(restored.host['retrieval'])
    return True

  def identify(self) -> None:
    """Writes run.json and sets reports of other evaluation settings aside."""
    self.evaluator.sort()
    writers.write_run(
      self.workdir.path,
      method=self.config.algorithm.name,
      **self._inputs(),
    )

  def collect(self) -> tuple[list[Any], list[Any]]:
    """Plays the step's episodes: groups to train on, and all that were played.

    Waits where no environment answers.
    """
    self.teacher.retriever.begin_step(self.step)
    groups, played, self.cursor = self.patience.until_played(
      f'step {self.step}',
      self._play,
      lambda result: fault_of_all(result[0], self.pool),
    )  # A cursor not moved before: a run stopped while it plays plays the same again.
    return groups, played

  def _play(self) -> tuple[list[Any], list[Any], int]:
    """Groups to train on, all groups played, and the cursor behind their tasks."""
    c, cursor, occurrences = self.config.rollout, self.cursor, collections.Counter()

    def play() -> list[Any]:
      nonlocal cursor
      tasks = episodes.tasks_at(
        self.tasks, seed=self.config.seed, cursor=cursor, count=c.tasks_per_step
      )
      cursor += c.tasks_per_step
      return episodes.collect(
        self.pool,
        tasks,
        self.sampler,
        self.agent,
        group_size=c.group_size,
        identity=(self.config.seed, self.step),
        success_reward=c.success_reward,
        should_stop=self.stop,
        progress=self.console.episodes,
        played=occurrences,
      )

    groups, played = episodes.with_refills(play, c.refills)
    return groups, played, cursor

  def rows(self, groups: list[Any]) -> list[batching.Row]:
    """One row per turn."""
    penalty = self.config.algorithm.invalid_penalty
    rows = batching.rows(groups, invalid_penalty=penalty)
    if not rows:
      raise EmptyStepError(
        f'step {self.step}: no episode has a turn to train on: every first prompt is'
        f' above config.rollout.max_prompt_tokens={self.agent.max_prompt_tokens}'
      )
    return rows

  def teacher_rows(self, rows: list[batching.Row]) -> tuple[Any, Any]:
    """The privileged prompts of the rows and what each shows; None without teacher."""
    if not self.algorithm.needs_teacher(self.loss):
      return None, None
    kind = self.algorithm.distillation.context
    seen = self._sees_skills(rows)
    return teacher_lib.teacher_rows(kind, self.teacher, rows, sees_skills=seen)

  def _sees_skills(self, rows: list[batching.Row]) -> list[bool]:
    return [self.algorithm.sees_skills(row.trajectory.member) for row in rows]

  def pack(self, rows: list[batching.Row], teacher: Any) -> list[Any]:
    """Minibatches of the rows."""
    c = self.config.train
    order = batching.permutation(
      len(rows), shuffle=c.shuffle_rows, seed=self.config.seed, step=self.step
    )
    return batching.pack(
      rows,
      teacher,
      order=order,
      packing=c.packing,
      minibatch_rows=c.minibatch_rows,
      microbatch_rows=c.microbatch_rows,
      length_buckets=self.buckets[0],
      teacher_buckets=self.buckets[1],
    )

  def credit(
    self, rows: list[batching.Row], views: Any, packed: list[Any], batch: list[Any]
  ) -> tuple[list[Any], list[Any]]:
    """Assigns advantages to the scored rows; all of it, on host and device."""
    scored = build.fetch(batch, packed)
    data = build.step_data(
      rows, views, scored, self.algorithm, self.loss, self.chat, self.step
    )
    values = objective.assign_credit(self.algorithm, self.loss, data)
    batch = self.learner.extend(batch, batching.scatter(scored, values))
    known = zip(scored, batching.scatter(scored, values), strict=True)
    return [{**scores, **credit} for scores, credit in known], batch

  def report(self, groups, played, rows, views, scores, sums) -> None:
    """Writes the step's metrics, timings and trajectories; stops a diverged run."""
    values = step_lib.step_metrics(
      played,
      rows,
      views,
      scores,
      jax.device_get(sums),
      invalid_penalty=self.config.algorithm.invalid_penalty,
      max_turns=self.world.max_turns,
    )
    every = self.config.log.trajectories_every
    if every and self.step % every == 0:
      tokens = step_lib.token_records(
        rows,
        scores,
        views,
        count=self.config.log.token_rows,
        identity=(self.config.seed, self.step),
        decode=self.chat.decode,
      )
      self.writer.trajectories(self.step, writers.with_tokens(groups, tokens))
    self._report_skills(rows, views)
    self.console.once('room', fitting.notice(t for g in played for t in g.trajectories))
    faults = self.pool.faults()
    timings = self.clock.timings(
      played,
      rows,
      env_faults=sum(faults.values()),
      failed_saves=self.store.failed_saves,
    )
    if faults:
      counts = ', '.join(f'{kind} {count}' for kind, count in faults.items())
      self.console.line(f'step {self.step}: environment faults: {counts}')
    self.writer.write(self.step, values, timings)
    self.console.step(self.step, {**values, **timings})
    cause = step_lib.hint(values)
    if cause is not None:
      self.console.line(f'step {self.step}: warning: {cause}')
    if int(self.state.skipped_in_a_row) >= recovery.SKIPS_IN_A_ROW:
      self.save()
      raise recovery.diverged(self.workdir.path, self.step)

  def _report_skills(self, rows: list[batching.Row], views: Any) -> None:
    """Records what teachers and students were shown; retrieval may learn from it."""
    own = teacher_lib.student_views(self.teacher, rows, self._sees_skills(rows))
    seen = {'rows_per_skill': views or [], 'rows_per_skill_of_students': own}
    counts = {name: step_lib.skills_seen(shown) for name, shown in seen.items()}
    counts = {name: count for name, count in counts.items() if count}
    if counts:
      self.writer.teacher(self.step, counts)
    self.teacher.retriever.learn(step_lib.shown_by_episode(rows, views or own, own))

  def evaluate(self) -> dict[str, Any]:
    """Plays the panel and writes eval/<step>.json; reads it if it is there."""
    with self.clock('eval'):
      return self.evaluator.report(self.step, self.sampler)

  def maybe_evaluate(self) -> None:
    """Evaluates before the first step and every `config.eval.every` after it."""
    every = self.config.eval.every
    if self.step == 0 or (every and self.step % every == 0):
      self.evaluate()

  def finish(self) -> None:
    """Evaluates the final policy and shows it beside the initial one."""
    self.evaluator.show(self.evaluate())

  def maybe_checkpoint(self) -> None:
    """Saves every `config.checkpoint.every` steps; a failure is counted and said."""
    due = self.step % self.config.checkpoint.every == 0
    if due and self.saved_step != self.step:
      self._try_to_save()

  def save(self) -> None:
    """Saves the state at the end of a pass of the loop.

    Raises:
      checkpoint.SaveError: the disk refuses it.
    """
    while self.saved_step != self.step:
      self._try_to_save()

  def _try_to_save(self) -> None:
    host = lambda: {**self._host(), 'digests': self.writer.digests()}
    if recovery.save(self.store, self.step, self.state, host, self.workdir.path):
      self.saved_step = self.step


def train(config: ConfigDict, path: str | pathlib.Path) -> None:
  """Trains until `config.steps`; goes on where the workdir's last checkpoint stands.

  Raises:
    recovery.NonFiniteError: three updates in a row were not finite.
    EmptyStepError: a step had nothing to train on.
    checkpoint.SaveError: three saves in a row failed.
    files.DiskError: the disk refuses a file of the run.
    ValueError: one line naming what in the config or the files is wrong.
  """
  numerics.pin()
  with StopSignal() as stop, Workdir(path, config) as workdir:
    run = Run(config, workdir, stop)
    workdir.record()
    run.identify()
    run.open_writer()
    if run.step >= config.steps:
      run.console.line(f'nothing to train: all {run.step} steps are done')
    try:
      with run.console:
        loop(run)
    except episodes.Interrupted:
      run.save()
      run.console.line(f'stopped on request after step {run.saved_step}')
    except (EmptyStepError, pool.PoolError, files.DiskError):
      with contextlib.suppress(SaveError):
        run.save()  # What was learned is not lost with what could not be done.
      raise
    finally:
      run.pool.close()
      run.writer.close()


def loop(run: Run) -> None:
  """Trains step by step: one pass is one training step."""
  while run.step < run.config.steps:
    run.maybe_evaluate()
    with run.clock('rollout'):
      groups, played = run.collect()
    with run.clock('batch'):
      rows = run.rows(groups)
      teacher, views = run.teacher_rows(rows)
      packed = run.pack(rows, teacher)
      batch = run.learner.to_device(packed)
    with run.clock('score'):
      batch = run.learner.score(run.state, run.initial, batch)
      scores, batch = run.credit(rows, views, packed, batch)
    with run.clock('update'):
      sums = []
      for minibatch in batch:
        run.state, summed = run.learner.train_step(run.state, minibatch, run.initial)
        sums.append(summed)
      run.state = run.learner.finish_step(run.state)
      run.step = int(run.state.step)  # Waits for the device.
    run.sampler.update(run.state.policy)
    run.report(groups, played, rows, views, scores, sums)
    run.maybe_checkpoint()
    if run.stop():
      raise episodes.Interrupted
  run.save()
  run.finish()
