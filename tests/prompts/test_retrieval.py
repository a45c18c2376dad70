"""Which skills come first: hand-computed rankings, wild text, and what is resumed."""

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.envs import base
from sdar_jax.prompts import bank_file, retrieval
from sdar_jax.prompts.retrieval import Retriever
from sdar_jax.prompts.skills import BY_METADATA, SkillError

TYPES = {'hat_shop': ('h1', 'h2'), 'Lamp': ('l1',), 'put2go': ('p1',)}
OBJECTS = {'cd': 'o1', 'table_lamp': 'o2', 'mug': 'o3'}
GOLDEN = ('o2', 'o3', 'h2', 'p1', 'h1', 'o1', 'g1', 'l1')
IDS = ('g1', 'h1', 'h2', 'l1', 'p1', 'o1', 'o2', 'o3')


def _bank(path, general=('g1',), task_types=TYPES, objects=OBJECTS, texts=None):
  """A bank of skills that are called what their ids are, unless `texts` has more."""

  def skill(name):
    text = (texts or {}).get(name, name)
    return {'id': name, 'title': name, 'principle': text, 'when': ''}

  record = {
    'schema': 1,
    'version': '1.0',
    'world': 'test',
    'license': 'Apache-2.0',
    'heading': '',
    'bullet': '',
    'general': [skill(name) for name in general],
    'task_types': {k: [skill(name) for name in v] for k, v in task_types.items()},
    'objects': {k: skill(name) for k, name in objects.items()},
  }
  file = path / 'bank.json'
  file.write_text(json.dumps(record))
  return bank_file.load(file)


@pytest.fixture(scope='module')
def bank(tmp_path_factory):
  return _bank(tmp_path_factory.mktemp('bank'))


def _task(goal='', task_id='task', **metadata):
  return base.Task(task_id, 'kind', goal, metadata, None)


def _ids(retriever, task=None, text=''):
  return tuple(skill.id for skill in retriever.order(task or _task(), text))


@pytest.mark.parametrize('kind', BY_METADATA)
def test_by_metadata_is_the_banks_own(bank, kind):
  metadata = {'task_type': 'hat_shop', 'object': 'mug'}
  retriever = Retriever(bank, kind)
  want = bank.retrieve(metadata, kind)
  assert retriever.order(_task(**metadata), 'lamp') == want
  assert retriever.by_metadata and not Retriever(bank, 'ucb').by_metadata
  with pytest.raises(SkillError, match='task metadata lacks'):
    retriever.order(_task(), '')


def test_all_kinds_are_there():
  others = ('keywords', 'similar', 'ucb', 'random')
  assert retrieval.RETRIEVALS == ('task', 'task+object', 'all', *others)


@pytest.mark.parametrize(
  'goal, found',
  [
    ('find that thing', ('h1', 'h2')),  # 'hat' is in 'that'.
    ('LAMP!', ('l1', 'o2')),
    ('a table', ('o2',)),  # Any word of a name.
    ('a cd, put to use', ('p1',)),  # 'cd' and 'go' are too short to look for.
    ('go', ()),
    ('shopping for smugglers', ('h1', 'h2', 'o3')),
    ('', ()),
  ],
)
def test_keywords_by_hand(bank, goal, found):
  assert _ids(Retriever(bank, 'keywords'), _task(goal)) == (*found, 'g1')


def test_scope_of_keywords(bank):
  """The reference looks at the page, and so sees something else every turn."""
  task, pages = _task('buy a lamp'), ('what is that', 'mug', 'nothing')
  goal = Retriever(bank, 'keywords', keyword_scope='goal')
  assert {_ids(goal, task, page) for page in pages} == {('l1', 'o2', 'g1')}
  prompt = Retriever(bank, 'keywords', keyword_scope='prompt')
  want = [('h1', 'h2', 'g1'), ('o3', 'g1'), ('g1',)]
  assert [_ids(prompt, task, page) for page in pages] == want


def test_keywords_may_find_nothing(tmp_path):
  retriever = Retriever(_bank(tmp_path, general=()), 'keywords')
  assert retriever.order(_task('nothing'), 'mug') == ()


