import collections
import functools
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from sdar_jax.envs.base import Task
from sdar_jax.envs.webshop import generated, instruction
from sdar_jax.envs.webshop.engine import admits
from sdar_jax.envs.webshop.expert import ShoppingExpert
from sdar_jax.envs.webshop.generated import GeneratedGoals
from sdar_jax.envs.webshop.world import WebshopWorld


@functools.cache
def world():
  return WebshopWorld(noun_source='rule')


def play(task, expert, *, mistakes=0.0, seed=0, turns=15):
  """(success, actions played) of one episode."""
  env, draws, actions = world().make_env(), np.random.default_rng(seed), []
  observation = env.reset(task)
  expert.reset(task, observation)
  for _ in range(turns):
    _, action = expert.plan(observation)
    assert admits(observation.admissible, action)
    if draws.random() < mistakes:
      action = world().mistake(observation, draws)
    actions.append(action)
    result = env.step(action)
    observation = result.observation
    expert.observe(action, observation)
    if result.done:
      break
  return result.success, actions


@functools.cache
def episodes(kind, split, count):
  tasks = GeneratedGoals(split)
  return [play(tasks[i], ShoppingExpert(kind, i)) for i in range(count)]


def success(results):
  return sum(solved for solved, _ in results) / len(results)


@pytest.mark.parametrize('split', generated.SPLITS)
def test_the_informed_expert_buys_what_was_asked_for(split):
  results = episodes('informed', split, 300)
  assert success(results) >= 0.97
  turns = [len(actions) for _, actions in results]
  assert min(turns) >= 4 and max(turns) <= 7


@pytest.mark.parametrize('split', generated.SPLITS)
def test_the_blind_expert_guesses(split):
  assert 0.33 <= success(episodes('blind', split, 300)) <= 0.53


def test_two_attributes_are_harder_to_guess_than_one():
  """One attribute leaves two lines of five, two leave one."""
  solved = collections.defaultdict(list)
  for split in generated.SPLITS:
    for task, (done, _) in zip(GeneratedGoals(split), episodes('blind', split, 300)):
      solved[len(task.payload.attributes)].append(done)
  one, two = (sum(solved[count]) / len(solved[count]) for count in (1, 2))
  assert 0.4 < one < 0.6 and 0.2 < two < 0.4


@pytest.mark.parametrize(('kind', 'least'), [('informed', 0.97), ('blind', 0.3)])
def test_experts_recover_from_mistakes(kind, least):
  tasks = GeneratedGoals('valid_seen')
  results = [
    play(tasks[i], ShoppingExpert(kind, i), mistakes=0.25, seed=i, turns=30)
    for i in range(300)
  ]
  assert success(results) >= least


def test_advice_depends_on_what_was_read_and_on_nothing_else():
  draws = np.random.default_rng(3)
  for index in range(40):
    task, env = GeneratedGoals('train')[index], world().make_env()
    observation = env.reset(task)
    leader, follower = ShoppingExpert('blind', 7), ShoppingExpert('blind', 7)
    leader.reset(task, observation)
    follower.reset(task, observation)
    for turn in range(12):
      advice = leader.plan(observation)
      assert leader.plan(observation) == advice == follower.plan(observation)
      action = world().mistake(observation, draws) if turn % 3 == 2 else advice[1]
      result = env.step(action)
      observation = result.observation
      leader.observe(action, observation)
      follower.observe(action, observation)
      if result.done:
        break


@pytest.mark.parametrize('kind', ['informed', 'blind'])
def test_experts_know_the_instruction_and_not_the_goal(kind):
  """The engine scores another goal; the expert plays on as if nothing had changed."""
  tasks = GeneratedGoals('train')
  for index in range(20):
    task = tasks[index]
    words_only = Task(task.task_id, '', task.goal, {}, None)
    expert, env = ShoppingExpert(kind, 1), world().make_env()
    observation = env.reset(task)
    expert.reset(words_only, observation)
    actions = []
    for _ in range(15):
      actions.append(expert.plan(observation)[1])
      result = env.step(actions[-1])
      observation = result.observation
      expert.observe(actions[-1], observation)
      if result.done:
        break
    assert actions == play(task, ShoppingExpert(kind, 1))[1]


def first_choices(kind, seed):
  return [
    play(GeneratedGoals('train')[i], ShoppingExpert(kind, seed))[1][:2]
    for i in range(30)
  ]


