"""Exact match: how an answer is compared with the gold answers.

Source: PeterGriffinJin/Search-R1 @ a14dc3a, the behaviour of verl/utils/reward_score/
qa_em.py; the normalisation is that of SQuAD (Rajpurkar et al., 2016).
"""

import re
import string
from collections.abc import Sequence

_PUNCTUATION = str.maketrans('', '', string.punctuation)  # ASCII only
_ARTICLES = re.compile(r'\b(a|an|the)\b')


def normalize(text: str) -> str:
  """Strips case, ASCII punctuation, articles and extra spaces."""
  bare = text.lower().translate(_PUNCTUATION)
  return ' '.join(_ARTICLES.sub(' ', bare).split())


def exact_match(text: str, golden: str | Sequence[str]) -> bool:
  """Tests for equality with any gold answer, both normalised."""
  listed = [golden] if isinstance(golden, str) else golden
  return normalize(text) in map(normalize, listed)
