"""Wrong configurations are one line that names the key; right ones pass."""

import itertools
import math

import pytest

from experiments import alfworld, arguments, search_qa, webshop
from sdar_jax import config as config_lib
from sdar_jax.envs import worlds
from sdar_jax.evaluation import panels
from sdar_jax.methods import table


def _default():
  config = config_lib.default()
  config.model.path = 'somewhere'
  return config


@pytest.mark.parametrize(
  'argument',
  [
    '',
    'model=qwen2.5-3b,world=official,preset=paper',
    'model=qwen3-1.7b,algo=grpo,seed=3',
  ],
)
def test_experiments_are_valid(argument):
  config = alfworld.get_config(argument)
  config_lib.validate(config)
  assert config.seed == (3 if 'seed' in argument else 0)


@pytest.mark.parametrize('world', ['alfworld', 'webshop', 'search_qa'])
def test_every_combination_of_arguments_has_its_split(world):
  """Models x worlds x presets: 48 an experiment; generated panels are made."""
  module = {'alfworld': alfworld, 'webshop': webshop, 'search_qa': search_qa}[world]
  official = {
    'alfworld': {'valid_seen', 'valid_unseen'},
    'webshop': {'valid', 'test'},
    'search_qa': {'test'},
  }
  made = {}
  choices = itertools.product(
    ('tiny', *arguments.MODELS), ('generated', 'official'), ('ours', 'paper')
  )
  for i, (model, source, preset) in enumerate(choices):
    method = ('sdar', 'ppo', 'dapo+rlsd', 'ucob')[i % 4]
    argument = f'model={model},world={source},preset={preset},algo={method}'
    config = module.get_config(argument)
    config_lib.validate(config)
    if source == 'official':
      assert config.eval.split in official[world], argument
      continue
    values = config.world.to_dict()
    key = (tuple(values.items()), config.eval.split, config.eval.tasks)
    if key not in made:
      one = worlds.make(values.pop('name'), values)
      made[key] = panels.make_panel(one, config.eval.split, config.eval.tasks)
  assert len(made) == 3  # Of the paper, of `tiny`, and of SmolLM2 on a CPU.


def test_paper_hyperparameters():
  """The values of the paper's appendix C and the released ALFWorld scripts."""
  config = config_lib.flatten(alfworld.get_config('model=qwen2.5-3b,world=official'))
  expected = {
    'optimizer.learning_rate': 1e-6,
    'rollout.group_size': 8,
    'rollout.tasks_per_step': 16,
    'algorithm.clip_low': 0.2,
    'algorithm.distill_coef': 0.01,
    'algorithm.gate_beta': 5.0,
    'algorithm.kl_coef': 0.01,
    'algorithm.entropy_coef': 0.001,
    'algorithm.invalid_penalty': 0.1,
    'train.minibatch_rows': 256,
    'world.max_turns': 50,
    'eval.temperature': 0.4,
    'steps': 150,
  }
  assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize(
  'argument', ['model=gpt', 'colour=red', 'seed=x', 'model', 'seed=1,seed=2']
)
def test_wrong_experiment_argument(argument):
  with pytest.raises(ValueError, match=argument.split('=')[0]):
    alfworld.get_config(argument)


@pytest.mark.parametrize(
  'key, value',
  [
    ('rollout.group_size', 0),
    ('rollout.temperature', -1.0),
    ('rollout.temperature', math.nan),
    ('optimizer.learning_rate', math.inf),
    ('algorithm.kl_kind', 'k4'),
    ('algorithm.distill_form', 'both'),
    ('train.microbatch_rows', 7),
    ('mesh.data', 3),
    ('train.length_buckets', (16,)),
    ('rollout.prefill_chunk', 0),
    ('rollout.prefill_chunk', 2049),
    ('train.length_buckets', (64, 32)),
    ('rollout.top_p', 0.0),
    ('checkpoint.keep', 1),
    ('steps', 0),
  ],
)
def test_wrong_value_names_the_key(key, value):
  config = _default()
  room, _, name = key.rpartition('.')
  (config[room] if room else config)[name] = value
  with pytest.raises(config_lib.ConfigError) as caught:
    config_lib.validate(config)
  message = str(caught.value)
  assert '\n' not in message
  assert name.removesuffix('s') in message or 'mesh' in message


@pytest.mark.parametrize('module', [alfworld, webshop, search_qa])
def test_the_demo_is_the_method_in_small_shapes(module):
  """It changes sizes and the learning rate; models for CPUs have sizes of their own."""
  full, demo = (
    config_lib.flatten(module.get_config(f'model=qwen2.5-0.5b,scale={scale}'))
    for scale in ('full', 'demo')
  )
  changed = {key for key in full if full[key] != demo[key]}
  assert {
    key for key in changed if key.startswith(('algorithm', 'model', 'mesh'))
  } == set()
  assert demo['steps'] == 20 and demo['world.max_turns'] <= 12
  assert demo['rollout.group_size'] == 8
  for model in ('tiny', 'smollm2-135m'):
    whole, same = (
      module.get_config(f'model={model},scale={scale}') for scale in ('full', 'demo')
    )
    assert whole == same


