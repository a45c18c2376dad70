"""Problems and goals, against a naive evaluator that never grounds anything."""

import pickle
import random
import re

import oracle
import problems
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared_path

from sdar_jax.envs.alfworld import pddl_goal as goals
from sdar_jax.envs.alfworld.engine import AlfworldEnv, Game
from sdar_jax.envs.alfworld.official import OfficialGames
from sdar_jax.envs.alfworld.pddl import ProblemError, parse_problem
from sdar_jax.envs.base import Task

ROOM = problems.build('pick', 'Apple', 'Desk')
SMALL = problems.build(
  'pick',
  'Apple',
  'Desk',
  receptacles={name: problems.RECEPTACLES[name] for name in ('Desk_bar_1',)}
  | {'Fridge_bar_1': (1, 'openable')},
  objects={
    'Apple_bar_1': ('Fridge_bar_1', 'pickupable coolable isCool'),
    'Apple_bar_2': ('Desk_bar_1', 'pickupable coolable'),
    'Mug_bar_1': ('Desk_bar_1', 'pickupable coolable'),
    'Pot_bar_1': ('Desk_bar_1', ''),
  },
)
SPARSE = '(exists (?a ?b ?c ?d - object) (nosuch ?a ?b ?c ?d))'  # No end, and no case.
MANY = '(and (x a)' + '(isHot ?a)' * 999 + ')'
ENDLESS = f'(exists (?a ?b ?c - object) {MANY})'  # Few cases with many conditions.
EXPLOSIVE = '(forall (?a ?b ?c ?d ?e - object) (holds ?a ?e))'


def nested(text):
  """S-expressions by recursion on a list of tokens."""
  tokens = re.findall(r'[()]|[^\s()]+', text)

  def read():
    token = tokens.pop(0)
    if token != '(':
      return token
    items = []
    while tokens[0] != ')':
      items.append(read())
    tokens.pop(0)
    return items

  return read()


class Naive:
  """Evaluates a goal on a running environment, trying every object."""

  def __init__(self, text, goal=None, root='object'):
    self.root = root
    sections = {part[0]: part[1:] for part in nested(text.lower())[2:]}
    words = sections[':objects']
    self.types = dict(zip(words[::3], words[2::3]))
    self.facts = {tuple(fact) for fact in sections[':init']}
    self.goal = nested(goal.lower()) if goal else sections[':goal'][0]

  def true(self, env):
    return self._true(self.goal, {}, env)

  def _true(self, node, bound, env):
    head, *rest = node
    if head == 'and':
      return all(self._true(part, bound, env) for part in rest)
    if head == 'or':
      return any(self._true(part, bound, env) for part in rest)
    if head == 'not':
      return not self._true(rest[0], bound, env)
    if head == 'imply':
      return not self._true(rest[0], bound, env) or self._true(rest[1], bound, env)
    if head in ('exists', 'forall'):
      (name, _, kind, *others), body = rest
      inner = [head, others, body] if others else body
      quantifier = any if head == 'exists' else all
      return quantifier(
        self._true(inner, {**bound, name: value}, env)
        for value, its in self.types.items()
        if kind in (its, self.root)
      )
    words = tuple(bound[word] if word[0] == '?' else word for word in rest)
    if head == '=':
      return words[0] == words[1]
    state = env.state
    if head == 'inreceptacle':
      return words[1] in state.contents and words[0] in state.contents[words[1]]
    if head == 'holds':
      return words == (env.problem.agent, state.holding)
    if head == 'atlocation':
      return words == (env.problem.agent, state.location)
    if head in goals.FLAGS:
      return words[0] in state.flags[head]
    return (head, *words) in self.facts


def walked(text, seed, steps, goal='do it.'):
  """An environment at every point of a random walk."""
  env, rng = AlfworldEnv(), random.Random(seed)
  admissible = env.reset(Task('t', '', goal, {}, Game(text, goal))).admissible
  yield env
  for _ in range(steps):
    admissible = env.step(rng.choice(admissible)).observation.admissible
    yield env


@pytest.mark.parametrize('name, text, script', problems.rooms())
def test_goals_of_rooms_agree_with_the_naive_evaluator(name, text, script):
  naive = Naive(text, root=None)
  for env in walked(text, 3, 60):
    ways = oracle.alternatives(env.problem.goal)
    reached = any(
      all(goals.satisfied(literal, env.state.holds) for literal in way) for way in ways
    )
    assert env.won == naive.true(env) == reached


