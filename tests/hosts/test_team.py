"""What processes tell each other, with threads in their place."""

import collections
import json
import os
import threading
import time
from types import SimpleNamespace

import fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.hosts import dealing, team
from sdar_jax.logs import trajectories
from sdar_jax.process import team as teams
from sdar_jax.process.flags import UsageError
from sdar_jax.rollout import episodes, order


class Threads(team.Team):
  """A process of several that are threads: they share JSON."""

  def __init__(self, index, count, table):
    self.index, self.count, self.table = index, count, table
    self.lost = self.ended = self._waiting = False
    self._seconds, self._beat = 1000, 0.0

  def _gather(self, record):
    self.table.records[self.index] = json.dumps(record)
    self.table.barrier.wait(20)
    records = [json.loads(text) for text in self.table.records]
    self.table.barrier.wait(20)
    return records


class Table:
  def __init__(self, count):
    self.records, self.barrier = [None] * count, threading.Barrier(count)


def run(count, act):
  """What `act` of each process gives, or the error that it ends with."""
  table, out = Table(count), [None] * count

  def one(index):
    try:
      with (member := Threads(index, count, table)).together():
        out[index] = act(member)
    except Exception as error:
      out[index] = error

  threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  assert not any(thread.is_alive() for thread in threads)
  return out


def test_values_are_shared_in_order():
  assert run(3, lambda t: t.share(t.index**2)) == [[0, 1, 4]] * 3
  assert run(3, lambda t: t.any(t.index == 1)) == [True] * 3
  assert run(3, lambda t: t.any(False)) == [False] * 3
  made = []
  assert run(2, lambda t: t.first(lambda: made.append(t.index) or 'x')) == ['x', 'x']
  assert made == [0]


def test_one_process_shares_with_itself():
  alone = teams.ALONE
  assert alone.share(3) == [3] and alone.first(lambda: 4) == 4 and alone.leads
  assert alone.each(lambda: 5) == 5 and not alone.any(False)
  with pytest.raises(KeyError), alone.together():
    raise KeyError


def _fail_at(error, index):
  def act(member):
    member.share(0)
    if member.index == index:
      raise error
    for _ in range(3):
      member.share(1)

  return act


@pytest.mark.parametrize('index', [0, 2])
def test_an_error_of_one_ends_all_with_its_exit_code(index):
  class DiskFullError(RuntimeError):
    exit_code = 74

  out = run(3, _fail_at(DiskFullError('no\nroom'), index))
  assert isinstance(out.pop(index), DiskFullError)
  for error in out:
    assert type(error) is teams.PeerError and error.exit_code == 74
    assert str(error) == f'process {index}: no room'


def test_a_request_to_stop_reaches_all():
  assert [type(e) for e in run(3, _fail_at(episodes.Interrupted(), 1))] == (
    [episodes.Interrupted] * 3
  )


