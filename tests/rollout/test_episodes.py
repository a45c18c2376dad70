"""The host loop with a scripted world and sampler: identity, limits, faults."""

import collections
import contextlib
import dataclasses
import itertools

import fakes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.batching import packing
from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs import base
from sdar_jax.prompts.skills import NOTHING
from sdar_jax.rollout import episodes, order
from sdar_jax.rollout.request import Completion
from sdar_jax.trajectory import Group, Outcome


def _collect(script, shuffle=0, **kwargs):
  sampler = fakes.ScriptedSampler(script, shuffle)
  groups = episodes.collect(
    fakes.in_process(),
    fakes.tasks(),
    sampler,
    fakes.agent(),
    group_size=2,
    identity=(7, 5),
    **kwargs,
  )
  return groups, sampler


def _third_turn_says_two(identity):
  return '2' if identity[-1] == 2 else '1'


def test_outcomes_rewards_and_turns():
  groups, _ = _collect(_third_turn_says_two, success_reward=10.0)
  assert [g.task.task_id for g in groups] == ['task 1', 'task 2', 'task 3']
  for group, outcome, turns, total in zip(
    groups,
    (Outcome.SUCCESS, Outcome.SUCCESS, Outcome.MAX_TURNS),
    (1, 3, 3),
    (10.0, 10.0, 0.0),
  ):
    for member, trajectory in enumerate(group.trajectories):
      assert trajectory.outcome is outcome
      assert trajectory.member == member
      assert len(trajectory.turns) == turns
      assert trajectory.episode_return == total


def test_only_live_environments_are_prompted():
  _, sampler = _collect(_third_turn_says_two)
  assert len(sampler.requests) == 2 * (1 + 3 + 3)


def test_progress_is_told_while_episodes_end():
  told = []
  _collect(lambda identity: '1', progress=lambda *counts: told.append(counts))
  ended = [count for count, wanted in told if wanted == 6]
  assert len(ended) == len(told) and ended == sorted(ended)
  assert ended[0] == 0 and ended[-1] == 6 and len(set(ended)) > 3


def test_identity_is_seed_step_task_member_turn():
  _, sampler = _collect(_third_turn_says_two)
  keys = [request.identity for request in sampler.requests]
  assert len(set(keys)) == len(keys)
  for request in sampler.requests:
    group_id, member = request.request_id
    task = order.task_key(fakes.tasks()[group_id].task_id)
    assert request.identity[:4] == (7, 5, task, member)


def test_a_task_that_comes_twice_in_a_step_is_played_anew():
  """Within a round and from one round of refills to the next; the first as ever."""
  played, rounds, tasks = collections.Counter(), [], fakes.tasks()
  for twice in ([tasks[1], tasks[0], tasks[1]], [tasks[0], tasks[2]]):
    sampler = fakes.ScriptedSampler(_third_turn_says_two, 0)
    episodes.collect(
      fakes.in_process(),
      twice,
      sampler,
      fakes.agent(),
      group_size=2,
      identity=(7, 5),
      played=played,
    )
    rounds.append(sampler.requests)
  keys = [request.identity for requests in rounds for request in requests]
  assert len(set(keys)) == len(keys)
  usual = {request.identity for request in _collect(_third_turn_says_two)[1].requests}
  first = {(0, 0), (0, 1), (1, 1)}  # (round, group) of first occurrences.
  for number, requests in enumerate(rounds):
    for request in requests:
      group_id, _ = request.request_id
      assert ((number, group_id) in first) == (request.identity in usual)
      assert len(request.identity) == 5


def test_trajectories_do_not_depend_on_the_order_of_completion():
  def texts(shuffle):
    groups, _ = _collect(_third_turn_says_two, shuffle)
    return [
      [(t.prompt_text, t.action, t.observation) for t in trajectory.turns]
      for group in groups
      for trajectory in group.trajectories
    ]

  assert all(texts(shuffle) == texts(0) for shuffle in range(1, 6))


def test_prompts_hold_the_whole_history():
  groups, _ = _collect(_third_turn_says_two)
  last = groups[2].trajectories[0].turns[-1]
  assert last.prompt_text == 'say 3 | start>1 said 1>1 | said 1'
  assert last.prompt_ids.tolist() == list(last.prompt_text.encode())
  assert last.admissible and last.valid


