"""Refills: groups without contrast give way, and all that was played is known."""

import numpy as np

from sdar_jax.rollout import refills
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn


def _group(task_id, *returns):
  turn = lambda reward: Turn('', *[np.zeros(1)] * 3, '', '', '', True, True, reward, '')
  members = [
    Trajectory(task_id, 'kind', 0, i, [turn(reward)], Outcome.FAILURE)
    for i, reward in enumerate(returns)
  ]
  return Group(0, task_id, members)


def test_refills_replace_groups_without_contrast_and_keep_their_number():
  rounds = [
    [_group('a', 1, 1), _group('b', 0, 1), _group('c', 0, 0)],
    [_group('d', 0, 0), _group('e', 1, 0), _group('f', 1, 1)],
    [_group('g', 0, 1), _group('h', 0, 1), _group('i', 1, 1)],
  ]

  def played(count):
    left = iter(rounds)
    groups, all_of_them = refills.with_refills(lambda: next(left), count)
    left = list(left)
    assert all_of_them == [g for round_ in rounds[: 3 - len(left)] for g in round_]
    return [group.task for group in groups], groups, len(left)

  assert played(0)[0] == ['a', 'b', 'c']
  assert played(1)[0] == ['b', 'e', 'a']  # Two rounds were not enough.
  tasks, groups, left = played(2)
  assert (tasks, left) == (['b', 'e', 'g'], 0)
  assert [group.group_id for group in groups] == [0, 1, 2]
  assert [t.group_id for group in groups for t in group.trajectories] == [
    0,
    0,
    1,
    1,
    2,
    2,
  ]


def test_a_group_with_a_fault_tells_nothing():
  faulty = _group('a', 0, 1)
  faulty.trajectories[1].outcome = Outcome.TIMEOUT
  rounds = iter([[faulty], [_group('b', 0, 1)]])
  groups, _ = refills.with_refills(lambda: next(rounds), 1)
  assert [group.task for group in groups] == ['b']
