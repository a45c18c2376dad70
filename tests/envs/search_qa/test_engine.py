"""The engine: searches, answers, wasted turns, and the shared search behind it."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.envs.base import EnvironmentFault, EnvironmentTimeout, Task
from sdar_jax.envs.search_qa import engine
from sdar_jax.envs.search_qa.datasets import Question
from sdar_jax.envs.search_qa.retrieval.base import Passage, Searcher

TEXT = 'Ada Lovelace wrote\nabout  the engine. </information>'


class Parrot:
  """Finds what was asked for; fails on words that tell it to."""

  def __init__(self):
    self.batches = []

  def search_many(self, queries, topk):
    self.batches.append(list(queries))
    return [self.search(query, topk) for query in queries]

  def search(self, query, topk):
    if 'timeout' in query:
      return EnvironmentTimeout('timeout', query)
    if 'fail' in query:
      return EnvironmentFault('http_500', query)
    return tuple(Passage(f'{query} {i}', TEXT) for i in range(topk))


def searcher(**options):
  """A searcher over a parrot, which is opened at once and can be watched."""
  parrot = Parrot()
  return Searcher(lambda: parrot, **options), parrot


def started(search=None, question='Who wrote about it', golden=('Ada', 'the Countess')):
  env = engine.SearchQAEnv(search or searcher()[0])
  payload = Question('7', question, golden, 'nq')
  return env, env.reset(Task('nq/test/7', 'nq', question, {}, payload))


@pytest.mark.parametrize(
  'question, shown',
  [('Who', 'Who?'), ('Who?', 'Who?'), (' Who ? \n', 'Who ?'), ('Say.', 'Say.?')],
)
def test_the_first_observation_is_the_question(question, shown):
  _, observation = started(question=question)
  assert observation.text == shown and observation.admissible == ()


@pytest.mark.parametrize(
  'answer, success',
  [
    ('Ada', True),
    (' the ada! ', True),
    ('countess', True),
    ('Ada Lovelace', False),
    ('', False),
  ],
)
def test_an_answer_ends_the_episode(answer, success):
  env, _ = started()
  result = env.step(f'<answer>{answer}</answer>')
  assert (result.done, result.success, result.reward) == (True, success, float(success))


def test_a_search_shows_documents():
  env, _ = started()
  result = env.step('<search> engine </search>')
  text = 'Ada Lovelace wrote about the engine. </information>'
  assert result.observation.text == (
    f'<information>\nDoc 1: engine 0\n{text}\nDoc 2: engine 1\n{text}\n'
    f'Doc 3: engine 2\n{text}\n</information>'
  )
  assert (result.done, result.success, result.reward) == (False, False, 0.0)


@pytest.mark.parametrize(
  'action',
  [
    *('', ' ', '\x00', 'search[a]', '<search></search>', '<search> \n</search>'),
    *('a<search>b</search>', '<search>b', '<answer>', '</search>'),
    '<think>a</think><answer>b</answer>',
  ],
)
def test_other_text_wastes_a_turn(action):
  search, parrot = searcher()
  env, _ = started(search)
  result = env.step(action)
  assert result.observation.text == engine.NO_ACTION
  assert not result.done and not parrot.batches
  assert env.step('<answer>Ada</answer>').success


def test_the_last_turn_does_not_search():
  search, parrot = searcher()
  env, _ = started(search)
  for turn in range(engine.MAX_TURNS):
    result = env.step(f'<search>fail {turn}' if turn < 3 else '<search>fail</search>')
    assert not result.done
  assert result.observation.text == '' and not parrot.batches
  env, _ = started(search)
  for turn in range(3):
    env.step(f'<search>{turn}</search>')
  assert parrot.batches == [['0'], ['1'], ['2']]
  assert env.step('<answer>Ada</answer>').success


@settings(deadline=None)
@given(st.text().filter(lambda text: 'timeout' not in text and 'fail' not in text))
def test_wild_text_never_raises(text):
  env, _ = started()
  for action in (text, f'<search>{text}</search>', f'<answer>{text}</answer>'):
    env.step(action).observation.text.encode()


@settings(deadline=None)
@given(st.sampled_from(['search', 'answer']), st.text(min_size=1, max_size=50))
def test_actions_are_read_as_they_are_written(kind, text):
  stripped = text.strip()
  expected = (kind, stripped) if stripped or kind == 'answer' else ('', '')
  assert engine.read_action(engine.write_action(kind, text)) == expected


def test_long_queries_are_cut():
  kind, query = engine.read_action(f'<search>{"ab " * 1000}</search>')
  assert kind == 'search' and query == ('ab ' * 1000)[: engine.MAX_QUERY].strip()


@settings(deadline=None)
@given(
  st.lists(st.tuples(st.text(max_size=60), st.text(max_size=400)), min_size=1),
  st.integers(0, 900),
)
def test_documents_are_cut_fairly_and_read_back(documents, limit):
  passages = [Passage(title, text) for title, text in documents]
  shown = engine.read_documents(engine.format_documents(passages, limit))
  whole = [(' '.join(t.split()), ' '.join(x.split())) for t, x in documents]
  lengths = [len(title) + len(text) for title, text in whole]
  sizes = [len(passage.title) + len(passage.text) for passage in shown]
  assert len(shown) == len(whole) and sum(sizes) <= max(limit, 0)
  for passage, (title, text) in zip(shown, whole):
    assert title.startswith(passage.title) and text.startswith(passage.text)
    assert not passage.text or passage.title == title
  if sum(lengths) <= limit:
    assert sizes == lengths
  else:  # None is cut while a longer one is left, and no room is wasted.
    cap = max(sizes)
    assert all(size >= min(length, cap - 1) for size, length in zip(sizes, lengths))
    assert sum(min(length, cap + 1) for length in lengths) > limit


def test_surrogates_and_nothing_found():
  shown = engine.format_documents([Passage('\ud800', 'b\udfff')])
  assert shown == '<information>\nDoc 1: \ufffd\nb\ufffd\n</information>'
  assert engine.NO_DOCUMENTS in engine.format_documents([])
  assert engine.read_documents(engine.format_documents([])) == []
  assert engine.read_documents(engine.NO_ACTION) == []


def test_all_searches_of_a_turn_are_one_batch():
  search, parrot = searcher()
  actions = ['<search>a</search>', '<answer>x</answer>', '', '<search>b</search>']
  actions += ['<search> a </search>', '<search></search>']
  search.prefetch(engine.queries(actions))
  assert parrot.batches == [['a', 'b']]
  assert [search.search(q) for q in 'ab'] == [parrot.search(q, 3) for q in 'ab']
  assert len(parrot.batches) == 1
  search.prefetch(['b', 'c'])
  assert parrot.batches[1:] == [['c']]


def test_a_fault_meets_every_step_it_was_fetched_for_and_no_other():
  search, parrot = searcher()
  search.prefetch(['fail', 'ok', 'fail', 'timeout'])
  with pytest.raises(EnvironmentTimeout):
    search.search('timeout')
  assert search.search('ok')
  for _ in range(2):
    with pytest.raises(EnvironmentFault) as caught:
      search.search('fail')
    assert (caught.value.kind, caught.value.message) == ('http_500', 'fail')
  assert len(parrot.batches) == 1
  with pytest.raises(EnvironmentFault):
    search.search('fail')
  assert parrot.batches[1:] == [['fail']]
  search.prefetch(['fail'])
  search.prefetch(['ok'])
  with pytest.raises(EnvironmentFault):
    search.search('fail')
  assert parrot.batches[2:] == [['fail'], ['fail']]


def test_the_memory_is_bounded_and_changes_nothing():
  search, parrot = searcher(capacity=2)
  for query in ('a', 'b', 'a', 'c', 'a'):
    search.prefetch([query])
    assert search.search(query) == parrot.search(query, 3)
  assert parrot.batches == [['a'], ['b'], ['c']]  # b was the oldest, not a.
  search.prefetch(['d', 'e', 'f'])
  for query in 'def':  # A batch larger than the memory is kept for its turn.
    search.search(query)
  assert len(parrot.batches) == 4
  search.prefetch(['g'])
  search.search('f')
  search.search('d')
  assert parrot.batches[4:] == [['g'], ['d']]


def make_parrot():
  return Parrot()


def test_environments_and_searchers_pickle():
  env, _ = started(Searcher(make_parrot, topk=2, capacity=5))
  before = env.step('<search>a</search>')
  copy = pickle.loads(pickle.dumps(env))
  assert env.step('<search>b</search>') == copy.step('<search>b</search>') != before
  assert copy.step('<answer>Ada</answer>').success
  assert len(pickle.dumps(env)) < 1000  # No answers travel, and no index.
