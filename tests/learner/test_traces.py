"""The tables of a trace: phases, and operations without those inside them."""

import gzip
import json

import pytest

from benchmarks import traces


def _event(name, start, duration, *, tid=1, module=None):
  args = {} if module is None else {'hlo_module': module, 'hlo_op': name}
  return {
    'ph': 'X',
    'pid': 7,
    'tid': tid,
    'name': name,
    'ts': start,
    'dur': duration,
    'args': args,
  }


EVENTS = [
  _event('score', 0, 4e6),
  _event('update', 4e6, 8e6),
  _event('score', 12e6, 1e6),
  # A loop of 3 s with a product of 1 s and one of 0.5 s inside it, then a sum.
  _event('while.1', 0, 3e6, module='jit_decode'),
  _event('dot.3', 0, 1e6, module='jit_decode'),
  _event('dot.4', 2e6, 5e5, module='jit_decode'),
  _event('add.9', 3e6, 2e6, module='jit_decode'),
  # At the same time on another thread: nobody's inside.
  _event('dot.3', 1e6, 1e6, tid=2, module='jit__loss'),
  {'ph': 'M', 'pid': 7, 'name': 'process_name', 'args': {'name': 'host'}},
]


def _write(run, raw):
  path = run / 'profile/plugins/profile/2026_01_01'
  path.mkdir(parents=True)
  (path / 'vm.trace.json.gz').write_bytes(raw)
  return path / 'vm.trace.json.gz'


def test_operations_are_counted_without_what_they_contain(tmp_path):
  _write(tmp_path, gzip.compress(json.dumps({'traceEvents': EVENTS}).encode()))
  events = traces.read(traces.find(tmp_path))
  assert traces.operations(events) == pytest.approx(
    {
      ('decode', 'while'): 1.5,
      ('decode', 'dot'): 1.5,
      ('decode', 'add'): 2.0,
      ('_loss', 'dot'): 1.0,
    }
  )
  assert traces.phases(events) == {
    'rollout': 0,
    'batch': 0,
    'score': 5,
    'update': 8,
    'eval': 0,
  }


def test_the_tables_have_shares(tmp_path, capsys):
  _write(tmp_path, gzip.compress(json.dumps({'traceEvents': EVENTS}).encode()))
  assert traces.main([str(tmp_path), '--top=2']) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'phases: 13.00 s'
  assert lines[1].split() == ['8.00', 's', '61.5%', 'update']
  assert lines[3] == 'programs, busy: 6.00 s'
  assert lines[4].split() == ['5.00', 's', '83.3%', 'decode']


@pytest.mark.parametrize(
  'raw',
  [b'', b'no gzip', gzip.compress(b'{'), gzip.compress(b'[]')],
  ids=['nothing', 'no gzip', 'no JSON', 'no object'],
)
def test_what_is_no_trace_is_named(tmp_path, raw):
  path = _write(tmp_path, raw)
  with pytest.raises(ValueError, match=f'{path}: no trace: ') as caught:
    traces.read(traces.find(tmp_path))
  assert '\n' not in str(caught.value)


def test_a_run_without_trace_says_which_key_makes_one(tmp_path):
  with pytest.raises(ValueError, match=r'log\.profile_steps'):
    traces.find(tmp_path)