def test_the_blind_order_is_the_seeds():
  assert first_choices('blind', 0) == first_choices('blind', 0)
  assert first_choices('blind', 0) != first_choices('blind', 1)
  assert first_choices('informed', 0) == first_choices('informed', 1)


def test_the_blind_order_does_not_depend_on_the_process():
  path = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
  result = subprocess.run(
    [
      sys.executable,
      '-c',
      "import test_expert as t; print(t.first_choices('blind', 0))",
    ],
    env={**os.environ, 'PYTHONHASHSEED': '1', 'PYTHONPATH': path},
    capture_output=True,
    text=True,
    check=True,
  )
  assert result.stdout.strip() == str(first_choices('blind', 0))


def test_the_blind_choice_is_spread_over_what_fits():
  task = GeneratedGoals('train')[0]
  chosen = {play(task, ShoppingExpert('blind', seed))[1][1] for seed in range(60)}
  assert len(chosen) >= 4


def test_every_goal_can_be_met_within_one_page_of_results():
  """By the engine's own search and judge, with no expert's help."""
  shop = world().shop
  for split in generated.SPLITS:
    for task in GeneratedGoals(split):
      goal = task.payload
      row = shop.catalogue.row_of(goal.asin)
      assert shop.score(row, dict(goal.options), goal).total == 1.0
      line = shop.catalogue[row].title.split()[0]
      values = [value for _, value in goal.options]
      query = ' '.join([line, goal.query, *values]).lower()
      assert row in shop.find(query.split(), random.Random(0))[:10]


def test_only_the_right_line_price_and_options_score_fully():
  """The judge agrees with what shop.json says, product by product."""
  shop, checked = world().shop, collections.Counter()
  rows = collections.defaultdict(list)
  for row in range(len(shop.catalogue)):
    rows[shop.catalogue[row].query].append(row)
  for task in [GeneratedGoals('train')[i] for i in range(120)]:
    goal, asked = task.payload, instruction.read(task.goal)
    good = generated.categories()[goal.category].lines_with(goal.attributes)
    for row in rows[goal.query]:
      product = shop.catalogue[row]
      if any(v not in product.options[name] for name, v in goal.options):
        continue
      line = product.title.lower().split()[0]
      right = line in good and product.prices[0] < asked.limit
      assert (shop.score(row, dict(goal.options), goal).total == 1.0) == right
      checked[right] += 1
      for name, values in product.options.items():
        for value in set(values) - {asked.options[name]}:
          wrong = {**asked.options, name: value}
          assert shop.score(row, wrong, goal).total < 1.0
  assert min(checked.values()) > 100


def test_a_features_page_settles_a_blind_doubt():
  """Whoever reads that an attribute is missing leaves, and does not come back."""
  left = bought = 0
  for index in range(60):
    task, env = GeneratedGoals('train')[index], world().make_env()
    expert, observation = ShoppingExpert('blind', index), env.reset(task)
    expert.reset(task, observation)
    for turn in range(3):
      action = 'click[features]' if turn == 2 else expert.plan(observation)[1]
      observation = env.step(action).observation
      expert.observe(action, observation)
    item = expert.belief.item
    assert expert.plan(observation)[1] == 'click[< prev]'
    observation = env.step('click[< prev]').observation
    expert.observe('click[< prev]', observation)
    _, action = expert.plan(observation)
    product = world().shop.catalogue[world().shop.catalogue.row_of(item.upper())]
    offers = all(v in product.options[n] for n, v in task.payload.options)
    if offers and set(task.payload.attributes) <= set(product.attributes):
      assert action != 'click[< prev]'
      bought += 1
    else:
      assert action == 'click[< prev]'
      observation = env.step(action).observation
      expert.observe(action, observation)
      assert expert.plan(observation)[1] != f'click[{item}]'
      left += 1
  assert left > 10 and bought > 10


def test_wrong_requests_are_one_line():
  with pytest.raises(ValueError, match=r"^expert 'wise': must be one of .*$"):
    ShoppingExpert('wise')
  task = Task('x', 'beauty', 'i need a red lipstick', {}, None)
  with pytest.raises(ValueError, match=r"set config\.world\.source='generated'$"):
    ShoppingExpert('informed').reset(
      task, world().make_env().reset(GeneratedGoals('test')[0])
    )
