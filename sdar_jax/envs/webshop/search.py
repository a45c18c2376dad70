"""Full-text search: Lucene's BM25 to the last bit of its scores.

With q_t how often the query says term t, f how often the product does, N products of
which n_t say t, and L the product's length kept to four significant bits:

  w_t     = q_t * ln(1 + (N - n_t + 0.5) / (n_t + 0.5))
  score   = sum_t w_t - w_t / (1 + f / (k1 * (1 - b + b * L / mean length)))

in float32 but for the sum, which is double. Equal scores are ordered by asin.
"""

import collections
import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sdar_jax import files
from sdar_jax.envs.webshop.analyzer import analyze

K1, B = np.float32(0.9), np.float32(0.4)
HITS = 50  # The shop asks for this many.
MOST_TERMS = 1024  # Lucene refuses longer queries.
_BATCH = 50_000  # Products that are sorted at a time while the index is built.
_SAMPLE = 1 << 16  # Products that bound a query's scores.
_MAX_TERMS = 2**30  # Bytes of terms.json.
_TINY = np.nextafter(np.float32(0), np.float32(1))
_ARRAYS = ('offsets', 'rows', 'dividers', 'weights', 'ranks')


class LongQueryError(ValueError):
  """A query with more distinct terms than the engine takes."""


