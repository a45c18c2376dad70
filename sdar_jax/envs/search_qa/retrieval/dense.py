"""Dense retrieval by FAISS: `pip install 'sdar-jax[dense]'`."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdar_jax import files
from sdar_jax.envs import imports
from sdar_jax.envs.base import EnvironmentFault
from sdar_jax.envs.search_qa.retrieval.base import Passage, Retrieved, corpus_digest

# Texts to [n, d] embeddings. For e5-base-v2 that is the mean of the last hidden states,
# normalised, of 'query: ' and the text.
Encoder = Callable[[Sequence[str]], np.ndarray]


class DenseRetriever:
  """Searches by inner product; implements `PassageRetriever`.

  Scores and near ties may differ in rounding between batches of different sizes:
  FAISS multiplies large batches in another order.

  Args:
    index: a FAISS index whose i-th vector belongs to the i-th passage.
    passages: the corpus.
    encode: makes query embeddings, [n] texts to [n, d].

  Raises:
    ValueError: index and corpus differ in size.
  """

  def __init__(self, index: Any, passages: Sequence[Passage], encode: Encoder):
    if index.ntotal != len(passages):
      raise ValueError(
        f'dense: the index has {index.ntotal} vectors, the corpus {len(passages)}'
        ' passages (config.world.index, config.world.corpus)'
      )
    self._index = index
    self._passages = passages
    self._encode = encode

  @functools.cached_property
  def digest(self) -> str:
    """Hash of the corpus and the index's size, not of vectors or encoder."""
    truth = [corpus_digest(self._passages), 'dense/1', self._index.ntotal]
    return hashlib.sha256(json.dumps([*truth, self._index.d]).encode()).hexdigest()

  def search_many(self, queries: Sequence[str], topk: int) -> list[Retrieved]:
    """Finds the largest inner products, or gives the encoder's fault."""
    if not queries:
      return []
    try:
      vectors = self._embed(queries)
    except EnvironmentFault as fault:
      return [fault] * len(queries)
    scores, places = self._index.search(vectors, topk)
    return [
      tuple(
        self._passages[place]._replace(score=float(score))
        for score, place in zip(row, found)
        if place >= 0  # FAISS pads with -1 where an index holds fewer.
      )
      for row, found in zip(scores, places)
    ]

  def _embed(self, queries: Sequence[str]) -> np.ndarray:
    try:
      vectors = np.ascontiguousarray(self._encode(queries), np.float32)
    except Exception as error:  # Whatever the user's encoder raises is a fault.
      raise EnvironmentFault('encoder', files.one_line(error)) from error
    expected = (len(queries), self._index.d)
    if vectors.shape != expected or not np.isfinite(vectors).all():
      message = f'gave shape {vectors.shape} or non-finite values, not {expected}'
      raise EnvironmentFault('encoder', message)
    return vectors


def open_index(path: str | Path) -> Any:
  """Opens a FAISS index, or makes an exact one of an .npy file.

  Raises:
    ValueError: FAISS is not installed, or (FileError) the file is not such an index.
  """
  try:
    import faiss  # An extra, and slow to load: only who searches densely needs it.
  except ImportError:
    message = "dense retrieval needs faiss: pip install 'sdar-jax[dense]'"
    raise ValueError(message) from None
  path = files.local_path(str(path), 'config.world.index')
  try:
    if path.suffix != '.npy':
      return faiss.read_index(str(path))
    vectors = np.load(path, mmap_mode='r', allow_pickle=False)
    if vectors.ndim != 2:
      raise ValueError(f'has shape {vectors.shape}, not [passages, dimensions]')
  except (OSError, EOFError, ValueError, RuntimeError) as error:
    raise files.FileError(f'{path}: {" ".join(str(error).split())[:200]}') from None
  index = faiss.IndexFlatIP(vectors.shape[1])
  for start in range(0, len(vectors), 65536):
    index.add(np.ascontiguousarray(vectors[start : start + 65536], np.float32))
  return index


def load_encoder(name: str) -> Encoder:
  """Imports the function named by 'package.module:function'.

  Raises:
    ValueError: there is none.
  """
  try:
    return imports.named(name)
  except imports.NamedError as error:
    raise ValueError(
      f"encoder {name!r}: must be 'package.module:function' ({error})"
    ) from None
