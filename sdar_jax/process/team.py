"""The processes of one run, where it is a single one. No JAX.

`hosts.team.Team` is one of several and keeps the same promises. Values that are shared
are those that JSON holds without loss.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from sdar_jax.process.flags import UsageError

LOST = 75  # The exit code where another process died or hung.
_T = TypeVar('_T')


class PeerError(RuntimeError):
  """An error of another process of the run, or among them: one line.

  Attributes:
    exit_code: what that process ends with.
  """

  def __init__(self, text: str, exit_code: int = 70):
    super().__init__(text)
    self.exit_code = exit_code


class Place(NamedTuple):
  """A process of a run and where its first one listens."""

  address: str
  count: int
  index: int


def place(text: str) -> Place | None:
  """Reads ADDRESS:PORT,COUNT,INDEX; None for `auto`.

  Raises:
    UsageError: it is neither.
  """
  if text == 'auto':
    return None
  address, *numbers = text.split(',')
  host, _, port = address.rpartition(':')
  if len(numbers) == 2 and all(n.isdecimal() for n in (port, *numbers)) and host:
    count, index = map(int, numbers)
    if index < count and 0 < int(port) < 2**16:
      return Place(address, count, index)
  raise UsageError(
    f'--hosts={text}: must be none, auto or ADDRESS:PORT,COUNT,INDEX with INDEX from 0'
    ' to COUNT - 1'
  )


class Alone:
  """The only process of a run.

  Attributes:
    index: of this process, from 0.
    count: of all.
    ended: nothing can be shared any more: another process said so, or is gone.
  """

  index, count = 0, 1
  ended = False

  @property
  def leads(self) -> bool:
    """Whether this is the process that writes."""
    return self.index == 0

  def share(self, value: Any) -> list[Any]:
    """Gives the values of all processes, in order; waits for all.

    Raises:
      PeerError: another process ended with an error.
      rollout.Interrupted: another process was asked to stop.
    """
    return [value]

  def any(self, flag: bool) -> bool:
    """Tells whether the flag of any process is set."""
    return any(self.share(bool(flag)))

  def first(self, make: Callable[[], Any]) -> Any:
    """Makes a value on the first process and gives it to all."""
    return self.share(make() if self.leads else None)[0]

  def each(self, act: Callable[[], _T], *, leader: bool = False) -> _T | None:
    """Acts on every process; where one fails all raise, and wait so long.

    Args:
      act: what each does.
      leader: only the first one does.
    """
    return act() if self.leads or not leader else None

  def agree(self, values: Mapping[str, Any], remedy: str, code: int = 2) -> None:
    """Compares named values of all processes.

    Args:
      values: of this process.
      remedy: where they differ.
      code: that all then end with.

    Raises:
      PeerError: some differ; one line with name, values and the remedy.
    """

  def beat(self) -> None:
    """Tells the watchdog that this process makes progress."""

  @contextlib.contextmanager
  def together(self) -> Iterator[None]:
    """Tells the others of an error that ends the block."""
    yield


ALONE = Alone()