def test_an_exception_in_a_world_is_an_outcome():
  groups, _ = _collect(lambda identity: 'boom' if identity[-1] == 1 else '1')
  outcomes = [t.outcome for g in groups for t in g.trajectories]
  assert outcomes == [Outcome.SUCCESS] * 2 + [Outcome.ENV_ERROR] * 4
  last = groups[1].trajectories[0].turns[-1]
  assert (last.action, last.reward, len(groups[1].trajectories[0].turns)) == (
    'boom',
    0.0,
    2,
  )


@pytest.mark.parametrize(
  'fault, outcome',
  [
    (base.EnvironmentFault('refused', 'no'), Outcome.ENV_ERROR),
    (base.EnvironmentTimeout('slow', 'no'), Outcome.TIMEOUT),
  ],
)
def test_an_episode_that_cannot_start_leaves_its_group_untrained(fault, outcome):
  class Env(fakes.CountingEnv):
    def reset(self, task):
      if task.payload == '2':
        raise fault
      return super().reset(task)

  world = fakes.World()
  world.make_env = Env
  sampler = fakes.ScriptedSampler(_third_turn_says_two, 0)
  environments = fakes.in_process(world)
  groups = episodes.collect(
    environments,
    fakes.tasks(),
    sampler,
    fakes.agent(),
    group_size=2,
    identity=(0,),
  )
  broken = groups[1].trajectories
  assert [t.outcome for t in broken] == [outcome] * 2
  assert [t.turns for t in broken] == [[], []] and not broken[0].success
  assert environments.faults() == {fault.kind: 2}
  rows = rows_lib.rows(groups, invalid_penalty=0.0)
  assert {row.group_id for row in rows} == {0, 2}


@pytest.mark.parametrize('stop', [False, True])
def test_environments_are_released_however_it_ends(stop):
  environments = fakes.in_process()
  sampler = fakes.ScriptedSampler(_third_turn_says_two, 0)
  with pytest.raises(episodes.Interrupted) if stop else contextlib.nullcontext():
    episodes.collect(
      environments,
      fakes.tasks(),
      sampler,
      fakes.agent(),
      group_size=2,
      identity=(0,),
      should_stop=lambda: stop and len(sampler.requests) > 6,
    )
  assert not environments._live and not environments._stage._envs


def test_a_request_to_stop_is_heard_between_polls():
  with pytest.raises(episodes.Interrupted):
    _collect(_third_turn_says_two, should_stop=lambda: True)


class _WildSampler(fakes.ScriptedSampler):
  """Completes with given ids, whatever text they decode to, and remembers them."""

  def __init__(self, responses):
    super().__init__(None, 0)
    self.responses, self.given = responses, {}

  def _complete(self, request):
    ids = self.responses[len(self.given) % len(self.responses)]
    ids = np.asarray(ids, np.int32)
    logprobs = -np.arange(len(ids), dtype=np.float32)
    self.given[request.identity[2:]] = (request.prompt_ids, ids, logprobs)
    return Completion(request.request_id, ids, logprobs, 'stop')


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=9), min_size=1))
def test_what_is_trained_on_is_what_was_sampled(responses):
  """Id for id from the sampler to the batch, though the text does not encode back."""
  sampler = _WildSampler(responses)
  agent = episodes.Agent(
    fakes.prompt,
    lambda ids: bytes(np.asarray(ids, np.uint8)).decode('utf-8', 'replace'),
    fakes.agent().sampling,
    1000,
  )
  groups = episodes.collect(
    fakes.in_process(), fakes.tasks(), sampler, agent, group_size=2, identity=(0, 0)
  )
  rows = rows_lib.rows(groups, invalid_penalty=0.0)
  student = rows_lib.make_sequences(
    rows, [row.turn.prompt_ids for row in rows], 'turns'
  )
  how = packing.Packing('sorted', 4, 2, (1024,), (1024,), response_tokens=9)
  backwards = np.arange(len(rows))[::-1]
  batch, trained = packing.minibatches(rows, student, backwards, how), {}
  logprobs = rows_lib.sampler_logprobs(rows)
  for sheet in itertools.chain(*batch):
    place, given = 0, rows_lib.scatter(sheet, {'logprobs': logprobs})['logprobs']
    for i, index in enumerate(sheet['row_index']):
      if index >= 0:
        row, size = rows[index], int(sheet['response_mask'][i].sum())
        key = (order.task_key(row.task.task_id), row.trajectory.member, row.turn_id)
        first = sheet['places'][0, place] % 1024 + 1
        tokens = sheet['tokens'][i]
        assert tokens[first : first + size].tolist() == (
          sheet['targets'][0, place : place + size].tolist()
        )
        trained[key] = (
          tokens[:first].tolist(),
          tokens[first : first + size].tolist(),
          given[i, :size].tolist(),
        )
        place += size
  given_ids = {k: tuple(part.tolist() for part in v) for k, v in sampler.given.items()}
  assert trained == given_ids


