"""BM25 over passages held in memory: numpy, exact, the same for a batch as for one."""

from collections.abc import Sequence

from sdar_jax.envs.search_qa.retrieval import Answer, Passage


class BM25Retriever:
  """Lexical search over title and text; implements `retrieval.Retriever`.

  Args:
    passages: the corpus.
    k1, b: of BM25 (ref: Anserini's 0.9 and 0.4).
  """

  def __init__(self, passages: Sequence[Passage], k1: float = 0.9, b: float = 0.4):
    raise NotImplementedError

  def search_many(self, queries: Sequence[str], topk: int) -> list[Answer]:
    """The best passages of each query; only ones that share a word with it."""
    raise NotImplementedError
