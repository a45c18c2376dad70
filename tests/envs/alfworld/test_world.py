import pickle
import re

import pytest
from shared import shared_path

from sdar_jax.envs import benchmark
from sdar_jax.envs.alfworld.expert import ObservingExpert
from sdar_jax.envs.alfworld.world import AlfworldWorld
from sdar_jax.envs.base import Exchange, Observation, ParsedAction

SMALL = {
  'size': 'small',
  'max_turns': 12,
  'prompt_style': 'compact',
  'parser': 'strict',
}
_ENTITY = re.compile(r'[a-z]+ \d+')


def episodes(world, count, kind='blind'):
  """Yields (task, history, observation, expert) before each turn."""
  for index in range(count):
    task = world.tasks('train')[index]
    env, expert, history = world.make_env(), world.expert(kind, index), []
    observation = env.reset(task)
    expert.reset(task, observation)
    for turn in range(world.max_turns):
      action = expert.plan(observation)[1]
      yield task, history, observation, expert
      if turn % 5 == 3:
        action = 'sing loudly'
      result = env.step(action)
      history.append(Exchange(observation.text, action))
      observation = result.observation
      expert.observe(action, observation)
      if result.done:
        break


def test_the_defaults_are_the_papers():
  world = AlfworldWorld()
  assert (world.max_turns, world.history_length) == (50, 2)
  assert (world.prompt_style, world.parser) == ('paper', 'reference')


def test_a_world_pickles_and_stays_itself():
  world = AlfworldWorld(**SMALL)
  copy = pickle.loads(pickle.dumps(world))
  assert copy.digest == world.digest
  assert copy.tasks('train')[3] == world.tasks('train')[3]
  assert world.skills_path.exists()


def test_official_games_are_the_same_kind_of_world():
  folder = str(shared_path('data/alfworld'))
  world = AlfworldWorld('official', folder)
  tasks = world.tasks('valid_seen')
  assert tasks is world.tasks('valid_seen') and len(tasks) == 140
  env, expert = world.make_env(), world.expert('likely')
  observation = env.reset(tasks[0])
  expert.reset(tasks[0], observation)
  assert expert.plan(observation)[1] in world.render(tasks[0], (), observation)


def test_the_digest_knows_every_setting():
  changes = [
    {},
    {'size': 'full'},
    {'train_tasks': 7},
    {'max_turns': 13},
    {'history_length': 3},
    {'prompt_style': 'paper'},
    {'parser': 'reference'},
  ]
  digests = [AlfworldWorld(**{**SMALL, **change}).digest for change in changes]
  assert len(set(digests)) == len(changes)


@pytest.mark.parametrize(
  ('key', 'value'),
  [('source', 'web'), ('prompt_style', 'long'), ('parser', 'loose')],
)
def test_a_wrong_setting_is_one_line(key, value):
  with pytest.raises(
    ValueError, match=rf"^config\.world\.{key}='{value}': must be .*$"
  ):
    AlfworldWorld(**{key: value})


def test_experts_by_kind():
  world = AlfworldWorld(**SMALL)
  assert world.expert('blind', 4).seed == 4
  assert type(world.expert('likely')) is ObservingExpert
  with pytest.raises(ValueError, match="expert 'wise'"):
    world.expert('wise')


@pytest.mark.parametrize('style', benchmark.STYLES)
def test_an_expert_in_the_answer_format_is_valid_in_both_parsers(style):
  for parser in ('reference', 'strict'):
    world = AlfworldWorld(**{**SMALL, 'prompt_style': style, 'parser': parser})
    for _, _, observation, expert in episodes(world, 5):
      thought, action = expert.plan(observation)
      response = f'<think>{thought}</think><action>{action}</action>'
      assert world.parse(response, observation) == ParsedAction(action, True)


def test_parsers_differ_on_inadmissible_actions():
  observation = Observation('', ('look',))
  response = '<think>x</think><action>fly</action>'
  assert AlfworldWorld(parser='reference').parse(response, observation).valid
  assert not AlfworldWorld(parser='strict').parse(response, observation).valid


