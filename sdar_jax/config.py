"""The configuration: every key, with default, unit, source and checks.

`KEYS` is where a key is born, `methods.hyperparameters` for those of `algorithm`; a
world's settings are the arguments of its constructor. Experiment files start from
`default` and override values; nothing in the package supplies a default of its own.
"""

import functools
import hashlib
import json
import os
from typing import Any

import ml_collections
from ml_collections import config_dict

from sdar_jax import files, hub, relations
from sdar_jax.batching import rows
from sdar_jax.envs import worlds
from sdar_jax.keys import ConfigError, Key, check_type
from sdar_jax.methods import hyperparameters, validity
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.process import shipped
from sdar_jax.prompts import retrieval, skills

_COUNT, _AT_LEAST_0, _SHARE = '[1, inf)', '[0, inf)', '[0, 1]'
_SEED, _SECONDS = '[0, 4294967295]', '[1, 1000000]'
# Of what one step holds: a list of more fills memory before anything is played.
_HELD = '[1, 65536]'
_PATHS = ('model.path', 'model.tokenizer', 'model.adapter', 'skills.path')
_PATHS += ('model.teacher', 'eval.panel', 'sft.demonstrations')
_WORLD_PATHS = ('corpus', 'index')  # And every setting whose name ends in _dir.
# Of a softmax whose logits are divided by it in float32.
_TEMPERATURE = '[0.0001, 10000]'

