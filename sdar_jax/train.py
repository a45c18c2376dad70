"""The training loop, and what a run is made of."""

import collections
import json
import pathlib
import signal
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sdar_jax import (
  batching,
  contexts,
  evaluate,
  files,
  metrics,
  objective,
  parts,
  report,
  rollout,
  writers,
)
from sdar_jax.checkpoint import CheckpointStore
from sdar_jax.clock import Clock
from sdar_jax.console import Console
from sdar_jax.workdir import Workdir

SKIPS_IN_A_ROW = 3  # Updates that are not finite before the run stops.
_PROGRESS = (
  'task_cursor',
  'quarantine',
  'retrieval',
)  # What of the host's state changes.


class NonFiniteError(RuntimeError):
  """Too many updates in a row were not finite; the last good state was saved."""


class EmptyStepError(RuntimeError):
  """Every episode of a step failed for reasons of infrastructure."""


class StopSignal:
  """Turns the first SIGTERM or SIGINT into a flag; the second ends the process."""

  def __init__(self):
    self.raised = False
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._handle)

  def _handle(self, number: int, frame: Any) -> None:
    if self.raised:
      raise SystemExit(128 + number)
    self.raised = True

  def __call__(self) -> bool:
    return self.raised


class Run:
  """A run's parts, its durable state, and the phases of its loop."""

  def __init__(self, config: ConfigDict, workdir: Workdir, stop: StopSignal):
    self.config, self.workdir, self.stop = config, workdir, stop
    # What needs no device comes first, so that wrong input is found at once.
    self.world = parts.make_world(config)
    self.pool = parts.make_pool(config, self.world)
    self.tasks = self.world.tasks('train')
    self.panel = evaluate.make_panel(self.world, config.eval.split, config.eval.tasks)
    self.chat = parts.make_chat(config, self.world)
    self.teacher = parts.make_teacher(config, self.world, self.chat)
    self.algorithm = parts.make_algorithm(config)
    self.loss = parts.make_loss_config(config)
    if self.algorithm.shows_skills(self.loss):
      self.teacher.retriever.check(parts.first_tasks(config, self.tasks))
    self.agent = self._agent(config.rollout.temperature, self.algorithm.sees_skills)
    self.eval_agent = self._agent(
      config.eval.temperature, lambda member: config.eval.with_skills
    )
    self._make_device_parts()
    self.console = Console(config.steps, sys.stdout)
    self.clock = Clock()

  def _agent(
    self, temperature: float, sees_skills: Callable[[int], bool]
  ) -> rollout.Agent:
    return parts.make_agent(
      self.config,
      self.chat,
      self.teacher,
      temperature=temperature,
      sees_skills=sees_skills,
    )

  def _make_device_parts(self) -> None:
    config = self.config
    mesh = parts.make_mesh(config)
    self.model, params = parts.load_model(config, mesh, self.chat)
    self.model_digest = parts.model_digest(config)
    self.learner = parts.make_learner(config, self.model, self.chat, mesh)
    self.ref_params = None
    if self.loss.needs_reference:  # Before the learner takes the weights over.
      self.ref_params = jax.tree.map(jnp.copy, params)
    self.state = self.learner.init_state(params)
    self.cursor = 0  # Next task in the training order.
    self.store = CheckpointStore(
      self.workdir.path / 'checkpoints', config.checkpoint.keep
    )
    resumed = self._restore()
    self.step = self.saved_step = int(self.state.step)
    self.sampler = parts.make_sampler(
      config,
      self.model,
      self.state.policy,
      self.chat,
      mesh,
      with_skills=self.algorithm.student_sees_skills != 'none'
      or config.eval.with_skills,
    )
    resume_step = self.step if resumed else None
    sinks = parts.make_sinks(config, self.workdir.path, resume_step)
    self.writer = writers.MetricsWriter(self.workdir.path, resume_step, sinks)

  def _host(self) -> dict[str, Any]:
    return {
      'task_cursor': self.cursor,
      'quarantine': self.pool.quarantine,
      'retrieval': self.teacher.retriever.state(),
      'seed': self.config.seed,
      'config_digest': self.workdir.digest,
      'world_digest': self.world.digest,
      'model_digest': self.model_digest,
    }

  def _restore(self) -> bool:
    restored = self.store.restore(self.state)
    if restored is None:
      return False
    for key, value in self._host().items():
      if key not in _PROGRESS and restored.host[key] != value:
        raise ValueError(
          f'{self.workdir.path}: {key} {restored.host[key]} of checkpoint'
          f' {restored.step} differs from {value} of this run: use another workdir'
        )
    self.state = restored.state
    self.cursor = restored.host['task_cursor']
    self.pool.quarantine = restored.host['quarantine']
    self.teacher.retriever.restore(restored.host['retrieval'])
    return True

  def identify(self) -> None:
    """Writes run.json."""
    writers.write_run(
      self.workdir.path,
      method=self.config.algorithm.name,
      seed=self.config.seed,
      config_digest=self.workdir.digest,
      model_digest=self.model_digest,
      panel_digest=self.panel.digest,
      world_digest=self.world.digest,
    )

  def collect(self) -> list[Any]:
    """Plays the step's episodes."""
    c = self.config.rollout
    self.teacher.retriever.begin_step(self.step)
    cursor, played = self.cursor, collections.Counter()

    def play() -> list[Any]:
      nonlocal cursor
      tasks = parts.tasks_at(
        self.tasks, seed=self.config.seed, cursor=cursor, count=c.tasks_per_step
      )
      cursor += c.tasks_per_step
      return rollout.collect(
        self.pool,
        tasks,
        self.sampler,
        self.agent,
        group_size=c.group_size,
        identity=(self.config.seed, self.step),
        success_reward=c.success_reward,
        should_stop=self.stop,
        played=played,
      )

    groups = rollout.with_refills(play, c.refills)
    self.cursor = cursor  # Not before: a run stopped while it plays plays them again.
    return groups

  def rows(self, groups: list[Any]) -> list[batching.Row]:
    """One row per turn."""
    penalty = self.config.algorithm.invalid_penalty
    rows = batching.rows(groups, invalid_penalty=penalty)
    if not rows:
      raise EmptyStepError(f'step {self.step}: every group had an environment fault')
    return rows

  def teacher_rows(self, rows: list[batching.Row]) -> tuple[Any, Any]:
    """The privileged prompts of the rows and what each shows; None without teacher."""
    if not self.algorithm.needs_teacher(self.loss):
      return None, None
    kind = self.algorithm.distillation.context
    seen = self._sees_skills(rows)
    return contexts.teacher_rows(kind, self.teacher, rows, sees_skills=seen)

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
      length_buckets=c.length_buckets,
      teacher_buckets=c.teacher_buckets,
    )

  def credit(
    self, rows: list[batching.Row], views: Any, packed: list[Any], batch: list[Any]
  ) -> tuple[list[Any], list[Any]]:
    """Assigns advantages to the scored rows; all of it, on host and device."""
    scored = parts.fetch(batch, packed)
    data = parts.step_data(
      rows, views, scored, self.algorithm, self.loss, self.chat, self.step
    )
    values = objective.assign_credit(self.algorithm, self.loss, data)
    batch = self.learner.extend(batch, batching.scatter(scored, values))
    known = zip(scored, batching.scatter(scored, values), strict=True)
    return [{**scores, **credit} for scores, credit in known], batch

  def report(self, groups, rows, views, scores, sums) -> None:
    """Writes the step's metrics, timings and trajectories; stops a diverged run."""
    sums = jax.device_get(sums)
    trained = {f'train/{k}': v for k, v in metrics.means(sums).items()}
    values = {
      **report.rollout_metrics(groups),
      **report.skill_metrics(views),
      **report.mismatch(scores),
      **trained,
      'train/updates': len(sums),
    }
    every = self.config.log.trajectories_every
    if every and self.step % every == 0:
      count = self.config.log.token_rows
      tokens = report.token_records(rows, scores, views, count=count)
      self.writer.trajectories(self.step, writers.with_tokens(groups, tokens))
    self._report_skills(rows, views)
    timings = self.clock.timings(groups)
    faults = self.pool.faults()
    timings['perf/env_faults'] = float(sum(faults.values()))
    if faults:
      counts = ', '.join(f'{kind} {count}' for kind, count in faults.items())
      self.console.line(f'step {self.step}: environment faults: {counts}')
    self.writer.write(self.step, values, timings)
    self.console.step(self.step, {**values, **timings})
    if int(self.state.skipped_in_a_row) >= SKIPS_IN_A_ROW:
      self.save()
      raise NonFiniteError(
        f'{SKIPS_IN_A_ROW} updates in a row were not finite at step {self.step}; the'
        f' last good state is in {self.workdir.path / "checkpoints"}: lower'
        ' config.optimizer.learning_rate'
      )

  def _report_skills(self, rows: list[batching.Row], views: Any) -> None:
    """Records what teachers and students were shown; retrieval may learn from it."""
    own = contexts.student_views(self.teacher, rows, self._sees_skills(rows))
    seen = {'rows_per_skill': views or [], 'rows_per_skill_of_students': own}
    counts = {name: report.skills_seen(shown) for name, shown in seen.items()}
    counts = {name: count for name, count in counts.items() if count}
    if counts:
      self.writer.teacher(self.step, counts)
    self.teacher.retriever.learn(report.shown_by_episode(rows, views or own, own))

  def evaluate(self) -> dict[str, Any]:
    """Plays the panel and writes eval/<step>.json; reads it if it is there."""
    path = self._eval_path(self.step)
    if path.exists():
      return json.loads(path.read_text())
    with self.clock('eval'):
      result, _ = evaluate.evaluate(
        self.panel,
        self.pool,
        self.sampler,
        self.eval_agent,
        attempts=self.config.eval.attempts,
        seed=self.config.eval.seed,
        should_stop=self.stop,
      )
    result['step'] = self.step
    path.parent.mkdir(exist_ok=True)
    files.write_atomic(path, json.dumps(result, indent=1).encode())
    self.console.line(
      f'step {self.step}: {result["panel"]} success {result["success_rate"]:.1%}'
      f' of {result["n"]}'
    )
    return result

  def maybe_evaluate(self) -> None:
    """Evaluates before the first step and every `config.eval.every` after it."""
    every = self.config.eval.every
    if self.step == 0 or (every and self.step % every == 0):
      self.evaluate()

  def finish(self) -> None:
    """Evaluates the final policy and shows it beside the initial one."""
    before = json.loads(self._eval_path(0).read_text())
    self.console.results({'before': before, 'after': self.evaluate()})

  def _eval_path(self, step: int) -> pathlib.Path:
    return self.workdir.path / 'eval' / f'{step:06d}.json'

  def maybe_checkpoint(self) -> None:
    """Saves every `config.checkpoint.every` steps."""
    if self.step % self.config.checkpoint.every == 0:
      self.save()

  def save(self) -> None:
    """Saves the state at the end of a pass of the loop."""
    if self.saved_step != self.step and self.store.save(
      self.step, self.state, self._host()
    ):
      self.saved_step = self.step


