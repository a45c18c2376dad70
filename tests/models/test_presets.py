"""Parameter counts against those published with each model."""

import math

import jax
import pytest

from experiments import arguments
from sdar_jax.models import presets

# Total parameters, tied embeddings counted once: the model cards give 0.49B, 1.54B,
# 3.09B, 7.61B, 0.6B, 1.7B, 4.0B, 8.2B, and 1.23B, 3.21B, 135M.
PUBLISHED = {
  'qwen2.5-0.5b': 494_032_768,
  'qwen2.5-1.5b': 1_543_714_304,
  'qwen2.5-3b': 3_085_938_688,
  'qwen2.5-7b': 7_615_616_512,
  'qwen3-0.6b': 596_049_920,
  'qwen3-1.7b': 1_720_574_976,
  'qwen3-4b': 4_022_468_096,
  'qwen3-8b': 8_190_735_360,
  'llama-3.2-1b': 1_235_814_400,
  'llama-3.2-3b': 3_212_749_824,
  'smollm2-135m': 134_515_008,
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
  specs = jax.tree.leaves(presets.PRESETS[name].param_specs())
  assert sum(math.prod(spec.shape) for spec in specs) == PUBLISHED[name]


def test_every_preset_is_checked():
  assert set(presets.PRESETS) == set(PUBLISHED)


def test_every_preset_can_be_asked_for():
  assert set(presets.PRESETS) == set(arguments.MODELS)
