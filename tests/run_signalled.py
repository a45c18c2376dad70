"""Runs `main` in a process that signals itself; see test_signals_in_a_run.py.

  python tests/run_signalled.py PHASE TIMES [main's flags]

PHASE is one of `PHASES`, 'compile' or 'never'. The second signal follows the first at
once; on stderr stands how much CPU time the process had used by then.
"""

import os
import signal
import sys
import threading
import time

import jax

from sdar_jax import build, main
from sdar_jax.evaluation import evaluate
from sdar_jax.learner import checkpoint as checkpoints
from sdar_jax.learner import learner
from sdar_jax.process import signals
from sdar_jax.rollout import episodes

PHASES = {
  'load': (build, 'load_weights'),
  'rollout': (episodes, '_advance'),
  'update': (learner.Learner, 'finish_step'),
  'save': (checkpoints.CheckpointStore, '_publish'),
  'eval': (evaluate, 'summarise'),
}


_answered = threading.Event()


def _listen() -> None:
  original = signals.StopSignal._acknowledge

  def acknowledge(stop):
    original(stop)
    _answered.set()

  signals.StopSignal._acknowledge = acknowledge


def _signal(times: int) -> None:
  print(f'signal at {time.process_time()} s', file=sys.stderr, flush=True)
  for _ in range(times):
    os.kill(os.getpid(), signal.SIGTERM)
    _answered.wait()  # Two that are pending at once would be one.


def _at(phase: str, times: int) -> None:
  owner, name = PHASES[phase]
  original, seen = getattr(owner, name), []

  def wrapper(*args, **kwargs):
    if not seen:
      seen.append(1)
      _signal(times)
    return original(*args, **kwargs)

  setattr(owner, name, wrapper)


def _while_compiling(times: int) -> None:
  """Signals from another thread when the main one is inside XLA's compiler."""
  begun = threading.Event()
  update = learner.Learner.score

  def score(*args):
    begun.set()
    return update(*args)

  def watch():
    begun.wait()
    while not _compiles(sys._current_frames()[threading.main_thread().ident]):
      time.sleep(0.001)
    time.sleep(0.05)
    _signal(times)

  learner.Learner.score = score
  threading.Thread(target=watch, daemon=True).start()


def _compiles(frame) -> bool:
  while frame is not None and 'backend_compile' not in frame.f_code.co_name:
    frame = frame.f_back
  return frame is not None


if __name__ == '__main__':
  _listen()
  if sys.argv[1] == 'compile':
    # Nothing must be there that was compiled before.
    jax.config.update('jax_compilation_cache_dir', None)
    _while_compiling(int(sys.argv[2]))
  elif sys.argv[1] != 'never':
    _at(sys.argv[1], int(sys.argv[2]))
  sys.argv = ['main', *sys.argv[3:]]
  main.main()