def test_unknown_and_missing_keys():
  config = _default()
  config.rollout.colour = 'red'
  with pytest.raises(config_lib.ConfigError, match=r'rollout\.colour is unknown'):
    config_lib.validate(config)
  config = _default()
  del config.rollout.top_k
  with pytest.raises(config_lib.ConfigError, match=r'rollout\.top_k is missing'):
    config_lib.validate(config)


def test_wrong_type():
  values = _default()
  with values.ignore_type():
    values.steps = 'many'
  with pytest.raises(config_lib.ConfigError, match=r'steps.*must be int'):
    config_lib.validate(values)


def test_cudnn_in_float32_is_one_line_that_names_both_keys():
  config = _default()
  config.model.attention = 'cudnn'
  with pytest.raises(config_lib.ConfigError) as caught:
    config_lib.validate(config)
  said = str(caught.value)
  assert "model.attention='cudnn'" in said and 'config.model.dtype' in said
  assert '\n' not in said
  config.model.dtype = 'bfloat16'
  config_lib.validate(config)


@pytest.mark.parametrize('world', [alfworld, webshop, search_qa])
def test_the_paper_preset_turns_the_released_quirks_on_and_ours_off(world):
  ours, paper = (
    config_lib.flatten(world.get_config(f'model=qwen2.5-3b,preset={preset}'))
    for preset in ('ours', 'paper')
  )
  config_lib.validate(world.get_config('model=qwen2.5-3b,preset=paper'))
  keyword = world is webshop
  quirks = {
    'algorithm.mean_over': ('minibatch', 'microbatch'),
    'train.packing': ('sorted', 'in order'),
    'skills.placement': ('user', 'reference'),
    'skills.retrieval': ('task+object', 'keywords' if keyword else 'task'),
    'skills.keyword_scope': ('goal', 'prompt' if keyword else 'goal'),
  }
  assert {key: (ours[key], paper[key]) for key in quirks} == quirks
  same = {'algorithm.statistics_over': 'rows', 'algorithm.entropy_coef': 0.001}
  assert all(ours[key] == paper[key] == value for key, value in same.items())
  assert {k for k in ours if ours[k] != paper[k]} <= set(quirks)


def test_methods_bring_their_own_numbers():
  config = alfworld.get_config('model=qwen2.5-3b,algo=dapo+rlsd')
  assert config.algorithm.clip_high == 0.28 and config.rollout.refills == 9
  assert config.algorithm.credit_mix == 0.5 and config.algorithm.warmdown_steps == 100
  # Weights that papers give as hundredths are the small model's own, one by one.
  small = {'sdar': 0.5, 'gigpo+sdar': 0.5, 'grpo+opsd-released': 0.5, 'sdpg': 0.5}
  small |= {'skill-sd': 0.05, 'opid': 0.05, 'rlsd': 0.5, 'opsd': 1.0, 'adrs': 0.05}
  for name, coef in small.items():
    tiny = alfworld.get_config(f'model=tiny,algo={name}').algorithm
    assert tiny[table.find(name).distillation.coef] == coef, name


@pytest.mark.parametrize(
  'world, name, expected',
  [
    (alfworld, 'skill-sd', {'algorithm.warmdown_steps': 0}),
    (search_qa, 'gigpo+skill-sd', {'algorithm.warmdown_steps': 0}),
    (alfworld, 'rlsd', {'algorithm.warmdown_steps': 100}),
    (alfworld, 'gigpo', {'algorithm.divide_by_std': True}),
    (webshop, 'gigpo', {'algorithm.divide_by_std': False}),
    (webshop, 'gigpo+sdar', {'algorithm.divide_by_std': False}),
    (webshop, 'grpo', {'algorithm.divide_by_std': True}),
    (
      search_qa,
      'gigpo',
      {
        'algorithm.divide_by_std': True,
        'algorithm.anchor_similarity': 0.9,
        'algorithm.entropy_coef': 0.0,
        'rollout.group_size': 5,
        'rollout.tasks_per_step': 256,
        'train.minibatch_rows': 512,
      },
    ),
    (alfworld, 'gspo', {'steps': 200}),
    (alfworld, 'dapo', {'steps': 150, 'rollout.refills': 9}),
  ],
)
def test_the_paper_preset_is_each_method_s_released_script(world, name, expected):
  config = world.get_config(f'model=qwen2.5-3b,preset=paper,algo={name}')
  config_lib.validate(config)
  values = config_lib.flatten(config)
  assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize('reward', [0.0, -1.0, 1e-200])
def test_a_reward_that_nothing_can_follow_is_one_line(reward):
  config = _default()
  config.rollout.success_reward = reward
  line = r'^config\.rollout\.success_reward=[^\n]*: must be [^\n]*$'
  with pytest.raises(config_lib.ConfigError, match=line):
    config_lib.validate(config)