class SearchIndex:
  """An immutable inverted index over the rows of a catalogue.

  Args:
    terms: the vocabulary; a term's position is its number.
    offsets: int64 [terms + 1], where each term's postings start.
    rows: int32 [postings], products by term, ascending.
    dividers: float32 [postings], what w_t is divided by in the formula above.
    weights: float32 [terms], w_t of a query that says the term once.
    ranks: int32 [products], positions of the products in the order of their asins.
    directory: where the arrays are mapped from; None if they are in memory.
  """

  def __init__(
    self,
    terms: Iterable[str],
    offsets: np.ndarray,
    rows: np.ndarray,
    dividers: np.ndarray,
    weights: np.ndarray,
    ranks: np.ndarray,
    directory: Path | None = None,
  ):
    self.terms = {term: number for number, term in enumerate(terms)}
    self.offsets, self.rows, self.dividers = offsets, rows, dividers
    self.weights, self.ranks = weights, ranks
    self.directory = directory

  def __reduce__(self):
    if self.directory is not None:  # Map the same files rather than copy them.
      return type(self).load, (self.directory,)
    return type(self), (list(self.terms), *(getattr(self, n) for n in _ARRAYS))

  @classmethod
  def build(cls, texts: Iterable[str], asins: Sequence[str]) -> 'SearchIndex':
    """Indexes texts; `asins` names them, row by row."""
    ids = collections.defaultdict()
    ids.default_factory = ids.__len__
    lengths, batches = array('i'), []
    pending, start = array('i'), 0
    for text in texts:
      found = analyze(text)
      pending.extend(map(ids.__getitem__, found))
      lengths.append(len(found))
      if len(lengths) - start == _BATCH:
        batches.append(_count(pending, lengths[start:], start))
        pending, start = array('i'), len(lengths)
    batches.append(_count(pending, lengths[start:], start))
    return cls(ids, *_invert(batches, np.array(lengths), len(ids)), _ranks(asins))

  @classmethod
  def load(cls, directory: str | Path) -> 'SearchIndex':
    """Maps an index written by `save`."""
    directory = Path(directory)
    arrays = [np.load(directory / f'{name}.npy', mmap_mode='r') for name in _ARRAYS]
    terms = files.read_json(directory / 'terms.json', list, limit=_MAX_TERMS)
    return cls(terms, *arrays, directory)

  def save(self, directory: str | Path) -> None:
    """Writes the index to an existing folder."""
    directory = Path(directory)
    for name in _ARRAYS:
      np.save(directory / f'{name}.npy', getattr(self, name))
    (directory / 'terms.json').write_text(json.dumps(list(self.terms)))

  def rank(
    self, terms: Iterable[str], hits: int = HITS
  ) -> tuple[np.ndarray, np.ndarray]:
    """Rows and float32 scores of the best products, best first.

    Raises:
      LongQueryError: the query has more than `MOST_TERMS` distinct terms.
    """
    counts = collections.Counter(terms)
    if len(counts) > MOST_TERMS:
      raise LongQueryError(f'{len(counts)} distinct terms; at most {MOST_TERMS}')
    sums = np.zeros(len(self.ranks), np.float64)
    for term, count in counts.items():
      number = self.terms.get(term)
      if number is None:
        continue
      weight = np.float32(count) * self.weights[number]
      found = slice(self.offsets[number], self.offsets[number + 1])
      gains = weight - weight / self.dividers[found]
      # As `sums[rows] += gains`, in half the time; of one type, or it is slow.
      np.add.at(sums, self.rows[found], gains.astype(np.float64))
    scores = sums.astype(np.float32)
    # Most products fall short of the best of a sample: they need not be ordered.
    sample = scores[:: len(scores) // _SAMPLE + 1]
    rows = np.flatnonzero(scores >= max(_least(sample, hits), _TINY))
    rows = rows[scores[rows] >= _least(scores[rows], hits)]
    order = np.lexsort((self.ranks[rows], -scores[rows]))[:hits]
    return rows[order], scores[rows[order]]

  def search(self, query: str, hits: int = HITS) -> np.ndarray:
    """Rows of the best products for a query in words, best first."""
    return self.rank(analyze(query), hits)[0]


def _least(scores: np.ndarray, hits: int) -> np.float32:
  """Finds the `hits`-th best of some scores; 0 if there are fewer."""
  return np.partition(scores, -hits)[-hits] if len(scores) > hits else np.float32(0)


def _ranks(asins: Sequence[str]) -> np.ndarray:
  """Positions in sorted order, int32 [products]."""
  ranks = np.empty(len(asins), np.int32)
  ranks[np.argsort(np.array(asins, np.bytes_), kind='stable')] = np.arange(len(asins))
  return ranks


def _count(pending: array, lengths: array, start: int) -> tuple[np.ndarray, ...]:
  """Counts terms of one batch: sorted terms, rows and frequencies."""
  terms = np.frombuffer(pending, np.int32).astype(np.int64)
  rows = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
  pairs, frequencies = np.unique(terms << 32 | rows, return_counts=True)
  rows = (pairs & 0xFFFFFFFF).astype(np.int32) + np.int32(start)
  return (pairs >> 32).astype(np.int32), rows, frequencies.astype(np.uint16)


def _kept_lengths(lengths: np.ndarray) -> np.ndarray:
  """Rounds lengths as one byte keeps them.

  Exact below 40, then four significant bits.
  """
  above = np.maximum(lengths.astype(np.int64) - 24, 0)
  bits = np.maximum(np.frexp(above.astype(np.float64))[1] - 4, 0)
  return np.where(lengths < 24, lengths, 24 + (above >> bits << bits))


def _invert(
  batches: list[tuple[np.ndarray, ...]], lengths: np.ndarray, terms: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Inverts the batches, emptying them: offsets, rows and weights."""
  one = np.float32(1)
  documents = np.count_nonzero(lengths)
  mean = np.float32(lengths.sum(dtype=np.int64) / max(documents, 1))
  kept = _kept_lengths(lengths).astype(np.float32)
  scales = one / (K1 * ((one - B) + B * kept / mean))
  used = np.zeros(terms, np.int64)
  for batch in batches:
    used += np.bincount(batch[0], minlength=terms)
  offsets = np.concatenate([[0], np.cumsum(used)])
  weights = np.log(1 + (documents - used + 0.5) / (used + 0.5)).astype(np.float32)
  rows = np.empty(offsets[-1], np.int32)
  dividers = np.empty(offsets[-1], np.float32)
  free = offsets[:-1].copy()  # Where each term's next posting goes.
  while batches:
    batch_terms, batch_rows, frequencies = batches.pop(0)
    counts = np.bincount(batch_terms, minlength=terms)
    firsts = np.cumsum(counts) - counts
    places = np.arange(len(batch_terms)) + (free - firsts)[batch_terms]
    rows[places] = batch_rows
    dividers[places] = one + frequencies.astype(np.float32) * scales[batch_rows]
    free += counts
  return offsets, rows, dividers, weights
