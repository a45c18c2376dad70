"""Injects faults into ALFWorld's environments and counts what the pool delivers.

  python benchmarks/pool_faults.py --episodes=200 --workers=2 --rates=0.01,0.05,0.2

An expert plays generated games in worker processes. At each call of an environment,
with the given chance, the worker kills itself, hangs, raises, returns garbage or writes
garbage to its parent; up to two times at one place, a hang at most once. Prints one row
per rate: episodes requested and delivered, faults as injected and as counted, whether
all transcripts are those of a faultless run in this process, and seconds.
"""

import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests'), str(ROOT / 'tests/envs')]

import faulty  # noqa: E402

from sdar_jax.envs import base  # noqa: E402
from sdar_jax.envs.alfworld.world import AlfworldWorld  # noqa: E402
from sdar_jax.envs.pool import pool  # noqa: E402
from sdar_jax.process import flags, terminal  # noqa: E402

KINDS = {'crash': 6, 'hang': 1, 'error': 4, 'garbage': 3, 'wire': 2}


def play(environments, world, tasks):
  """The transcript of each task, played by an expert."""
  keys = range(len(tasks))
  experts = [world.expert('likely') for _ in keys]
  seen = environments.reset(dict(zip(keys, tasks)))
  transcripts = [[seen[key]] for key in keys]
  live = {}
  for key in keys:
    if not isinstance(seen[key], base.EnvironmentFault):
      experts[key].reset(tasks[key], seen[key])
      live[key] = seen[key]
  for _ in range(world.max_turns):
    actions = {key: experts[key].plan(live[key])[1] for key in live}
    for key, result in environments.step(actions).items():
      transcripts[key].append(result)
      if isinstance(result, base.EnvironmentFault) or result.done:
        del live[key]
      else:
        experts[key].observe(actions[key], result.observation)
        live[key] = result.observation
  environments.release(keys)
  return transcripts


def arguments(argv):
  """Reads the flags."""
  parser = flags.Parser('python benchmarks/pool_faults.py', __doc__)
  parser.add_argument('--episodes', type=int, default=200, help='each of its own task')
  parser.add_argument('--workers', type=int, default=2, help='worker processes')
  parser.add_argument('--deadline', type=float, default=5.0, help='s for one call')
  parser.add_argument('--rates', default='0,0.01,0.05,0.2', help='chances per call')
  return parser.parse_all(argv)


@terminal.program
def main(argv):
  """Prints the table."""
  options = arguments(argv)
  world = AlfworldWorld(size='small', max_turns=12)
  tasks = [world.tasks('train')[i] for i in range(options.episodes)]
  with pool.InProcessPool(world, retries=0) as environments:
    expected = play(environments, world, tasks)
  calls = sum(map(len, expected))
  print(f'{len(tasks)} episodes, {calls} calls, {options.workers} workers')
  print('| rate | requested | delivered | injected | counted | identical | seconds |')
  print('|---|---|---|---|---|---|---|')
  for rate in map(float, options.rates.split(',')):
    with tempfile.TemporaryDirectory() as folder:
      faults = faulty.Faults(folder, rate, KINDS)
      start = time.perf_counter()
      with pool.WorkerPool(
        faulty.Injected(world, faults),
        workers=options.workers,
        deadline=options.deadline,
        retries=2,
      ) as environments:
        played = play(environments, world, tasks)
        counted = environments.faults()
      seconds = time.perf_counter() - start
      injected = dict(sorted(faults.injected().items()))
    lost = sum(isinstance(t[-1], base.EnvironmentFault) for t in played)
    cells = [f'{rate:.0%}', len(tasks), len(tasks) - lost, _row(injected)]
    same = 'yes' if played == expected else 'NO'
    cells += [_row(counted), same, f'{seconds:.0f}']
    print('| ' + ' | '.join(map(str, cells)) + ' |', flush=True)
  return 0


def _row(counts):
  kinds = ', '.join(f'{kind} {count}' for kind, count in counts.items())
  return f'{sum(counts.values())}: {kinds}' if counts else '0'


if __name__ == '__main__':
  main()
