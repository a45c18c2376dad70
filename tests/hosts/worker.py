"""A process of several, or the only one, that trains the micro model.

  python tests/hosts/worker.py HOSTS WORKDIR MODEL JSON [MOMENT COUNT WHAT INDEX]

HOSTS as `--hosts`, JSON what differs from the config of `micro_run`. Every process
writes to WORKDIR.INDEX.jsonl, for each step, the metrics that it computed and how often
it ran a program of all devices; then the digests of its last state to
WORKDIR.INDEX.json. The process INDEX does WHAT when it reaches MOMENT the COUNT-th
time: it sends itself that signal, hangs, or fails from then on.
"""

import json
import os
import pathlib
import signal
import sys
import time

import micro_run

from sdar_jax import train
from sdar_jax.envs import base
from sdar_jax.envs.pool import episode
from sdar_jax.hosts import dealing, join
from sdar_jax.learner import checkpoint, learner, recovery
from sdar_jax.models import sharding
from sdar_jax.process import team as teams
from sdar_jax.process import terminal
from sdar_jax.rollout import episodes
from sdar_jax.storage import lines

MOMENTS = {
  'rollout': (episodes, '_advance'),
  'environment': (episode.Stage, 'play'),
  'update': (learner.Learner, 'finish_step'),
  'seal': (checkpoint.CheckpointStore, '_seal'),
}


def observe(workdir, index):
  """Writes down what this process computes."""
  compare, save, call = dealing.compare, recovery.save, sharding.Program.__call__
  calls = [0]

  def counted(program, *args):
    calls[0] += program._mesh is not None and program._mesh.is_multi_process
    return call(program, *args)

  def compared(team, step, values, rows, known, faults):
    with open(f'{workdir}.{index}.jsonl', 'a') as file:
      file.write(lines.dumps({'step': step, 'calls': calls[0], **values}) + '\n')
    return compare(team, step, values, rows, known, faults)

  def saved(store, step, state, host, path):
    digests = micro_run.digests(sharding.fetch(state))
    pathlib.Path(f'{workdir}.{index}.json').write_text(json.dumps(digests))
    return save(store, step, state, host, path)

  sharding.Program.__call__ = counted
  dealing.compare, recovery.save = compared, saved


def hurt(moment, count, what):
  """Hurts this process when it reaches a moment the COUNT-th time."""
  owner, attribute = MOMENTS[moment]
  original, left = getattr(owner, attribute), [int(count)]

  def wrapper(*args, **kwargs):
    left[0] -= 1
    if left[0] <= 0 and what == 'fault':
      return iter([base.EnvironmentFault('broken', 'on purpose')])
    if left[0] <= 0 and what == 'full':
      raise OSError(28, 'No space left on device')
    if left[0] == 0 and what == 'hang':
      time.sleep(600)
    if left[0] == 0 and what == 'drift':  # As where a host computes something else.
      first = args[-1][0]
      args[-1][0] = {**first, 'old_logprobs': first['old_logprobs'] + 1e-3}
    if left[0] == 0 and what.startswith('SIG'):
      os.kill(os.getpid(), getattr(signal, what))
    return original(*args, **kwargs)

  setattr(owner, attribute, wrapper)


def run(argv):
  with micro_run.compiling():
    return _run(*argv)


def _run(hosts, workdir, model, changes, *harm):
  changes = {'steps': 2, 'method': 'sdar', **json.loads(changes)}
  steps, method = changes.pop('steps'), changes.pop('method')
  config = micro_run.config(model, method, steps, **changes)
  if hosts == 'none':
    observe(workdir, 0)
    train.train(config, workdir)
    return 0
  with join.joined(teams.place(hosts), config, 60) as team:
    observe(workdir, team.index)
    if harm and int(harm[3]) == team.index:
      hurt(*harm[:3])
    train.train(config, workdir, team)
  return 0


if __name__ == '__main__':
  MOMENTS['compare'] = (dealing, '_digests')
  sys.exit(terminal.program(run)(sys.argv[1:]))
