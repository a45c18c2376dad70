import contextlib
import functools
import re
from unittest import mock

import drawn
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

from sdar_jax import numerics
from sdar_jax.batching import rows as rows_lib
from sdar_jax.logs import metrics
from sdar_jax.logs import step as step_lib
from sdar_jax.losses.objective import LossInputs, policy_objective
from sdar_jax.methods import interface, table
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.models import sharding
from sdar_jax.prompts import skills
from sdar_jax.rollout.request import SamplerCounts
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn


def test_the_table_is_complete_and_tidy():
  for name, (unit, description) in metrics.METRICS.items():
    assert re.fullmatch(r'(rollout|train)/[a-z_]+', name)
    assert unit and description and not description.endswith('.')
  for name in metrics.TIMINGS:
    assert re.fullmatch(r'perf/[a-z_]+', name)


def _learned(name):
  """Names of what an update of a row logs; traced, not run."""
  # Options of XLA are for programs that are run, and not inside of a trace.
  with mock.patch.object(numerics, 'fast_products', lambda platform: None):
    learner = micro.learner.__wrapped__(algorithm=name, optimized=True)

  def update():
    params = drawn.weights(micro.MODEL)
    state = type(learner).init_state(learner, params)  # Not the fast one of tests.
    sheets = micro.split(micro.minibatch())
    scores = dict.fromkeys(interface.SCORES, np.zeros((14, micro.RESPONSE), np.float32))
    batch = micro.credited(learner, sheets, scores)
    return learner.train_step(state, batch)[1]

  # No mesh can be set inside of a trace; one device needs none.
  with mock.patch.object(
    sharding.Program, '_on_mesh', lambda self: contextlib.nullcontext()
  ):
    return jax.eval_shape(update).keys()


def _objective(name, **changes):
  """Names of what the objective of a row logs."""
  row = table.find(name)
  own = {
    k.partition('.')[2]: v for k, v in row.all_settings.items() if 'algorithm' in k
  }
  tokens, rows = np.zeros((2, 3), np.float32), np.ones(2, np.int32)
  inputs = dict.fromkeys(LossInputs._fields, tokens)
  inputs |= dict.fromkeys(('gate_mean', 'distill_scale', 'normaliser'), np.float32(1))
  inputs |= {'response_mask': tokens == 0, 'action_mask': tokens == 0}
  inputs |= {'teaching': rows, 'turn_ids': rows, **changes}
  objective = functools.partial(policy_objective, row, Hyperparameters(**own))
  return jax.eval_shape(objective, LossInputs(**inputs))[1].keys()


def test_what_is_logged_is_the_table_and_all_of_it():
  sums = {*_learned('grpo')}.union(*map(_objective, table.ALGORITHMS))
  turn = Turn('', *[np.ones(1)] * 3, '', '', '', True, True, 0.0, '')
  episode = Trajectory('t', 'kind', 0, 0, [turn], Outcome.FAILURE)
  played = [Group(0, None, [episode])]
  rows, token = rows_lib.rows(played, invalid_penalty=0.0), np.ones((1, 1))
  scores = {'sampler_logprobs': token, 'old_logprobs': token.copy()}
  values = step_lib.step_metrics(
    played,
    rows,
    [skills.NOTHING],
    scores | {'response_mask': token == 1},
    [{name: ([1.0], 1.0) for name in sums}],
    invalid_penalty=0.0,
    max_turns=1,
  )
  assert values.keys() == metrics.METRICS.keys()
  timer = step_lib.Clock()
  for phase in ('rollout', 'batch', 'score', 'update', 'eval'):
    with timer(phase):
      pass
  timings = timer.timings(played, rows, env_faults=0, failed_saves=0)
  timings |= step_lib.sampler_shares(SamplerCounts())
  assert timings.keys() == metrics.TIMINGS.keys()


def test_only_methods_with_a_gate_have_numbers_of_one():
  for name in ('grpo', 'ppo', 'skill-grpo', 'opsd', 'sdpg', 'rlsd', 'skill-sd'):
    assert not {'gate', 'gate_open', 'gate_shut'} & _objective(name, gate=None)
  for name in ('sdar', 'sdar-centred', 'grpo+opsd-released'):
    assert {'gate', 'gate_open', 'gate_shut'} <= _objective(name, gate=None)


def test_find():
  assert metrics.find('train/entropy').unit == 'nats'
  assert metrics.find('perf/rollout_seconds', metrics.TIMINGS).unit == 's'


@pytest.mark.parametrize(
  'name',
  [
    'train/entropie',
    'entropy',
    'train/entropy/more',
    'perf/step_seconds',  # Not among the deterministic ones.
    'train.entropy',
  ],
)
def test_a_name_that_is_not_in_the_table_is_an_error(name):
  with pytest.raises(ValueError, match=f"metric '{name}' is not in the tables"):
    metrics.find(name)


def test_means_weigh_parts_by_their_counts():
  parts = [
    {'a': (jnp.float32(3), jnp.float32(2)), 'b': (np.float32(1), np.float32(1))},
    {'a': (9.0, 1.0)},
  ]
  assert metrics.means(parts) == {'a': 4.0, 'b': 1.0}
  assert metrics.means([]) == {}


def test_means_of_arrays():
  parts = [
    {'turn': (np.array([2.0, 0.0, 5.0]), np.array([1, 0, 2])), 'bins': ([4, 0], 8)},
    {'turn': (np.array([4.0, 0.0, 1.0]), np.array([2, 0, 0])), 'bins': ([0, 4], 8)},
  ]
  result = metrics.means(parts)
  assert result['bins'] == [0.25, 0.25]
  assert result['turn'][0] == 2.0 and result['turn'][2] == 3.0
  assert np.isnan(result['turn'][1])  # No such turn: no mean, and not 0.


def test_means_add_in_float64():
  # In float32 the second part would vanish.
  parts = [{'a': (np.float32(2**25), np.float32(1))}, {'a': (np.float32(1), 0)}]
  assert metrics.means(parts)['a'] == 2**25 + 1


def test_markdown_has_a_row_for_every_metric():
  lines = metrics.markdown().splitlines()
  assert len(lines) == 2 + len(metrics.METRICS) + len(metrics.TIMINGS)
  for line in lines:
    assert len(re.findall(r'(?<!\\)\|', line)) == 4
  assert '| `train/entropy` | nats | entropy of the policy |' in lines