def test_what_fails_on_one_has_failed_on_all_who_go_on():
  def act(member):
    try:
      member.each(lambda: 1 // (member.index - 1))
    except (ZeroDivisionError, teams.PeerError) as error:
      return type(error), str(error), member.share('on')

  out = run(3, act)
  assert out[1][0] is ZeroDivisionError
  assert {out[0][:2], out[2][:2]} == {
    (teams.PeerError, 'process 1: integer division or modulo by zero')
  }
  assert all(result[2] == ['on'] * 3 for result in out)
  assert run(2, lambda t: t.each(lambda: t.index + 7, leader=True)) == [7, None]


def test_values_that_differ_are_named():
  def act(member):
    member.agree({'a': [1, 2], 'b': 0.1}, 'never')
    member.agree({'a': 1, 'seed': member.index // 2}, 'start again')

  for error in run(3, act):
    assert type(error) is teams.PeerError and error.exit_code == 2
    assert str(error) == 'seed is 0 on process 0, 1 on process 2: start again'


@settings(deadline=None, max_examples=25)
@given(
  tasks=st.integers(0, 7),
  count=st.integers(2, 4),
  broken=st.sets(st.integers(0, 6)),
  seed=st.integers(0, 99),
)
def test_dealt_groups_are_those_of_one_process(tasks, count, broken, seed):
  """Tasks of few kinds, so that some come twice; some groups break."""
  known = fakes.tasks()
  dealt = [known[(seed + i) % 3] for i in range(tasks)]

  def script(identity):
    text = '12'[hash(identity) % 2]
    return 'boom' if identity[2] in broken_keys and identity[-1] == 1 else text

  broken_keys = {order.task_key(f'task {i}') for i in broken}

  def play(collect, index):
    played = collections.Counter()
    groups = []
    for step in range(2):  # As two rounds of refills.
      groups += collect(
        fakes.in_process(),
        dealt,
        fakes.ScriptedSampler(script, index + step),
        fakes.agent(),
        group_size=2,
        identity=(7, 5),
        played=played,
      )
    return [
      (g.group_id, g.task, [trajectories.to_json(t) for t in g.trajectories])
      for g in groups
    ]

  whole = play(episodes.collect, 0)
  assert run(count, lambda t: play(dealing.collector(t), t.index)) == [whole] * count


def test_a_collector_of_one_s_own_plays_for_one_process():
  several = SimpleNamespace(count=2)
  with pytest.raises(ValueError, match='this run has 2: start it alone'):
    dealing.collector(several, lambda asked: [])
  assert dealing.collector(teams.ALONE, lambda asked: []) is not episodes.collect


def test_a_quarantine_is_one_of_all():
  def act(member):
    pool = fakes.in_process()
    pool.quarantine = [f'of {member.index}']
    collect = dealing.collector(member)
    sampler = fakes.ScriptedSampler(lambda identity: '1', 0)
    collect(pool, [], sampler, fakes.agent(), group_size=1, identity=(0,))
    return pool.quarantine

  assert run(2, act) == [['of 0', 'of 1']] * 2


@pytest.mark.parametrize('part', ['rows', 'ids', 'metrics'])
def test_a_step_that_differs_is_noticed(part):
  def act(member):
    known = {'advantages': np.ones((1, 3), np.float32)}
    turn = SimpleNamespace(prompt_ids=np.arange(4), response_ids=np.arange(3))
    rows = [SimpleNamespace(turn=turn)]
    values = {'train/loss': 0.1, 'rollout/nan': float('nan')}
    faults = dealing.compare(member, 1, values, rows, known, {'hang': 1 + member.index})
    assert faults == {'hang': 3}
    if part == 'rows' and member.index:
      known['advantages'][0, 2] = np.nextafter(np.float32(1), np.float32(2))
    elif part == 'ids' and member.index:
      turn.response_ids[1] = 7
    elif member.index:
      values['train/loss'] = float(np.nextafter(0.1, 1))
    dealing.compare(member, 2, values, rows, known, {})

  named = 'metrics' if part == 'metrics' else 'rows'
  for error in run(2, act):
    assert type(error) is teams.PeerError and error.exit_code == 70
    assert str(error).startswith(f'the digest of {named} is ')
    assert 'step 2' in str(error)


def test_a_process_without_progress_ends_itself(monkeypatch, capfd):
  codes = []
  monkeypatch.setattr(os, '_exit', lambda code: codes.append(code) or member.close())
  member = Threads(1, 2, None)
  member._meet = lambda: None
  member._seconds, member._closed = 0.3, threading.Event()
  member.beat()
  watcher = threading.Thread(target=member._watch)
  watcher.start()
  for _ in range(4):
    time.sleep(0.1)
    member.beat()
  member._waiting = True  # For others, who are watched themselves.
  time.sleep(0.6)
  assert not codes
  member.beat()
  member._waiting = False
  watcher.join(10)
  assert codes == [75]
  assert 'process 1 made no progress' in capfd.readouterr().err


@pytest.mark.parametrize(
  'text, place',
  [
    ('auto', None),
    ('10.0.0.1:99,2,1', ('10.0.0.1:99', 2, 1)),
    ('[::1]:99,2,0', ('[::1]:99', 2, 0)),
  ],
)
def test_places_are_read(text, place):
  assert teams.place(text) == place


@pytest.mark.parametrize(
  'text', ['host', 'host:1', ':1,2,0', 'host:1,2,2', 'host:0,2,1', 'h:1,2,-1', 'h:1,2']
)
def test_other_places_are_refused(text):
  with pytest.raises(UsageError, match='--hosts='):
    teams.place(text)
