import functools

import numpy as np
import pytest

from sdar_jax.envs import benchmark
from sdar_jax.envs.base import Exchange, Observation, Task
from sdar_jax.envs.webshop import generated, instruction
from sdar_jax.envs.webshop.belief import believe, without_instruction
from sdar_jax.envs.webshop.generated import GeneratedGoals
from sdar_jax.envs.webshop.world import PAPER_INSTRUCTION, WebshopWorld

TAGS = ('<think>', '</think>', '<action>', '</action>')


@functools.cache
def world(style, length=2):
  return WebshopWorld(noun_source='rule', prompt_style=style, history_length=length)


@functools.cache
def turns(kind, count, mistakes=0.3):
  """(task, history, observation, action to play) before every turn of episodes."""
  found = []
  for index in range(count):
    task, shop = GeneratedGoals('train')[index], world('paper')
    env, expert, draws = shop.make_env(), shop.expert(kind, index), np.random
    draws = draws.default_rng(index)
    observation, history = env.reset(task), []
    expert.reset(task, observation)
    for _ in range(shop.max_turns):
      _, action = expert.plan(observation)
      found.append((task, tuple(history), observation, action))
      if draws.random() < mistakes:
        action = shop.mistake(observation, draws)
      result = env.step(action)
      history.append(Exchange(observation.text, action))
      observation = result.observation
      expert.observe(action, observation)
      if result.done:
        break
  return found


def test_the_paper_prompt_shows_request_window_page_and_actions():
  seen = 0
  for task, history, observation, _ in turns('blind', 25):
    text = world('paper').render(task, history, observation)
    assert text.count(task.goal) == 1
    assert f'the page: {without_instruction(observation.text)}\n' in text
    assert text.endswith(world('paper').instruction)
    for action in observation.admissible:
      assert f'\n- {action}\n' in text
    assert text.count('you did: ') == min(2, len(history))
    for number, exchange in enumerate(history, 1):
      shown = f'Turn {number}, you did: {exchange.action}\n' in text
      assert shown == (number > len(history) - 2)
    for tag in TAGS:
      assert text.count(tag) == 1
    seen += len(history) > 2
  assert seen > 20


def test_prompts_end_with_the_instruction_and_compact_has_none():
  assert world('compact').instruction == ''
  assert world('paper').instruction == PAPER_INSTRUCTION


def test_the_compact_prompt_is_terse():
  lengths = []
  for kind in ('informed', 'blind'):
    for task, history, observation, _ in turns(kind, 60):
      text = world('compact').render(task, history, observation)
      assert text == text.lower() and '  ' not in text and '\n\n' not in text
      assert '[' not in text and '$' not in text
      lengths.append(len(text.split()))
  assert max(lengths) <= 80 and sum(lengths) / len(lengths) <= 45


def parts(text):
  """The compact prompt's goal, its labelled lines, and its products."""
  goal, *lines = text.split('\n')
  words = [line.split() for line in lines]
  rows = [len(w) > 3 and w[3].startswith('b0') and w[0] != 'did' for w in words]
  products = [line for line, row in zip(lines, rows) if row]
  labelled = [line for line, row in zip(lines, rows) if not row]
  return goal, {line.split()[0]: line for line in labelled}, products


def test_the_compact_goal_holds_the_whole_wish():
  for task in GeneratedGoals('valid_unseen'):
    observation = world('compact').make_env().reset(task)
    goal, lines, _ = parts(world('compact').render(task, (), observation))
    asked = instruction.read(task.goal)
    options = [word for pair in asked.options.items() for word in pair]
    words = [asked.kind, *asked.attributes, *options, 'under', str(asked.limit)]
    assert goal.split() == words and lines == {'start': 'start'}


def test_what_the_experts_write_stands_in_the_prompt():
  """Every clicked product or option can be copied from what is shown."""
  fixed = {'back to search', '< prev', 'next >', 'buy now'}
  clicked = 0
  for task, history, observation, action in turns('informed', 60):
    text = world('compact').render(task, history, observation)
    name = action.partition('[')[2].removesuffix(']')
    if action.startswith('click') and name not in fixed:
      assert name in text.split()
      clicked += 1
  assert clicked > 150


