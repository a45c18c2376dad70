"""Prints what exactness and its records cost, in per cent of a training step.

  taskset -c 0 python -m benchmarks.exactness \\
    --config=experiments/alfworld.py:model=tiny [--rounds=3]

Steps of the config, in processor seconds, medians over rounds:

  products   sampling with matrix products in which no row depends on another, less
             sampling with XLA's fastest for CPU
  scores     scoring the student's tokens again, where the sampler's log-probs would do
  records    metrics, times, skills and episodes on disk
  checkpoint a save, in every step
  evaluation the config's panel, once
"""

import functools
import itertools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sdar_jax.cli import config_file
from sdar_jax.process import flags, terminal

PARTS = ('rollout', 'batch', 'score', 'update')


class Costs:
  """Processor seconds by name, of each time that it was done."""

  def __init__(self):
    self.seconds: dict[str, list[float]] = {}

  def __call__(self, name: str, function: Callable[[], Any]) -> Any:
    """Calls a function, waits for what it gives, and notes what it took."""
    import jax

    began = time.process_time()
    out = jax.block_until_ready(function())
    self.seconds.setdefault(name, []).append(time.process_time() - began)
    return out

  def median(self, name: str) -> float:
    """Takes the median; the first time, which compiles, is left out."""
    return statistics.median(self.seconds[name][1:])


def fast_sampler(run: Any) -> Any:
  """Makes the run's sampler with XLA's fastest products."""
  from sdar_jax import numerics
  from sdar_jax.models import sharding
  from sdar_jax.sampler import decoding

  decoding.programs.cache_clear()  # Samplers of the same shapes share theirs.
  platform = run.parts.mesh.devices.flat[0].platform
  plain, options = sharding.Program, numerics.fast_products(platform)
  sharding.Program = functools.partial(plain, compiler_options=options)
  try:
    return run.parts.make_sampler(run.policy())
  finally:
    sharding.Program = plain
    decoding.programs.cache_clear()


def one_step(run: Any, costs: Costs, fast: Any) -> None:
  """Takes a step, its parts by themselves, and what may be left out of it."""
  learner, initial = run.parts.learner, run.parts.initial
  own, run.sampler, cursor = run.sampler, fast, run.cursor
  costs('fast', run.collect)
  run.sampler, run.cursor = own, cursor
  groups, played = costs('rollout', run.collect)

  def batched() -> Any:
    rows = run.rows(groups)
    prompts, views = run.teacher_prompts(rows)
    return rows, prompts, views, *run.pack(rows, prompts)

  rows, prompts, views, batch, privileged = costs('batch', batched)
  sheets = list(itertools.chain(*batch))
  costs('student', lambda: learner.score(run.state, None, sheets))
  scores = costs('score', lambda: run.score(rows, batch, privileged))
  known = run.credit(rows, views, scores)

  def updated() -> Any:
    sums = []
    for minibatch in batch:
      arrays = learner.to_device(minibatch, known)
      run.state, summed = learner.train_step(run.state, arrays, initial)
      sums.append(summed)
    run.state = learner.finish_step(run.state)
    return run.state, sums

  _, sums = costs('update', updated)
  run.step = int(run.state.step)
  for sampler in (run.sampler, fast):
    sampler.update(run.policy())
  report = functools.partial(run.report, groups, played, rows, prompts, views)
  run.clock.timings = lambda *_, **__: {}  # Phases were not timed by it.
  costs('records', lambda: report(known, sums))
  costs('checkpoint', run.save)


def lines(costs: Costs, evaluation: float) -> Iterator[str]:
  """Formats the table."""
  step = sum(costs.median(name) for name in PARTS)
  yield f'a step: {step:.2f} s of the processor'
  for name in PARTS:
    yield f'  {name:12}{costs.median(name):8.2f} s'
  asked = {
    'products': costs.median('rollout') - costs.median('fast'),
    'scores': costs.median('student'),
    'records': costs.median('records'),
    'checkpoint': costs.median('checkpoint'),
    'evaluation': evaluation,
  }
  yield 'of which, or beside it:'
  for name, seconds in asked.items():
    yield f'  {name:12}{seconds:8.2f} s {seconds / step:7.1%}'


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints the table of a config."""
  parser = flags.Parser('python -m benchmarks.exactness', __doc__)
  parser.add_argument('--config', metavar='FILE.py[:ARGUMENT]', required=True)
  parser.add_argument('--rounds', type=int, default=3, help='steps, after the first')
  options, rest = parser.parse(argv)
  config = config_file.read(options.config, rest)
  config.steps = 1 + options.rounds
  config.log.profile_steps, config.algorithm.kl_coef = (), 0.0  # The student's alone.
  from sdar_jax import train
  from sdar_jax.process.team import ALONE
  from sdar_jax.storage.workdir import Workdir

  costs = Costs()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'run'
    with Workdir(path, config, leads=True) as workdir:
      run = train.Run(config, workdir, lambda: False, ALONE, None)
      run.identify()
      run.open_writer()
      try:
        fast = fast_sampler(run)
        for _ in range(1 + options.rounds):
          one_step(run, costs, fast)
        began = time.process_time()
        run.evaluate()
        evaluation = time.process_time() - began
      finally:
        run.parts.pool.close()
        run.writer.close()
  print('\n'.join(lines(costs, evaluation)))
  return 0


if __name__ == '__main__':
  main()
