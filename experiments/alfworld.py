"""ALFWorld: the paper's experiment, and the same on generated games.

  python -m sdar_jax.main --config=experiments/alfworld.py:model=tiny \
    --workdir=runs/tiny
  python -m sdar_jax.main --workdir=runs/paper \
    --config=experiments/alfworld.py:model=qwen2.5-3b,world=official \
    --config.model.path=Qwen/Qwen2.5-3B-Instruct

Arguments (comma-separated): model=tiny|qwen2.5-0.5b|...|qwen3-8b, algo=sdar|grpo,
world=generated|official, seed=N. `tiny` is the small model in experiments/tiny: it runs
on two CPU cores; its expected result is in README.md. The real models take the
hyperparameters of the paper's released ALFWorld scripts (arXiv 2605.15155, appendix C;
ZJU-REAL/SDAR at 8b85c23, examples/sdar_trainer), which ran on 8 H800; the published
results stand in README.md beside what others measured.
"""

import ml_collections

from sdar_jax import algorithms
from sdar_jax import config as config_lib
from sdar_jax.models.presets import PRESETS

_HUB = {
  'qwen2.5-0.5b': 'Qwen/Qwen2.5-0.5B-Instruct',
  'qwen2.5-1.5b': 'Qwen/Qwen2.5-1.5B-Instruct',
  'qwen2.5-3b': 'Qwen/Qwen2.5-3B-Instruct',
  'qwen2.5-7b': 'Qwen/Qwen2.5-7B-Instruct',
  'qwen3-0.6b': 'Qwen/Qwen3-0.6B',
  'qwen3-1.7b': 'Qwen/Qwen3-1.7B',
  'qwen3-4b': 'Qwen/Qwen3-4B',
  'qwen3-8b': 'Qwen/Qwen3-8B',
}
assert set(_HUB) == set(PRESETS)
_CHOICES = {
  'model': ('tiny', *_HUB),
  'algo': tuple(algorithms.ALGORITHMS),
  'world': ('generated', 'official'),
}


def _arguments(text: str) -> dict[str, str]:
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


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """The configuration; `argument` is what follows the colon of --config."""
  choice = _arguments(argument)
  c = config_lib.default()
  c.seed = int(choice['seed'])
  c.algorithm.name = choice['algo']
  c.world.source = choice['world']
  if choice['model'] == 'tiny':
    _tiny(c)
  else:
    _real(c, choice['model'])
  return c


def _real(c: ml_collections.ConfigDict, model: str) -> None:
  """The paper's values are the defaults; what depends on the model is here."""
  c.model.path = _HUB[model]
  c.model.dtype = 'bfloat16'
  c.model.remat = True


def _tiny(c: ml_collections.ConfigDict) -> None:
  """The small model on two CPU cores: about five minutes.

  Its coefficients are its own: the paper's distill_coef of 0.01 and learning rate of
  1e-6 are for models a thousand times its size.
  """
  c.model.path = 'experiments/tiny'
  c.steps = 20
  c.model.enable_thinking = True
  c.world.size = 'small'
  c.world.max_turns = 12
  c.world.prompt_style = 'compact'
  c.world.parser = 'strict'
  c.skills.path = 'experiments/tiny/skills.json'
  c.skills.token_budget = 64
  c.rollout.tasks_per_step = 16
  c.rollout.slots = 64
  c.rollout.decode_chunk = 8
  c.rollout.max_prompt_tokens = 160
  c.rollout.max_response_tokens = 24
  c.rollout.prefill_tokens = 2048
  c.rollout.prefill_buckets = (64, 96, 160)
  c.train.minibatch_rows = 256
  c.train.microbatch_rows = 64
  c.train.length_buckets = (56, 64, 80, 96, 128, 184)
  c.train.teacher_buckets = (64, 80, 96, 128, 248)
  c.train.shuffle_rows = True
  c.optimizer.learning_rate = 3e-4
  c.algorithm.distill_coef = 0.5
  c.algorithm.entropy_coef = 0.005
  c.eval.split = 'valid_unseen'
  c.eval.tasks = 500
  c.eval.every = 10
  c.eval.temperature = 1.0
  c.checkpoint.every = 5
