"""The cost model against what XLA counts in compiled programs, and published times."""

import dataclasses

import jax
import micro
import pytest
import quick

from benchmarks import cost, programs
from sdar_jax import config as config_lib
from sdar_jax.models import presets, sharding

ROWS, LENGTH = 4, 128


@pytest.mark.parametrize(('kind', 'name'), [('score', 'old'), ('gradient', 'update')])
def test_flops_are_those_of_compiled_programs(kind, name):
  model = dataclasses.replace(
    micro.MODEL,
    hidden_size=256,
    intermediate_size=1024,
    head_dim=64,
    vocab_size=1024,
    attention='dense',
  )
  config = config_lib.default()
  config.algorithm.update({'name': 'grpo', 'kl_coef': 0.0})
  config.train.update({'microbatch_rows': ROWS, 'length_buckets': (LENGTH,)})
  config.rollout.max_response_tokens = LENGTH // 4
  one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  call = programs.of_learner(programs.make(config, model, one))[kind]
  counted = quick.lowered(call.lower()).compile().cost_analysis()['flops']
  played = cost.Episodes(ROWS, 3 * LENGTH / 4, LENGTH / 4, 0.0, 0.0)
  found = cost.passes(
    cost.weights_of(model), played, reference=False, teacher=False, remat=False
  )
  tokens, flops = found[name]
  assert tokens == ROWS * LENGTH
  # Dense attention computes the upper triangle, too; norms and softmax are the rest.
  assert 0.8 < flops / counted < 1.05


def test_shares_of_a_published_step_are_predicted():
  """SDAR issue 51: one step of 3B on four A100, 3.83 million tokens, in seconds."""
  published = {'old': 179, 'reference': 175, 'teacher': 260, 'update': 774}
  weights = cost.weights_of(presets.PRESETS['qwen2.5-3b'])
  played = cost.Episodes(2304, 1500, 110, 730, 0.0)
  found = cost.passes(weights, played, reference=True, teacher=True, remat=True)
  assert found['old'][0] == pytest.approx(3.83e6, rel=0.05)
  predicted = cost.seconds(found, 0.0, cost.CHIPS['a100'], 4)
  shares = [predicted[name] / taken for name, taken in published.items()]
  assert 0.08 < min(shares) and max(shares) < 0.11  # Of the chips' peak.


def test_decoding_reads_weights_once_for_each_token_of_a_slot():
  weights = cost.Weights(layers=900, head=100, attended=0, cached=10)
  played = cost.Episodes(rows=8, prompt=20, response=4, skills=0, cached=0.5)
  # 8 * 4 tokens in 4 slots are 8 steps; 2 slots a device hold 22 tokens each.
  assert cost.decode_bytes(weights, played, 4, 2) == 2 * 8 * (1000 + 2 * 22 * 10)
  found = cost.passes(weights, played, reference=False, teacher=True, remat=False)
  assert list(found) == ['prefill', 'decode', 'old', 'teacher', 'update']
  assert found['prefill'] == (80, 80 * 2 * 900)
  assert found['update'][1] == 3 * found['old'][1]
