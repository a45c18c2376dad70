"""The whole configuration: every key, its default, unit and source; and its checks.

`default()` is the one place where a key is born. Experiment files start from it and
override values; nothing in the package supplies a default of its own.
"""

import dataclasses
import hashlib
import json
from typing import Any

import ml_collections
from ml_collections import config_dict

from sdar_jax.envs import worlds
from sdar_jax.hyperparameters import LossConfig


class ConfigError(ValueError):
  """A configuration that cannot run: one line naming the key and what to change."""


def default(world: str = 'alfworld') -> ml_collections.ConfigDict:
  """Every key. Sources: `paper` is arXiv 2605.15155; `ref` its released code.

  Args:
    world: whose settings `config.world` holds; see `envs.worlds.find`.
  """
  c = ml_collections.ConfigDict()
  c.seed = 0  # Decides task order, sampling and minibatch order; nothing else does.
  c.steps = 150  # Passes of the training loop (ref: 150 iterations).
  c.model = _model()
  c.world = _world(world)
  c.skills = _skills()
  c.algorithm = _algorithm()
  c.rollout = _rollout()
  c.pool = _pool()
  c.train = _train()
  c.optimizer = _optimizer()
  c.mesh = _mesh()
  c.eval = _eval()
  c.checkpoint = _checkpoint()
  c.log = _log()
  c.sft = _sft()
  _follow_reward(c)
  return c


def _follow_reward(c: ml_collections.ConfigDict) -> None:
  """Makes numbers in return units multiples of what a solved episode returns."""
  reward = c.rollout.get_ref('success_reward')
  c.algorithm.invalid_penalty = reward * 0.01  # ref: 0.1 of 10, 0.01 of 1.
  c.algorithm.view_margin = reward * 0.05  # UCOB: 0.05 of 1.
  c.algorithm.view_temperature = reward * 0.2  # UCOB: 0.2 of 1.
  c.algorithm.value_clip = reward * 0.05  # ref: 0.5 of 10.
  c.algorithm.value_coef = reward**-2.0  # Of squares: the value loss has no unit.


def _model() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.path = ''  # Hugging Face directory or hub id.
  c.tokenizer = ''  # Likewise; '' means model.path.
  c.dtype = 'float32'  # Compute type: float32 or bfloat16. Weights stay f32.
  c.remat = False  # Recompute blocks in the backward pass to save memory.
  c.attention = 'xla'  # 'xla', or 'cudnn' on GPU with bfloat16.
  c.logprob_chunk = 256  # Positions per chunk of the [chunk, V] logits.
  c.enable_thinking = False  # Qwen3's template switch (ref: off).
  return c


def _world(name: str) -> ml_collections.ConfigDict:
  """The arguments of the world's constructor, whose docstring says what they mean."""
  return ml_collections.ConfigDict({'name': name, **worlds.settings(name)})


def _skills() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.path = ''  # A skill bank (JSON); '' means the world's own.
  c.retrieval = 'task+object'  # One of _RETRIEVALS (ref: keywords).
  c.keyword_scope = 'goal'  # Where keywords are sought; 'prompt' (ref).
  c.ucb_coef = 1.0  # Weight of the bonus for skills seldom shown.
  c.limit = 0  # Most skills that a prompt shows; 0 is as many as fit.
  c.placement = 'user'  # 'user', 'system', or 'reference' (before the template).
  c.token_budget = 1024  # Tokens; whole skills only, never cut.
  return c


def _algorithm() -> ml_collections.ConfigDict:
  """The method, and every number of `LossConfig`, which says what they mean."""
  c = ml_collections.ConfigDict(dataclasses.asdict(LossConfig()))
  c.name = 'sdar'  # A row of sdar_jax/algorithms.py, or two: 'gigpo+sdar'.
  c.invalid_penalty = 0.1  # Off the score of a malformed row; see _follow_reward.
  c.mean_over = 'minibatch'  # 'microbatch' (ref): a mean of microbatches' means.
  return c


def _rollout() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.tasks_per_step = 16  # P (ref: 16).
  c.group_size = 8  # G (ref: 8).
  c.refills = 0  # Times that groups of equal returns are replaced (DAPO: 9).
  c.temperature = 1.0  # ref: 1.0.
  c.top_p = 1.0
  c.top_k = 0  # 0 is off.
  c.max_prompt_tokens = 2048  # ref: 2048.
  c.max_response_tokens = 512  # ref: 512.
  c.success_reward = 10.0  # Return of a solved episode (ref: 10).
  c.slots = 128  # Sequences that decode together.
  c.decode_chunk = 32  # Tokens decoded between two looks at the host.
  c.prefill_tokens = 16_384  # Tokens of one prefill call, padding included.
  c.prefill_buckets = (512, 1024, 2048)  # Padded prompt lengths, tokens.
  return c


