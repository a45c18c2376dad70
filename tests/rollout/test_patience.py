"""Environments that are away are waited for, by a clock of the test's own."""

import types

import pytest
from fakes import CountingEnv, ScriptedSampler, World, agent, tasks

from sdar_jax.envs import base
from sdar_jax.envs.pool import pool
from sdar_jax.rollout import episodes, patience
from sdar_jax.rollout.patience import EmptyStepError, Patience

URL = 'http://127.0.0.1:8000/retrieve'


class Clock:
  def __init__(self):
    self.now, self.slept = 100.0, 0.0

  def sleep(self, seconds):
    self.now += seconds
    self.slept += seconds


def make(clock, seconds=300.0, should_stop=lambda: False):
  said = []
  made = Patience(
    seconds, said.append, should_stop, now=lambda: clock.now, sleep=clock.sleep
  )
  return made, said


class Server:
  """A world whose environments ask a server, which is away until a moment."""

  def __init__(self, clock, back_at):
    self.clock, self.back_at = clock, back_at

  def make_env(self):
    server = self

    class Env(CountingEnv):
      def step(self, action):
        if server.clock.now < server.back_at:
          raise base.EnvironmentFault('refused', f'{URL}: connection refused')
        return super().step(action)

    return Env()


def collect(world, clock, seconds=300.0):
  """Plays a step as a run does; the groups, what was said, and all requests."""
  made, said = make(clock, seconds)
  faked = types.SimpleNamespace(**{n: getattr(World, n) for n in ('name', 'max_turns')})
  for name in ('render', 'parse', 'admits', 'prefetch'):
    setattr(faked, name, getattr(World(), name))
  faked.make_env = world.make_env
  envs = pool.InProcessPool(faked, retries=0)
  sampler = ScriptedSampler(lambda identity: '2', shuffle=0)
  play = lambda: episodes.collect(
    envs, tasks(), sampler, agent(), group_size=2, identity=(7, 3)
  )
  fault = lambda groups: patience.fault_of_all(groups, envs)
  try:
    return made.until_played('step 3', play, fault), said, sampler.requests
  finally:
    envs.close()


def flat(groups):
  return [
    (t.task_id, t.outcome, [(turn.action, turn.reward) for turn in t.turns])
    for group in groups
    for t in group.trajectories
  ]


def test_a_server_that_comes_back_costs_time_and_changes_nothing():
  whole, _, first = collect(Server(Clock(), 0.0), Clock())
  clock = Clock()
  groups, said, requests = collect(Server(clock, 145.0), clock)
  assert flat(groups) == flat(whole)
  # The same step: every play asks for the same things.
  assert {r.identity for r in requests} == {r.identity for r in first}
  assert 45 <= clock.slept < 90
  assert all(f'refused, {URL}: connection refused' in line for line in said)
  assert all('step 3' in line and 'waiting' in line for line in said)
  pauses = [float(line.split(' again in ')[1].split()[0]) for line in said]
  assert pauses == [1, 2, 4, 8, 16, 32]


def test_the_budget_ends_in_one_line_that_names_the_fault():
  clock = Clock()
  with pytest.raises(EmptyStepError) as caught:
    collect(Server(clock, 1e9), clock, seconds=20.0)
  text = str(caught.value)
  assert URL in text and 'step 3' in text and '\n' not in text
  assert 'config.pool.patience_seconds=20' in text
  assert clock.slept == pytest.approx(20) and EmptyStepError.exit_code == 70


def test_no_patience_is_no_waiting():
  clock = Clock()
  with pytest.raises(EmptyStepError, match='connection refused'):
    collect(Server(clock, 1e9), clock, seconds=0.0)
  assert clock.slept == 0


def test_a_request_to_stop_is_heard_while_it_waits():
  clock = Clock()
  made, _ = make(clock, should_stop=lambda: clock.slept > 3)
  with pytest.raises(episodes.Interrupted):
    made.until_played('step 1', lambda: 0, lambda result: 'away')
  assert clock.slept < 4


def test_one_whole_group_is_enough_and_quarantine_is_not_waited_for():
  clock = Clock()
  groups, _, _ = collect(Server(clock, 0.0), clock)
  spoil = episodes.Outcome.TIMEOUT
  envs = types.SimpleNamespace(last_fault=None, quarantine=[])
  for group in groups[1:]:
    group.trajectories[0].outcome = spoil
  assert patience.fault_of_all(groups, envs) is None
  groups[0].trajectories[1].outcome = spoil
  assert 'every group' in patience.fault_of_all(groups, envs)
  envs.quarantine = [task.task_id for task in tasks()]
  with pytest.raises(EmptyStepError, match='deadline_seconds'):
    patience.fault_of_all(groups, envs)
