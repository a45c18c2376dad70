"""Calls of tools in responses, in the format of Qwen. No JAX."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from sdar_jax import files

OPEN, CLOSE = '<tool_call>', '</tool_call>'
_CALL = re.compile(f'{re.escape(OPEN)}(.*?){re.escape(CLOSE)}', re.DOTALL)


class ToolCallError(ValueError):
  """Unreadable calls of tools: one line."""


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """One call: a tool's name and its arguments, values of JSON."""

  name: str
  arguments: dict[str, Any]


def parse(
  response: str, names: Sequence[str] | None = None
) -> tuple[str, list[ToolCall]]:
  """Reads the calls of a response, strictly.

  Args:
    response: decoded, tags included.
    names: of the tools that may be called; None is any.

  Returns:
    What is said besides, stripped, and the calls in order.

  Raises:
    ToolCallError: a tag stands alone, or between two of them is not exactly one object
      with a `name` that may be called and `arguments`, an object.
  """
  calls = [_read(match[1], names) for match in _CALL.finditer(response)]
  said = _CALL.sub('', response)
  if OPEN in said or CLOSE in said:
    raise ToolCallError(f'a {OPEN} and its {CLOSE} do not stand in pairs')
  return said.strip(), calls


def _read(text: str, names: Sequence[str] | None) -> ToolCall:
  try:
    value = files.parse_json(text.strip(), 'tool call')
  except files.FileError as error:
    raise ToolCallError(files.one_line(error)) from None
  if set(value) != {'name', 'arguments'}:
    raise ToolCallError(
      f'tool call: keys {sorted(value)[:5]}: must be name and arguments'
    )
  name, arguments = value['name'], value['arguments']
  if not isinstance(name, str) or (names is not None and name not in names):
    known = '' if names is None else f': must be one of {sorted(names)}'
    raise ToolCallError(f'tool call: name {str(name)[:40]!r}{known}')
  if not isinstance(arguments, dict):
    raise ToolCallError(f'tool call: arguments of {name!r} must be an object')
  return ToolCall(name, arguments)
