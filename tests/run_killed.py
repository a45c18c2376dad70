"""Runs `main` in a process that dies by SIGKILL at a named moment; see test_resume.py.

  python tests/run_killed.py MOMENT COUNT [main's flags]

MOMENT is one of `MOMENTS` or 'never'; the process dies the COUNT-th time it is reached.
`forget:PART` instead resumes with one part of the saved state left out, `quarantine`
puts the first training task into quarantine at step 0, `poison` makes every update from
the COUNT-th on see an advantage that is not a number, and `full` lets no file grow from
the end of the COUNT-th step on.
"""

import os
import resource
import signal
import sys

import jax
import jax.numpy as jnp
import micro_run

from sdar_jax import main, train
from sdar_jax.evaluation import evaluate
from sdar_jax.learner import checkpoint as checkpoints
from sdar_jax.learner import learner
from sdar_jax.rollout import episodes

MOMENTS = {
  'rollout': (episodes, '_advance'),
  'score': (learner.Learner, 'score'),
  'update': (learner.Learner, 'finish_step'),
  'save': (checkpoints.CheckpointStore, '_publish'),
  'eval': (evaluate, 'summarise'),
}


def _die_at(moment: str, count: int) -> None:
  owner, name = MOMENTS[moment]
  original, seen = getattr(owner, name), [0]

  def wrapper(*args, **kwargs):
    seen[0] += 1
    if seen[0] == count:
      os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

  setattr(owner, name, wrapper)


def _forget(part: str) -> None:
  original = train.Run._restore

  def restore(run):
    fresh, cursor = jax.tree.map(jnp.copy, run.state), run.cursor
    found = original(run)
    if part == 'task_cursor':
      run.cursor = cursor
    elif part == 'quarantine':
      run.parts.pool.quarantine = ()
    else:
      run.state = run.state._replace(**{part: getattr(fresh, part)})
    return found

  train.Run._restore = restore


def _quarantine() -> None:
  original = train.Run.collect

  def collect(run):
    if run.step == 0:
      run.parts.pool.quarantine = [run.parts.tasks[0].task_id]
    return original(run)

  train.Run.collect = collect


def poison(count: int) -> None:
  """Makes every update from the COUNT-th on see what is no number."""
  original, seen = learner.Learner.train_step, [0]

  def train_step(self, state, minibatch, initial=None):
    seen[0] += 1
    if seen[0] >= count:
      minibatch = [
        {**m, 'advantages': jnp.full_like(m['advantages'], jnp.nan)} for m in minibatch
      ]
    return original(self, state, minibatch, initial)

  learner.Learner.train_step = train_step


def _full(count: int) -> None:
  original, seen = learner.Learner.finish_step, [0]

  def finish_step(self, state):
    seen[0] += 1
    if seen[0] == count:
      resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
    return original(self, state)

  learner.Learner.finish_step = finish_step


if __name__ == '__main__':
  moment, count = sys.argv[1], int(sys.argv[2])
  if moment.startswith('forget:'):
    _forget(moment.partition(':')[2])
  elif moment == 'quarantine':
    _quarantine()
  elif moment == 'poison':
    poison(count)
  elif moment == 'full':
    _full(count)
  elif moment != 'never':
    _die_at(moment, count)
  sys.argv = ['main', *sys.argv[3:]]
  with micro_run.compiling():
    main.main()
