"""Any value of any key ends in one line that names it, or in a config that runs."""

import math
import pathlib
import re
from types import SimpleNamespace

import algorithm_cases as cases
import drawn
import jax
import jax.numpy as jnp
import micro
import ml_collections
import numpy as np
import optax
import pytest

from experiments import alfworld, search_qa, webshop
from sdar_jax import build, main, parts
from sdar_jax import config as config_lib
from sdar_jax.keys import LARGEST_FLOAT, LARGEST_INT, SMALLEST_FLOAT, ConfigError
from sdar_jax.losses.objective import policy_objective
from sdar_jax.methods import table, validity
from sdar_jax.methods.hyperparameters import KEYS
from sdar_jax.methods.table import ALGORITHMS

WORLDS = {'alfworld': alfworld, 'webshop': webshop, 'search_qa': search_qa}
ODD = (
  *(None, True, False, 0, 1, 2, 3, -1, 7, 10**6, LARGEST_INT, 2**31, 2**32, 2**70),
  *(-(2**70), 10**400, 0.0, -0.0, 0.5, 1.0, -1.0, 1.5, 1e-320, 1e-30, 1e-8, 0.999999),
  *(1e15, 1e30, 1e308, math.nan, math.inf, -math.inf, 1j, np.float32(0.5), np.int64(3)),
  *(
    '',
    ' ',
    'x',
    'None',
    '0',
    'x' * 300,
    'x' * 10_000,
    '\0',
    'a\nb',
  ),
  *('\u202e', '\ud800', '../..', '~', 'gs://a/b', b'x', '\U0001f600', 'nan'),
  *((), [], {}, (0,), (1, 'a'), ('a', 1), (64, 32), (16, 16), (math.nan,), ((1,),)),
  *((1.5, 2), (2**70,), (-1, 5), [1, 2], ['nq'], (None,), {'a': 1}, object()),
)


def _config(world='alfworld', method='sdar'):
  """A valid config whose keys take values of any type, as in a file of a user's."""
  values = WORLDS[world].get_config(f'model=tiny,algo={method}').to_dict()
  config = ml_collections.ConfigDict(values, type_safe=False)
  config_lib._follow_reward(config)  # A plain dictionary holds no references.
  return config


def _keys():
  own = {name: sorted(config_lib.flatten(_config(name))) for name in WORLDS}
  for name, keys in own.items():
    for key in keys:
      if name == 'alfworld' or key.startswith('world.'):
        yield name, key


def _set(config, key, value):
  """Sets a key; returns what it was."""
  room, _, leaf = key.rpartition('.')
  place = config[room] if room else config
  before, place[leaf] = place[leaf], value
  return before


def _refused(config):
  """The one line that refuses a config; None if it is valid and its parts stand."""
  try:
    config_lib.validate(config)
    config_lib.resolve_paths(config)
    _build(config)
  except ValueError as error:  # What `main` prints, with exit code 2.
    text = str(error)
    assert text and '\n' not in text and len(text) < 1000
    return text
  return None


def _build(config):
  """What is made of a config before weights are read, and one step of its optimizer."""
  build.make_algorithm(config)
  world = build.make_world(config)
  assert world.max_turns >= 1
  chat = SimpleNamespace(decode=None, stop_ids=(1,), opening='', len_vocab=9)
  for temperature in (config.rollout.temperature, config.eval.temperature):
    build.make_agent(
      config, chat, None, temperature=temperature, sees_skills=lambda member: True
    )
  assert np.isfinite(_step(tuple(config.optimizer.items()))).all()


_STEPS = {}


def _step(settings):
  """What Adam makes of gradients of 0 and 1; kept, as most configs have the same."""
  if settings not in _STEPS:
    c = dict(settings)
    del c['learning_rate'], c['warmup_steps'], c['moments']
    weights = {'w': jnp.ones(2)}
    tx = build.optimizer.make_optimizer(**c)
    updates, _ = tx.update({'w': jnp.array([0.0, 1.0])}, tx.init(weights), weights)
    _STEPS[settings] = np.asarray(updates['w'])
  return _STEPS[settings]


