"""Cuts an action out of a response; linear in time, never raises."""

import dataclasses
import re
from collections.abc import Callable

from sdar_jax.envs.texts import encodable

MODES = ('reference', 'strict')
ALFWORLD_FALLBACK = 30  # characters; the reference's alfworld/projection.py
WEBSHOP_FALLBACK = 20  # characters; the reference's webshop/projection.py
_HAN = re.compile('[\u4e00-\u9fff]')


@dataclasses.dataclass(frozen=True)
class ParsedAction:
  """An action cut out of a response.

  Attributes:
    action: the text for the environment; may be empty.
    valid: the response obeyed the format (and, in strict mode, is admissible).
  """

  action: str
  valid: bool


def parse_reference(response: str, fallback: int = ALFWORLD_FALLBACK) -> ParsedAction:
  """Parses as the reference does, oddities included.

  The action lies between the first `<action>` and the first `</action>` of the
  lower-cased response, even if they stand in the wrong order (then it is mostly empty
  and still valid). Without them it is the response's end, invalid. A response without
  `<think>` and `</think>` (exact case) or with a Han character is invalid.

  Args:
    response: what the model wrote.
    fallback: how many characters at the end stand in for a missing action.

  Returns:
    The action, lower-cased, and whether the format was obeyed. Lone surrogates come
    back as U+FFFD, so that the action can be encoded.

  Source: ZJU-REAL/SDAR @ 8b85c23, the behaviour of agent_system/environments/
    env_package/{alfworld,webshop}/projection.py.
  """
  lowered = response.lower()
  start, end = lowered.find('<action>'), lowered.find('</action>')
  if start < 0 or end < 0:
    return ParsedAction(encodable(lowered[-fallback:]), valid=False)
  action = lowered[start + len('<action>') : end].strip()
  thought = '<think>' in response and '</think>' in response
  return ParsedAction(encodable(action), thought and not _HAN.search(response))


def parse_strict(
  response: str, admits: Callable[[str], bool], tag: str = 'action'
) -> ParsedAction:
  """Parses one `<think>` element and then one `<action>` element.

  Each of the four tags must occur exactly once, in this order (other text around the
  two elements does no harm), and the action must be admissible, hence not empty.

  Args:
    response: what the model wrote.
    admits: tells whether a command can do something now.
    tag: of the second element, where it is another one.

  Returns:
    The action as written, stripped, and whether all of this holds. Where it does not,
    the first `<action>...</action>` still gives its text; without one it is empty.
    Lone surrogates come back as U+FFFD.
  """
  tags = ('<think>', '</think>', f'<{tag}>', f'</{tag}>')
  _, opened, rest = response.partition(tags[2])
  inside, closed, _ = rest.partition(tags[3])
  action = encodable(inside.strip()) if opened and closed else ''
  places = [response.find(tag) for tag in tags]
  once = all(response.count(tag) == 1 for tag in tags)
  valid = once and places == sorted(places) and bool(action) and admits(action)
  return ParsedAction(action, valid)
