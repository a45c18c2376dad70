"""Failures of environments that are not the policy's."""

from typing import Any


class EnvironmentFault(RuntimeError):
  """A failure of infrastructure, not of the policy: never trained on.

  Attributes:
    kind: what failed, one short word for counting, e.g. 'refused' or 'crash'.
  """

  def __init__(self, kind: str, message: str):
    super().__init__(f'{kind}: {message}')
    self.kind = kind
    self.message = message

  def __reduce__(self) -> Any:  # The default calls the class with one argument.
    return type(self), (self.kind, self.message)


class EnvironmentTimeout(EnvironmentFault):
  """A missed deadline."""
