import fcntl
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import ml_collections
import pytest

from sdar_jax.storage.workdir import Workdir, WorkdirError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _config(**values):
  config = ml_collections.ConfigDict(
    {'seed': 0, 'steps': 5, 'eval': {'every': 2}, 'model': {'buckets': (1, 2)}}
  )
  config.update_from_flattened_dict(values)
  return config


def _holder(path, body):
  """A process that holds `path` and prints a line when it does."""
  code = f"""
    import os, sys, time, ml_collections
    from sdar_jax.storage.workdir import Workdir
    config = ml_collections.ConfigDict({{'seed': 0}})
    with Workdir({str(path)!r}, config):
      {body}
  """
  process = subprocess.Popen(
    [sys.executable, '-c', textwrap.dedent(code)],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  return process, process.stdout.readline().strip()


def _free(path):
  with Workdir(path, ml_collections.ConfigDict({'seed': 0})):
    return True


def test_second_run_is_refused_naming_the_holder(tmp_path):
  process, _ = _holder(tmp_path, "print('held', flush=True); time.sleep(60)")
  try:
    with pytest.raises(WorkdirError) as caught:
      _free(tmp_path)
    assert f'pid {process.pid} on host {socket.gethostname()}' in str(caught.value)
    assert '\n' not in str(caught.value)
  finally:
    process.kill()
    process.wait()
  assert _free(tmp_path)  # kill -9 left nothing that blocks.


def test_the_loser_of_a_race_waits_for_the_name_of_the_winner(tmp_path):
  path = tmp_path / '.lock'
  path.write_text('')
  descriptor = os.open(path, os.O_RDWR)
  fcntl.flock(descriptor, fcntl.LOCK_EX)
  threading.Timer(0.2, lambda: os.pwrite(descriptor, b'pid 7 on host h', 0)).start()
  with pytest.raises(WorkdirError, match='in use by pid 7 on host h'):
    _free(tmp_path)
  os.close(descriptor)


def test_a_forked_worker_does_not_keep_the_lock_of_a_killed_run(tmp_path):
  body = 'os.fork() or print(os.getpid(), flush=True)'  # The worker says so itself.
  process, worker = _holder(tmp_path, body + '; time.sleep(60)')
  try:
    process.kill()
    process.wait()
    os.kill(int(worker), 0)  # The worker is still there,
    assert _free(tmp_path)  # but the directory is free.
  finally:
    os.kill(int(worker), signal.SIGKILL)


def test_a_started_program_does_not_keep_the_lock(tmp_path):
  body = "p = __import__('subprocess').Popen(['sleep', '60'], stdout=2)"
  process, worker = _holder(
    tmp_path, body + '; print(p.pid, flush=True); time.sleep(60)'
  )
  try:
    process.kill()
    process.wait()
    assert _free(tmp_path)
  finally:
    os.kill(int(worker), signal.SIGKILL)


def test_two_holders_in_one_process(tmp_path):
  with Workdir(tmp_path, _config()):
    with pytest.raises(WorkdirError, match=f'pid {os.getpid()}'):
      Workdir(tmp_path, _config()).__enter__()
  assert _free(tmp_path / 'other')
  with Workdir(tmp_path, _config()):
    pass


def test_snapshot_holds_the_flattened_config(tmp_path):
  with Workdir(tmp_path / 'a' / 'run', _config()) as workdir:
    assert not (workdir.path / 'config.json').exists()
    workdir.record()
    values = json.loads((workdir.path / 'config.json').read_text())
  assert values == {'seed': 0, 'steps': 5, 'eval.every': 2, 'model.buckets': [1, 2]}


def test_another_config_is_refused_naming_keys_and_values(tmp_path):
  with Workdir(tmp_path, _config()) as workdir:
    workdir.record()
  before = (tmp_path / 'config.json').read_bytes()
  with pytest.raises(WorkdirError) as caught:
    with Workdir(tmp_path, _config(**{'seed': 1, 'steps': 9})):
      pass
  message = str(caught.value)
  assert 'seed was 0, is 1' in message and 'steps' not in message
  assert '\n' not in message
  assert (tmp_path / 'config.json').read_bytes() == before
  with Workdir(tmp_path, _config()):  # The refused one does not hold the lock.
    pass


def test_added_and_removed_keys_differ_too(tmp_path):
  with Workdir(tmp_path, _config()) as workdir:
    workdir.record()
  config = ml_collections.ConfigDict({**_config(), 'extra': None})
  with pytest.raises(WorkdirError, match=r"extra was '\(absent\)', is None"):
    Workdir(tmp_path, config).__enter__()


def test_harmless_keys_may_change(tmp_path):
  with Workdir(tmp_path, _config()) as workdir:
    workdir.record()
    digest = workdir.digest
  with Workdir(tmp_path, _config(**{'steps': 9, 'eval.every': 1})) as workdir:
    assert workdir.digest == digest
    workdir.record()
  assert json.loads((tmp_path / 'config.json').read_text())['steps'] == 9
  assert Workdir(tmp_path, _config(seed=1)).digest != digest
  # A harmless section does not cover keys that merely start alike.
  config = ml_collections.ConfigDict({**_config(), 'steps_more': 1})
  with pytest.raises(WorkdirError, match='steps_more'):
    Workdir(tmp_path, config).__enter__()


@pytest.mark.parametrize('content', [b'', b'{"seed": 0', b'[1]', b'\xff\xfe'])
def test_a_damaged_snapshot_is_an_error(tmp_path, content):
  (tmp_path / 'config.json').write_bytes(content)
  with pytest.raises(WorkdirError, match=r'config\.json: ') as caught:
    Workdir(tmp_path, _config()).__enter__()
  assert '\n' not in str(caught.value)


def test_a_path_that_is_no_directory_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(WorkdirError, match='choose another directory'):
    Workdir(tmp_path / 'file', _config()).__enter__()


def test_another_process_of_a_run_reads_and_writes_nothing(tmp_path):
  with Workdir(tmp_path / 'run', _config()) as ours:
    ours.record()
    before = sorted(p.name for p in ours.path.iterdir())
    with Workdir(tmp_path / 'run', _config(), leads=False) as theirs:
      theirs.record()
      assert theirs.holder == ours.holder and f'pid {os.getpid()}' in ours.holder
      assert sorted(p.name for p in ours.path.iterdir()) == before
    with pytest.raises(WorkdirError, match='seed was 0, is 1'):
      with Workdir(tmp_path / 'run', _config(seed=1), leads=False):
        pass
  with Workdir(tmp_path / 'nowhere', _config(), leads=False) as theirs:
    assert theirs.holder != ours.holder and not theirs.path.exists()
