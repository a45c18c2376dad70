"""The client against a server that does everything wrong."""

import collections
import json
import random
import socket
import threading
import time

import faulty_server as faulty
import pytest

from sdar_jax.envs.base import EnvironmentFault, EnvironmentTimeout, Task
from sdar_jax.envs.search_qa.datasets import Question
from sdar_jax.envs.search_qa.engine import SearchQAEnv
from sdar_jax.envs.search_qa.retrieval import client as client_module
from sdar_jax.envs.search_qa.retrieval.base import Passage, Searcher
from sdar_jax.envs.search_qa.retrieval.client import Circuit, HttpRetriever, read_reply

QUICK = {'deadline': 30.0, 'tries': 3, 'pause': 0.01}
QUERIES = ['who', 'where', 'when']


def expected(query, topk=3):
  return tuple(Passage(query, f'rank {i}', 9.0 - i) for i in range(topk))


def ask(behave, queries=QUERIES, **options):
  """(answers, what the server was asked)."""
  with faulty.FaultyServer(behave) as server:
    client = HttpRetriever(server.url, **{**QUICK, **options})
    return client.search_many(queries, 3), server.requests


@pytest.mark.parametrize('shape', ['batch', 'single'])
@pytest.mark.parametrize(
  'behave', [faulty.good, faulty.good_bye, faulty.endless, faulty.chunked]
)
def test_either_shape_is_answered(behave, shape):
  answers, requests = ask(behave, shape=shape)
  assert answers == [expected(query) for query in QUERIES]
  options = {'topk': 3, 'return_scores': True}
  if shape == 'batch':
    assert requests == [{'queries': QUERIES, **options}]
  else:
    assert sorted(r['query'] for r in requests) == sorted(QUERIES)
    assert all(r == {'query': r['query'], **options} for r in requests)