def _words(name):
  word, out = '', []
  for letter in [*name, ' ']:
    if letter.isalpha():
      word += letter
    else:
      out, word = [*out, word], ''
  return out


@settings(max_examples=60, deadline=None)
@given(
  names=st.lists(st.text('abcAB1_- ', min_size=1, max_size=8), min_size=1, unique=True),
  goal=st.text('abcAB1_- ', max_size=20),
)
def test_keywords_in_wild_names(names, goal, tmp_path_factory):
  types = {name: (f'skill {i}',) for i, name in enumerate(names)}
  path = tmp_path_factory.mktemp('wild')
  retriever = Retriever(_bank(path, task_types=types, objects={}), 'keywords')
  want = []
  for i, name in enumerate(names):
    words = [word.lower() for word in _words(name) if len(word) >= 3]
    if any(goal.lower().count(word) for word in words):
      want.append(f'skill {i}')
  assert _ids(retriever, _task(goal)) == (*want, 'g1')


def test_similarity_by_hand():
  """ln 2 is the weight of a word that two of three texts have, 2 ln 2 of one's own."""
  similarity = retrieval.Similarity(['red mug', 'red_Red pan', 'blue'])
  # As multiples of ln 2: (red 1, mug 2), (red 2, pan 2), (blue 2).
  assert similarity.of('Red, red mug?') == pytest.approx([6 / 40**0.5, 0.5, 0.0])
  assert similarity.of('red newt') == pytest.approx([5**-0.5, 2**-0.5, 0.0])
  assert similarity.of('blue blue') == pytest.approx([0.0, 0.0, 1.0])
  assert similarity.of('newt') == similarity.of('') == [0.0, 0.0, 0.0]


def test_the_order_of_words_does_not_break_a_tie():
  """Rounding must not: sums of eleven unequal weights, in many orders."""
  words = [word for i, word in enumerate('abcdefghijk') for _ in range(i + 1)]
  texts = ['a b c', 'c d e', 'e f g', 'g h i']  # Unequal rarities.
  for seed in range(40):
    random.Random(seed).shuffle(words)
    texts.append(' '.join(words))
  assert len(set(retrieval.Similarity(texts).of(' '.join(words))[4:])) == 1


def test_a_single_text_can_be_similar():
  assert retrieval.Similarity(['red mug']).of('mug') == pytest.approx([0.5**0.5])
  assert retrieval.Similarity(['!']).of('mug') == [0.0]


def test_similar_skills_come_likest_first(tmp_path):
  texts = {'g1': 'red red pan', 'h1': 'blue', 'h2': 'blue', 'l1': 'red mug'}
  retriever = Retriever(_bank(tmp_path, texts=texts), 'similar')
  assert _ids(retriever, _task('a red mug')) == ('l1', 'g1')
  assert _ids(retriever, _task('the red pan')) == ('g1', 'l1')
  assert _ids(retriever, _task('blue')) == ('h1', 'h2')  # Equal: the bank's order.
  assert _ids(retriever, _task('the red pan', tool='mug_pan')) == ('g1', 'l1')
  assert _ids(retriever, _task(tool='mug')) == ('l1',)
  assert _ids(retriever, _task('nothing'), 'red mug') == ()


_words_of_few = st.lists(st.sampled_from('a b c d'.split()), max_size=6).map(' '.join)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(_words_of_few, min_size=1, max_size=6), query=_words_of_few)
def test_similarity_against_loops(texts, query):
  vocabulary = sorted({word for text in texts for word in text.split()})

  def vector(text):
    counts = [text.split().count(word) for word in vocabulary]
    having = [sum(w in t.split() for t in texts) for w in vocabulary]
    return np.array(counts) * np.log((1 + len(texts)) / np.array(having))

  got = retrieval.Similarity(texts).of(query)
  asked = vector(query)
  for text, value in zip(texts, got, strict=True):
    norms = np.linalg.norm(asked) * np.linalg.norm(vector(text))
    want = asked @ vector(text) / norms if norms else 0.0
    assert value == pytest.approx(want, abs=1e-12)
  for (a, x), (b, y) in itertools.combinations(zip(texts, got), 2):
    if sorted(a.split()) == sorted(b.split()):
      assert x == y  # Bit for bit, or the tie would not be one.


