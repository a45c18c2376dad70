"""BM25 over passages in memory: exact, the same in any batch.

For corpora up to about a million passages; larger ones belong behind a server. A ready
library (bm25s) is not used here because importing it starts JAX and with it takes hold
of the accelerator, in every process that plays episodes.
"""

import array
import collections
import hashlib
import json
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from sdar_jax.envs.search_qa.retrieval.base import Passage, Retrieved, corpus_digest

_WORD = re.compile(r'\w+')
# The words that Lucene's English analyzer drops.
STOP_WORDS = frozenset(
  'a an and are as at be but by for if in into is it no not of on or such that the'
  ' their then there these they this to was will with'.split()
)


def tokenize(text: str) -> list[str]:
  """Splits into lower-case words, no accents, stop words or stemming."""
  if not text.isascii():
    parts = unicodedata.normalize('NFKD', text)
    text = ''.join(c for c in parts if not unicodedata.combining(c))
  return [word for word in _WORD.findall(text.lower()) if word not in STOP_WORDS]


class BM25Retriever:
  """Searches title and text by words; implements `PassageRetriever`.

  score(q, d) = sum over words w of q, repeats counted, of
    ln(1 + (N - n_w + 1/2) / (n_w + 1/2)) * f / (f + k1 (1 - b + b |d| / mean |d|))
  for w occurring f times in d and in n_w of N passages. Ties go to the passage that
  comes first in the corpus; passages without a word of the query are never returned.

  Args:
    passages: the corpus, not empty.
    k1: saturation of repeated words (ref: Anserini's 0.9).
    b: how much length counts, in [0, 1] (ref: Anserini's 0.4).

  Source: Robertson and Zaragoza (2009), eq. 3.15, with Lucene's idf.
  """

  def __init__(self, passages: Sequence[Passage], k1: float = 0.9, b: float = 0.4):
    if not passages:
      raise ValueError('bm25: the corpus has no passage')
    self._passages = passages
    truth = json.dumps([corpus_digest(passages), 'bm25/1', k1, b])
    self.digest = hashlib.sha256(truth.encode()).hexdigest()
    self._vocabulary: dict[str, int] = {}
    words, lengths = array.array('i'), array.array('i')
    for passage in passages:
      tokens = tokenize(passage.contents)
      lengths.append(len(tokens))
      words.extend(
        self._vocabulary.setdefault(token, len(self._vocabulary)) for token in tokens
      )
    self._index(np.array(words, np.int64), np.array(lengths, np.int64), k1, b)

  def _index(self, words: np.ndarray, lengths: np.ndarray, k1: float, b: float) -> None:
    """Sorts postings by word and passage."""
    total = len(lengths)
    keys = words * total + np.repeat(np.arange(total), lengths)
    keys, counts = np.unique(keys, return_counts=True)
    words, documents = keys // total, keys % total
    holding = np.bincount(words, minlength=len(self._vocabulary))
    idf = np.log1p((total - holding + 0.5) / (holding + 0.5))
    norm = k1 * (1 - b + b * lengths / max(lengths.mean(), 1))
    self._weights = (idf[words] * counts / (counts + norm[documents])).astype('f4')
    self._documents = documents.astype(np.int32)
    self._starts = np.concatenate([[0], np.cumsum(holding)])

  def search_many(self, queries: Sequence[str], topk: int) -> list[Retrieved]:
    """Finds the best passages with a word of each query."""
    return [self._search(query, topk) for query in queries]

  def _search(self, query: str, topk: int) -> tuple[Passage, ...]:
    scores = np.zeros(len(self._passages), np.float32)
    counts = collections.Counter(
      self._vocabulary[token] for token in tokenize(query) if token in self._vocabulary
    )
    for word in sorted(counts):  # One order of summation, whatever the query's.
      span = slice(self._starts[word], self._starts[word + 1])
      scores[self._documents[span]] += counts[word] * self._weights[span]
    return tuple(
      self._passages[i]._replace(score=float(scores[i])) for i in _best(scores, topk)
    )


def _best(scores: np.ndarray, topk: int) -> np.ndarray:
  """Indices of the highest positive scores, ties by index."""
  found = np.flatnonzero(scores)
  if len(found) > topk:
    kth = np.partition(scores[found], -topk)[-topk]
    found = found[scores[found] >= kth]
  return found[np.argsort(-scores[found], kind='stable')][:topk]
