"""Two processes of two devices each train as one process does.

`pytest -m slow tests/hosts` runs the long ones: about fifteen CPU minutes.
"""

import json

import micro_run
import numpy as np
import processes
import pytest

STEPS = 2
EXACT = ('metrics.jsonl', 'teacher.jsonl', 'eval', 'trajectories')


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')


@pytest.fixture(scope='module')
def two(model, tmp_path_factory):
  """A run of two processes that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  processes.run(model, workdir, steps=STEPS)
  return workdir


def close(ours, theirs):
  """Compares metric lines: equal up to the order of sums in float32."""
  assert [line.keys() for line in ours] == [line.keys() for line in theirs]
  for a, b in zip(ours, theirs, strict=True):
    for name in a:
      if name != 'calls' and a[name] is not None:
        values = [np.asarray(v, float) for v in (a[name], b[name])]
        np.testing.assert_allclose(*values, rtol=1e-6, atol=1e-6, err_msg=name)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def same_files(one, other):
  """Compares what the seed decides, byte for byte."""
  for name in EXACT:
    paths = sorted(p for p in (one / name, *(one / name).rglob('*')) if p.is_file())
    assert paths
    for path in paths:
      assert path.read_bytes() == (other / path.relative_to(one)).read_bytes(), path


def test_two_processes_compute_the_same_as_one(model, two, tmp_path):
  ours = processes.metrics(two)
  assert [line['step'] for line in ours] == [1, 2]
  assert ours == processes.metrics(two, 1)
  written = lines(two / 'metrics.jsonl')
  assert written == [{k: v for k, v in x.items() if k != 'calls'} for x in ours]
  alone = {'train_microbatch_rows': 4, 'train_minibatch_rows': 4}
  config = micro_run.config(model, 'sdar', STEPS, **alone)
  with micro_run.compiling():
    assert not micro_run.start(config, tmp_path / 'one').error
  close(written, lines(tmp_path / 'one' / 'metrics.jsonl'))
  # Evaluations and what was played: the same episodes, token for token.
  one = tmp_path / 'one'
  for name in ('000000', '000001', '000002'):
    reports = [json.loads((d / f'eval/{name}.json').read_text()) for d in (two, one)]
    assert reports[0]['tasks'] == reports[1]['tasks']
  for step in ('000001', '000002'):
    played = [lines(d / f'trajectories/{step}.jsonl') for d in (two, one)]
    ids = [[t['response_ids'] for e in run for t in e['turns']] for run in played]
    assert ids[0] == ids[1]