@pytest.mark.parametrize('world, key', list(_keys()))
def test_any_value_of_any_key(world, key):
  """docs/results.md says how many, and the next test that it does."""
  config = _config(world)
  assert _refused(config) is None
  accepted = 0
  for value in ODD:
    try:
      before = _set(config, key, value)
    except OverflowError:
      continue  # In a line of the user's file, which `command_line` names.
    text = _refused(config)
    accepted += text is None
    if text is not None:
      assert key.split('.')[-1] in text, (value, text)
    _set(config, key, before)
  assert accepted < len(ODD)


def test_the_page_of_results_says_how_many():
  text = (pathlib.Path(__file__).parents[1] / 'docs/results.md').read_text()
  said = re.search(r'(\d+) values of each of (\d+) keys, about ([\d,]+) configs', text)
  values, keys, configs = (int(number.replace(',', '')) for number in said.groups())
  count = len([*_keys()])
  assert values == len(ODD) and keys == pytest.approx(count, rel=0.05)
  assert configs == pytest.approx(len(ODD) * count, rel=0.05)


@pytest.mark.parametrize(
  'key, wrong, right',
  [
    ('rollout.temperature', (0.0, 1e-320, 1e-5, -1.0), (1e-4, 1.0)),
    ('eval.temperature', (1e-320, 1e-5, -1.0), (0.0, 0.4)),
    ('rollout.top_p', (0.0, 1.1), (1e-9, 1.0)),
    ('rollout.top_k', (-1,), (0, 1)),
    ('rollout.success_reward', (0.0, -1.0, math.inf), (1.0,)),
    ('rollout.refills', (-1, 2000), (0, 9)),
    ('rollout.tasks_per_step', (0, LARGEST_INT), (1, 65_536)),
    ('rollout.group_size', (0, LARGEST_INT), (2, 65_536)),
    ('rollout.slots', (0, LARGEST_INT), (1, 65_536)),
    ('world.train_tasks', (0, LARGEST_INT), (1, 10_000_000)),
    ('algorithm.policy_coef', (-1.0, 1e-30, 1e15), (0.0, 1e-12, 1e12)),
    ('algorithm.kl_coef', (-1.0, 1e-30), (0.0, 1e-12)),
    ('algorithm.entropy_coef', (-1.0, 1e-30), (0.0, 1e-12)),
    ('algorithm.distill_coef', (-1.0, 1e-30), (1e-12,)),
    ('algorithm.gap_clip', (-1.0, 1e-30, 1e-7), (0.0, 1e-6)),
    ('optimizer.b1', (1.0, -0.1, 1 - 1e-9), (0.0, 0.9)),
    ('optimizer.b2', (1.0, -1.0), (0.95,)),
    ('optimizer.eps', (0.0, -1e-8, 1e-320), (1e-8,)),
    ('optimizer.learning_rate', (-1e-6, 1e308, 2.0, 1e-320), (0.0, 1e-6, 1.0)),
    ('optimizer.max_grad_norm', (-1.0, 1e-320), (0.0, 1.0)),
    ('seed', (-1, 2**32), (0, 2**32 - 1)),
    ('eval.seed', (-1, 2**70), (0,)),
    ('steps', (0, 2**31), (1,)),
    ('model.path', ('', 'no/such/dir'), ('Qwen/Qwen3-0.6B',)),
    ('train.length_buckets', ((), (1, 'a'), (184, 64), (0, 184)), ((184,),)),
  ],
)
def test_what_cannot_train_is_refused(key, wrong, right):
  for values, refused in ((wrong, True), (right, False)):
    for value in values:
      config = _config()
      _set(config, key, value)
      text = _refused(config)
      assert (text is not None) == refused, (value, text)