def train(config: ConfigDict, path: str | pathlib.Path) -> None:
  """Trains until `config.steps`; goes on where the workdir's last checkpoint stands.

  Raises:
    NonFiniteError: three updates in a row were not finite.
    EmptyStepError: a step had nothing to train on.
    checkpoint.SaveError: three saves in a row failed.
    ValueError: one line naming what in the config or the files is wrong.
  """
  stop = StopSignal()
  with Workdir(path, config) as workdir:
    run = Run(config, workdir, stop)
    workdir.record()
    run.identify()
    try:
      with run.console:
        loop(run)
    except rollout.Interrupted:
      run.save()
      run.console.line(f'stopped on request after step {run.saved_step}')
    finally:
      run.pool.close()
      run.writer.close()


def loop(run: Run) -> None:
  """One pass is one training step; DESIGN's listing, line for line."""
  while run.step < run.config.steps:
    run.maybe_evaluate()
    with run.clock('rollout'):
      groups = run.collect()
    with run.clock('batch'):
      rows = run.rows(groups)
      teacher, views = run.teacher_rows(rows)
      packed = run.pack(rows, teacher)
      batch = run.learner.to_device(packed)
    with run.clock('score'):
      batch = run.learner.score(run.state, run.ref_params, batch)
      scores, batch = run.credit(rows, views, packed, batch)
    with run.clock('update'):
      sums = []
      for minibatch in batch:
        run.state, summed = run.learner.train_step(run.state, minibatch)
        sums.append(summed)
      run.state = run.learner.finish_step(run.state)
      run.step = int(run.state.step)  # Waits for the device.
    run.sampler.update(run.state.policy)
    run.report(groups, rows, views, scores, sums)
    run.maybe_checkpoint()
    if run.stop():
      raise rollout.Interrupted
  run.save()
  run.finish()
