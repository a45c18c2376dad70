"""The modes besides training; `sft` has its own."""

import json
import pathlib
import sys
from collections.abc import Callable

from ml_collections import ConfigDict

from sdar_jax import files, sft
from sdar_jax import parts as parts_lib
from sdar_jax.evaluation import display, evaluate
from sdar_jax.learner import memory
from sdar_jax.logs.console import Console
from sdar_jax.models import export
from sdar_jax.process import terminal
from sdar_jax.prompts import cuts
from sdar_jax.rollout import episodes


def run_eval(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Plays the panel, prints a table and writes JSON to `output`."""
  player = parts_lib.player(config, checkpoint)
  console = Console(0, sys.stdout)
  with player.pool, console:
    console.phase('eval')
    result, played = evaluate.evaluate(
      player.plan,
      player.pool,
      player.sampler,
      player.weights,
      progress=console.episodes,
    )
  console.table(display.table({'success': result}))
  console.once('room', cuts.notice(played))
  if output is not None:
    _keep(output, json.dumps(result, indent=1))


def _keep(output: pathlib.Path, report: str) -> None:
  """Writes a report; where that fails, writes it elsewhere or prints it."""

  def save(path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, report.encode())

  with terminal.uninterrupted():
    files.write_somewhere(output, save, 'the report', text=report)


def run_play(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Prints one episode of the split's first task, turn by turn."""
  del output
  player = parts_lib.player(config, checkpoint)
  task = player.world.tasks(config.eval.split)[0]
  with player.pool:
    groups = episodes.collect(
      player.pool,
      [task],
      player.sampler,
      player.plan.agent,
      group_size=1,
      identity=(config.seed, 0),
    )
  trajectory = groups[0].trajectories[0]
  print(f'{trajectory.task_id}: {task.goal}')
  for i, turn in enumerate(trajectory.turns):
    print(f'\n[{i + 1}] {turn.observation}\n> {turn.response}')
  print(f'\n{trajectory.outcome.value} after {len(trajectory.turns)} turns')


def run_memory(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Prints what a device has to hold in each phase of training.

  Raises:
    ValueError: that is more than it has.
  """
  del checkpoint, output
  phases, limit = parts_lib.memory_plan(config)
  print(memory.table(phases, limit), end='')
  said = memory.complaint(phases, limit)
  if said:
    raise ValueError(said)


def run_export(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Writes the policy as a Hugging Face directory with its tokenizer."""
  output = export.required(config, output)
  policy = parts_lib.policy(config, checkpoint)
  export.keep(output, parts_lib.exported(policy))


MODES: dict[str, Callable[..., None]] = {
  'sft': sft.run_sft,
  'eval': run_eval,
  'play': run_play,
  'export': run_export,
  'memory': run_memory,
}
