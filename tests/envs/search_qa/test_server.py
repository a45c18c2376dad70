"""Our own server: the same answers as in process, and what it refuses."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from shared import shared_path

from sdar_jax.envs.search_qa import server
from sdar_jax.envs.search_qa.datasets import read_corpus
from sdar_jax.envs.search_qa.retrieval import dense
from sdar_jax.envs.search_qa.retrieval.base import Passage
from sdar_jax.envs.search_qa.retrieval.bm25 import BM25Retriever
from sdar_jax.envs.search_qa.retrieval.client import HttpRetriever

PASSAGES = [Passage(f'Town {i}', f'On the river {i % 7} .\nOld.') for i in range(50)]
QUERIES = [f'town {i} river' for i in range(30)] + ['nothing known', '\u2028é"']


@pytest.fixture(name='serving')
def fixture_serving():
  running = []

  def serve(retriever, clock=time.monotonic, **limits):
    limits = server.Limits(**limits)
    instance = server.Server(('127.0.0.1', 0), retriever, limits, clock)
    threading.Thread(target=instance.serve_forever, args=(0.01,), daemon=True).start()
    running.append(instance)
    return instance

  yield serve
  for instance in running:
    instance.shutdown()
    instance.server_close()


def post(instance, body, path=server.PATH, headers=None):
  connection = http.client.HTTPConnection(*instance.server_address[:2], timeout=10)
  body = body if isinstance(body, bytes) else json.dumps(body).encode()
  connection.request('POST', path, body, headers or {})
  response = connection.getresponse()
  out = response.status, json.loads(response.read())
  connection.close()
  return out


@pytest.mark.parametrize('shape', ['batch', 'single'])
def test_answers_are_the_same_as_in_process(serving, shape):
  retriever = BM25Retriever(PASSAGES)
  client = HttpRetriever(serving(retriever).url, shape, batch=7)
  assert client.search_many(QUERIES, 3) == retriever.search_many(QUERIES, 3)


def test_real_answers_are_the_same_as_in_process(serving):
  folder = shared_path('data/search_qa')
  retriever = BM25Retriever(read_corpus(folder / 'hotpot100_corpus.json'))
  rows = json.loads((folder / 'hotpot100_questions.json').read_text())
  queries = [row['question'] for row in rows]
  client = HttpRetriever(serving(retriever).url)
  assert client.search_many(queries, 3) == retriever.search_many(queries, 3)


def test_a_dense_index_is_served_and_its_faults_are_500(serving, tmp_path):
  pytest.importorskip('faiss')
  np.save(tmp_path / 'v.npy', np.eye(50, dtype='f4'))

  def encode(texts):
    return np.eye(50)[[int(text) for text in texts]]

  index = dense.open_index(tmp_path / 'v.npy')
  client = HttpRetriever(
    serving(dense.DenseRetriever(index, PASSAGES, encode)).url, pause=0.01
  )
  answers = client.search_many(['3', '49', 'no number', '7'], 1)
  assert answers.pop(2).kind == 'http_500'
  assert [answer[0].title for answer in answers] == ['Town 3', 'Town 49', 'Town 7']


def test_both_public_shapes(serving):
  instance = serving(BM25Retriever(PASSAGES))
  many = {'queries': ['town 3'], 'topk': 1, 'return_scores': True}
  status, reply = post(instance, many)
  (hit,) = reply['result'][0]
  assert status == 200 and set(hit) == {'document', 'score'}
  assert hit['document']['contents'] == PASSAGES[3].contents
  one = {'query': 'town 3', 'topk': 1, 'return_scores': True}
  assert post(instance, one) == (200, reply)
  status, reply = post(instance, {'query': 'town 3'})
  assert (status, len(reply['result'][0])) == (200, 3)
  assert reply['result'][0][0] == hit['document']


@pytest.mark.parametrize(
  'body, status',
  [
    (b'', 400),
    (b'<html>', 400),
    (b'[' * 100_000, 400),
    (b'\xff', 400),
    ([], 400),
    ({}, 400),
    ({'query': 'a', 'queries': ['a']}, 400),
    ({'queries': 'a'}, 400),
    ({'queries': []}, 400),
    ({'queries': ['a'] * (server.MAX_QUERIES + 1)}, 400),
    ({'queries': [1]}, 400),
    ({'query': None}, 400),
    ({'query': 'a' * (server.MAX_QUERY + 1)}, 400),
    ({'query': 'a', 'topk': 0}, 400),
    ({'query': 'a', 'topk': server.MAX_TOPK + 1}, 400),
    ({'query': 'a', 'topk': True}, 400),
    ({'query': 'a', 'topk': 2.0}, 400),
    ({'query': 'a', 'return_scores': 1}, 400),
  ],
)
def test_a_wrong_request_is_refused_in_one_line(serving, body, status):
  got, reply = post(serving(BM25Retriever(PASSAGES)), body)
  assert got == status and list(reply) == ['error'] and '\n' not in reply['error']


def test_limits_and_other_paths(serving):
  instance = serving(BM25Retriever(PASSAGES))
  assert post(instance, {'query': 'a'}, '/')[0] == 404
  large = {'Content-Length': str(server.MAX_BODY + 1)}
  assert post(instance, b'', headers=large)[0] == 413
  assert post(instance, b'', headers={'Content-Length': '9' * 5000})[0] == 413
  for length in ('-1', 'many', '²'.encode('latin-1')):
    assert post(instance, b'', headers={'Content-Length': length})[0] == 411
  assert post(instance, {'query': 'town 3', 'topk': 1})[0] == 200


def test_a_reply_too_large_is_refused_before_it_is_held(serving):
  retriever = BM25Retriever(PASSAGES)
  asked = []

  class Counting:
    def search_many(self, queries, topk):
      asked.append(len(queries))
      return retriever.search_many(queries, topk)

  instance = serving(Counting(), reply_bytes=100_000)
  many = {'queries': ['town'] * server.MAX_QUERIES, 'topk': server.MAX_TOPK}
  status, reply = post(instance, many)
  assert status == 413 and 'exceeds 100000 bytes' in reply['error']
  assert asked == [server._PIECE], 'no more was searched than the reply could hold'
  queries = [f'town {i} river' for i in range(30)]
  client = HttpRetriever(instance.url, batch=30)
  assert client.search_many(queries, 3) == retriever.search_many(queries, 3)
  client = HttpRetriever(serving(retriever, reply_bytes=3000).url, batch=30)
  assert client.search_many(queries, 3) == retriever.search_many(queries, 3), 'singly'


def closed(sock):
  """Whether the other side ends a connection, sooner or later."""
  sock.settimeout(30)
  try:
    while sock.recv(4096):
      pass
  except ConnectionError:
    pass
  return True


def test_silent_connections_make_room_for_honest_queries(serving):
  instance = serving(BM25Retriever(PASSAGES), connections=4, request_seconds=60.0)
  silent = [socket.create_connection(instance.server_address[:2]) for _ in range(40)]
  for sock in silent[::2]:
    sock.sendall(b'POST /retrieve HTTP/1.1\r\n')
  for _ in range(8):
    assert post(instance, {'query': 'town 3', 'topk': 1})[0] == 200
  assert all(map(closed, silent[:36]))
  for sock in silent:
    sock.close()


def test_where_all_are_served_one_more_is_refused(serving):
  started, go_on = threading.Semaphore(0), threading.Event()

  class Slow:
    def search_many(self, queries, topk):
      started.release()
      go_on.wait(60)
      return [()] * len(queries)

  instance = serving(Slow(), connections=2, working=2)
  answers = []
  ask = lambda: answers.append(post(instance, {'query': 'a'})[0])
  threads = [threading.Thread(target=ask) for _ in range(2)]
  for thread in threads:
    thread.start()
  for _ in threads:
    assert started.acquire(timeout=60)
  with socket.create_connection(instance.server_address[:2]) as sock:
    sock.settimeout(60)
    assert sock.recv(12) == b'HTTP/1.1 503'
  go_on.set()
  for thread in threads:
    thread.join(60)
  assert answers == [200, 200]


@pytest.mark.parametrize(
  'start', [b'', b'POST /retrieve HTTP/1.1\r\nContent-Length: 99999\r\n\r\n']
)
def test_a_request_that_drips_is_cut_off(serving, start):
  instance = serving(BM25Retriever(PASSAGES), request_seconds=0.2)
  with socket.create_connection(instance.server_address[:2]) as sock:
    sock.sendall(start)
    with pytest.raises(ConnectionError):
      for _ in range(600):  # A minute: each byte alone would be soon enough.
        sock.sendall(b'P')
        time.sleep(0.1)


def test_a_connection_that_says_nothing_is_closed(serving):
  instance = serving(BM25Retriever(PASSAGES), request_seconds=0.2)
  with socket.create_connection(instance.server_address[:2]) as sock:
    assert closed(sock)


def test_titles_keep_their_own_marks_on_the_way(serving):
  titles = ('"Heroes"', '"Heroes" and "Villains"', 'Heroes')
  retriever = BM25Retriever([Passage(title, 'heroes') for title in titles])
  client = HttpRetriever(serving(retriever).url)
  assert client.search_many(['heroes'], 3) == retriever.search_many(['heroes'], 3)


def test_a_reply_that_is_not_taken_is_given_up(serving):
  passages = [Passage('T', 'x' * 4 * 2**20)]
  instance = serving(BM25Retriever(passages), reply_seconds=0.2)
  body = json.dumps({'query': 't', 'topk': 1}).encode()
  head = f'POST /retrieve HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n'
  with socket.create_connection(instance.server_address[:2]) as sock:
    sock.sendall(head.encode() + body)
    sock.settimeout(60)
    assert sock.recv(1) == b'H'
    deadline = time.monotonic() + 60
    while len(instance._silent) and time.monotonic() < deadline:
      time.sleep(0.05)
    assert not instance._silent


def test_an_answer_that_takes_too_long_is_refused(serving):
  now = [0.0]

  class Slow:
    def search_many(self, queries, topk):
      now[0] += 40.0
      return [()] * len(queries)

  instance = serving(Slow(), clock=lambda: now[0])
  many = {'queries': ['a'] * (2 * server._PIECE)}
  assert post(instance, many)[0] == 200
  many = {'queries': ['a'] * (3 * server._PIECE)}
  status, reply = post(instance, many)
  assert (status, reply['error'][:20]) == (503, 'no answer in 60.0 s;')


def test_a_connection_serves_one_request_after_the_other(serving):
  instance = serving(BM25Retriever(PASSAGES))
  connection = http.client.HTTPConnection(*instance.server_address[:2], timeout=60)
  for _ in range(3):
    connection.request('POST', server.PATH, b'{"query": "town 3"}')
    response = connection.getresponse()
    assert response.status == 200 and len(json.loads(response.read())['result']) == 1
  connection.close()


def test_a_client_that_goes_away_says_nothing(serving, capfd):
  instance = serving(BM25Retriever(PASSAGES))
  for _ in range(3):
    with socket.create_connection(instance.server_address[:2]) as sock:
      sock.sendall(b'POST /retrieve HTTP/1.1\r\nContent-Length: 99\r\n\r\n{')
      linger = b'\x01\x00\x00\x00\x00\x00\x00\x00'  # Closes with a reset.
      sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
  assert post(instance, {'query': 'town 3', 'topk': 1})[0] == 200
  assert capfd.readouterr().err == ''


def test_the_command_serves_a_corpus_until_it_is_interrupted(tmp_path):
  path = tmp_path / 'corpus.jsonl'
  rows = [{'contents': passage.contents} for passage in PASSAGES]
  path.write_text('\n'.join(map(json.dumps, rows)))
  arguments = ['-m', 'sdar_jax.envs.search_qa.server', f'--corpus={path}', '--port=0']
  with subprocess.Popen(
    [sys.executable, *arguments], stdout=subprocess.PIPE, text=True
  ) as process:
    url = re.search(r'http://127\.0\.0\.1:\d+/retrieve', process.stdout.readline())[0]
    answers = HttpRetriever(url).search_many(QUERIES, 3)
    process.send_signal(signal.SIGTERM)
    try:
      assert process.wait(timeout=60) == 0
    finally:
      process.kill()
  assert answers == BM25Retriever(PASSAGES).search_many(QUERIES, 3)


@pytest.mark.parametrize(
  'words, complaint',
  [
    ([], '--corpus is missing'),
    (['--corpus=/no/such.jsonl'], 'No such file'),
    (['--corpus=/no/such.jsonl', '--index=a.npy'], r'package\.module:function'),
    (['--corpus=a.jsonl', '--port=99999999'], '--port=99999999'),
    (['--corpus=a', '--port=x'], '--port'),
    (['corpus=a'], 'write --corpus=a'),
    (['--corpus=a', '--corpus=b'], '--corpus is given 2 times'),
    (['--corpus='], '--corpus is empty'),
    (['--corpse=a'], '--corpse=a: no such flag; did you mean --corpus?'),
  ],
)
def test_the_commands_errors_are_one_line(
  words, complaint, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.jsonl').write_text('{"contents": "a"}')
  assert server.main(words) == 2
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert re.search(complaint.replace('?', r'\?'), error)


def test_a_port_in_use_is_one_line(serving, tmp_path, capsys):
  path = tmp_path / 'corpus.jsonl'
  path.write_text('{"contents": "a"}')
  port = serving(BM25Retriever(PASSAGES)).server_address[1]
  assert server.main([f'--corpus={path}', f'--port={port}']) == 2
  assert re.match('error: .*in use\n$', capsys.readouterr().err)
