"""SmolLM2-135M on generated ALFWorld, sized for one GPU: a warm start, then RL.

  python -m sdar_jax.main --config=experiments/smollm2/alfworld.py:algo=sdar \\
    --workdir=runs/smollm2
  python -m sdar_jax.main --mode=sft --config=experiments/smollm2/alfworld.py:sft \\
    --output=runs/smollm2-adapter

Arguments: algo=METHOD, seed=N; or `sft` alone, the imitation that made the adapter
which runs begin with (adapters/alfworld). A GPU or TPU with 16 GB; a step took seven
seconds on an H200. On two CPU cores it would take an hour: experiments/alfworld.py:
model=smollm2-135m is for those. docs/results.md says what came out.
"""

import ml_collections

from experiments import alfworld


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """The configuration; `argument` is what follows the colon of --config."""
  imitates = argument == 'sft'
  words = ['model=smollm2-135m', '' if imitates else argument]
  c = alfworld.get_config(','.join(filter(None, words)))
  c.steps = 20
  c.world.size = 'small'
  c.world.parser = 'strict'
  c.model.dtype = 'bfloat16'
  c.model.remat = 'none'
  c.model.logit_positions = 2**15
  c.model.lora_rank = 8
  c.skills.token_budget = 64
  c.rollout.tasks_per_step = 16
  c.rollout.group_size = 8
  c.rollout.slots = 128
  c.rollout.decode_chunk = 32
  c.rollout.max_prompt_tokens = 192
  c.rollout.max_response_tokens = 48
  c.rollout.prefill_tokens = 8192
  c.rollout.prefill_chunk = 64
  c.train.minibatch_rows = 256
  c.train.microbatch_rows = 128
  c.train.length_buckets = (240,)
  c.train.teacher_buckets = (304,)
  c.train.shuffle_rows = True
  c.optimizer.learning_rate = 3e-4
  c.eval.split = 'valid_unseen'
  c.eval.tasks = 256
  c.eval.every = 10
  c.eval.temperature = 1.0
  if imitates:
    _imitate(c)
  else:
    c.model.adapter = 'experiments/smollm2/adapters/alfworld'
  return c


def _imitate(c: ml_collections.ConfigDict) -> None:
  """Half of the demonstrations with skills, by who knows them; half without."""
  c.sft.rows = 24_576
  c.train.microbatch_rows = c.train.minibatch_rows = 64
  c.optimizer.learning_rate = 1e-3
  c.optimizer.warmup_steps = 20
  c.optimizer.weight_decay = 0.0
  c.export.adapter = True
