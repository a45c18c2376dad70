"""What follows the colon of --config, and the models that it may name."""

import ml_collections

from sdar_jax import algorithms
from sdar_jax.models.presets import PRESETS

HUB = {
  'qwen2.5-0.5b': 'Qwen/Qwen2.5-0.5B-Instruct',
  'qwen2.5-1.5b': 'Qwen/Qwen2.5-1.5B-Instruct',
  'qwen2.5-3b': 'Qwen/Qwen2.5-3B-Instruct',
  'qwen2.5-7b': 'Qwen/Qwen2.5-7B-Instruct',
  'qwen3-0.6b': 'Qwen/Qwen3-0.6B',
  'qwen3-1.7b': 'Qwen/Qwen3-1.7B',
  'qwen3-4b': 'Qwen/Qwen3-4B',
  'qwen3-8b': 'Qwen/Qwen3-8B',
}
assert set(HUB) == set(PRESETS)
_CHOICES = {
  'model': ('tiny', *HUB),
  'algo': tuple(algorithms.ALGORITHMS),
  'world': ('generated', 'official'),
}


def parse(text: str) -> dict[str, str]:
  """{'model': ..., 'algo': ..., 'world': ..., 'seed': ...} from 'model=tiny,seed=1'.

  Raises:
    ValueError: one line naming the argument and what it may be.
  """
  out = {'model': 'tiny', 'algo': 'sdar', 'world': 'generated', 'seed': '0'}
  for item in filter(None, text.split(',')):
    key, _, value = item.partition('=')
    if key not in out:
      raise ValueError(f'argument {key!r}: must be one of {tuple(out)}')
    if key in _CHOICES and value not in _CHOICES[key]:
      raise ValueError(f'{key}={value!r}: must be one of {_CHOICES[key]}')
    out[key] = value
  if not out['seed'].isdecimal():
    raise ValueError(f'seed={out["seed"]!r}: must be a whole number')
  return out


def apply(c: ml_collections.ConfigDict, choice: dict[str, str]) -> None:
  """Sets what every experiment's arguments mean; `tiny` is the experiment's own."""
  c.seed = int(choice['seed'])
  c.algorithm.name = choice['algo']
  c.world.source = choice['world']
  if choice['model'] != 'tiny':
    c.model.path = HUB[choice['model']]
    c.model.dtype = 'bfloat16'
    c.model.remat = True
