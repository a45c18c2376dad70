"""Runs of the micro model in several processes of two CPU devices each."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Four devices in all, rows and weights split.
MESH = {
  'mesh_data': 2,
  'mesh_fsdp': 2,
  'train_microbatch_rows': 4,
  'train_minibatch_rows': 4,
  'hosts_heartbeat_seconds': 10,
  'hosts_watchdog_seconds': 120,
}


@contextlib.contextmanager
def running(model, workdir, harm='', count=2, devices=2, **changes):
  """The processes of a run, killed at the end of the block."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  environment = {
    **os.environ,
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
  }
  started = []
  try:
    for index in range(count):
      hosts = f'127.0.0.1:{port},{count},{index}' if count > 1 else 'none'
      words = [hosts, str(workdir), str(model), json.dumps(MESH | changes)]
      with open(f'{workdir}.{index}.log', 'w') as log:
        command = [sys.executable, str(HERE / 'worker.py'), *words, *harm.split()]
        started.append(
          subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        )
    yield started
  finally:
    for process in started:
      process.kill()
      process.wait()


def run(model, workdir, harm='', expect=0, **changes):
  """Runs to the end; returns what each process wrote to its terminal."""
  with running(model, workdir, harm, **changes) as started:
    codes = [process.wait(timeout=600) for process in started]
  said = [pathlib.Path(f'{workdir}.{i}.log').read_text() for i in range(len(codes))]
  assert codes == [expect] * len(codes), (codes, [text[-2000:] for text in said])
  return said


def metrics(workdir, index=0):
  """Metrics of each step, as a process computed them."""
  path = pathlib.Path(f'{workdir}.{index}.jsonl')
  return [json.loads(line) for line in path.read_text().splitlines()]


def state(workdir, index=0):
  """Digests of the last state, as a process saw it."""
  return json.loads(pathlib.Path(f'{workdir}.{index}.json').read_text())


def lines(path):
  """Reads a file of JSON lines."""
  return [json.loads(line) for line in path.read_text().splitlines()]


def close(ours, theirs):
  """Compares metric lines: equal up to the order of sums in float32."""
  assert [line.keys() for line in ours] == [line.keys() for line in theirs]
  for a, b in zip(ours, theirs, strict=True):
    for name in a:
      if a[name] is not None or b[name] is not None:
        values = [np.asarray(value, float) for value in (a[name], b[name])]
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6, err_msg=name)


def same_files(one, other):
  """Compares what the seed decides, byte for byte."""
  for name in ('metrics.jsonl', 'teacher.jsonl', 'eval', 'trajectories'):
    paths = sorted(p for p in (one / name, *(one / name).rglob('*')) if p.is_file())
    assert paths
    for path in paths:
      assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path
