"""The retrievers by name, opened from plain settings."""

from sdar_jax.envs.base import check_choice
from sdar_jax.envs.search_qa.datasets import read_corpus
from sdar_jax.envs.search_qa.retrieval import dense
from sdar_jax.envs.search_qa.retrieval.base import PassageRetriever
from sdar_jax.envs.search_qa.retrieval.bm25 import BM25Retriever
from sdar_jax.envs.search_qa.retrieval.client import HttpRetriever

KINDS = ('bm25', 'dense', 'http')


def open_retriever(
  kind: str,
  *,
  corpus: str = '',
  index: str = '',
  encoder: str = '',
  url: str = '',
  shape: str = 'batch',
) -> PassageRetriever:
  """Opens a retriever; reads its files, but asks no server anything yet.

  Args:
    kind: one of `KINDS`.
    corpus: file of passages (`datasets.read_corpus`), for 'bm25' and 'dense'.
    index: FAISS index or .npy of the passages' embeddings, for 'dense'.
    encoder: 'package.module:function' from texts to embeddings, for 'dense'.
    url: of a `/retrieve` server, for 'http'.
    shape: of the requests, one of `client.SHAPES`, for 'http'.

  Raises:
    ValueError: one line naming the file or setting that is wrong.
  """
  check_choice('retriever', kind, KINDS)
  if kind == 'http':
    return HttpRetriever(url, shape)
  if kind == 'bm25':
    return BM25Retriever(read_corpus(corpus))
  encode = dense.load_encoder(encoder)
  return dense.DenseRetriever(dense.open_index(index), read_corpus(corpus), encode)
