"""The host loop with a scripted world and sampler: identity, limits, faults."""

import fakes
import pytest

from sdar_jax import rollout
from sdar_jax.trajectory import Outcome


def _collect(script, shuffle=0, **kwargs):
  sampler = fakes.ScriptedSampler(script, shuffle)
  groups = rollout.collect(
    fakes.World(),
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


def test_identity_is_seed_step_task_member_turn():
  _, sampler = _collect(_third_turn_says_two)
  keys = [request.identity for request in sampler.requests]
  assert len(set(keys)) == len(keys)
  for request in sampler.requests:
    group_id, member = request.request_id
    task = rollout.task_key(fakes.tasks()[group_id].task_id)
    assert request.identity[:4] == (7, 5, task, member)


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


def test_a_long_history_is_dropped_and_a_long_prompt_refused():
  sampler = fakes.ScriptedSampler(lambda identity: '9', 0)
  groups = rollout.collect(
    fakes.World(), fakes.tasks(), sampler, fakes.agent(20), group_size=1, identity=(0,)
  )
  assert groups[0].trajectories[0].turns[-1].prompt_text == 'say 1 |  | said 9'
  with pytest.raises(ValueError, match=r'max_prompt_tokens=5'):
    rollout.collect(
      fakes.World(), fakes.tasks(), sampler, fakes.agent(5), group_size=1, identity=(0,)
    )


def test_a_request_to_stop_is_heard_between_polls():
  with pytest.raises(rollout.Interrupted):
    _collect(_third_turn_says_two, should_stop=lambda: True)