def _pool() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.workers = 0  # Processes that play environments; 0 plays them in this one.
  c.deadline_seconds = 60.0  # s, for one reset or step in a worker.
  c.retries = 2  # Times that a failed reset or step is tried again.
  return c


def _train() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.minibatch_rows = 256  # Rows per optimizer update (ref: 256).
  c.microbatch_rows = 32  # Rows per forward and backward pass (ref: 32).
  c.length_buckets = (768, 1280, 2560)  # Padded row lengths, tokens.
  c.teacher_buckets = (1280, 2304, 3584)  # The same with skills in the prompt.
  c.shuffle_rows = False  # ref: off; rows of a group stay together.
  c.packing = 'sorted'  # 'sorted' by length, or 'in order' with a short rest (ref).
  return c


def _optimizer() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.learning_rate = 1e-6  # paper, appendix C.
  c.warmup_steps = 0  # Linear, in passes of the loop.
  c.b1 = 0.9
  c.b2 = 0.999
  c.eps = 1e-8
  c.weight_decay = 0.01  # ref: 0.01.
  c.max_grad_norm = 1.0  # ref: 1.0.
  return c


def _mesh() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.data = 1  # Their product is the number of devices used.
  c.fsdp = 1
  c.tensor = 1
  return c


def _eval() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.split = 'valid_seen'
  c.tasks = 140  # Panel size; 0 means the whole split.
  c.attempts = 1  # Times that each task is played.
  c.every = 5  # Steps (ref: 5); 0 means only before and after.
  c.temperature = 0.4  # ref: 0.4.
  c.seed = 1000  # Of the sampler; the panel has no seed.
  c.with_skills = False  # Show the policy the skills when it is evaluated.
  return c


def _checkpoint() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.every = 5  # Steps.
  c.keep = 2  # Verified steps that are kept.
  return c


def _log() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.trajectories_every = 1  # Steps; 0 is off.
  c.token_rows = 8  # Rows per step whose per-token arrays are written.
  c.tensorboard = False  # Also write TensorBoard scalars to the workdir.
  c.wandb_project = ''  # Also send numbers to this Weights & Biases project.
  return c


def _sft() -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.rows = 0  # Rows of expert demonstration; 0 outside --mode=sft.
  c.copy_rows = 0  # Rows of practice in copying that come first; see sft.copying.
  c.new_names = False  # Names change places in every demonstration.
  c.skilled_fraction = 0.5  # Of the episodes whose prompts show skills.
  c.informed_fraction = 0.0  # Of the others that the informed expert plays too.
  c.mistake_rate = 0.1  # Of turns where a random action is played instead.
  c.prompt_weight = 0.0  # Loss weight of prompt tokens against response tokens.
  c.muon = False  # Muon on the matrices instead of AdamW.
  return c


_RETRIEVALS = ('task', 'task+object', 'all', 'keywords', 'similar', 'ucb', 'random')
_CHOICES = {
  'model.dtype': ('float32', 'bfloat16'),
  'model.attention': ('xla', 'cudnn'),
  'skills.retrieval': _RETRIEVALS,
  'skills.keyword_scope': ('goal', 'prompt'),
  'skills.placement': ('user', 'system', 'reference'),
  'train.packing': ('sorted', 'in order'),
  'algorithm.mean_over': ('minibatch', 'microbatch'),
}

# Lower bounds (inclusive); every number must also be finite.
_AT_LEAST = {
  'steps': 1,
  'model.logprob_chunk': 1,
  'skills.token_budget': 1,
  'skills.ucb_coef': 0,
  'skills.limit': 0,
  'algorithm.invalid_penalty': 0,
  'rollout.tasks_per_step': 1,
  'rollout.group_size': 1,
  'rollout.refills': 0,
  'rollout.temperature': 0,
  'rollout.top_k': 0,
  'rollout.max_prompt_tokens': 1,
  'rollout.max_response_tokens': 1,
  'rollout.slots': 1,
  'rollout.decode_chunk': 1,
  'rollout.prefill_tokens': 1,
  'pool.workers': 0,
  'pool.deadline_seconds': 1,
  'pool.retries': 0,
  'train.minibatch_rows': 1,
  'train.microbatch_rows': 1,
  'optimizer.learning_rate': 0,
  'optimizer.warmup_steps': 0,
  'optimizer.weight_decay': 0,
  'optimizer.max_grad_norm': 0,
  'mesh.data': 1,
  'mesh.fsdp': 1,
  'mesh.tensor': 1,
  'eval.tasks': 0,
  'eval.attempts': 1,
  'eval.every': 0,
  'eval.temperature': 0,
  'checkpoint.every': 1,
  'checkpoint.keep': 2,
  'log.trajectories_every': 0,
  'log.token_rows': 0,
  'sft.rows': 0,
  'sft.copy_rows': 0,
  'sft.skilled_fraction': 0,
  'sft.informed_fraction': 0,
  'sft.mistake_rate': 0,
  'sft.prompt_weight': 0,
}

