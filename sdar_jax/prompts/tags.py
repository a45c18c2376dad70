"""Tags of an answer's format, such as `<think>`, as tokens. No JAX."""

import re
from collections.abc import Iterable

_TAG = re.compile(r'<(/?)([A-Za-z][\w-]*)>')
_ROLES = frozenset({'s'})  # `<s>` and `</s>` bound a text; they are no part of it.


def paired(tokens: Iterable[str]) -> frozenset[str]:
  """Selects tag tokens with a partner: `<think>` with `</think>`.

  They are what a response says, even where a tokenizer declares them special.
  """
  found = {token: match for token in tokens if (match := _TAG.fullmatch(token))}
  return frozenset(
    token
    for token, match in found.items()
    if match[2] not in _ROLES
    and (f'<{match[2]}>' if match[1] else f'</{match[2]}>') in found
  )


def opening(tail: str, controls: Iterable[str]) -> str:
  """Finds the beginning of a response in the template's own text.

  Args:
    tail: a rendered prompt after the user's message, generation prompt included.
    controls: tokens of the template's frame.

  Returns:
    What follows the last of them without the line that names who speaks, such as
    '<think>\\n'; '' if that is nothing but white space.
  """
  ends = [tail.rfind(name) + len(name) for name in controls if name in tail]
  text = tail[max(ends, default=0) :]
  speaker = re.match(r'\w+\n', text)
  text = text[speaker.end() :] if speaker else text
  return text if text.strip() and not re.fullmatch(r'\s*\w+\s*', text) else ''


def unclosed(text: str) -> str:
  """Finds the last unclosed tag of a text; '' if there is none."""
  left: list[str] = []
  for match in _TAG.finditer(text):
    if not match[1]:
      left.append(match[0])
    elif f'<{match[2]}>' in left:
      left.remove(f'<{match[2]}>')
  return left[-1] if left else ''


def find(text: str) -> tuple[str, ...]:
  """The tags of a text, each once."""
  return tuple(dict.fromkeys(match[0] for match in _TAG.finditer(text)))
