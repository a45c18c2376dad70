"""The past turns of an episode, and a paragraph about them."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Exchange:
  """One past turn as the prompt's history shows it."""

  observation: str
  action: str


class History(tuple):
  """The exchanges of a prompt: all of an episode, or the last of them.

  Attributes:
    whole: all of them, oldest first: what is true of the episode, its turn number
      say, is read here.
  """

  whole: tuple[Exchange, ...]

  def __new__(cls, whole: Iterable[Exchange] = (), shown: int | None = None):
    """Keeps the last `shown` exchanges of `whole`; None shows all."""
    whole = tuple(whole)
    count = len(whole) if shown is None else min(shown, len(whole))
    history = super().__new__(cls, whole[len(whole) - count :])
    history.whole = whole
    return history

  def __reduce__(self) -> Any:
    return type(self), (self.whole, len(self))


def whole(history: Sequence[Exchange]) -> Sequence[Exchange]:
  """Gives all turns so far; a plain sequence is all of them."""
  return history.whole if isinstance(history, History) else history


def actions_since(before: Sequence[str], now: Sequence[str]) -> str:
  """Writes which actions are possible, or what has changed if shorter.

  Args:
    before: those of the turn before; none at the first.
    now: those of this turn.
  """
  listed = lambda head, actions: '\n- '.join([head, *actions])
  whole = listed('Actions possible now:', now)
  new = [action for action in now if action not in before]
  gone = [action for action in before if action not in now]
  parts = [listed('Also possible now:', new)] if new else []
  parts += [listed('No longer possible:', gone)] if gone else []
  changed = '\n'.join(parts) or 'The same actions are possible.'
  return changed if before and len(changed) < len(whole) else whole


def past_turns(
  history: Sequence[Exchange],
  limit: int,
  saw: str = 'you saw',
  shown: Callable[[str], str] = str,
) -> list[str]:
  """Writes the paragraph about past turns; none before the first turn.

  Args:
    history: the turns that a prompt may show (see `whole`).
    limit: how many of them to show at most, the newest.
    saw: words between the number of a turn and its observation.
    shown: maps an observation's text to what is shown of it.
  """
  turns, last = len(whole(history)), history[max(len(history) - limit, 0) :]
  if not turns:
    return []
  lines = [f'Turns taken so far: {turns}.' + f' The last {len(last)}:' * bool(last)]
  for number, exchange in enumerate(last, turns - len(last) + 1):
    lines.append(f'Turn {number}, {saw}: {shown(exchange.observation)}')
    lines.append(f'Turn {number}, you did: {exchange.action}')
  return ['\n'.join(lines)]