FAULTS = {
  # What the server does, the fault that it is, and how often it is asked one query.
  '500': (faulty.status(500), 'http_500', 3),
  '503': (faulty.status(503), 'http_503', 3),
  '429': (faulty.status(429), 'http_429', 3),
  '404': (faulty.status(404), 'http_404', 1),
  '302': (faulty.status(302, 'Location: http://127.0.0.1/\r\n'), 'http_302', 1),
  'hang': (faulty.hang, 'timeout', 3),
  'drip': (faulty.drip_headers, 'timeout', 3),
  'drip content': (faulty.drip_content, 'timeout', 3),
  'html': (faulty.says(b'<html>Bad gateway</html>'), 'garbage', 3),
  'latin': (faulty.says('{"result": "é"}'.encode('latin-1')), 'garbage', 3),
  'empty': (faulty.says(b''), 'garbage', 3),
  'deep': (faulty.deep_lists, 'garbage', 3),
  'ssh': (faulty.raw(b'SSH-2.0-OpenSSH_9.6\r\n'), 'garbage', 3),
  'schema': (faulty.says({'results': []}), 'schema', 3),
  'too few': (faulty.one_too_few, 'count', 3),
  'too many': (faulty.one_too_many, 'count', 3),
  '10 MB': (faulty.ten_megabytes, 'too_large', 3),
  'half': (faulty.half, 'dropped', 3),
  'reset': (faulty.reset, 'dropped', 3),
  '10 MB, no length': (
    faulty.raw(b'HTTP/1.1 200 OK\r\n\r\n' + b' ' * 10 * 2**20),
    'too_large',
    3,
  ),
  'claims 1 EB': (faulty.says(b'{}', length=2**60), 'too_large', 3),
  'chunk of 1 EB': (
    faulty.raw(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n' + b'f' * 15),
    'dropped',
    3,
  ),
  'endless headers': (faulty.raw(b'HTTP/1.1 200 OK\r\n' + b'a: b\r\n' * 999), None, 3),
}


@pytest.mark.parametrize('name', FAULTS)
def test_every_fault_is_one_of_a_kind(name):
  behave, kind, tries = FAULTS[name]
  start = time.monotonic()
  deadline = 1.0 if kind == 'timeout' else 30.0
  (answer,), requests = ask(behave, ['who'], deadline=deadline)
  # However busy the machine is; a server that hangs does it for a minute.
  assert time.monotonic() - start < deadline + 30.0
  assert isinstance(answer, EnvironmentFault)
  assert answer.kind == (kind or 'garbage')
  assert isinstance(answer, EnvironmentTimeout) == (kind == 'timeout')
  assert '\n' not in str(answer)
  # A busy server may miss a request that times out.
  assert len(requests) == tries or (kind == 'timeout' and len(requests) < tries)


@pytest.mark.parametrize('name', [n for n in FAULTS if n not in ('404', '302')])
def test_a_fault_that_passes_costs_nothing(name):
  behave = faulty.first(1, FAULTS[name][0])
  deadline = 6.0 if FAULTS[name][1] == 'timeout' else 30.0
  answers, requests = ask(behave, ['who'], deadline=deadline)
  assert answers == [expected('who')] and len(requests) == 2


def test_nobody_listens():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
  client = HttpRetriever(f'http://127.0.0.1:{port}/retrieve', **QUICK)
  answers = client.search_many(QUERIES, 3)
  assert [answer.kind for answer in answers] == ['refused'] * 3
  client = HttpRetriever('http://no-such-host.invalid/', **QUICK)
  assert client.search_many(['who'], 3)[0].kind == 'unreachable'


def test_a_poisonous_query_costs_the_others_nothing():
  queries = [f'poison {i}' if i == 5 else f'q{i}' for i in range(20)]
  answers, _ = ask(faulty.poisoned, queries, batch=8)
  assert answers.pop(5).kind == 'http_500'
  assert answers == [expected(query) for query in queries if query != 'poison 5']


@pytest.mark.parametrize('shape', ['batch', 'single'])
def test_faults_are_counted_exactly(shape):
  queries = [f'poison {i}' if i % 7 == 0 else f'q{i}' for i in range(40)]
  answers, _ = ask(faulty.poisoned, queries, shape=shape, batch=4, patience=99)
  faults = collections.Counter(
    a.kind if isinstance(a, EnvironmentFault) else 'none' for a in answers
  )
  assert faults == {'http_500': 6, 'none': 34}
  for query, answer in zip(queries, answers):
    assert 'poison' in query or answer == expected(query)


def test_a_server_that_dies_between_batches():
  behave = faulty.first(2, faulty.good, then=faulty.reset)
  answers, _ = ask(behave, [f'q{i}' for i in range(12)], batch=3, connections=1)
  assert answers[:6] == [expected(f'q{i}') for i in range(6)]
  assert [answer.kind for answer in answers[6:]] == ['dropped'] * 6


def test_all_queries_share_one_deadline():
  queries, start = [f'q{i}' for i in range(64)], time.monotonic()
  options = {'batch': 4, 'connections': 4, 'patience': 999}
  answers, requests = ask(faulty.hang, queries, deadline=1.0, **options)
  assert time.monotonic() - start < 1.0 + 4.0
  assert {answer.kind for answer in answers} == {'timeout'}
  assert len(answers) == 64 and len(requests) <= 16 * 3


@pytest.fixture(name='clock')
def fixture_clock(monkeypatch):
  """The client's clock, which a test may put forward."""

  class Clock:
    ahead = 0.0
    sleep = staticmethod(time.sleep)
    start = time.monotonic()

    @classmethod
    def monotonic(cls):
      return cls.start + cls.ahead

  monkeypatch.setattr(client_module, 'time', Clock)
  return Clock


def test_the_circuit_opens_and_closes_again(clock):
  behave = faulty.first(6, faulty.status(500))
  with faulty.FaultyServer(behave) as server:
    client = HttpRetriever(server.url, patience=2, cooldown=60.0, **QUICK)
    kinds = [client.search_many(['who'], 3)[0].kind for _ in range(4)]
    assert kinds == ['http_500', 'http_500', 'open_circuit', 'open_circuit']
    assert len(server.requests) == 6
    clock.ahead = 61.0
    assert client.search_many(['who'], 3) == [expected('who')]
    assert client.search_many(['who'], 3) == [expected('who')]


def test_a_success_closes_the_circuit():
  def behave(sock, request, number):
    (faulty.good if number % 2 else faulty.status(500))(sock, request, number)

  with faulty.FaultyServer(behave) as server:
    client = HttpRetriever(server.url, **{**QUICK, 'tries': 1}, patience=2)
    answers = [client.search_many(['who'], 3)[0] for _ in range(6)]
  assert answers[1::2] == [expected('who')] * 3
  assert [answer.kind for answer in answers[::2]] == ['http_500'] * 3


def test_the_first_failure_after_the_pause_opens_the_circuit_anew(clock):
  circuit = Circuit(patience=2, cooldown=60.0)
  for _ in range(2):
    circuit.check()
    circuit.failed()
  with pytest.raises(EnvironmentFault, match='open_circuit'):
    circuit.check()
  clock.ahead = 61.0
  circuit.check()
  circuit.failed()
  with pytest.raises(EnvironmentFault, match='open_circuit'):
    circuit.check()
  clock.ahead = 122.0
  circuit.succeeded()
  circuit.failed()
  circuit.check()


def test_a_server_that_is_back_is_asked_again_before_long(clock):
  circuit = Circuit(patience=2, cooldown=30.0, name='http://a/')
  circuit.failed()
  waits, asked = [], 0
  while clock.ahead < 100.0:
    circuit.check()
    for _ in range(8):  # All at once: the pause is that of one failure.
      circuit.failed()
    asked += 1
    start = clock.ahead
    while True:
      try:
        circuit.check()
        break
      except EnvironmentFault as fault:
        assert fault.kind == 'open_circuit' and fault.message.startswith('http://a/: ')
        clock.ahead += 0.5
    waits.append(clock.ahead - start)
  assert waits == [1, 2, 4, 8, 16, 30, 30, 30]
  circuit.succeeded()
  circuit.failed()
  circuit.check()


def test_a_look_up_that_hangs_is_a_timeout(monkeypatch):
  done = threading.Event()
  monkeypatch.setattr(socket, 'getaddrinfo', lambda *given, **names: done.wait(60))
  client = HttpRetriever('http://a/retrieve', deadline=0.1, tries=1)
  (answer,) = client.search_many(['who'], 3)
  done.set()
  assert isinstance(answer, EnvironmentTimeout) and 'http://a/retrieve' in str(answer)


@pytest.mark.parametrize('name', FAULTS)
def test_every_fault_names_the_url(name):
  behave, kind, _ = FAULTS[name]
  deadline = 0.3 if kind == 'timeout' else 30.0
  with faulty.FaultyServer(behave) as server:
    client = HttpRetriever(server.url, deadline=deadline, tries=1)
    (answer,) = client.search_many(['who'], 3)
    assert server.url in str(answer)


def test_titles_that_the_server_tells_apart_keep_their_marks():
  hit = {'document': {'contents': '"Heroes"\nt', 'title': '"Heroes"'}, 'score': 1}
  bare = {'document': {'contents': '"Heroes"\nt', 'title': None}, 'score': 1}
  own = {'document': {'contents': '"A" and "B"\nt'}, 'score': 1}
  (found,) = read_reply(json.dumps({'result': [[hit, bare, own]]}).encode(), 1, 3)
  assert [passage.title for passage in found] == ['"Heroes"', 'Heroes', '"A" and "B"']


def test_256_clients_at_once_get_their_own_answers():
  chance = random.Random(1)
  unlucky = {f'c{i} q{j}' for i in range(256) for j in (0, 1) if chance.random() < 0.1}
  assert len(unlucky) > 12

  def behave(sock, request, number):
    time.sleep(number % 5 / 200)
    with server.lock:
      fails = [query for query in faulty.asked(request) if query in unlucky]
      unlucky.difference_update(fails)
    (faulty.status(503) if fails else faulty.good)(sock, request, number)

  def play(client, name):
    queries = [f'{name} q{j}' for j in (0, 1)]
    answers[name] = queries, client.search_many(queries, 3)

  answers = {}
  with faulty.FaultyServer(behave) as server:
    options = {**QUICK, 'tries': 6}
    shapes = ['batch', 'single'] * 128
    clients = [HttpRetriever(server.url, shape, **options) for shape in shapes]
    threads = [
      threading.Thread(target=play, args=(client, f'c{i}'))
      for i, client in enumerate(clients)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert len(answers) == 256 and not unlucky
  for queries, found in answers.values():
    assert found == [expected(query) for query in queries]


HIT = {'document': {'contents': 'T\nt'}, 'score': 1}


@pytest.mark.parametrize(
  'reply, kind',
  [
    ([], 'schema'),
    ({'result': None}, 'schema'),
    ({'result': [None]}, 'schema'),
    ({'result': {'0': [HIT]}}, 'schema'),
    ({'result': [[{'contents': 'T\nt'}]]}, 'schema'),
    ({'result': [[{'document': 'T\nt', 'score': 1}]]}, 'schema'),
    ({'result': [[{'document': {'contents': 3}, 'score': 1}]]}, 'schema'),
    ({'result': [[{'document': {'contents': 'T'}}]]}, 'schema'),
    ({'result': [[{'document': {'contents': 'T'}, 'score': None}]]}, 'schema'),
    ({'result': [[{'document': {'contents': 'T'}, 'score': 10**400}]]}, 'schema'),
    ({'result': [['error: index is loading']]}, 'schema'),
    ({'result': [[{'document': {'contents': 'T'}, 'score': float('nan')}]]}, 'garbage'),
    ({'result': []}, 'count'),
    ({'result': [[HIT], [HIT]]}, 'count'),
    ({'result': [[HIT] * 4]}, 'count'),
  ],
)
def test_replies_of_the_wrong_shape(reply, kind):
  with pytest.raises(EnvironmentFault) as caught:
    read_reply(json.dumps(reply).encode(), 1, 3)
  assert caught.value.kind == kind


def test_fewer_hits_than_asked_for_are_an_answer():
  reply = {'result': [[], [HIT], [HIT] * 3]}
  answers = read_reply(json.dumps(reply).encode(), 3, 3)
  assert [len(answer) for answer in answers] == [0, 1, 3]
  assert answers[1] == (Passage('T', 't', 1.0),)


@pytest.mark.parametrize('name', ['500', 'html', 'schema', 'hang', 'half'])
def test_a_fault_is_raised_and_never_observed(name):
  with faulty.FaultyServer(FAULTS[name][0]) as server:
    options = {**QUICK, 'deadline': 1.0 if name == 'hang' else 30.0}
    env = SearchQAEnv(Searcher(lambda: HttpRetriever(server.url, **options)))
    question = Question('1', 'who', ('Ada',), 'nq')
    env.reset(Task('t', 'nq', 'who', {}, question))
    with pytest.raises(EnvironmentFault) as caught:
      env.step('<search>who</search>')
    assert caught.value.kind == FAULTS[name][1]


@pytest.mark.parametrize(
  'url',
  [
    '',
    'localhost:8000',
    'ftp://a/b',
    'http://',
    'http://a:b/',
    'http://a/ b',
    'http://é',
  ],
)
def test_a_wrong_url_is_one_line(url):
  with pytest.raises(ValueError, match=r'^config\.world\.url=.*$'):
    HttpRetriever(url)


def test_wrong_settings_are_one_line():
  with pytest.raises(ValueError, match=r'^config\.world\.shape='):
    HttpRetriever('http://a/', 'both')
  with pytest.raises(ValueError, match='must be positive'):
    HttpRetriever('http://a/', deadline=0)