@pytest.mark.parametrize(
  'method, size, changes, least',
  [
    ('grpo', 1, {}, 2),
    ('rloo+sdar', 1, {}, 2),
    ('ppo', 1, {}, 1),
    ('reinforce++', 1, {}, 1),
    ('reinforce++-baseline', 1, {}, 2),
    ('opsd', 1, {}, 1),
    ('opsd', 1, {'policy_coef': 1.0}, 2),
    ('ucob', 1, {}, 2),
    ('sdpo', 1, {}, 2),
    ('ppo+sdpo', 1, {'distill_coef': 0.0}, 1),
    ('grsd', 2, {}, 3),
  ],
)
def test_groups_are_as_large_as_the_method_asks(method, size, changes, least):
  config = alfworld.get_config(f'model=tiny,algo={method}')
  config.algorithm.update(changes)
  config.rollout.group_size = size
  config_lib.validate(config)
  if size < least:
    with pytest.raises(
      ConfigError, match=rf'group_size={size}: must be at least {least}'
    ):
      build.make_algorithm(config)
  else:
    build.make_algorithm(config)


@pytest.mark.parametrize(
  'words',
  [
    ['--config.seed=-1'],
    ['--config.rollout.temperature=1e-320'],
    ['--config.optimizer.b1=1'],
    ['--config.optimizer.learning_rate=nan'],
    ['--config.rollout.slots=99999999999999999999'],
    ['--config.train.teacher_buckets=()'],
    ['--config.train.teacher_buckets=(1, "a")'],
    ['--config.eval.split=\0'],
    ['--config.log.project=\u202e'],
    ['--config.log.trackers=tensorboard,mlflow'],
    ['--config.log.profile_steps=(0,)'],
    ['--config.log.profile_steps=("a",)'],
    ['--config.algorithm.gate=open'],
    ['--config.algorithm.dual_clip=0.5'],
    ['--config.model.tokenizer=/no/such/place'],
  ],
)
def test_main_says_one_line(words, capsys, tmp_path):
  command = ['--config=experiments/alfworld.py:model=tiny', f'--workdir={tmp_path}/run']
  assert main.main([*command, *words]) == 2
  said = capsys.readouterr()
  assert said.err.startswith('error: ') and said.err.count('\n') == 1
  assert not said.out and not list(tmp_path.iterdir())


def test_memory_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
  def full(command, argv):
    raise MemoryError  # As of a list; NumPy's and the device's have words.

  monkeypatch.setattr(main, '_run', full)
  command = ['--config=experiments/alfworld.py:model=tiny', f'--workdir={tmp_path}/run']
  assert main.main(command) == 70
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'config.rollout.slots' in said


# The outermost numbers that some key accepts, outermost first.
LARGE = (LARGEST_FLOAT, 1e12, 1e6, 1.0, 0.5)
SMALL = (SMALLEST_FLOAT, 1e-12, 1e-6, 1.0)
EXTREMES = pytest.mark.parametrize('pick', [LARGE, SMALL], ids=['large', 'small'])


def _extremes(method, pick):
  """Each number that a method reads, as far out as it is accepted."""
  config, out = _config(method=method), {}
  hyper = build.make_hyperparameters(config)
  for key in sorted(validity.keys_read(table.find(method), hyper)):
    if type(KEYS[key].default) is not float:
      continue
    before = config.algorithm[key]
    for candidate in pick:
      config.algorithm[key] = candidate
      if _refused(config) is None:
        out[key] = candidate
        break
    config.algorithm[key] = before
  return out


def _float32(arrays):
  doubles = {n: v for n, v in arrays._asdict().items() if _is_double(v)}
  return arrays._replace(**{n: v.astype(np.float32) for n, v in doubles.items()})


def _is_double(value):
  return isinstance(value, np.ndarray) and value.dtype == np.float64


def _has_gradient(method, numbers):
  """Whether credit, loss and gradient are numbers, and not all 0; as a device would."""
  hyper, data = cases.hyper_of(method, **numbers), _float32(cases.step_data())
  inputs = _float32(cases.inputs_of(method, hyper, data))
  moved = 0.3 * np.random.default_rng(5).standard_normal(inputs.logprobs.shape)
  inputs = inputs._replace(logprobs=inputs.logprobs + moved.astype(np.float32))
  live = {
    n: jnp.asarray(v) for n in cases.LIVE if (v := getattr(inputs, n)) is not None
  }

  def scalar(live):
    return policy_objective(table.find(method), hyper, inputs._replace(**live))

  (loss, metrics), grads = jax.value_and_grad(scalar, has_aux=True)(live)
  known = [v for v in inputs if isinstance(v, np.ndarray)]
  for values in (loss, *jax.tree.leaves((metrics, known))):
    assert np.isfinite(values).all()
  return 0 < optax.tree.norm(grads) < math.inf


