"""A parent of workers, to be interrupted or killed; see test_pool.py.

Prints the workers' process ids as one line of JSON; then on SIGINT plays one more step
and says what came of it, or plays a step that hangs when told to.
"""

import json
import signal
import sys
import time

import faulty

from sdar_jax.envs.pool import pool


def main():
  interrupts = []
  signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
  world = faulty.World(special={'p0': 'process', 'p1': 'process', 'h': 'hang'})
  names = ['p0', 'p1', 'h'] if sys.argv[1] == 'hang' else ['p0', 'p1']
  workers = pool.WorkerPool(world, workers=len(names), deadline=600, retries=0)
  workers.reset({name: faulty.task(name) for name in names})
  seen = workers.step({'p0': 'left', 'p1': 'left'})
  pids = [json.loads(r.observation.text)[0] for r in seen.values()]
  pids += [each._process.pid for each in workers._workers]
  print(json.dumps(sorted(set(pids))), flush=True)
  if sys.argv[1] == 'hang':
    workers.step({'h': 'left'})
  while not interrupts:
    time.sleep(0.01)
  again = workers.step({'p0': 'left', 'p1': 'left'})
  same = [json.loads(r.observation.text)[0] for r in again.values()]
  print(json.dumps([sorted(same) == sorted(pids[:2]), workers.faults()]), flush=True)
  workers.close()


if __name__ == '__main__':
  main()
