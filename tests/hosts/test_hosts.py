"""Two processes of two devices each train as one process does."""

import json

import jax
import micro_run
import processes
import pytest
from processes import close, lines

from sdar_jax.learner import checkpoint

pytestmark = pytest.mark.long
STEPS = 2


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')


@pytest.fixture(scope='module')
def two(model, tmp_path_factory):
  """A run of two processes that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  processes.run(model, workdir, steps=STEPS)
  return workdir


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


def test_a_checkpoint_of_two_processes_restores_on_one_device(two):
  saved = processes.state(two)
  assert saved == processes.state(two, 1)
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  record = micro_run.record(two, STEPS)['leaves']
  like = {}
  for name, leaf in record.items():
    dtype, _, shape = leaf.rstrip(']').partition('[')
    sizes = [int(size) for size in shape.split(',') if size]
    like[name] = jax.ShapeDtypeStruct(sizes, dtype, sharding=place)
  restored = checkpoint.load(two / 'checkpoints', like).state
  found = sorted(micro_run.digest(leaf) for leaf in restored.values())
  assert found == sorted(saved.values())