def test_the_paper_prompt_shows_task_window_observation_and_actions():
  world = AlfworldWorld(size='small', history_length=2)
  seen = 0
  for task, history, observation, _ in episodes(world, 8):
    text = world.render(task, history, observation)
    assert task.goal in text and observation.text in text
    assert text.endswith(world.instruction)
    for action in observation.admissible:
      assert (f'\n- {action}\n' in text) == (action != 'help')
    for age, exchange in enumerate(reversed(history)):
      shown = f'you did: {exchange.action}\n' in text
      assert shown or age >= 2
    assert text.count('you did: ') == min(2, len(history))
    for tag in ('<think>', '</think>', '<action>', '</action>'):
      assert text.count(tag) == 1
    seen += len(history) > 2
  assert seen


def compact_lines(text):
  lines = text.split('\n')
  return lines[0], {line.split(' ', 1)[0]: line.split(' ', 1)[1] for line in lines[1:]}


def test_the_compact_prompt_offers_every_useful_action():
  world = AlfworldWorld(**SMALL)
  for task, history, observation, _ in episodes(world, 40):
    goal, lines = compact_lines(world.render(task, history, observation))
    assert goal == task.goal
    offered = set()
    for label in ('old', 'new'):
      if label in lines:
        offered |= {f'go to {name}' for name in _ENTITY.findall(lines[label])}
    if 'take' in lines:
      here = _ENTITY.match(lines['at']).group()
      offered |= {f'take {x} from {here}' for x in _ENTITY.findall(lines['take'])}
    if 'can' in lines:
      offered |= set(lines['can'].split(', '))
    left_out = set(observation.admissible) - offered
    assert offered <= set(observation.admissible)
    assert all(
      x.split()[0] in ('examine', 'look', 'inventory', 'help') for x in left_out
    )


def test_the_compact_prompt_says_only_what_was_read():
  world = AlfworldWorld(**SMALL)
  for task, history, observation, _ in episodes(world, 40):
    read = ' '.join([e.observation for e in history] + [observation.text])
    known = set(_ENTITY.findall(read))
    assert set(_ENTITY.findall(world.render(task, history, observation))) <= known


def test_the_compact_prompt_tells_searched_places_from_new_ones():
  world = AlfworldWorld(**SMALL)
  for task, history, observation, expert in episodes(world, 20):
    _, lines = compact_lines(world.render(task, history, observation))
    looked_into = set(expert.belief.contents)
    old = set(_ENTITY.findall(lines['old'])) if 'old' in lines else set()
    new = set(_ENTITY.findall(lines['new'])) if 'new' in lines else set()
    assert old <= looked_into and not new & looked_into
    assert old | new | {expert.belief.here} >= set(expert.belief.receptacles)


def test_the_compact_prompt_marks_what_did_nothing():
  world = AlfworldWorld(**SMALL)
  marked = 0
  for task, history, observation, _ in episodes(world, 10):
    _, lines = compact_lines(world.render(task, history, observation))
    assert ('did' in lines) == bool(history)
    for exchange in history[-2:]:
      failed = exchange.action == 'sing loudly'
      marked += failed
      assert (f'{exchange.action} ?' in lines['did']) == failed
  assert marked


def test_the_compact_prompt_keeps_hands_and_treatments():
  world = AlfworldWorld(**SMALL)
  states = set()
  for task, history, observation, expert in episodes(world, 40, 'likely'):
    _, lines = compact_lines(world.render(task, history, observation))
    held = expert.belief.holding
    assert ('hold' in lines) == bool(held)
    if held:
      assert lines['hold'].startswith(held)
      states |= set(lines['hold'].removeprefix(held).split())
  assert states == {'clean', 'hot', 'cool'}


@pytest.mark.parametrize('style', benchmark.STYLES)
def test_prompts_can_do_without_the_history(style):
  world = AlfworldWorld(**{**SMALL, 'prompt_style': style})
  for task, _, observation, _ in episodes(world, 5):
    text = world.render(task, (), observation)
    goes = [x[6:] for x in observation.admissible if x.startswith('go to ')]
    assert all(name in text for name in goes)
