"""The configs of SmolLM2 and the adapter that its runs begin with."""

import pathlib

import pytest
from safetensors import safe_open

from sdar_jax.cli import config_file
from sdar_jax.models import adapter_files, hf_tensors, presets

CONFIG = 'experiments/smollm2/alfworld.py'


@pytest.mark.parametrize('argument', ['', ':algo=grpo,seed=1', ':sft'])
def test_its_configs_are_valid(argument):
  c = config_file.read(CONFIG + argument)
  assert c.model.path.endswith('SmolLM2-135M-Instruct.Q4_1.gguf')
  imitates = argument == ':sft'
  assert bool(c.sft.rows) == imitates == (not c.model.adapter) == c.export.adapter
  if argument == ':algo=grpo,seed=1':
    assert (c.algorithm.name, c.seed) == ('grpo', 1)


def test_its_adapter_is_one_of_the_model():
  """Every matrix of every layer, at the rank of the config, and nothing else."""
  c = config_file.read(CONFIG)
  folder = pathlib.Path(c.model.adapter)
  with safe_open(folder / adapter_files.WEIGHTS, 'numpy') as file:
    stored = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
  tensors = hf_tensors.stored_tensors(presets.PRESETS['smollm2-135m'])
  kernels = [t for t in tensors if t.name.endswith('_proj.weight')]
  assert len(stored) == 2 * len(kernels) == 2 * 7 * 30
  for kernel in kernels:
    outputs, inputs = kernel.shape
    name = f'base_model.model.{kernel.name.removesuffix(".weight")}'
    assert stored[f'{name}.lora_A.weight'] == (c.model.lora_rank, inputs)
    assert stored[f'{name}.lora_B.weight'] == (outputs, c.model.lora_rank)
  assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