_AT_MOST = {
  'rollout.top_p': 1,
  'optimizer.b1': 1,
  'optimizer.b2': 1,
  'sft.skilled_fraction': 1,
  'sft.informed_fraction': 1,
  'sft.mistake_rate': 1,
}


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """{'rollout.group_size': 8, ...} in key order."""
  out = {}
  for key in sorted(config.keys()):
    value = config[key]
    if isinstance(value, ml_collections.ConfigDict):
      out.update(flatten(value, f'{prefix}{key}.'))
    else:
      out[prefix + key] = list(value) if isinstance(value, tuple) else value
  return out


def digest(config: ml_collections.ConfigDict) -> str:
  """Hex SHA-256 of the flattened config."""
  text = json.dumps(flatten(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks a config before anything heavy starts.

  Raises:
    ConfigError: one line naming the key, its value and what it may be.
  """
  try:
    values = flatten(config)
  except ArithmeticError:  # Of a multiple of it that is no number.
    raise _wrong_reward(config) from None
  _check_keys(values)
  if not values['rollout.success_reward'] > 0:
    raise _wrong_reward(config)
  for key, choices in _CHOICES.items():
    if values[key] not in choices:
      raise ConfigError(f'config.{key}={values[key]!r}: must be one of {choices}')
  for key, value in values.items():
    if isinstance(value, float) and not abs(value) < float('inf'):
      raise ConfigError(f'config.{key}={value}: must be a finite number')
  for key, bound in _AT_LEAST.items():
    if values[key] < bound:
      raise ConfigError(f'config.{key}={values[key]}: must be at least {bound}')
  for key, bound in _AT_MOST.items():
    if values[key] > bound:
      raise ConfigError(f'config.{key}={values[key]}: must be at most {bound}')
  numbers = {f.name: config.algorithm[f.name] for f in dataclasses.fields(LossConfig)}
  try:
    hyper = LossConfig(**numbers)
  except ValueError as error:
    raise ConfigError(f'config.algorithm.{error}') from None
  _check_method(config, hyper)
  _check_relations(config)


def _wrong_reward(config: ml_collections.ConfigDict) -> ConfigError:
  reward = config.rollout.success_reward
  return ConfigError(
    f'config.rollout.success_reward={reward}: must be a positive number, not so small'
    ' or large that its square is none'
  )


def _check_keys(values: dict[str, Any]) -> None:
  if 'world.name' not in values:
    raise ConfigError('config.world.name is missing: start from config.default()')
  expected = flatten(default(values['world.name']))
  for key in sorted(set(expected) - set(values)):
    raise ConfigError(f'config.{key} is missing: start from sdar_jax.config.default()')
  for key in sorted(set(values) - set(expected)):
    raise ConfigError(f'config.{key} is unknown: remove it or correct its name')
  for key, value in values.items():
    want = type(expected[key])
    if isinstance(value, config_dict.FieldReference):
      value = value.get()
    if want is float and type(value) is int:
      continue
    if type(value) is not want:
      raise ConfigError(
        f'config.{key}={value!r} is a {type(value).__name__}: must be {want.__name__}'
      )


def _check_method(config: ml_collections.ConfigDict, hyper: LossConfig) -> None:
  """Raises ConfigError unless there is this method and it takes these numbers."""
  from sdar_jax import validity  # Imports JAX, which readers of a config do without.

  usual = default(config.world.name)
  usual.rollout.success_reward = config.rollout.success_reward
  for line in validity.complaints(config.algorithm.name, hyper, usual.algorithm):
    raise ConfigError(f'config.algorithm.{line}')


def _check_relations(config: ml_collections.ConfigDict) -> None:
  c = config
  if c.rollout.group_size < 2:
    raise ConfigError(
      f'config.rollout.group_size={c.rollout.group_size}: group-relative advantages'
      f' ({c.algorithm.name}) need at least 2'
    )
  if not c.rollout.top_p > 0:
    raise ConfigError(f'config.rollout.top_p={c.rollout.top_p}: must be above 0')
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
  for key in (
    'rollout.prefill_buckets',
    'train.length_buckets',
    'train.teacher_buckets',
  ):
    room, name = key.split('.')
    buckets = tuple(c[room][name])
    if not buckets or list(buckets) != sorted(set(buckets)) or min(buckets) < 1:
      raise ConfigError(f'config.{key}={buckets}: must be positive and increasing')
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