# Sources: `paper` is arXiv 2605.15155, `ref` its released code.
KEYS: dict[str, Key] = {
  'seed': Key(
    0, 'decides task order, sampling and minibatch order; nothing else does', _SEED
  ),
  'steps': Key(150, 'passes of the training loop', _COUNT, 'ref: 150 iterations'),
  'model.path': Key('', 'Hugging Face directory, .gguf file or hub id'),
  'model.tokenizer': Key('', "as model.path; '' means that"),
  'model.dtype': Key(
    'float32', 'compute type; weights stay float32', ('float32', 'bfloat16')
  ),
  'model.remat': Key(
    'none',
    "what the backward pass recomputes of a layer: 'dots' all but matrix products",
    ('none', 'dots', 'full'),
  ),
  'model.attention': Key(
    'auto',
    "'dense' forms all scores; 'cudnn' is for GPU with bfloat16, 'splash' for TPU",
    ('auto', 'dense', 'chunked', 'cudnn', 'splash'),
  ),
  'model.lora_rank': Key(
    0,
    'rank of adapters that train beside the frozen model; 0 trains the model',
    _AT_LEAST_0,
  ),
  'model.lora_alpha': Key(32.0, 'adapters are multiplied by alpha / rank', '(0, inf)'),
  'model.lora_targets': Key(
    'all', 'which matrices have adapters', ('all', 'attention', 'mlp')
  ),
  'model.adapter': Key(
    '', "a folder in peft's format, merged into the model when it is loaded"
  ),
  'model.teacher': Key(
    '', "a trained teacher, as model.path, where algorithm.teacher_weights is 'given'"
  ),
  'model.logit_positions': Key(
    2048, 'positions (rows x columns) whose [positions, V] logits are held', _COUNT
  ),
  'model.enable_thinking': Key(False, "Qwen3's template switch", '', 'ref'),
  'model.date': Key(
    '2026-01-01', 'YYYY-MM-DD: what a chat template that asks for it is told'
  ),
  'skills.path': Key('', "a skill bank (JSON); '' means the world's own"),
  'skills.retrieval': Key(
    'task+object', 'which skills a prompt shows', retrieval.RETRIEVALS, 'ref: keywords'
  ),
  'skills.keyword_scope': Key(
    'goal', 'where keywords are sought', retrieval.KEYWORD_SCOPES, 'ref: prompt'
  ),
  'skills.ucb_coef': Key(
    1.0, 'weight of the bonus for skills seldom shown', '[0, 1e6]'
  ),
  'skills.limit': Key(
    0, 'most skills that a prompt shows; 0 is as many as fit', _AT_LEAST_0
  ),
  'skills.placement': Key(
    'user',
    "where skills stand; 'reference' is before the template",
    skills.PLACEMENTS,
    'ref: reference',
  ),
  'skills.token_budget': Key(
    1024, 'tokens of skills in a prompt; whole skills only, never cut', _COUNT
  ),
  'algorithm.name': Key('sdar', "a row of methods/table.py, or two: 'gigpo+sdar'"),
  'algorithm.invalid_penalty': Key(
    0.1, 'taken off the score of a malformed turn, return units', '[0, 1e6]', 'ref'
  ),
  'algorithm.mean_over': Key(
    'minibatch',
    "what the mean over tokens is of; 'microbatch': a mean of microbatches' means",
    ('minibatch', 'microbatch'),
    'ref: microbatch',
  ),
  **{f'algorithm.{name}': key for name, key in hyperparameters.KEYS.items()},
  'rollout.tasks_per_step': Key(16, 'P, tasks of a step', _HELD, 'ref'),
  'rollout.group_size': Key(8, 'G, episodes of each task', _HELD, 'ref'),
  'rollout.refills': Key(
    0, 'rounds, at most, that replace groups of equal returns', '[0, 1000]', 'DAPO: 9'
  ),
  'rollout.temperature': Key(
    1.0, 'divides the logits, in sampling and in training', _TEMPERATURE, 'ref'
  ),
  'rollout.top_p': Key(1.0, 'probability mass that is drawn from; 1 is all', '(0, 1]'),
  'rollout.top_k': Key(0, 'tokens that are sampled from; 0 is all', _AT_LEAST_0),
  'rollout.max_prompt_tokens': Key(2048, 'most tokens, without skills', _COUNT, 'ref'),
  'rollout.max_response_tokens': Key(512, 'most tokens of a response', _COUNT, 'ref'),
  'rollout.success_reward': Key(
    10.0, 'return of a solved episode', '[0.001, 1e6]', 'ref'
  ),
  'rollout.layout': Key(
    'turns',
    "'turns': a prompt for each, history told; 'conversation': ids go on as they were",
    rows.LAYOUTS,
    'ref: turns',
  ),
  'rollout.slots': Key(128, 'sequences that decode together', _HELD),
  'rollout.decode_chunk': Key(32, 'tokens decoded in one call of the device', _COUNT),
  'rollout.prefill_tokens': Key(4096, 'tokens of a prefill call, padded', _COUNT),
  'rollout.prefill_chunk': Key(64, 'prompt tokens computed and kept as one', _COUNT),
  'pool.workers': Key(
    0, 'processes that play environments; 0 plays them in this one', '[0, 4096]'
  ),
  'pool.deadline_seconds': Key(
    60.0, 'for one reset or step in a worker, s', '[1, 86400]'
  ),
  'pool.retries': Key(
    2, 'times that a failed reset or step is tried again', '[0, 1000]'
  ),
  'pool.patience_seconds': Key(
    300.0, 'to go on trying where no environment of a step answers, s', _AT_LEAST_0
  ),
  'train.minibatch_rows': Key(256, 'rows per optimizer update', _COUNT, 'ref'),
  'train.microbatch_rows': Key(32, 'rows per forward and backward pass', _HELD, 'ref'),
  'train.length_buckets': Key(
    (384, 512, 640, 768, 896, 1152, 1536, 2560), 'padded row lengths, tokens'
  ),
  'train.teacher_buckets': Key(
    (896, 1152, 1280, 1408, 1536, 1792, 2304, 3584), 'padded teacher rows, tokens'
  ),
  'train.shuffle_rows': Key(False, 'off: rows of a group stay together', '', 'ref'),
  'train.packing': Key(
    'sorted',
    "how minibatches become microbatches: 'sorted' by length, or 'in order'",
    ('sorted', 'in order'),
    'ref: in order',
  ),
  'train.old_logprobs': Key('scored', "'sampled' saves a pass", ('scored', 'sampled')),
  'train.compile_ahead': Key(False, 'the first step compiles for all buckets at once'),
  'optimizer.learning_rate': Key(
    1e-6, 'per update; 0 is a control that learns nothing', '0 or [1e-12, 1]', 'paper'
  ),
  'optimizer.warmup_steps': Key(0, 'steps of a linear warm-up', _AT_LEAST_0),
  # 1 - b is what Adam divides by, in float32.
  'optimizer.b1': Key(0.9, "decay of Adam's first moment", '[0, 0.99999]'),
  'optimizer.b2': Key(0.999, "decay of Adam's second moment", '[0, 0.99999]'),
  'optimizer.eps': Key(1e-8, "added to Adam's denominator", '[1e-15, 1]'),
  'optimizer.weight_decay': Key(0.01, 'decoupled, per update', '[0, 1]', 'ref'),
  'optimizer.moments': Key(
    'device',
    "memory that holds Adam's moments between updates",
    ('device', 'host'),
  ),
  'optimizer.max_grad_norm': Key(
    1.0, 'norm that gradients are clipped to; 0 is off', '0 or [1e-6, 1e6]', 'ref'
  ),
  'mesh.data': Key(1, 'ways that rows are split; the weights are not', '[1, 65536]'),
  'mesh.fsdp': Key(1, 'ways that rows and weights are split', '[1, 65536]'),
  'mesh.tensor': Key(1, 'ways that heads, MLP and vocabulary are split', '[1, 65536]'),
  'hosts.heartbeat_seconds': Key(100, 's until a silent process is dead', _SECONDS),
  'hosts.watchdog_seconds': Key(1800, 's until a process that hangs ends', _SECONDS),
  'eval.split': Key('valid_seen', 'split of the panel'),
  'eval.tasks': Key(140, 'panel size; 0 means the whole split', _AT_LEAST_0),
  'eval.panel': Key(
    '', 'a published manifest (JSON Lines) to evaluate on, instead of split and tasks'
  ),
  'eval.attempts': Key(1, 'times that each task is played', '[1, 1000000]'),
  'eval.every': Key(5, 'steps between; 0: only before and after', _AT_LEAST_0, 'ref'),
  'eval.temperature': Key(0.4, 'of logits; 0 is greedy', f'0 or {_TEMPERATURE}', 'ref'),
  'eval.seed': Key(1000, 'of the sampler; the panel has no seed', _SEED),
  'eval.with_skills': Key(False, 'show the policy the skills when it is evaluated'),
  'checkpoint.every': Key(5, 'steps between checkpoints', _COUNT),
  'checkpoint.keep': Key(2, 'newest verified checkpoints that are kept', '[2, inf)'),
  'log.trajectories_every': Key(1, 'steps between records; 0 is off', _AT_LEAST_0),
  'log.token_episodes': Key(1, 'episodes of a step with all tokens', _AT_LEAST_0),
  'log.token_rows': Key(
    8, 'turns per step, of other episodes, whose tokens are recorded', _AT_LEAST_0
  ),
  'log.eval_episodes': Key(
    8, 'episodes of each evaluation that are written, always the same', _AT_LEAST_0
  ),
  'log.trackers': Key(
    '', 'where numbers also go: tensorboard, wandb, trackio, separated by commas'
  ),
  'log.project': Key('sdar', 'under which wandb and trackio file the run'),
  'log.online': Key(False, 'wandb and trackio may send what they are given'),
  'log.profile_steps': Key(
    (), 'steps whose phases are traced for Perfetto and xprof, such as (2, 3)'
  ),
  'sft.rows': Key(0, 'rows of expert demonstration; 0 outside --mode=sft', _AT_LEAST_0),
  'sft.demonstrations': Key(
    '', "a file of recorded episodes to imitate; '' means the world's experts"
  ),
  'sft.copy_rows': Key(
    0,
    'rows of practice in copying that come first',
    _AT_LEAST_0,
  ),
  'sft.new_names': Key(False, 'names change places in every demonstration'),
  'sft.skilled_fraction': Key(
    0.5, 'share of the episodes whose prompts show skills; 0 leaves no room', _SHARE
  ),
  'sft.informed_fraction': Key(
    0.0, 'share of the episodes without skills that the informed expert plays', _SHARE
  ),
  'sft.mistake_rate': Key(
    0.1, 'share of turns where a random action is played instead', _SHARE
  ),
  'sft.prompt_weight': Key(
    0.0, 'loss weight of prompt tokens against response tokens', '[0, 1e6]'
  ),
  'sft.muon': Key(False, 'Muon on the matrices instead of AdamW'),
  'export.adapter': Key(
    False, "write adapters alone, in peft's format, and not the model with them"
  ),
  'export.dtype': Key(
    '',
    "type of the weights that sft and export write; '' means model.path's",
    ('', 'float32', 'bfloat16', 'float16'),
  ),
}


