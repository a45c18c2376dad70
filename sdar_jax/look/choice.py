"""Chooses and orders episodes by what a command line asks for. No JAX."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from sdar_jax.look.folder import Head, LookError

# Names of orders, best first; each a key whose smallest comes first.
ORDERS: dict[str, Callable[[Head], tuple]] = {
  'best': lambda h: (-(h.score or 0.0), -h.episode_return, h.length),
  'worst': lambda h: (h.success, h.score or 0.0, h.episode_return, -h.length),
}


@dataclasses.dataclass(frozen=True)
class Choice:
  """Says which episodes are meant; None is any.

  Attributes:
    kind: 'train' or 'eval'.
    step: of the file, or None for all.
    task: an id, or a part of it.
    order: a name in `ORDERS`; None is as they were played.
  """

  kind: str | None = None
  step: int | None = None
  task: str | None = None
  group: int | None = None
  member: int | None = None
  outcome: str | None = None
  order: str | None = None

  def __call__(self, heads: Iterable[Head]) -> list[Head]:
    """Gives the heads that are meant, in order.

    Raises:
      LookError: there are none.
    """
    heads = list(heads)
    found = [head for head in heads if self._admits(head)]
    if any(head.task_id == self.task for head in found):  # A whole id is no part.
      found = [head for head in found if head.task_id == self.task]
    if not found:
      raise LookError(f'no episode is of {self._said()}: {_what_there_is(heads)}')
    return sorted(found, key=ORDERS[self.order]) if self.order else found

  def _admits(self, head: Head) -> bool:
    return (
      self.kind in (None, head.kind)
      and self.step in (None, head.step)
      and (self.task is None or self.task in head.task_id)
      and self.group in (None, head.group_id)
      and self.member in (None, head.member)
      and self.outcome in (None, head.outcome)
    )

  def _said(self) -> str:
    given = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
    given.pop('order', None)
    return ', '.join(f'{name} {value}' for name, value in given.items()) or 'this run'


def first(heads: Sequence[Head]) -> Head:
  """Picks the episode to show where none is named.

  One whose turns are all recorded and that was solved, if there is any such.
  """

  def rank(head: Head) -> tuple:
    whole = 0 < head.recorded == head.length
    return whole, bool(head.recorded), head.success, head.recorded

  return max(heads, key=rank)


def members(heads: Iterable[Head], one: Head) -> list[Head]:
  """Lists the episodes of a group, by member."""
  same = lambda h: (h.kind, h.step, h.group_id) == (one.kind, one.step, one.group_id)
  return sorted(filter(same, heads), key=lambda head: head.member)


def _what_there_is(heads: Sequence[Head]) -> str:
  steps = sorted({head.step for head in heads})
  span = f'{steps[0]} to {steps[-1]}' if len(steps) > 1 else f'{steps[0]}'
  tasks = len({head.task_id for head in heads})
  return f'there are {len(heads)} of {tasks} tasks, steps {span}'


def opened(shown: Sequence[tuple[int, Head]], ordered: bool) -> tuple[int, int | None]:
  """Finds the episode to open first, and one beside it.

  Both are places in `shown`; the second is of the other run, or None.

  Args:
    shown: (run, head) of the episodes that were asked for, run by run.
    ordered: the first one is meant.
  """
  mine = [head for number, head in shown if number == 0]
  theirs = {h.task_id: i for i, (number, h) in enumerate(shown) if number == 1}
  both = [head for head in mine if head.task_id in theirs]
  one = (both or mine)[0] if ordered else first(both or mine)
  start = mine.index(one)
  if not any(number == 1 for number, _ in shown):
    return start, None
  others = [i for i, (n, h) in enumerate(shown) if n == 1 and h.task_id == one.task_id]
  rank = lambda i: (
    shown[i][1].kind != one.kind,
    abs(shown[i][1].step - one.step),
    not shown[i][1].recorded,
    shown[i][1].member != one.member,
  )
  return start, min(others, key=rank, default=None)
