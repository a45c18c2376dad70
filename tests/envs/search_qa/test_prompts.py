"""What the two styles of prompt show."""

import re

import pytest

from sdar_jax.envs import benchmark
from sdar_jax.envs.base import Exchange, Observation, Task
from sdar_jax.envs.search_qa import engine, relations
from sdar_jax.envs.search_qa.retrieval.base import Passage
from sdar_jax.envs.search_qa.world import SearchQAWorld

COMPACT = {'prompt_style': 'compact', 'parser': 'strict'}
TASK = Task('t/0', 'any', 'Who was the first to climb K2', {}, None)
TAGS = ('<think>', '</think>', '<search>', '</search>', '<answer>', '</answer>')


def episodes(world, count, kind='blind'):
  """Yields (task, history, observation, thought, action) of every turn."""
  for index in range(count):
    task = world.tasks('valid_unseen')[index]
    env, expert, history = world.make_env(), world.expert(kind, index), []
    observation = env.reset(task)
    expert.reset(task, observation)
    for turn in range(world.max_turns):
      thought, action = expert.plan(observation)
      yield task, tuple(history), observation, thought, action
      if index % 10 == 7 and turn == 1:
        action = 'not an action'
      result = env.step(action)
      history.append(Exchange(observation.text, action))
      observation = result.observation
      expert.observe(action, observation)
      if result.done:
        break


def words(text):
  return re.findall(r'[a-z0-9]+|[^a-z0-9\s]', text.lower())


def played(*results):
  """History and observation after one search per result."""
  texts = ['Who was the first to climb K2?', *results]
  history = [
    Exchange(text, f'<search>Try {turn}</search>')
    for turn, text in enumerate(texts[:-1], start=1)
  ]
  return history, Observation(texts[-1])


def test_the_paper_prompt_shows_question_searches_documents_and_turn():
  world = SearchQAWorld()
  seen = 0
  for task, history, observation, _, _ in episodes(world, 20):
    text = world.render(task, history, observation)
    assert f'Question: {task.goal}\n' in text
    assert text.endswith(world.instruction) and world.instruction
    results = [exchange.observation for exchange in history[1:]]
    results += [observation.text] * bool(history)
    for turn, (exchange, result) in enumerate(zip(history, results, strict=True), 1):
      kind, query = engine.read_action(exchange.action)
      told = f'you searched for: {query}' if kind else 'you did nothing that counts'
      assert f'In turn {turn} {told}\n{result}\n' in text
    assert f'This is turn {len(history) + 1} of 4.' in text
    assert ('It is the last one' in text) == (len(history) == 3)
    wasted = text.count(engine.NO_ACTION)
    assert text.count('<information>') + wasted == len(history)
    for tag in TAGS:
      in_correction = engine.NO_ACTION.count(tag) * wasted
      assert text.count(tag) == 1 + in_correction
    seen += wasted
  assert seen


def test_the_paper_prompt_cuts_the_history_at_the_window():
  history, observation = played('one', 'two', 'three')
  for length, shown in ((0, ()), (1, (3,)), (2, (2, 3)), (4, (1, 2, 3))):
    world = SearchQAWorld(history_length=length, max_turns=5)
    text = world.render(TASK, history, observation)
    assert 'This is turn 4 of 5.' in text
    assert re.findall(r'In turn (\d)', text) == [str(turn) for turn in shown]
    for turn, result in enumerate(('one', 'two', 'three'), start=1):
      assert (f'searched for: Try {turn}\n{result}\n' in text) == (turn in shown)


def test_a_question_gets_its_mark():
  for style in benchmark.STYLES:
    world = SearchQAWorld(prompt_style=style)
    text = world.render(TASK, [], Observation('anything'))
    assert 'who was the first to climb k2?' in text.lower()


def test_the_compact_prompt_word_for_word():
  passages = [
    Passage('K2', 'K2 was first climbed by Lino Lacedelli. It is high. Very.'),
    Passage('Mountains', 'Some are hard to climb! Others are not.'),
    Passage('Long', ' '.join(map(str, range(30)))),
  ]
  texts = [engine.format_documents(passages), engine.NO_ACTION]
  texts.append(engine.format_documents([]))
  history, observation = played(*texts)
  history[1] = Exchange(history[1].observation, 'nonsense')
  world = SearchQAWorld(**COMPACT)
  assert world.render(TASK, history, observation) == (
    'who was the first to climb k2?\n'
    'query try 1\n'
    'doc k2 was first climbed by lino lacedelli\n'
    'doc mountains some are hard to climb\n'
    'doc long 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14\n'
    'query\n'
    'query try 3\n'
    'left 1'
  )
  world = SearchQAWorld(history_length=1, max_turns=6, **COMPACT)
  assert world.render(TASK, history, observation) == (
    'who was the first to climb k2?\nquery try 3\nleft 3'
  )


def test_what_the_expert_copies_stands_in_the_compact_prompt():
  world = SearchQAWorld(**COMPACT)
  keys = set(relations.KEYS)
  for kind in world.demonstrators:
    for task, history, observation, thought, action in episodes(world, 150, kind):
      text = world.render(task, history, observation)
      _, told = engine.read_action(action)
      names = ' '.join(word for word in told.split() if word not in keys)
      assert f' {names} ' in ' '.join(['', *words(text), ''])
      assert set(thought.split()) <= {*words(text), *keys, 'need', 'found', 'guess'}


def test_the_compact_prompt_says_only_what_was_read():
  world = SearchQAWorld(**COMPACT)
  for task, history, observation, _, _ in episodes(world, 100):
    read = [task.goal, observation.text]
    read += [text for e in history for text in (e.observation, e.action)]
    known = set(words(' '.join(read))) | {'query', 'doc', 'left', '1', '2', '3', '4'}
    assert set(words(world.render(task, history, observation))) <= known


def test_the_compact_prompt_is_short():
  world = SearchQAWorld(**COMPACT)
  lengths = [
    len(words(world.render(task, history, observation)))
    for task, history, observation, _, _ in episodes(world, 300)
  ]
  assert len(lengths) > 900
  assert max(lengths) <= 130 and sum(lengths) / len(lengths) <= 60


@pytest.mark.parametrize('style', benchmark.STYLES)
def test_prompts_can_do_without_the_history(style):
  world = SearchQAWorld(prompt_style=style)
  for task, _, observation, _, _ in episodes(world, 20):
    assert task.goal.lower() in world.render(task, (), observation).lower()