def default(world: str = 'alfworld') -> ml_collections.ConfigDict:
  """Makes a config of every key at its default.

  Args:
    world: whose settings `config.world` holds; see `envs.worlds.find`.
  """
  c = ml_collections.ConfigDict()
  for name, key in KEYS.items():
    room, _, leaf = name.rpartition('.')
    if room and room not in c:
      c[room] = ml_collections.ConfigDict()
    (c[room] if room else c)[leaf] = key.default
  c.world = ml_collections.ConfigDict({'name': world, **worlds.settings(world)})
  _follow_reward(c)
  return c


def _follow_reward(c: ml_collections.ConfigDict) -> None:
  """Ties numbers in return units to the return of a solved episode."""
  reward = c.rollout.get_ref('success_reward')
  c.algorithm.invalid_penalty = reward * 0.01  # ref: 0.1 of 10, 0.01 of 1.
  c.algorithm.view_margin = reward * 0.05  # UCOB: 0.05 of 1.
  c.algorithm.view_temperature = reward * 0.2  # UCOB: 0.2 of 1.
  c.algorithm.value_clip = reward * 0.05  # ref: 0.5 of 10.
  c.algorithm.value_coef = reward**-2.0  # Of squares: the value loss has no unit.


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Flattens to {'rollout.group_size': 8, ...}, in key order."""
  out = {}
  for key in sorted(config.keys()):
    value = config[key]
    if isinstance(value, ml_collections.ConfigDict):
      out.update(flatten(value, f'{prefix}{key}.'))
    else:
      out[prefix + key] = list(value) if isinstance(value, tuple) else value
  return out


def digest(config: ml_collections.ConfigDict) -> str:
  """Hashes the flattened config: hex SHA-256."""
  text = json.dumps(flatten(config), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks a config before anything heavy starts.

  Raises:
    ConfigError: one line naming the key, its value and what it may be.
  """
  try:
    values = flatten(config)
  except (ArithmeticError, TypeError):  # Of a multiple of it that is no number.
    raise _wrong_reward(config) from None
  if 'rollout.success_reward' in values:
    KEYS['rollout.success_reward'].check(  # First: other numbers follow it.
      'rollout.success_reward', values['rollout.success_reward']
    )
  _check_keys(values)
  if not config.model.path:
    raise ConfigError(
      "config.model.path='': must be a Hugging Face directory, .gguf file or hub id"
    )
  _check_method(config)
  relations.check(config)


