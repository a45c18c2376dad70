"""A process of several that train the micro model; see test_hosts.py.

  python tests/hosts/worker.py HOSTS WORKDIR MODEL JSON [MOMENT SIGNAL INDEX]

HOSTS as `--hosts`, JSON what differs from the config of `micro_run`. Every process
writes the metrics that it computed to WORKDIR.INDEX.jsonl. The process INDEX sends
itself SIGNAL (of a name) the COUNT-th time it reaches MOMENT ('update:2').
"""

import json
import os
import pathlib
import signal
import sys

import jax
import micro_run

from sdar_jax import train
from sdar_jax.hosts import dealing, join
from sdar_jax.learner import checkpoint, learner
from sdar_jax.process import team as teams
from sdar_jax.process import terminal
from sdar_jax.rollout import episodes
from sdar_jax.storage import lines

MOMENTS = {
  'rollout': (episodes, '_advance'),
  'update': (learner.Learner, 'finish_step'),
  'save': (checkpoint.CheckpointStore, '_write'),
}


def note(path):
  """Writes each step's metrics to a file of this process."""
  original = dealing.compare

  def compare(team, step, values, scores, faults):
    with open(path, 'a') as file:
      file.write(lines.dumps({'step': step, **values}) + '\n')
    return original(team, step, values, scores, faults)

  dealing.compare = compare


def signal_at(moment, name):
  owner, attribute = MOMENTS[moment.partition(':')[0]]
  original, left = getattr(owner, attribute), [int(moment.partition(':')[2])]

  def wrapper(*args, **kwargs):
    left[0] -= 1
    if left[0] == 0:
      os.kill(os.getpid(), getattr(signal, name))
    return original(*args, **kwargs)

  setattr(owner, attribute, wrapper)


def run(argv):
  jax.config.update('jax_disable_most_optimizations', True)  # Compiles faster.
  place, workdir, model, changes, *hurt = argv
  changes = json.loads(changes)
  steps, method = changes.pop('steps', 2), changes.pop('method', 'sdar')
  config = micro_run.config(model, method, steps, **changes)
  if place == 'none':
    note(f'{workdir}.0.jsonl')
    train.train(config, workdir)
    return 0
  with join.joined(teams.place(place), config, 60) as team:
    note(f'{workdir}.{team.index}.jsonl')
    if hurt and int(hurt[2]) == team.index:
      signal_at(*hurt[:2])
    train.train(config, pathlib.Path(workdir), team)
  return 0


if __name__ == '__main__':
  sys.exit(terminal.program(run)(sys.argv[1:]))