EPISODES = ((('h1', 'h2'), True), (('h1',), False), (('h2',), True), (('l1',), False))


@pytest.mark.parametrize(
  'ucb_coef, ranking',
  [
    # Means 1/2, 1, 0 of h1, h2, l1; n = 2, 2, 1; N = 5; sqrt(ln 5 / n) = .897, 1.269.
    (0.0, ('h2', 'h1', 'l1')),
    (1.3, ('h2', 'h1', 'l1')),  # .500 + 1.3 * .897 = 1.666 > 1.3 * 1.269 = 1.649
    (1.4, ('h2', 'l1', 'h1')),  # .500 + 1.4 * .897 = 1.756 < 1.4 * 1.269 = 1.776
    (2.6, ('h2', 'l1', 'h1')),  # 1.0 + 2.6 * .897 = 3.332 > 2.6 * 1.269 = 3.298
    (2.8, ('l1', 'h2', 'h1')),  # 1.0 + 2.8 * .897 = 3.512 < 2.8 * 1.269 = 3.552
  ],
)
def test_ucb_by_hand(bank, ucb_coef, ranking):
  retriever = Retriever(bank, 'ucb', ucb_coef=ucb_coef)
  assert _ids(retriever) == IDS
  retriever.learn(EPISODES)
  fresh = tuple(name for name in IDS if name not in ranking)
  assert _ids(retriever) == fresh + ranking


def test_ucb_counts_an_id_once_per_episode_and_knows_only_skills(bank):
  one, other = Retriever(bank, 'ucb'), Retriever(bank, 'ucb')
  one.learn(EPISODES)
  other.learn([(ids * 3 + ('sibling/1', 'plain'), won) for ids, won in EPISODES])
  assert other.state() == one.state()
  assert one.state()['shown'] == {'h1': 2, 'h2': 2, 'l1': 1}
  assert one.state()['successes'] == {'h1': 1, 'h2': 2, 'l1': 0}


def test_ucb_learns_episode_by_episode_as_all_at_once(bank):
  one, other = Retriever(bank, 'ucb'), Retriever(bank, 'ucb')
  one.learn(EPISODES)
  for episode in EPISODES:
    other.learn([episode])
  assert other.state() == one.state() and _ids(other) == _ids(one)


def test_random_is_a_permutation_that_step_and_task_decide(bank):
  first, second = Retriever(bank, 'random', seed=3), Retriever(bank, 'random', seed=3)
  orders = {}
  for step, task_id in itertools.product(range(4), ('a', 'b')):
    for retriever in (first, second):
      retriever.begin_step(step)
    order = _ids(first, _task('x', task_id), 'x')
    random.seed(step)
    np.random.seed(step)
    assert order == _ids(second, _task('y', task_id, object='z'), 'y')
    assert sorted(order) == sorted(IDS)
    orders[step, task_id] = order
  assert len(set(orders.values())) == 8
  first.begin_step(1)
  assert _ids(first, _task(task_id='a')) == orders[1, 'a']
  assert _ids(Retriever(bank, 'random', seed=4), _task(task_id='a')) != orders[0, 'a']


def test_random_is_the_same_everywhere(bank):
  """A literal: runs of other versions and machines draw the same."""
  assert _ids(Retriever(bank, 'random'), _task(task_id='a')) == GOLDEN


def test_random_is_fair(tmp_path):
  bank = _bank(tmp_path, general=(), task_types={'abc': ('x', 'y', 'z')}, objects={})
  retriever, counts = Retriever(bank, 'random'), {}
  for step in range(1200):
    retriever.begin_step(step)
    order = _ids(retriever)
    counts[order] = counts.get(order, 0) + 1
  assert len(counts) == 6
  chi_squared = sum((count - 200) ** 2 / 200 for count in counts.values())
  assert chi_squared < 20.5  # 5 degrees of freedom: one in a thousand is above.


@pytest.mark.parametrize('kind', retrieval.RETRIEVALS)
def test_limit_keeps_the_first(bank, kind):
  task = _task('that red mug', task_type='Lamp', object='mug')
  whole = _ids(Retriever(bank, kind), task)
  for limit in range(1, len(whole) + 2):
    assert _ids(Retriever(bank, kind, limit=limit), task) == whole[:limit]


