"""Plays the rollout of a run, step by step, and says where its time goes.

  python -m benchmarks.rollout --config=experiments/alfworld.py:model=tiny \\
    [--rounds=3] [--config.rollout.prefill_tokens=256]

The config's model plays the tasks of the first steps; nothing is trained. Per step:
turns per second of the clock and of the processor, what the sampler took over from
other prompts, what it computed for nothing, and shares of the time. A phase waits for
the device, which hides what the two would do at the same time.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.watch import Watch
from sdar_jax.cli import config_file
from sdar_jax.process import flags, terminal

PHASES = ('prefill', 'copy', 'decode')


def timed(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Any:
  """Wraps a program: what it takes is added to `seconds`."""
  import jax

  def call(*arguments: Any) -> Any:
    began = time.perf_counter()
    out = jax.block_until_ready(function(*arguments))
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
    return out

  return call


def play(host: Any, sampler: Any, step: int) -> list[Any]:
  """Plays a step's tasks; the turns."""
  from sdar_jax.rollout import episodes, order

  config = host.config
  c, count = config.rollout, config.rollout.tasks_per_step
  host.teacher.retriever.begin_step(step)
  tasks = order.tasks_at(host.tasks, seed=config.seed, cursor=step * count, count=count)
  groups = episodes.collect(
    host.pool,
    tasks,
    sampler,
    host.agent,
    group_size=c.group_size,
    identity=(config.seed, step),
    success_reward=c.success_reward,
  )
  return [turn for g in groups for t in g.trajectories for turn in t.turns]


def line(step: int, turns: int, watch: Watch, counts: Any, spent: Any) -> str:
  """Formats what was measured of a step."""
  from sdar_jax.logs import step as step_lib

  clock, processor = watch.read()
  shares = {k: v / clock for k, v in spent.items()}
  shares['host'] = 1 - sum(shares.values())
  shares |= {
    name.removeprefix('perf/'): value
    for name, value in step_lib.sampler_shares(counts).items()
  }
  said = ', '.join(f'{name} {value:.2f}' for name, value in shares.items())
  return (
    f'step {step}: {turns} turns, {turns / clock:.0f} a second,'
    f' {turns / processor:.0f} a second of the processor; {said}'
  )


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Plays and prints a line per step."""
  parser = flags.Parser('python -m benchmarks.rollout', __doc__)
  parser.add_argument('--config', required=True, help='as of sdar')
  parser.add_argument('--rounds', type=int, default=3, help='steps that are played')
  options, words = parser.parse(argv)
  config = config_file.read(options.config, words)
  from sdar_jax import build, parts

  host, policy = parts.host_parts(config), parts.policy(config, None)
  params, shown = policy.joined, host.algorithm.student_sees_skills != 'none'
  sampler = build.make_sampler(
    config, policy.chat, policy.mesh, policy.model, params, with_skills=shown
  )
  sampler.warmup()
  spent: dict[str, float] = {}
  for name in PHASES:
    program = getattr(sampler._programs, name)
    setattr(sampler._programs, name, timed(program, name, spent))
  play(host, sampler, 0)  # What else is slow at first.
  for step in range(options.rounds):
    sampler.update(params)
    sampler.statistics()
    spent.clear()
    watch = Watch()
    turns = play(host, sampler, step)
    print(line(step, len(turns), watch, sampler.statistics(), spent), flush=True)
  host.pool.close()
  return 0


if __name__ == '__main__':
  main()
