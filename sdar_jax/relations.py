"""How values of a config must fit together."""

from ml_collections import ConfigDict

from sdar_jax.keys import ConfigError

TRACKERS = ('tensorboard', 'wandb', 'trackio')


def trackers(text: str) -> tuple[str, ...]:
  """Reads `config.log.trackers`: names with commas between them.

  Raises:
    ConfigError: one is unknown.
  """
  names = tuple(dict.fromkeys(filter(None, (n.strip() for n in text.split(',')))))
  if not set(names) <= set(TRACKERS):
    raise ConfigError(
      f'config.log.trackers={text[:80]!r}: must be of {TRACKERS}, separated by commas'
    )
  return names


def check(config: ConfigDict) -> None:
  """Raises ConfigError, one line, where two values exclude each other."""
  c = config
  trackers(c.log.trackers)
  if not all(type(step) is int and step > 0 for step in c.log.profile_steps):
    raise ConfigError(
      f'config.log.profile_steps={tuple(c.log.profile_steps)}: must hold steps, the'
      ' first of which is 1'
    )
  if c.model.attention == 'cudnn' and c.model.dtype == 'float32':
    raise ConfigError(
      "config.model.attention='cudnn' computes in 16 bits: set config.model.dtype to"
      " 'bfloat16', or config.model.attention to 'auto'"
    )
  if c.rollout.layout == 'conversation' and c.algorithm.mean_over == 'microbatch':
    raise ConfigError(
      "config.algorithm.mean_over='microbatch': microbatches of conversations have no"
      " fixed number of rows: set it to 'minibatch', or config.rollout.layout='turns'"
    )
  if c.train.minibatch_rows % c.train.microbatch_rows:
    raise ConfigError(
      f'config.train.minibatch_rows={c.train.minibatch_rows} is not a multiple of'
      f' config.train.microbatch_rows={c.train.microbatch_rows}'
    )
  shards = c.mesh.data * c.mesh.fsdp
  for key, rows in (
    ('train.microbatch_rows', c.train.microbatch_rows),
    ('rollout.slots', c.rollout.slots),
  ):
    if rows % shards:
      raise ConfigError(
        f'config.{key}={rows} does not divide by mesh.data*mesh.fsdp={shards}'
      )
  for key in ('length_buckets', 'teacher_buckets'):
    buckets = tuple(c.train[key])
    if not buckets or list(buckets) != sorted(set(buckets)) or min(buckets) < 1:
      raise ConfigError(
        f'config.train.{key}={buckets}: must be positive and increasing'
      )
  if c.rollout.prefill_chunk > c.rollout.max_prompt_tokens:
    raise ConfigError(
      f'config.rollout.prefill_chunk={c.rollout.prefill_chunk} is more than'
      f' config.rollout.max_prompt_tokens={c.rollout.max_prompt_tokens}'
    )
  longest = c.rollout.max_prompt_tokens + c.rollout.max_response_tokens
  for key, need in (
    ('length_buckets', longest),
    ('teacher_buckets', longest + c.skills.token_budget),
  ):
    if max(c.train[key]) < need:
      raise ConfigError(
        f'config.train.{key}={tuple(c.train[key])}: the last must hold {need} tokens'
        ' (max_prompt_tokens + max_response_tokens'
        + (' + skills.token_budget)' if key == 'teacher_buckets' else ')')
      )
