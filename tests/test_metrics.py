import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from sdar_jax import algorithms, metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_table_is_complete_and_tidy():
  for name, (unit, description) in metrics.METRICS.items():
    assert re.fullmatch(r'(rollout|train)/[a-z_]+', name)
    assert unit and description and not description.endswith('.')
  for name in metrics.TIMINGS:
    assert re.fullmatch(r'perf/[a-z_]+', name)
  # What the project promises to log at every step.
  for name in (
    'train/gate',
    'train/gate_histogram',
    'train/gap_positive',
    'train/gap_by_turn',
    'train/distill_abs',
    'train/advantage_abs',
    'train/entropy',
    'train/kl',
    'train/clip_low',
    'train/clip_high',
    'train/clip_dual',
    'rollout/zero_variance_groups',
    'train/sampler_mismatch_mean',
    'rollout/truncated_rate',
    'rollout/valid_action_rate',
  ):
    metrics.find(name)


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


def test_readme_shows_the_table():
  readme = ROOT / 'README.md'
  if not readme.exists():
    pytest.skip('README.md is not there yet')
  assert metrics.markdown() in readme.read_text(encoding='utf-8')


def test_readme_shows_the_methods():
  readme = (ROOT / 'README.md').read_text(encoding='utf-8')
  assert algorithms.markdown() in readme