def test_prompts_may_differ_by_member():
  agent = dataclasses.replace(
    fakes.agent(),
    prompt=lambda text, task, member: (np.full(1 + member, 65, np.int32), NOTHING),
  )
  groups = episodes.collect(
    fakes.in_process(),
    fakes.tasks(),
    fakes.ScriptedSampler(lambda identity: 'x', 0),
    agent,
    group_size=2,
    identity=(0, 0),
  )
  for group in groups:
    for trajectory in group.trajectories:
      assert {len(t.prompt_ids) for t in trajectory.turns} == {1 + trajectory.member}


def _conversation(limit, script=_third_turn_says_two):
  """Episodes of `fakes.World` whose prompts go on: '/' ends a turn, '>' begins one."""
  world = fakes.World()
  world.follow_up = lambda task, history, before, observation: (
    f'{len(base.whole(history)) + 1}: {observation.text}'
  )
  follow = lambda ids, text: np.frombuffer(f'/{text}>'.encode(), np.uint8).astype('i4')
  agent = dataclasses.replace(fakes.agent(limit), follow=follow)
  return episodes.collect(
    fakes.in_process(world),
    fakes.tasks(),
    fakes.ScriptedSampler(script, 0),
    agent,
    group_size=2,
    identity=(0, 0),
  )


def test_a_conversation_keeps_what_was_said_as_it_was():
  every = [t for group in _conversation(1000) for t in group.trajectories]
  assert {len(t.turns) for t in every} > {1} and max(len(t.turns) for t in every) == 3
  for trajectory in every:
    first = trajectory.turns[0]
    ids = first.prompt_ids.tolist()
    assert fakes.decode(first.prompt_ids) == first.prompt_text and not first.goes_on
    for number, (before, turn) in enumerate(itertools.pairwise(trajectory.turns), 2):
      ids += before.response_ids.tolist()
      ids += f'/{number}: said {before.action}>'.encode()
      assert turn.goes_on and turn.prompt_ids.tolist() == ids
      assert turn.prompt_text == f'{number}: said {before.action}'
  rows = rows_lib.rows(_conversation(1000), invalid_penalty=0.0)
  assert [row.head for row in rows] == [row.trajectory.turns[0] for row in rows]


def test_a_conversation_without_room_begins_anew_with_room_for_more():
  long = [t for g in _conversation(1000) for t in g.trajectories if len(t.turns) == 3]
  second, third = (len(long[0].turns[i].prompt_ids) for i in (1, 2))
  cut = [t for g in _conversation(third - 1) for t in g.trajectories]
  ended = [t for t in cut if len(t.turns) == 3]
  assert ended and second < third
  for trajectory in ended:
    assert [turn.goes_on for turn in trajectory.turns] == [False, True, False]
    text = trajectory.turns[2].prompt_text
    assert text.startswith(f'say {trajectory.task_id[-1]} | ')
    assert len(text) <= (third - 1) // 2 or trajectory.turns[2].history_dropped
    rows = rows_lib.rows(
      [Group(0, fakes.tasks()[0], [trajectory])], invalid_penalty=0.0
    )
    assert [row.head.prompt_text for row in rows] == [
      trajectory.turns[i].prompt_text for i in (0, 0, 2)
    ]