@EXTREMES
@pytest.mark.parametrize('method', cases.LOSSES)
def test_accepted_extremes_together_have_a_gradient(method, pick):
  numbers = _extremes(method, pick)
  assert {'policy_coef', 'kl_coef', 'entropy_coef'} <= set(numbers)
  assert _has_gradient(method, numbers)


@pytest.mark.slow
@EXTREMES
@pytest.mark.parametrize('method', [*ALGORITHMS, *cases.MIXED])
def test_accepted_extremes_one_by_one_have_a_gradient(method, pick):
  for key, value in _extremes(method, pick).items():
    assert _has_gradient(method, {key: value}), (key, value)


def _trains(method, numbers):
  """Whether one update through the model is made, and leaves all weights finite."""
  learner = micro.learner(algorithm=method, **vars(cases.hyper_of(method, **numbers)))
  params = drawn.weights(micro.MODEL)
  ref = jax.tree.map(jnp.copy, params)
  state = learner.init_state(params)
  batch = micro.scored(learner, state, ref, [micro.split(micro.minibatch())])
  state, metrics = learner.train_step(state, batch[0], ref)
  for values in jax.tree.leaves((state.params, metrics)):
    assert np.isfinite(values).all()
  return int(state.skipped) == 0 and float(metrics['grad_norm'][0]) > 0


@pytest.mark.slow
@EXTREMES
@pytest.mark.parametrize('method', ['sdar', 'ppo', 'gspo', 'opsd', 'skill-sd'])
def test_accepted_extremes_together_train(method, pick):
  assert _trains(method, _extremes(method, pick))


@pytest.mark.slow
@pytest.mark.parametrize(
  'numbers',
  [
    *({'distill_coef': 1e-12}, {'distill_coef': 1e12}),
    {'token_clip': LARGEST_FLOAT},  # A small one stops all that differ by more.
    *({'divergence': 'jsd', 'jsd_weight': weight} for weight in (0.001, 0.999)),
    *({'topk': count} for count in (1, micro.VALID)),
    *({'teacher_weights': 'ema', 'ema_decay': decay} for decay in (0.0, 1.0)),
  ],
  ids=str,
)
def test_accepted_extremes_of_whole_distributions_train(numbers):
  assert _trains(
    'opsd', {'policy_coef': 0.0, 'kl_coef': 0.0, 'entropy_coef': 0.0, **numbers}
  )


def test_no_more_ids_are_compared_than_there_are():
  config = alfworld.get_config('model=tiny,algo=sdpo')
  config.algorithm.topk = LARGEST_INT
  with pytest.raises(ConfigError, match=rf'^config.algorithm.topk={LARGEST_INT}: must'):
    parts.host_parts(config)
  config.algorithm.topk = 893  # Of the small model.
  parts.host_parts(config)


def test_a_minibatch_larger_than_any_step_keeps_its_sign():
  count = LARGEST_INT // 32
  learner = micro.learner(mean_over='microbatch', accumulation=count)
  sheets = micro.split(micro.minibatch())
  for device, host in zip(learner.to_device(sheets, {}), sheets, strict=True):
    want = int(host['response_mask'].sum()) * count
    assert float(device['normaliser']) == pytest.approx(want, rel=1e-6)


def test_a_norm_of_0_clips_nothing():
  c = _config().optimizer.to_dict()
  off, far = (_step(tuple({**c, 'max_grad_norm': n}.items())) for n in (0.0, 1e6))
  np.testing.assert_array_equal(off, far)
  assert abs(off[1]) > 0.5  # Adam's first step is about 1, not weight decay alone.