def test_every_type_of_goal_is_reached():
  plans = {
    'pick': 'go to fridge 1/open fridge 1/take apple 2 from fridge 1/go to desk 1/'
    'move apple 2 to desk 1',
    'heat': 'go to countertop 1/take apple 1 from countertop 1/go to microwave 1/'
    'heat apple 1 with microwave 1/go to desk 1/move apple 1 to desk 1',
    'inner': 'take pot 1 from stoveburner 1/go to countertop 1/move pot 1 to countertop'
    ' 1/go to stoveburner 3/take pot 2 from stoveburner 3/go to countertop 1/'
    'move pot 2 to countertop 1',
    'look': 'go to desk 1/take mug 1 from desk 1/use desklamp 1',
    'toggle': 'go to countertop 1/use lamp 1/take mug 1 from countertop 1',
    'small': 'go to fridge 1/open fridge 1/take winebottle 1 from fridge 1/'
    'go to desk 1/move winebottle 1 to desk 1',
  }
  for name, text, _ in problems.rooms():
    env = AlfworldEnv()
    env.reset(Task(name, '', '', {}, Game(text, 'x.')))
    *early, last = [env.step(command) for command in plans[name].split('/')]
    assert not any(result.done or result.reward for result in early), name
    assert last.done and last.success and last.reward == 1.0, name