_shown = st.lists(st.tuples(st.lists(st.sampled_from(IDS)), st.booleans()))


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(('ucb', 'random')), past=_shown, future=_shown)
def test_a_resumed_retriever_goes_on_the_same(kind, past, future, tmp_path_factory):
  bank = _bank(tmp_path_factory.mktemp('resumed'))
  running = Retriever(bank, kind, ucb_coef=0.7)
  running.begin_step(5)
  running.learn(past)
  resumed = Retriever(bank, kind, ucb_coef=0.7)
  resumed.restore(json.loads(json.dumps(running.state())))
  for retriever in (running, resumed):
    retriever.learn(future[:1])
  assert _ids(resumed) == _ids(running)
  for retriever in (running, resumed):
    retriever.begin_step(6)
    retriever.learn(future[1:])
  assert json.dumps(resumed.state()) == json.dumps(running.state())
  assert _ids(resumed) == _ids(running)


def test_restoring_replaces_what_was_there(bank):
  retriever, fresh = Retriever(bank, 'ucb'), Retriever(bank, 'ucb').state()
  retriever.learn(EPISODES)
  state = retriever.state()
  retriever.learn(EPISODES)
  assert state['shown'] == {'h1': 2, 'h2': 2, 'l1': 1}  # A copy.
  retriever.restore(fresh)
  assert retriever.state() == fresh and _ids(retriever) == IDS


@pytest.mark.parametrize(
  'state, complaint',
  [
    ({}, 'retrieval state has []: must have '),
    ({'step': 0, 'shown': {'q9': 1}, 'successes': {}}, "no skill 'q9'"),
    ({'step': 0, 'shown': {}, 'successes': {'q9': 1}}, 'set config.skills.path'),
  ],
)
def test_a_state_that_is_not_this_banks(bank, state, complaint):
  with pytest.raises(SkillError) as error:
    Retriever(bank, 'ucb').restore(state)
  assert complaint in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  'values, complaint',
  [
    ({'kind': 'best'}, "config.skills.retrieval='best': must be one of ('task', "),
    ({'keyword_scope': 'page'}, "config.skills.keyword_scope='page': must be one of"),
    ({'limit': -1}, 'config.skills.limit=-1: must be'),
    ({'ucb_coef': -0.5}, 'config.skills.ucb_coef=-0.5: must be'),
    ({'ucb_coef': math.nan}, 'config.skills.ucb_coef=nan: must be'),
    ({'ucb_coef': math.inf}, 'config.skills.ucb_coef=inf: must be'),
  ],
)
def test_wrong_settings(bank, values, complaint):
  with pytest.raises(SkillError) as error:
    Retriever(bank, **{'kind': 'ucb', **values})
  assert complaint in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  'kind, scope, goals, nothing',
  [
    ('keywords', 'goal', ['buy a lamp', 'find it'], ''),  # One of the type is enough.
    ('keywords', 'goal', ['find it', 'take it'], 'find it'),
    ('keywords', 'prompt', ['find it'], ''),  # The prompt is not there yet.
    ('similar', 'goal', ['where is it'], 'where is it'),
    ('random', 'goal', ['where is it'], ''),
  ],
)
def test_a_bank_without_a_word_for_a_type_of_task_is_refused(
  tmp_path, kind, scope, goals, nothing
):
  bank = _bank(tmp_path, general=())
  retriever = Retriever(bank, kind, keyword_scope=scope)
  tasks = [_task(goal, f'task {i}') for i, goal in enumerate(goals)]
  if not nothing:
    retriever.check(tasks)
    return
  with pytest.raises(SkillError) as caught:
    retriever.check(tasks)
  line = str(caught.value)
  assert line.startswith(f'config.skills.retrieval={kind!r}: ') and '\n' not in line
  assert "type 'kind'" in line and nothing in line
  Retriever(_bank(tmp_path), 'keywords').check(tasks)  # General skills are enough.


def test_an_unknown_type_of_task_is_found_before_it_is_played(bank):
  tasks = [_task(task_type='Lamp'), _task(task_type='bed')]
  with pytest.raises(SkillError, match="no skills for task type 'bed'"):
    Retriever(bank, 'task').check(tasks)