def test_results_are_listed_with_first_words_and_price():
  pages = 0
  for task, history, observation, _ in turns('blind', 40):
    belief = believe(history, observation)
    _, lines, products = parts(world('compact').render(task, history, observation))
    assert ('results' in lines) == (belief.page == 'results')
    if belief.page != 'results':
      assert not products
      continue
    pages += 1
    number = [str(belief.number)] if belief.number > 1 else []
    assert lines['results'].split() == ['results', *number, *belief.query.split()]
    assert [line.split()[3] for line in products] == belief.results
    catalogue = world('compact').shop.catalogue
    for line in products:
      first, second, price, asin, *marks = line.split()
      product = catalogue[catalogue.row_of(asin.upper())]
      assert product.title.lower().startswith(f'{first} {second} ')
      assert product.prices == (float(price),) and marks in ([], ['no'], ['yes'])
  assert pages > 30


def test_marks_are_what_pages_have_shown():
  marks = set()
  for task, history, observation, _ in turns('blind', 80, 0.5):
    belief, asked = believe(history, observation), instruction.read(task.goal)
    _, _, products = parts(world('compact').render(task, history, observation))
    for line in products:
      asin, mark = line.split()[3], line.split()[4:]
      marks.update(mark)
      assert (mark == ['no']) == bool(belief.lacks(asked, asin))
      assert (mark == ['yes']) == belief.confirmed(asked, asin)
      assert not mark or asin in belief.offered
  assert marks == {'no', 'yes'}


def test_an_item_shows_options_and_what_is_chosen():
  chose = 0
  for task, history, observation, _ in turns('informed', 40):
    belief = believe(history, observation)
    if belief.page != 'item':
      continue
    _, lines, _ = parts(world('compact').render(task, history, observation))
    for name, values in belief.options(observation).items():
      assert lines[name].split() == [name, *values]
    chosen = belief.chosen(observation)
    assert ('chose' in lines) == bool(chosen)
    if chosen:
      assert lines['chose'].split()[1:] == list(chosen.values())
      chose += 1
  assert chose > 30


def test_a_features_page_shows_its_lines():
  task, env = GeneratedGoals('train')[0], world('compact').make_env()
  observation, history = env.reset(task), []
  expert = world('compact').expert('informed')
  expert.reset(task, observation)
  for turn in range(3):
    action = 'click[features]' if turn == 2 else expert.plan(observation)[1]
    history.append(Exchange(observation.text, action))
    observation = env.step(action).observation
    expert.observe(action, observation)
  text = world('compact').render(task, history, observation)
  goal, lines, _ = parts(text)
  assert lines['features'].split()[3].isdecimal()
  for attribute in task.payload.attributes:
    assert f'sold as {attribute}' in text and attribute in goal


def test_past_actions_are_short_and_marked_when_they_did_nothing():
  task, env = GeneratedGoals('train')[0], world('compact').make_env()
  observation, history = env.reset(task), []
  for action in ('search[a b c]', 'click[5]', 'sing a very long song', ''):
    history.append(Exchange(observation.text, action))
    observation = env.step(action).observation
  text = world('compact', 4).render(task, history, observation)
  assert 'did search, 5 ?, sing a very ?, nothing ?' in text.split('\n')
  text = world('compact', 1).render(task, history, observation)
  assert 'did nothing ?' in text.split('\n')
  text = world('compact', 0).render(task, history, observation)
  assert 'did ' not in text


def test_two_pages_that_need_different_answers_look_different():
  """The prompt decides the informed expert's answer, given its skills."""
  answers = {}
  for task, history, observation, action in turns('informed', 160):
    text = world('compact').render(task, history, observation)
    answers.setdefault(text, set()).add(action)
  assert len(answers) > 600
  assert all(len(actions) == 1 for actions in answers.values())


@pytest.mark.parametrize('style', benchmark.STYLES)
def test_prompts_can_do_without_the_history(style):
  for task, _, observation, _ in turns('blind', 10):
    assert world(style).render(task, (), observation)


def test_other_instructions_are_shown_as_they_are():
  task = Task('x', 'beauty', 'i need a red lipstick', {}, None)
  page = 'WebShop [SEP] Instruction: [SEP] i need a red lipstick [SEP] Search'
  text = world('compact').render(task, (), Observation(page))
  assert text == 'i need a red lipstick\nstart'


def test_every_kind_of_product_has_its_skills_by_metadata():
  for name, row in generated.categories().items():
    for kind in row.nouns:
      assert generated.category_of(kind) == name
