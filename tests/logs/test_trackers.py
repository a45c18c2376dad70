"""Trackers: called as they document, offline, and never the end of a run."""

import json
import os
import re
import sqlite3
import struct
import subprocess
import sys
import types

import pytest

from sdar_jax import main as main_lib
from sdar_jax import relations
from sdar_jax.logs import sinks


def _log(names, project='p', online=False):
  return types.SimpleNamespace(trackers=names, project=project, online=online)


class _FakeWandb:
  """Runs by id, as the service keeps them."""

  def __init__(self):
    self.runs, self.fault = {}, None

  def init(self, *, project, dir, config, id, name, resume, mode):
    assert resume == 'allow' and os.path.isabs(dir)
    self.mode = mode
    if self.fault:
      raise self.fault
    lines = self.runs.setdefault(id, [])
    log = lambda values, step: lines.append((name, step, values))
    return types.SimpleNamespace(log=log, finish=lambda: None)


def test_two_runs_never_share_a_tracker_and_a_resumed_one_keeps_its_own(
  tmp_path, monkeypatch
):
  fake = _FakeWandb()
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  monkeypatch.chdir(tmp_path)

  def write(directory, step, resume_step):
    sink = sinks.WandbSink(_log('wandb'), directory, {'seed': 0}, resume_step)
    sink.write(step, {'train/loss': 1.0})
    sink.close()

  for method in ('grpo', 'sdar'):
    os.makedirs(f'{method}/seed0')
    write(f'{method}/seed0', 1, None)
  write(tmp_path / 'sdar' / 'seed0', 2, 1)  # The same directory, named otherwise.
  steps = lambda: [[(name, step) for name, step, _ in r] for r in fake.runs.values()]
  sdar = [('sdar/seed0', 1), ('sdar/seed0', 2)]
  assert steps() == [[('grpo/seed0', 1)], sdar]
  write('sdar/seed0', 1, None)  # From the beginning: steps would not rise.
  assert steps() == [[('grpo/seed0', 1)], sdar, sdar[:1]]
  os.remove('sdar/seed0/wandb.json')  # As of a run that began without a tracker.
  write('sdar/seed0', 2, 1)
  assert len(fake.runs) == 4
  for text in ('{', '[]', '{"id": 3}', '{"id": ""}', '{}'):
    with open('grpo/seed0/wandb.json', 'w') as file:
      file.write(text)
    with pytest.raises(ValueError, match=r'wandb\.json') as caught:
      write('grpo/seed0', 2, 1)
    assert '\n' not in str(caught.value)
  assert fake.mode == 'offline'
  sinks.WandbSink(_log('wandb', online=True), 'sdar/seed0', {}, None)
  assert fake.mode == 'online'


def test_a_tracker_that_cannot_start_is_left_out_and_said(
  tmp_path, monkeypatch, caplog
):
  fake = _FakeWandb()
  fake.fault = RuntimeError('api_key not configured\n(no-tty)')
  tensorboard = types.SimpleNamespace(SummaryWriter=lambda *args, **more: None)
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  monkeypatch.setitem(sys.modules, 'tensorboardX', tensorboard)
  made = sinks.make(tmp_path, None, _log('wandb,tensorboard'), {})
  assert [type(sink).__name__ for sink in made] == ['TensorBoardSink']
  assert 'wandb is left out: api_key not configured (no-tty)' in caplog.text
  assert os.listdir(tmp_path) == []


def test_trackers_are_named_with_commas():
  read = relations.trackers
  assert read('') == () and read('wandb, tensorboard,wandb') == ('wandb', 'tensorboard')
  with pytest.raises(ValueError, match=r"config\.log\.trackers='mlflow': must be of"):
    read('mlflow')


_OFFLINE = """
import math, os, pathlib, socket, sys, types
directory, names, local = sys.argv[1:]
asked, plain = [], socket.socket.connect
def refuse(self, address):
  here = str(address).startswith('/') or address[0] in ('127.0.0.1', 'localhost')
  if local and here:
    return plain(self, address)
  asked.append(address)
  raise OSError('no network')
socket.socket.connect = refuse
from sdar_jax.logs import sinks, writers
log = types.SimpleNamespace(trackers=names, project='p', online=False)
for resume, steps in ((None, (1, 2)), (2, (3,))):
  made = sinks.make(pathlib.Path(directory), resume, log, {'seed': 3})
  assert len(made) == len(names.split(',')), made
  writer = writers.MetricsWriter(directory, resume, made)
  for step in steps:
    values = {'train/loss': step / 2, 'train/gap': math.nan, 'train/kl': math.inf}
    writer.write(step, {**values, 'train/gap_by_turn': [0.5, math.nan]}, {})
  writer.close()
assert os.environ['TRACKIO_SPACE_ID'] == 'somebody/space'
print('asked:', *[a for a in asked if not str(a).startswith('/')])
"""
FINITE = {s: {'train/loss': s / 2, 'train/gap_by_turn/0': 0.5} for s in (1, 2, 3)}


