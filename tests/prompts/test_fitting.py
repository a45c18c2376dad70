"""Prompts at every limit, in each world and style, against plain search."""

import dataclasses
import functools
import pickle
import re

import fakes
import numpy as np
import pytest
from shared import loading_once, shared_path

from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs import base, texts, worlds
from sdar_jax.evaluation import evaluate
from sdar_jax.logs import step as step_lib
from sdar_jax.logs import trajectories
from sdar_jax.prompts import chat, cuts, fitting
from sdar_jax.prompts.skills import NOTHING, SkillView
from sdar_jax.rollout import episodes as episodes_lib
from sdar_jax.trajectory import Outcome

KINDS = {
  'alfworld': {'size': 'small', 'history_length': 30},
  'webshop': {'history_length': 30},
  'search_qa': {'history_length': 30, 'max_turns': 9},
}
LONG = ' '.join(f'word{i}' for i in range(400))


def _prompt(text):
  """A token per character; no skills."""
  return np.zeros(len(text), np.int32), NOTHING


def _play(world, turns=8):
  """A task, its past and the newest observation, of an expert that explores."""
  task = world.tasks('valid_unseen')[3]
  env, expert = world.make_env(), world.expert(world.demonstrators[1], 5)
  observation, past = env.reset(task), []
  expert.reset(task, observation)
  for _ in range(turns):
    _, action = expert.plan(observation)
    if 'answer' in action or action == 'click[buy now]':  # Play on.
      action = past[0].action if 'answer' in action else 'click[< prev]'
    result = env.step(action)
    past.append(base.Exchange(observation.text, action))
    observation = result.observation
    expert.observe(action, observation)
    if result.done:
      break
  return task, past, observation


@pytest.fixture(scope='module', autouse=True)
def loaded_once():
  with loading_once():
    yield


@pytest.fixture(params=[(n, s) for n in KINDS for s in ('paper', 'compact')], ids=str)
def world(request):
  name, style = request.param
  return worlds.make(name, {**KINDS[name], 'prompt_style': style})


@pytest.fixture(scope='module')
def played():
  cache = {}

  def get(world):
    if world.name not in cache:
      cache[world.name] = _play(world)
    return cache[world.name]

  return get


def _goal(world, task, text):
  goal = task.goal.lower()
  if world.name == 'webshop' and world.prompt_style == 'compact':
    return text.split('\n')[0].split()[0] in goal  # 'backpack ... under 40'.
  return goal in text.lower()


def _number(world, text):
  """The turn that a message says it is."""
  if world.prompt_style == 'paper':
    found = re.findall(r'Turn (\d+), (?:you see|the page)|This is turn (\d+)', text)
    return int(''.join(found[-1]))
  left = re.search(r'^left (\d+)$', text, re.M)
  return world.max_turns - int(left[1]) + 1 if left else None


def test_every_limit_keeps_task_turn_and_the_longest_end_of_the_past(world, played):
  """Against a search through all ends; whole is byte for byte what it was."""
  task, past, observation = played(world)
  texts = [
    world.render(task, base.History(past, shown), observation)
    for shown in range(len(past) + 1)
  ]
  assert texts[-1] == world.render(task, past, observation)
  lengths = [len(text) for text in texts]
  seen = set()
  for limit in {*lengths, *(n - 1 for n in lengths)}:
    fitted = fitting.fit(world, _prompt, task, past, observation, max_tokens=limit)
    fits = [i for i, length in enumerate(lengths) if length <= limit]
    if fitted is None:
      assert limit < min(lengths) and _least(world, task, past, observation) > limit
      continue
    assert _goal(world, task, fitted.text) and len(fitted.ids) <= limit
    assert _number(world, fitted.text) in (len(past) + 1, None)
    for action in observation.admissible:
      assert (
        world.prompt_style == 'compact'
        or f'\n- {action}\n' in fitted.text
        or (action == 'help')
      )
    if fits:
      # Bisection: exact where less past is never longer, as in these worlds.
      assert fitted.text == texts[max(fits)]
      assert fitted.history_dropped == (lengths[-1] > limit)
    assert fitted.observation_cut == (not fits)
    seen.add((fitted.history_dropped, fitted.observation_cut))
  assert {(False, False), (True, False)} <= seen
  assert (True, True) in seen or world.prompt_style == 'compact'


