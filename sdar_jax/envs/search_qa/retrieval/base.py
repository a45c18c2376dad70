"""Passages, the protocol of a retriever, and one shared by all.

A retriever answers many queries at once and gives each its own outcome: passages, or
the fault that befell this query. So one lost query never costs another its answer, and
a fault can never be taken for text.
"""

import collections
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from sdar_jax.envs.base import EnvironmentFault


class Passage(NamedTuple):
  """A document, or a hit with its score.

  Attributes:
    title: one line.
    text: what the document says.
    score: of a hit, higher is better; unit and range are the retriever's.
  """

  title: str
  text: str
  score: float = 0.0

  @property
  def contents(self) -> str:
    """Title and text as public corpora and `/retrieve` servers join them."""
    return f'{self.title}\n{self.text}'

  @classmethod
  def from_contents(cls, contents: str, score: float = 0.0) -> 'Passage':
    """Reads `contents`; drops the marks around wiki-18's titles."""
    title, _, text = contents.partition('\n')
    title = title.strip()
    return cls(title[1:-1] if quoted(title) else title, text, score)


def quoted(title: str) -> bool:
  """Tests for one pair of quotation marks around a whole title.

  It does not where the first mark is closed before the end: "Heroes" and "Villains".
  """
  inside = title[1:-1]
  if not inside or not title[0] == title[-1] == '"':
    return False
  before = inside[: inside.find('"')] if '"' in inside else ''
  return not before or before[-1].isspace() or before[-1] in '([{-/'


Retrieved = tuple[Passage, ...] | EnvironmentFault


class PassageRetriever(Protocol):
  """Finds passages, for each query by itself.

  Attributes:
    digest: identifies what decides its answers, as far as it can be known.
  """

  digest: str

  def search_many(self, queries: Sequence[str], topk: int) -> list[Retrieved]:
    """Answers each query with at most `topk` passages, best first."""


def corpus_digest(passages: Iterable[Passage]) -> str:
  """Hashes titles and texts in order: hex SHA-256."""
  total = hashlib.sha256()
  for passage in passages:
    total.update(f'{json.dumps(passage[:2])}\n'.encode())
  return total.hexdigest()


class Searcher:
  """One retriever for all environments of a world, with a bounded memory.

  Pickles as its settings: another process opens its own retriever when it needs it.

  Args:
    make: picklable function without arguments that opens the retriever.
    topk: passages per query (ref: 3).
    capacity: how many answers are remembered, the oldest forgotten first.
  """

  def __init__(
    self, make: Callable[[], PassageRetriever], topk: int = 3, capacity: int = 4096
  ):
    self._make = make
    self.topk = topk
    self._capacity = capacity
    self._forget()

  def _forget(self) -> None:
    self._retriever: PassageRetriever | None = None
    self._found: collections.OrderedDict[str, tuple[Passage, ...]] = (
      collections.OrderedDict()
    )
    # Faults of the last prefetch, with how many steps are still to meet each.
    self._faults: dict[str, tuple[EnvironmentFault, int]] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {'make': self._make, 'topk': self.topk, 'capacity': self._capacity}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__init__(**state)

  @property
  def retriever(self) -> PassageRetriever:
    """The retriever, opened at first use."""
    if self._retriever is None:
      self._retriever = self._make()
    return self._retriever

  def prefetch(self, queries: Iterable[str]) -> None:
    """Answers all queries of the next turn in one batch.

    A query's fault is remembered as often as the query occurs here, so that every step
    of this turn meets the same fault and a later attempt asks anew.
    """
    counts = collections.Counter(queries)
    for query in counts.keys() & self._found.keys():
      self._found.move_to_end(query)
    unknown = [query for query in counts if query not in self._found]
    self._faults = {}
    if not unknown:
      return
    for query, answer in zip(unknown, self._ask(unknown), strict=True):
      if isinstance(answer, EnvironmentFault):
        self._faults[query] = (answer, counts[query])
      else:
        self._found[query] = answer
    while len(self._found) > max(self._capacity, len(counts)):
      self._found.popitem(last=False)

  def search(self, query: str) -> tuple[Passage, ...]:
    """Gives the passages for a query.

    Raises:
      EnvironmentFault: the retriever failed on this query.
    """
    if query in self._found:
      return self._found[query]
    if query in self._faults:
      answer, left = self._faults.pop(query)
      if left > 1:
        self._faults[query] = (answer, left - 1)
    else:
      answer = self._ask([query])[0]
    if isinstance(answer, EnvironmentFault):
      # A copy: a raised exception keeps its traceback, and with it the episode.
      raise type(answer)(answer.kind, answer.message)
    return answer

  def _ask(self, queries: Sequence[str]) -> list[Retrieved]:
    return self.retriever.search_many(queries, self.topk)
