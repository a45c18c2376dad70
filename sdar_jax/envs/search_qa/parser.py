"""Cuts a search or an answer out of a response; never raises.

Either mode gives the action that `engine.SearchQAEnv` plays: `<search>query</search>`,
`<answer>text</answer>`, or '' where there is none.
"""

from sdar_jax.envs.base import ParsedAction
from sdar_jax.envs.search_qa.engine import ANSWER, SEARCH, write_action
from sdar_jax.envs.texts import encodable

# What a case-blind regular expression takes for ASCII letters, one character for one.
_FOLD = {**{ord(c): c.lower() for c in map(chr, range(65, 91))}, 0x17F: 's'}


def parse_reference(response: str) -> ParsedAction:
  """Parses as the reference does, oddities included.

  The text is cut after its first `</search>` or, if it has none, its first `</answer>`
  (exact case). Of what is left the first complete search is the action, else the first
  complete answer, else ''; tags in any case, and U+017F counts as an s. It is valid if
  the whole response opens one search and no answer, or one answer and no search.
  `<think>` is not asked for, and what stands between the tags may be empty.

  Args:
    response: what the model wrote.

  Returns:
    The action with its text stripped. Lone surrogates come back as U+FFFD, so that it
    can be encoded.

  Source: ZJU-REAL/SDAR @ 8b85c23, the behaviour of agent_system/environments/
    env_package/search/projection.py.
  """
  text = _cut(response)
  folded = text.translate(_FOLD)
  for kind in (SEARCH, ANSWER):
    inside = _between(text, folded, kind)
    if inside is not None:
      whole = response.translate(_FOLD)
      valid = whole.count('<search>') + whole.count('<answer>') == 1
      return ParsedAction(_action(kind, inside), valid)
  return ParsedAction('', valid=False)


def parse_strict(response: str) -> ParsedAction:
  """Parses a `<think>` element and then one non-empty search or answer.

  Each tag must occur exactly once and in this order, in lower case, and the other
  kind's tags not at all; other text around the two elements does no harm.

  Args:
    response: what the model wrote.

  Returns:
    The action and whether all of this holds. Where it does not, the first complete
    search still gives its action, else the first complete answer. Lone surrogates come
    back as U+FFFD.
  """
  for kind, other in ((SEARCH, ANSWER), (ANSWER, SEARCH)):
    inside = _between(response, response, kind)
    if inside is not None:
      tags = ('<think>', '</think>', f'<{kind}>', f'</{kind}>')
      places = [response.find(tag) for tag in tags]
      valid = places == sorted(places) and all(response.count(t) == 1 for t in tags)
      valid = valid and not any(t in response for t in (f'<{other}>', f'</{other}>'))
      return ParsedAction(_action(kind, inside), valid and bool(inside))
  return ParsedAction('', valid=False)


def _cut(text: str) -> str:
  """Cuts a text after its first closing tag; a search's goes first."""
  for tag in ('</search>', '</answer>'):
    before, closed, _ = text.partition(tag)
    if closed:
      return before + closed
  return text


def _between(text: str, folded: str, kind: str) -> str | None:
  """Gives the inside of the first complete element of a kind."""
  start = folded.find(f'<{kind}>')
  end = folded.find(f'</{kind}>', start) if start >= 0 else -1
  return text[start + len(kind) + 2 : end].strip() if end >= 0 else None


def _action(kind: str, text: str) -> str:
  """Writes an action in encodable characters."""
  return write_action(kind, encodable(text))