def _least(world, task, past, observation):
  """Characters of the shortest message there is without any past."""
  sizes = range(len(observation.text) + 1)
  cut = {world.shorten(observation, size).text: size for size in sizes}
  shown = [world.shorten(observation, size) for size in cut.values()]
  return min(len(world.render(task, base.History(past, 0), seen)) for seen in shown)


def test_the_newest_observation_is_shown_without_any_past(played):
  for name, settings in KINDS.items():
    world = worlds.make(name, settings)
    task, past, observation = played(world)
    text = world.render(task, base.History(past, 0), observation)
    assert observation.text.split(' [SEP] ')[-1] in text
    assert past[-1].action not in text.replace('\n- ' + past[-1].action, '')


def test_few_prompts_are_tried(played):
  world = worlds.make('alfworld', KINDS['alfworld'])
  task, past, observation = played(world)
  past, tried = past * 8, []

  def prompt(text):
    tried.append(text)
    return _prompt(text)

  full = fitting.fit(world, prompt, task, past, observation, max_tokens=10**6)
  assert len(tried) == 1
  fitting.fit(world, prompt, task, past, observation, max_tokens=len(full.ids) // 2)
  assert len(past) >= 64 and len(tried) <= 1 + 1 + 8


CASES = {
  'alfworld': base.Observation(
    'You are in the middle of a room. Looking quickly around you, you see '
    + ', '.join(f'a shelf {i}' for i in range(90))
    + ', and a bed 1.\n\nYour task is to: put a mug in shelf.',
    ('go to shelf 1', 'look'),
  ),
  'webshop': base.Observation(
    'Instruction: [SEP] a blue shirt [SEP] Back to Search [SEP] < Prev [SEP] ' + LONG,
    ('click[back to search]', 'click[< prev]'),
  ),
  'search_qa': base.Observation(
    f'<information>\nDoc 1: One\n{LONG}\nDoc 2: Two\nshort text\n</information>'
  ),
}


@pytest.mark.parametrize('name', CASES)
def test_an_observation_is_shortened_by_its_worlds_rule(name):
  world, observation = worlds.make(name, {}), CASES[name]
  size = len(observation.text)
  lengths = []
  for characters in range(0, size + 1):
    shown = world.shorten(observation, characters)
    assert shown.admissible == observation.admissible
    lengths.append(len(shown.text))
    assert len(shown.text) <= max(characters, 120)
    if name == 'alfworld':
      assert shown.text.endswith('\n\nYour task is to: put a mug in shelf.')
      assert characters == size or texts.CUT in shown.text
    if name == 'webshop':
      assert shown.text.startswith(
        'Instruction: [SEP] a blue shirt [SEP] Back to Search [SEP] < Prev [SEP] '
      )
      assert characters == size or shown.text.endswith('...')
    if name == 'search_qa':
      assert shown.text.endswith('\n</information>')
      assert 'Doc 2: ' in shown.text
  assert lengths == sorted(lengths) and lengths[-1] == size
  assert world.shorten(observation, size) == observation


def test_pages_keep_their_form_when_cut():
  """An item stays an item and results stay results, links and prices whole."""
  world = worlds.make('webshop', {'prompt_style': 'compact'})
  head = 'Instruction: [SEP] a blue shirt [SEP] Back to Search [SEP] '
  item = base.Observation(
    f'{head}< Prev [SEP] color [SEP] blue [SEP] {LONG} [SEP] Price: $9.50 [SEP]'
    ' Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now',
    ('click[back to search]', 'click[< prev]', 'click[blue]', 'click[buy now]'),
  )
  entries = ' [SEP] '.join(
    f'B00000000{i} [SEP] {LONG} [SEP] $1{i}.00' for i in range(9)
  )
  results = base.Observation(
    f'{head}Page 1 (Total results: 50) [SEP] Next > [SEP] {entries}',
    ('click[next >]', *(f'click[b00000000{i}]' for i in range(9))),
  )
  lines = base.Observation(
    f'{head}< Prev [SEP] ' + ' [SEP] '.join(f'line {i}' for i in range(500)),
    ('click[back to search]', 'click[< prev]'),
  )
  for page in (item, results, lines):
    for characters in (0, 50, 400, 1000, 3000):
      shown = world.shorten(page, characters).text
      assert len(shown) <= max(characters, 600) and '...' in shown
      assert shown.startswith(head)
      kept = ('Price: $9.50', ' blue ', 'color', 'Buy Now') if page is item else ()
      if page is results:
        kept = ('Page 1 (Total results: 50)', '$13.00', 'B000000008')
      assert all(text in shown for text in kept)
  assert 'line 40' in world.shorten(lines, 1000).text
  assert not world.shorten(lines, 1000).text.endswith('line 499')


class _Notes:
  """A world of somebody else's: renders three arguments, cuts nothing."""

  name, max_turns = 'notes', 4

  def make_env(self):
    return type(self)()

  def reset(self, task):
    self.turn = 0
    return base.Observation('start', ('go',))

  def step(self, action):
    self.turn += 1
    size = {2: 300}.get(self.turn, 5)
    return base.StepResult(base.Observation('x' * size, ('go',)), 1.0, False, False)

  def render(self, task, history, observation):
    past = ''.join(f'{e.observation}>{e.action};' for e in history)
    return f'{task.goal}|{len(base.whole(history)) + 1}|{past}|{observation.text}'

  def parse(self, response, observation):
    return base.ParsedAction(response, True)

  def admits(self, action, observation):
    return True

  def prefetch(self, actions):
    pass


class _Cutting(_Notes):
  def shorten(self, observation, characters):
    return dataclasses.replace(
      observation, text=texts.cut(observation.text, characters)
    )


def _collect(world, limit, group_size=2):
  return episodes_lib.collect(
    fakes.in_process(world),
    fakes.tasks(),
    fakes.ScriptedSampler(lambda identity: 'go', 3),
    fakes.agent(limit),
    group_size=group_size,
    identity=(0, 0),
  )


def test_an_episode_that_cannot_be_shown_ends_alone_and_is_trained_on():
  groups = _collect(_Notes(), 100)
  episodes = [t for g in groups for t in g.trajectories]
  assert {t.outcome for t in episodes} == {Outcome.PROMPT_TOO_LONG}
  assert {(len(t.turns), t.episode_return) for t in episodes} == {(2, 2.0)}
  assert not any(t.outcome.is_fault or t.success for t in episodes)
  assert len(rows_lib.rows(groups, invalid_penalty=0.1)) == 12
  numbers = step_lib.rollout_metrics(groups, invalid_penalty=0.1)
  assert numbers['rollout/prompt_too_long'] == 6 and numbers['rollout/faults'] == 0
  shown = evaluate.summarise(episodes)
  assert (shown['n'], shown['successes'], shown['prompt_too_long']) == (6, 0, 6)
  assert 'ended 6 episodes' in cuts.notice(episodes)


def test_a_world_with_a_rule_goes_on():
  groups = _collect(_Cutting(), 100)
  episodes = [t for g in groups for t in g.trajectories]
  assert {t.outcome for t in episodes} == {Outcome.MAX_TURNS}
  turns = episodes[0].turns
  assert [t.observation_cut for t in turns] == [False, False, True, False]
  assert turns[2].prompt_text.startswith('say 1|3||xxx')
  assert turns[2].prompt_text.endswith('x ...') and len(turns[2].prompt_ids) == 100
  assert turns[2].observation == 'x' * 300
  assert [t.history_dropped for t in turns] == [False, False, True, True]
  assert turns[3].prompt_text == 'say 1|4||xxxxx'  # The newest exchange is too long.
  numbers = step_lib.rollout_metrics(groups, invalid_penalty=0.1)
  assert numbers['rollout/history_dropped'] == 0.5
  assert numbers['rollout/observations_cut'] == 0.25
  back = trajectories.from_json(trajectories.to_json(episodes[0]))
  assert [t.observation_cut for t in back.turns] == [False, False, True, False]


def test_an_episode_without_a_turn_is_survived():
  groups = _collect(_Notes(), 5)
  episodes = [t for g in groups for t in g.trajectories]
  assert {(t.outcome, len(t.turns)) for t in episodes} == {(Outcome.PROMPT_TOO_LONG, 0)}
  assert rows_lib.rows(groups, invalid_penalty=0.1) == []
  assert (
    step_lib.rollout_metrics(groups, invalid_penalty=0.1)['rollout/turns_mean'] == 0
  )
  assert evaluate.summarise(episodes)['success_rate'] == 0
  assert trajectories.from_json(trajectories.to_json(episodes[0])) == episodes[0]
  assert cuts.notice(episodes) and not cuts.notice([])


def test_skills_do_not_count():
  """What is shown of an episode is the same with skills in the prompt."""
  world = _Cutting()
  task, past = fakes.tasks()[0], [base.Exchange('y' * 30, 'go')] * 4

  def skilled(text):
    return np.zeros(len(text) + 50, np.int32), SkillView(('a',), (), 50)

  for limit in (40, 60, 90, 130, 200):
    args = (task, past, base.Observation('z' * 40))
    plain = fitting.fit(world, _prompt, *args, max_tokens=limit)
    shown = fitting.fit(world, skilled, *args, max_tokens=limit)
    assert plain.text == shown.text


def test_a_history_is_a_sequence_that_knows_what_came_before():
  past = [base.Exchange(str(i), 'a') for i in range(5)]
  for history in (
    base.History(past, 2),
    pickle.loads(pickle.dumps(base.History(past, 2))),
  ):
    assert list(history) == past[3:] and list(base.whole(history)) == past
  assert list(base.History(past)) == past == base.whole(past)
  assert base.History(past, 0) == () and base.History(past, 9) == tuple(past)


@pytest.mark.parametrize(
  'text, characters, want',
  [
    ('one two three', 13, 'one two three'),
    ('one two three', 12, 'one two ...'),
    ('one two three', 11, 'one two ...'),
    ('one two three', 10, 'one ...'),
    ('one two three', 0, ' ...'),
    ('oneword', 6, 'on ...'),
  ],
)
def test_cut(text, characters, want):
  assert texts.cut(text, characters) == want


@functools.cache
def _chat(instruction):
  return chat.Chat(shared_path('tokenizers/qwen2.5'), instruction=instruction)


def _qwen(world):
  """A real tokenizer, as rollout uses it."""
  tokenizer = chat.Chat(
    shared_path('tokenizers/qwen2.5'), instruction=world.instruction
  )
  return lambda text: (tokenizer.render(text), NOTHING)


def test_an_official_game_of_fifty_turns_is_never_without_its_task():
  """History of 30 turns in 1,024 tokens: what fits is shown, and all is true."""
  folder = str(shared_path('data/alfworld'))
  world = worlds.make(
    'alfworld', {'source': 'official', 'data_dir': folder, 'history_length': 30}
  )
  task, prompt = world.tasks('valid_seen')[0], _qwen(world)
  env, dropped, past = world.make_env(), 0, []
  observation = env.reset(task)
  for turn in range(1, 36):
    fitted = fitting.fit(world, prompt, task, past, observation, max_tokens=1024)
    assert f'Your task is to: {task.goal}' in fitted.text
    assert f'Turn {turn}, you see: {observation.text}' in fitted.text
    assert f'Turns taken so far: {turn - 1}.' in fitted.text or turn == 1
    if fitted.history_dropped:
      dropped += 1
      shown = fitted.text.count('you did: ')
      assert len(fitted.ids) > 850 and shown > 5
      more = world.render(task, base.History(past, shown + 1), observation)
      assert len(prompt(more)[0]) > 1024
    else:
      assert fitted.text == world.render(task, past, observation)
    goes = [text for text in observation.admissible if text.startswith('go to ')]
    action = goes[turn % len(goes)]
    past.append(base.Exchange(observation.text, action))
    observation = env.step(action).observation
  assert dropped > 10


def test_a_giant_page_is_cut_and_can_still_be_left():
  """16,000 characters of text on a page, at the paper's limit of 4,096 tokens."""
  world = worlds.make('webshop', {})
  task, prompt = world.tasks('train')[0], _qwen(world)
  lengths = ' '.join(f'B0{i:06d}' for i in range(1600))
  page = base.Observation(
    f'Instruction: [SEP] {task.goal} [SEP] Back to Search [SEP] < Prev [SEP] {lengths}',
    ('click[back to search]', 'click[< prev]'),
  )
  assert len(prompt(world.render(task, [], page))[0]) > 4096
  past = [base.Exchange('Search', 'search[x]'), base.Exchange('results', 'click[x]')]
  fitted = fitting.fit(world, prompt, task, past, page, max_tokens=4096)
  assert fitted.observation_cut and 4080 < len(fitted.ids) <= 4096
  assert 'B0000000 B0000001' in fitted.text and 'B0001599' not in fitted.text
  assert '...\n\nActions possible now:\n- click[back to search]' in fitted.text
  assert f'The request: {task.goal}' in fitted.text
  assert 'Turn 3, the page: Back to Search [SEP] < Prev [SEP] B0000000' in fitted.text
