"""Groups dealt to processes and gathered from them; a step compared."""

import collections
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sdar_jax.batching.rows import Row
from sdar_jax.envs import base
from sdar_jax.envs.pool.pool import Pool
from sdar_jax.logs import trajectories
from sdar_jax.process.team import Alone
from sdar_jax.rollout import collecting, episodes
from sdar_jax.storage import lines
from sdar_jax.storage.workdir import Workdir
from sdar_jax.trajectory import Group


def collector(
  team: Alone, own: collecting.Collector | None = None
) -> Callable[..., list[Group]]:
  """Gives `episodes.collect`, or the like that plays a part of it here.

  Args:
    team: the processes of the run.
    own: plays instead.

  Raises:
    ValueError: there is one, and several processes.
  """
  if own is None:
    return episodes.collect if team.count == 1 else functools.partial(_collect, team)
  if team.count > 1:
    raise ValueError(
      f'collect: plays for one process, and this run has {team.count}: start it alone'
    )
  return collecting.adapted(own)


def _collect(
  team: Alone, pool: Pool, tasks: Sequence[base.Task], *args: Any, **options: Any
) -> list[Group]:
  """Plays every so many groups here; gives those of all processes.

  A group is whole on one process, and everything that its episodes draw is a function
  of their identity: they are those that a single process plays.
  """
  mine = range(team.index, len(tasks), team.count)
  groups = episodes.collect(pool, tasks, *args, only=mine, **options)
  record = {
    'episodes': [
      [trajectories.to_json(t) for t in groups[i].trajectories] for i in mine
    ],
    'quarantine': pool.quarantine,
  }
  records = team.share(record)
  for index, record in enumerate(records):
    dealt = range(index, len(tasks), team.count)
    for i, played in zip(dealt, record['episodes'], strict=True):
      groups[i].trajectories = [trajectories.from_json(t) for t in played]
  pool.quarantine = {task for record in records for task in record['quarantine']}
  return groups


def meet(team: Alone, workdir: Workdir) -> None:
  """Checks that all processes see the directory that the first one holds."""
  if team.count > 1:
    team.first(lambda: None)  # By now it is held.
    holder = {f'the holder of workdir {workdir.path}': workdir.holder}
    team.agree(holder, 'it must lie where all hosts see it')


def compare(
  team: Alone,
  step: int,
  values: Mapping[str, Any],
  rows: Sequence[Row],
  known: Mapping[str, np.ndarray],
  faults: Mapping[str, int],
) -> collections.Counter[str]:
  """Compares a step over processes; counts their faults of environments.

  Args:
    team: the processes.
    step: its number.
    values: its metrics.
    rows: its rows.
    known: their scores and credit.
    faults: of this process.

  Raises:
    PeerError: the step was not the same for them.
  """
  if team.count > 1:
    remedy = f'step {step} is not one and the same, nothing of it is written'
    team.agree(_digests(values, rows, known), remedy, 70)
  counts: collections.Counter[str] = collections.Counter()
  for counted in team.share(dict(faults)):
    counts.update(counted)
  return counts


def _digests(
  values: Mapping[str, Any], rows: Sequence[Row], known: Mapping[str, np.ndarray]
) -> dict[str, str]:
  digest = hashlib.sha256()

  def add(name: str, array: np.ndarray) -> None:
    digest.update(f'{name} {array.dtype} {array.shape}\n'.encode())
    digest.update(np.ascontiguousarray(array).tobytes())

  for row in rows:
    add('prompt', row.turn.prompt_ids)
    add('response', row.turn.response_ids)
  for name in sorted(known):
    add(name, known[name])
  metrics = hashlib.sha256(lines.dumps(values).encode()).hexdigest()
  return {'the digest of rows': digest.hexdigest(), 'the digest of metrics': metrics}
