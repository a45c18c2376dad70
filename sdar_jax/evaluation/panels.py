"""Panels: the tasks of an evaluation, sampled by type. No JAX."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence

from sdar_jax.envs import base
from sdar_jax.envs.tasks import task_types

PANEL_VERSION = 2  # 2: a part of a split is a sample of it, not its head.


@dataclasses.dataclass(frozen=True)
class Panel:
  """A versioned list of task ids.

  Attributes:
    name: world, split and size, for people: 'webshop/test/100 of 500'.
    tasks: the tasks, in the split's order, no two alike.
    composition: task type (in Search-QA: data set) -> how many of the tasks are of it;
      every type of the split is in it, 0 where the panel has none.
    digest: hex SHA-256 over the version, the split's content and the task ids.
  """

  name: str
  tasks: tuple[base.Task, ...]
  composition: Mapping[str, int]
  digest: str


def make_panel(world: base.World, split: str, size: int) -> Panel:
  """The whole split (size 0), or a sample of it, stratified by task type.

  Every type has its share of the panel, and at least one task where `size` allows;
  within a type a hash over version, the split's content and the index decides. So a
  split gives the same panel everywhere, and one that is stored type after type no other
  mixture than one that is shuffled.

  Raises:
    ValueError: the split has none or fewer tasks, or the panel has one twice.
  """
  try:
    source = world.tasks(split)
  except base.SplitError as error:
    raise ValueError(f'config.eval.split={split!r}: {error.why}') from None
  total = len(source)
  if not total:
    raise ValueError(f'config.eval.split={split!r}: {world.name} has no task of it')
  size = size or total
  if size > total:
    raise ValueError(
      f'config.eval.tasks={size}: split {split!r} of {world.name} has {total}'
    )
  types = task_types(source)
  chosen = range(total) if size == total else _sample(types, size, source.digest)
  tasks = tuple(source[i] for i in chosen)
  ids = [task.task_id for task in tasks]
  if len(set(ids)) != len(ids):
    raise ValueError(f'split {split!r} of {world.name}: a task id occurs twice')
  content = json.dumps([PANEL_VERSION, source.digest, ids])
  digest = hashlib.sha256(content.encode()).hexdigest()
  name = f'{world.name}/{split}/{size}' + (f' of {total}' if size < total else '')
  counts = collections.Counter(types[i] for i in chosen)
  composition = {kind: counts[kind] for kind in sorted(set(types))}
  return Panel(name, tasks, composition, digest)


def composed(composition: Mapping[str, int]) -> str:
  """Formats a composition as one line, absent types included."""
  there = [f'{kind} {count}' for kind, count in composition.items() if count]
  absent = [kind for kind, count in composition.items() if not count]
  return ', '.join(there) + (f'; none of {", ".join(absent)}' if absent else '')


def _sample(types: Sequence[str], size: int, digest: str) -> list[int]:
  """Indices of a stratified sample, rising."""
  strata = collections.defaultdict(list)
  for index, kind in enumerate(types):
    strata[kind].append(index)
  shares = allot(size, {kind: len(strata[kind]) for kind in sorted(strata)})
  chosen: list[int] = []
  for kind, share in shares.items():
    ranked = sorted(strata[kind], key=lambda index: _rank(digest, index))
    chosen += ranked[:share]
  return sorted(chosen)


def _rank(digest: str, index: int) -> bytes:
  return hashlib.sha256(f'{PANEL_VERSION}/{digest}/{index}'.encode()).digest()


def allot(size: int, counts: Mapping[str, int]) -> dict[str, int]:
  """Shares of `size` in proportion to counts, by largest remainders.

  None is 0 if `size` allows: what such a stratum is given comes from those that have
  most beyond their proportion.

  Args:
    size: at most the counts' sum.
    counts: stratum -> tasks in it, positive; equal remainders go by this order.

  Source: Hamilton's method, in integers.
  """
  total = sum(counts.values())
  shares = {name: size * count // total for name, count in counts.items()}
  rest = {name: size * count % total for name, count in counts.items()}
  order = sorted(counts, key=lambda name: -rest[name])  # Stable.
  for name in order[: size - sum(shares.values())]:
    shares[name] += 1
  if size >= len(counts):
    for name in [name for name in counts if not shares[name]]:
      excess = {
        n: shares[n] * total - size * counts[n] for n in counts if shares[n] > 1
      }
      shares[max(excess, key=excess.__getitem__)] -= 1
      shares[name] = 1
  return shares