NAMES = ('Apple_bar_1', 'Apple_bar_2', 'Mug_bar_1', 'Pot_bar_1', '?o')
PLACES = ('Desk_bar_1', 'Fridge_bar_1', '?r')
atoms = st.one_of(
  st.builds('(inReceptacle {} {})'.format, *map(st.sampled_from, (NAMES, PLACES))),
  st.builds('(holds agent1 {})'.format, st.sampled_from(NAMES)),
  st.builds('(objectType {} AppleType)'.format, st.sampled_from(NAMES)),
  st.builds('(receptacleType {} DeskType)'.format, st.sampled_from(PLACES)),
  st.builds('(isCool {})'.format, st.sampled_from(NAMES)),
  st.builds('(opened {})'.format, st.sampled_from(PLACES)),
  st.builds('(= ?o {})'.format, st.sampled_from(NAMES)),
)
formulas = st.recursive(
  atoms,
  lambda inner: st.one_of(
    st.builds('(and {} {})'.format, inner, inner),
    st.builds('(or {} {})'.format, inner, inner),
    st.builds('(not {})'.format, inner),
    st.builds('(imply {} {})'.format, inner, inner),
    st.builds('(exists (?o - otype) {})'.format, inner),
    st.builds('(exists (?r - receptacle) {})'.format, inner),
    st.builds('(forall (?r - receptacle) {})'.format, inner),
  ),
  max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(formulas, st.integers(0, 9))
def test_any_goal_agrees_with_the_naive_evaluator(formula, seed):
  goal = f'(exists (?o - object ?r - receptacle) {formula})'
  text = SMALL[: SMALL.index('(:goal')] + f'(:goal {goal}))'
  naive = Naive(text)
  for env in walked(text, seed, 6):
    assert env.won == naive.true(env)


@pytest.mark.parametrize(
  'goal, at_the_start',
  [
    ('(forall (?r - receptacle) (inReceptacle Apple_bar_2 ?r))', False),
    ('(exists (?r - receptacle) (inReceptacle Apple_bar_2 ?r))', True),
    ('(forall (?r - receptacle) (not (opened ?r)))', True),
    ('(imply (opened Fridge_bar_1) (isHot Pot_bar_1))', True),
    ('(imply (not (opened Fridge_bar_1)) (isHot Pot_bar_1))', False),
    (
      '(exists (?o - object) (and (objectType ?o PotType)'
      ' (exists (?o - object) (and (objectType ?o MugType) (inReceptacle ?o'
      ' Desk_bar_1)))))',
      True,
    ),
    ('(exists (?o - location) (receptacleAtLocation Desk_bar_1 ?o))', True),
    ('(exists (?o - otype) (receptacleAtLocation Desk_bar_1 ?o))', False),
    ('(exists (?o - object) (canContain DeskType ?o))', True),
    ('(forall (?r - receptacle) (exists (?o - object) (inReceptacle ?o ?r)))', True),
  ],
)
def test_quantifiers(goal, at_the_start):
  text = SMALL[: SMALL.index('(:goal')] + f'(:goal {goal}))'
  naive = Naive(text)
  found = [(env.won, naive.true(env)) for env in walked(text, 0, 40)]
  assert found[0][0] is at_the_start and all(ours == truth for ours, truth in found)


def test_official_goals_agree_with_the_naive_evaluator():
  tasks = OfficialGames(str(shared_path('data/alfworld')), 'valid_seen')
  for index in range(0, len(tasks), 20):
    text = tasks[index].payload.pddl_problem
    problem, naive = parse_problem(text), Naive(text, root=None)
    for way in list(oracle.alternatives(problem.goal))[:1]:
      env = AlfworldEnv()
      env.reset(tasks[index])
      assert not env.won and not naive.true(env)
      for predicate, first, *others in way:
        if predicate == 'inreceptacle':
          env.state.contents[others[0]].add(first)
        elif predicate == 'holds':
          env.state.holding = others[0]
        elif predicate == 'atlocation':
          env.state.location = others[0]
        else:
          env.state.flags[predicate].add(first)
      assert env.won and naive.true(env), tasks[index].task_id


def test_goals_are_small_and_do_not_depend_on_hash_seeds():
  problem = parse_problem(problems.build('two', 'Pot', 'StoveBurner'))
  ways = list(oracle.alternatives(problem.goal))
  assert len(ways) == 2 * 3
  assert ways[0] == (
    ('inreceptacle', 'pot_bar_1', 'stoveburner_bar_1'),
    ('inreceptacle', 'pot_bar_2', 'stoveburner_bar_1'),
  )


def test_problem_pickles_and_is_shared_not_changed():
  problem = parse_problem(ROOM)
  before = pickle.dumps(problem)
  env = AlfworldEnv()
  task = Task('t', '', '', {}, Game(problem, 'x.'))
  rng, admissible = random.Random(0), env.reset(task).admissible
  for _ in range(300):
    admissible = env.step(rng.choice(admissible)).observation.admissible
  assert env.problem is problem and problem == pickle.loads(before)


def test_comments_and_case_do_not_matter():
  shouted = ROOM.replace('(:init', '; a note (with (brackets\n(:init').upper()
  assert parse_problem(shouted) == parse_problem(ROOM)


@pytest.mark.parametrize(
  'old, new, message',
  [
    ('(:init', '(:start', 'no (:init'),
    ('(:goal', '(:aim', 'no (:goal'),
    ('(:objects', '(:things', 'no (:objects'),
    ('(atLocation agent1 loc_bar_0)', '', 'exactly one agent'),
    ('(openable Fridge_bar_1)', '(openable Fridge_bar_9)', 'not declared'),
    ('(openable Fridge_bar_1)', '(openable)', 'wrong length'),
    (
      '(receptacleAtLocation Desk_bar_1 loc_bar_7)',
      '(receptacleAtLocation Desk_bar_1 loc_bar_7)'
      '(receptacleAtLocation Desk_bar_1 loc_bar_6)',
      'more than one location',
    ),
    ('(:goal (and', '(:goal (and (checked Desk_bar_1)', 'cannot decide'),
    ('(:goal (and', '(:goal (and (isHot ?nobody)', 'cannot read'),
    ('(:goal (and', '(:goal ((((and', 'unclosed'),
    ('(:goal (and', '(:goal ' + '(not ' * 60 + '(and', 'nested'),
    ('(:goal (and', '(:goal (and ((x))', 'expected a formula'),
    ('(:goal (and', '(:goal (and ' + EXPLOSIVE, 'more than 50000 cases'),
    ('(:goal (and', '(:goal (and ' + SPARSE, 'tries more than 100000'),
    ('(:goal (and', '(:goal (and ' + ENDLESS, 'more than'),
    ('agent1 - agent', '- agent', ':objects'),
    (
      'agent1 - agent',
      'agent1 - agent ' + ' '.join(f'x{i} - object' for i in range(5000)),
      'objects, more than 5000',
    ),
    (
      '(openable Fridge_bar_1)',
      ''.join(f'(x{i} Fridge_bar_1)' for i in range(50_000)),
      'facts, more than 50000',
    ),
    ('(openable Fridge_bar_1)', '(not (openable Fridge_bar_1))', 'only list facts'),
  ],
)
def test_damage_is_named_in_one_line(old, new, message):
  assert old in ROOM
  with pytest.raises(ProblemError, match=re.escape(message)) as caught:
    parse_problem(ROOM.replace(old, new, 1))
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 200


def test_game_names_its_source_when_damaged():
  game = Game('(define', 'x.', source='official/valid_seen/a/b')
  with pytest.raises(ProblemError, match='official/valid_seen/a/b: PDDL'):
    AlfworldEnv().reset(Task('t', '', '', {}, game))
  with pytest.raises(ValueError, match="grammar 'older'"):
    Game(ROOM, 'x.', grammar='older')


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_cut_or_shuffled_problems_never_raise_anything_else(data):
  cut = data.draw(st.integers(0, len(ROOM)))
  junk = data.draw(st.text('()?-: ;\nabloc_1', max_size=30))
  try:
    parse_problem(ROOM[:cut] + junk + ROOM[data.draw(st.integers(cut, len(ROOM))) :])
  except ProblemError as error:
    assert '\n' not in str(error)