def _write_offline(run, names, *, local='', **more):
  """Three steps, two starts, no network; `local` leaves this machine's own."""
  run.mkdir()
  # What would send it elsewhere is not heeded: config.log.online is off.
  done = subprocess.run(
    [sys.executable, '-c', _OFFLINE, str(run), names, local],
    env={**os.environ, 'TRACKIO_SPACE_ID': 'somebody/space', **more},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  assert done.stdout == 'asked:\n'  # Nobody was, and nothing else is said.


def test_trackio_and_tensorboard_keep_finite_numbers_on_this_machine(tmp_path):
  pytest.importorskip('trackio')
  pytest.importorskip('tensorboardX')
  run, kept = tmp_path / 'run', tmp_path / 'kept'
  _write_offline(run, 'trackio,tensorboard', TRACKIO_DIR=str(kept))
  (path,) = [p for p in kept.rglob('*.db') if p.stem == 'p']
  with sqlite3.connect(path) as base:
    rows = base.execute('select run_name, step, metrics from metrics').fetchall()
  assert len({name for name, *_ in rows}) == 1  # It goes on where it was.
  found = {step: json.loads(text) for _, step, text in rows}
  assert found == FINITE
  assert list((run / 'tensorboard').glob('events*'))


def _wandb_records(path):
  """Reads a file of wandb's: LevelDB's log of protobufs behind seven bytes."""
  record_pb = pytest.importorskip('wandb.proto.wandb_internal_pb2')
  raw, position, parts = path.read_bytes(), 7, b''
  while position + 7 <= len(raw):
    _, size, kind = struct.unpack('<IHB', raw[position : position + 7])
    left = 32768 - position % 32768
    if left < 7 or not (size or kind):
      position += left
      continue
    parts += raw[position + 7 : position + 7 + size]
    position += 7 + size
    if kind in (1, 4):  # Whole, or its last part.
      record = record_pb.Record()
      record.ParseFromString(parts)
      yield record
      parts = b''


def test_wandb_keeps_finite_numbers_on_this_machine(tmp_path):
  pytest.importorskip('wandb')
  run = tmp_path / 'run'
  _write_offline(run, 'wandb', local='yes', HOME=str(tmp_path))
  ids, found = set(), {}
  for path in run.glob('wandb/offline-run-*/*.wandb'):
    for record in _wandb_records(path):
      if record.WhichOneof('record_type') == 'run':
        ids.add(record.run.run_id)
      elif record.WhichOneof('record_type') == 'history':
        items = {'/'.join(i.nested_key) or i.key: i for i in record.history.item}
        values = {name: json.loads(i.value_json) for name, i in items.items()}
        found[values['_step']] = {k: v for k, v in values.items() if k[0] != '_'}
  assert ids == {json.loads((run / 'wandb.json').read_text())['id']}
  assert found == FINITE


def test_tensorboard_is_called_as_it_documents(tmp_path, monkeypatch):
  calls = []
  record = lambda name: lambda *args: calls.append((name, *args))

  class SummaryWriter:
    def __init__(self, directory, purge_step):
      calls.append((directory, purge_step))

    add_scalar = staticmethod(record('add_scalar'))
    close = staticmethod(record('close'))

  fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
  monkeypatch.setitem(sys.modules, 'tensorboardX', fake)
  for resume_step in (4, None):
    sink = sinks.TensorBoardSink(tmp_path, resume_step)
  sink.write(1, {'train/loss': 1.0})
  sink.close()
  assert calls == [
    (str(tmp_path), 5),
    (str(tmp_path), 1),
    ('add_scalar', 'train/loss', 1.0, 1),
    ('close',),
  ]


@pytest.mark.parametrize('name', ['tensorboardX', 'wandb', 'trackio'])
@pytest.mark.parametrize('found', [None, types.ModuleType('a directory')])
def test_a_sink_that_is_not_installed_is_one_line_and_leaves_nothing(
  tmp_path, monkeypatch, capsys, name, found
):
  monkeypatch.setitem(sys.modules, name, found)  # Importing None is an ImportError.
  key = 'log.trackers=' + name.removesuffix('X').lower()
  code = main_lib.main(
    [
      '--config=experiments/alfworld.py:model=tiny',
      f'--config.{key}',
      f'--workdir={tmp_path / "run"}',
    ]
  )
  said = capsys.readouterr().err
  assert code == 2 and said.count('\n') == 1
  assert re.search(
    rf"config.log.trackers='.* {name}: pip install 'sdar-jax\[track\]'", said
  )
  assert os.listdir(tmp_path) == []
