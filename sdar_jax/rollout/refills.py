"""Dynamic sampling: which of the played groups a step trains on. No JAX."""

import dataclasses
from collections.abc import Callable

from sdar_jax.trajectory import Group


def with_refills(
  play: Callable[[], list[Group]], refills: int
) -> tuple[list[Group], list[Group]]:
  """DAPO's dynamic sampling: groups without contrast give way to others.

  As many groups as one round of `play` has, so that shapes stay what they are: first
  those whose returns differ, in the order in which they were played, and where rounds
  ran out others after them.

  Args:
    play: plays new tasks at every call.
    refills: rounds after the first, at most; 0 keeps the first as it is.

  Returns:
    The groups to train on, and all that were played: what they cost, and the fair
    sample of how the policy does.

  Source: DAPO (arXiv 2503.14476) eq. 11; the bound and what follows it as in
    ZJU-REAL/SDAR@8b85c23 (10 rounds, the last keeps everything).
  """
  groups = play()
  if not refills:
    return groups, groups
  count, played, telling, flat = len(groups), [], [], []
  for round_ in range(1 + refills):
    groups = play() if round_ else groups
    played += groups
    for group in groups:
      faulty = any(trajectory.outcome.is_fault for trajectory in group.trajectories)
      (telling if group.varies and not faulty else flat).append(group)
    if len(telling) >= count:
      break
  kept = (telling + flat)[:count]
  return [_renumbered(group, i) for i, group in enumerate(kept)], played


def _renumbered(group: Group, group_id: int) -> Group:
  members = [dataclasses.replace(t, group_id=group_id) for t in group.trajectories]
  return Group(group_id, group.task, members)
