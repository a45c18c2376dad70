"""Rows of every method and experiment have room, and the model's context holds them."""

import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest

from experiments import alfworld, arguments, search_qa, webshop
from sdar_jax import build
from sdar_jax import config as config_lib
from sdar_jax.batching import packing as packing_lib
from sdar_jax.batching import rows as rows_lib
from sdar_jax.config import ConfigError
from sdar_jax.envs.base import Task
from sdar_jax.learner import lengths
from sdar_jax.methods import table
from sdar_jax.models import hf
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

EXPERIMENTS = {'alfworld': alfworld, 'webshop': webshop, 'search_qa': search_qa}
TINY = 'experiments/tiny/alfworld'


@pytest.fixture
def any_context(monkeypatch):
  monkeypatch.setattr(hf, 'read_context', lambda path: None)


def _row(prompt, response):
  ids = np.zeros(response, np.int32)
  turn = Turn('', np.zeros(prompt, np.int32), ids, ids, '', '', '', True, True, 0.0, '')
  task = Task('t', 'kind', '', {}, None)
  group = Group(0, task, [Trajectory('t', 'kind', 0, 0, [turn], Outcome.FAILURE)])
  return rows_lib.rows([group], invalid_penalty=0.0)


def _packs(config, packing, student_skills):
  """Whether the longest rows of student and teacher that there can be are packed."""
  c, budget = config.rollout, config.skills.token_budget
  rows = _row(c.max_prompt_tokens + budget * student_skills, c.max_response_tokens)
  one = dataclasses.replace(packing, minibatch_rows=1, microbatch_rows=1)
  teacher = [np.zeros(c.max_prompt_tokens + budget, np.int32)]
  own = [row.turn.prompt_ids for row in rows]
  student, taught = (rows_lib.make_sequences(rows, p, 'turns') for p in (own, teacher))
  ((sheet,),) = packing_lib.minibatches(rows, student, np.arange(1), one, taught)
  return sheet['response_mask'].sum() == c.max_response_tokens


@pytest.mark.parametrize('world', EXPERIMENTS)
def test_every_method_of_every_experiment_has_room(world, any_context):
  names = [*table.ALGORITHMS, 'gigpo+sdar', 'gigpo+ucob', 'ppo+sdar']
  seen = set()
  every = itertools.product(names, ('tiny', 'qwen2.5-3b'), ('ours', 'paper'))
  models = itertools.product(('sdar', 'ucob'), arguments.MODELS, ('ours', 'paper'))
  for name, model, preset in itertools.chain(every, models):
    argument = f'algo={name},model={model},preset={preset}'
    config = EXPERIMENTS[world].get_config(argument)
    config_lib.validate(config)
    method, loss = build.make_algorithm(config), build.make_hyperparameters(config)
    packing = lengths.make_packing(config, method, loss)
    shown = method.student_sees_skills != 'none'
    case = (packing, shown, config.skills.token_budget, config.rollout.group_size)
    if case not in seen:
      assert _packs(config, packing, shown), argument
      seen.add(case)
    if not shown:
      assert packing.length_buckets == tuple(config.train.length_buckets)
  assert len(seen) >= 4


@pytest.mark.parametrize(
  'algorithm, budget, group, last',
  [
    ('skill-grpo', 700, 8, 2560 + 700),
    ('ucob', 1024, 2, 2560 + 1024),
    ('ucob', 1, 3, 2560 + 1),
    ('sdar', 1024, 8, 2560),
  ],
)
def test_students_that_see_skills_get_a_bucket(
  algorithm, budget, group, last, any_context
):
  config = config_lib.default('alfworld')
  config.algorithm.name, config.skills.token_budget = algorithm, budget
  config.rollout.group_size = group
  method, loss = build.make_algorithm(config), build.make_hyperparameters(config)
  packing = lengths.make_packing(config, method, loss)
  students = packing.length_buckets
  shipped = tuple(config.train.length_buckets)
  assert students[-1] == last and students[: len(shipped)] == shipped
  assert packing.teacher_buckets == tuple(config.train.teacher_buckets)


def _model(tmp_path, positions):
  shutil.copytree(TINY, tmp_path / 'model')
  file = tmp_path / 'model/config.json'
  record = json.loads(file.read_text())
  record['max_position_embeddings'] = positions
  file.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
  return str(tmp_path / 'model')


@pytest.mark.parametrize(
  'algorithm, with_skills, need',
  [
    ('grpo', False, 184),
    ('grpo', True, 248),
    ('sdar', False, 248),
    ('ucob', False, 248),
  ],
)
def test_a_context_that_is_too_short_is_refused(tmp_path, algorithm, with_skills, need):
  """At the very token; with skills where anyone sees them."""
  config = alfworld.get_config(f'algo={algorithm}')
  config.eval.with_skills = with_skills
  method, loss = build.make_algorithm(config), build.make_hyperparameters(config)
  config.model.path = _model(tmp_path / 'enough', need)
  lengths.make_packing(config, method, loss)
  config.model.path = _model(tmp_path / 'short', need - 1)
  with pytest.raises(ConfigError) as error:
    lengths.make_packing(config, method, loss)
  message = str(error.value)
  assert '\n' not in message and f'is {need} tokens' in message
  assert 'config.rollout.max_prompt_tokens=160' in message
  assert ('skills.token_budget=64' in message) == (need == 248)
  config.model.path = _model(tmp_path / 'unsaid', None)
  lengths.make_packing(config, method, loss)


@pytest.mark.parametrize('positions', (0, 'many', True))
def test_a_context_that_is_no_number_is_one_line(tmp_path, positions):
  with pytest.raises(hf.WeightError, match='max_position_embeddings') as error:
    hf.read_context(_model(tmp_path, positions))
  assert '\n' not in str(error.value)