@functools.cache
def _defaults(world: str) -> dict[str, Any]:
  return flatten(default(world))


def _wrong_reward(config: ml_collections.ConfigDict) -> ConfigError:
  reward = files.one_line(ValueError(repr(config.rollout.success_reward)), 60)
  return ConfigError(
    f'config.rollout.success_reward={reward}: must be a positive number, not so small'
    ' or large that its square is none'
  )


def _check_keys(values: dict[str, Any]) -> None:
  """Checks the set of keys, and each value by itself."""
  if 'world.name' not in values:
    raise ConfigError('config.world.name is missing: start from config.default()')
  check_type('world.name', values['world.name'], '')
  try:
    expected = _defaults(values['world.name'])
  except (ValueError, TypeError) as error:  # TypeError: what it names is no class.
    said = files.one_line(error)
    if not said.startswith('config.'):
      said = f'config.world.name={values["world.name"]!r}: {said}'
    raise ConfigError(said) from None
  for key in sorted(set(expected) - set(values)):
    if key.startswith('world.'):
      raise ConfigError(
        f'config.world.name={values["world.name"]!r}: its settings are others ({key} is'
        " missing): start from that world's experiment, or from config.default(WORLD)"
      )
    raise ConfigError(f'config.{key} is missing: start from sdar_jax.config.default()')
  for key in sorted(set(values) - set(expected)):
    raise ConfigError(f'config.{key} is unknown: remove it or correct its name')
  for name, value in values.items():
    if isinstance(value, config_dict.FieldReference):
      value = value.get()
    if name in KEYS:
      KEYS[name].check(name, value)
    else:
      check_type(name, value, expected[name])


def resolve_paths(config: ml_collections.ConfigDict) -> None:
  """Writes out `~` in the paths of a config; others stay as they are.

  So what came with this package keeps a name that holds in every installation.

  Raises:
    ConfigError: one is remote, or is not the file or directory that the key asks for.
  """
  for key in path_keys(config):
    room, name = key.split('.')
    if not config[room][name]:
      continue
    path = files.local_path(config[room][name], f'config.{key}')
    config[room][name] = str(path)
    if room == 'world':
      continue
    there = shipped.find(path)
    if room in ('skills', 'sft') and not os.path.isfile(there):
      raise ConfigError(f'config.{key}={str(path)!r}: no such file')
    if key == 'model.adapter' and not os.path.isdir(there):
      raise ConfigError(f'config.{key}={str(path)!r}: no such directory')
    if room == 'model' and not hub.is_source(str(path)):
      raise ConfigError(f'config.{key}={str(path)!r}: {hub.NO_SOURCE}')


def path_keys(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Lists the keys whose values, where there are any, are paths."""
  own = [n for n in config.world if n.endswith('_dir') or n in _WORLD_PATHS]
  return (*_PATHS, *(f'world.{name}' for name in own))


def _check_method(config: ml_collections.ConfigDict) -> None:
  """Checks the method's name and the keys that it leaves unread."""
  numbers = {name: config.algorithm[name] for name in hyperparameters.KEYS}
  usual = default(config.world.name)
  usual.rollout.success_reward = config.rollout.success_reward
  for line in validity.complaints(
    config.algorithm.name, Hyperparameters(**numbers), usual.algorithm
  ):
    raise ConfigError(f'config.algorithm.{line}')
