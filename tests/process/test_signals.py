"""Requests to stop are answered at once, also while the main thread is far away."""

import os
import signal
import subprocess
import sys

import pytest

from sdar_jax.process import signals

STEPPING = """
import time
from sdar_jax.process.signals import StopSignal
with StopSignal() as stop:
  print('ready', flush=True)
  while not stop():
    time.sleep(0.01)
  print('saved', flush=True)
"""
# A lock of C's own that is never released keeps the main thread from any handler.
STUCK = """
import ctypes
from sdar_jax.process.signals import StopSignal
with StopSignal() as stop:
  print('ready', flush=True)
  mutex = ctypes.create_string_buffer(256)
  pthread = ctypes.CDLL(None)
  pthread.pthread_mutex_lock(mutex)
  pthread.pthread_mutex_lock(mutex)
"""


def _start(code):
  process = subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('number', signals.STOP_SIGNALS)
def test_the_first_signal_is_answered_and_lets_the_step_end(number):
  process = _start(STEPPING)
  process.send_signal(number)
  out, _ = process.communicate(timeout=600)
  assert sorted(out.splitlines()) == ['saved', signals.ACKNOWLEDGED]
  assert process.returncode == 0


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_main_thread_that_is_stuck_is_answered_for_and_ended(number):
  process = _start(STUCK)
  process.send_signal(number)
  assert process.stdout.readline() == f'{signals.ACKNOWLEDGED}\n'
  process.send_signal(number)
  process.communicate(timeout=600)
  assert process.returncode == 128 + number


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_other_modes_end_in_one_line(number):
  """Also where they are still at their imports."""
  code = """
import os
from sdar_jax import main
main.command_line.parse = lambda argv: os.kill(os.getpid(), int(argv[0]))
main.main()
"""
  done = subprocess.run(
    [sys.executable, '-c', code, str(int(number))], capture_output=True, text=True
  )
  assert done.returncode == 128 + number
  name = signal.Signals(number).name
  assert done.stderr == f'stopped by {name}: nothing was written\n'


def test_what_was_ignored_stays_ignored_and_all_is_put_back():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  handlers = [signal.getsignal(n) for n in signals.STOP_SIGNALS]
  reader, writer = os.pipe()
  try:
    with signals.StopSignal(writer) as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert not stop()
      os.kill(os.getpid(), signal.SIGTERM)
      assert os.read(reader, 100).decode() == f'{signals.ACKNOWLEDGED}\n' and stop()
      with pytest.raises(SystemExit) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
      assert caught.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(n) for n in signals.STOP_SIGNALS] == handlers
  finally:
    signal.signal(signal.SIGHUP, before)
    os.close(reader)
    os.close(writer)
