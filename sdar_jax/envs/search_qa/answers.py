"""Exact match: how an answer is compared with the gold answers.

Source: PeterGriffinJin/Search-R1 @ a14dc3a, the behaviour of verl/utils/reward_score/
qa_em.py; the normalisation is that of SQuAD (Rajpurkar et al., 2016).
"""

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans('', '', string.punctuation)  # ASCII only
_ARTICLES = re.compile(r'\b(a|an|the)\b')
_OPEN, _CLOSE = '<answer>', '</answer>'


def normalize(text: str) -> str:
  """Lower case without ASCII punctuation and articles, words one space apart."""
  bare = text.lower().translate(_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', bare).split())


def exact_match(text: str, golden: str | Sequence[str]) -> bool:
  """Whether a text equals any gold answer, both normalised."""
  normal = normalize(text)
  return any(normalize(gold) == normal for gold in _listed(golden))


def sub_match(text: str, golden: str | Sequence[str]) -> bool:
  """Whether a text contains any gold answer, both normalised."""
  normal = normalize(text)
  return any(normalize(gold) in normal for gold in _listed(golden))


def last_answer(text: str, at_least: int = 1) -> str | None:
  """What the last `<answer>...</answer>` of a text holds, stripped; case-sensitive.

  Args:
    text: a response, or a whole conversation.
    at_least: how many answers there must be; 2 where a prompt that shows one is part
      of the text.

  Returns:
    The answer, or None if there are fewer than `at_least`.
  """
  found, start = [], text.find(_OPEN)
  while start >= 0 and (end := text.find(_CLOSE, start)) >= 0:
    found.append(text[start + len(_OPEN) : end].strip())
    start = text.find(_OPEN, end)
  return found[-1] if len(found) >= at_least else None


def _listed(golden: str | Sequence[str]) -> Sequence[str]:
  return [golden] if isinstance(golden, str) else golden
