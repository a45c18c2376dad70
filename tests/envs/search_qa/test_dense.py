"""Dense retrieval against plain matrix products, and an encoder that misbehaves."""

import sys

import numpy as np
import pytest

from sdar_jax.envs.search_qa.retrieval import dense
from sdar_jax.envs.search_qa.retrieval.base import Passage
from sdar_jax.envs.search_qa.retrievers import open_retriever

PASSAGES = [Passage(f't{i}', f'text {i}') for i in range(40)]
VECTORS = np.random.default_rng(0).normal(size=(40, 8)).astype('f4')


def encode(texts):
  """A vector for any text, the same whatever stands beside it."""
  seeds = [sum(text.encode()) for text in texts]
  return np.stack([np.random.default_rng(seed).normal(size=8) for seed in seeds])


def saved(tmp_path, vectors=VECTORS):
  np.save(tmp_path / 'vectors.npy', vectors)
  return tmp_path / 'vectors.npy'


@pytest.mark.parametrize('how', ['npy', 'faiss'])
def test_the_nearest_by_inner_product(tmp_path, how):
  faiss = pytest.importorskip('faiss')
  path = saved(tmp_path)
  if how == 'faiss':
    path = tmp_path / 'own.index'
    faiss.write_index(dense.open_index(saved(tmp_path)), str(path))
  retriever = dense.DenseRetriever(dense.open_index(path), PASSAGES, encode)
  queries = [f'query {i}' for i in range(30)]
  products = encode(queries).astype('f4') @ VECTORS.T
  for row, hits in zip(products, retriever.search_many(queries, 3)):
    best = np.argsort(-row)[:3]
    assert [hit.title for hit in hits] == [f't{i}' for i in best]
    assert [hit.score for hit in hits] == pytest.approx(row[best], rel=1e-5)
  assert retriever.search_many([], 3) == []
  assert len(retriever.search_many(['a'], 99)[0]) == 40


@pytest.mark.parametrize(
  'wrong',
  [
    lambda texts: np.zeros((len(texts), 7)),
    lambda texts: np.zeros((1, 8)),
    lambda texts: np.full((len(texts), 8), np.nan),
    lambda texts: [['a']],
    lambda texts: 1 / 0,
  ],
)
def test_an_encoder_that_fails_is_a_fault(tmp_path, wrong):
  pytest.importorskip('faiss')
  index = dense.open_index(saved(tmp_path))
  retriever = dense.DenseRetriever(index, PASSAGES, wrong)
  faults = retriever.search_many(['a', 'b'], 3)
  assert [fault.kind for fault in faults] == ['encoder', 'encoder']


def test_wrong_files_are_one_line(tmp_path):
  pytest.importorskip('faiss')
  with pytest.raises(ValueError, match='40 vectors, the corpus 39'):
    dense.DenseRetriever(dense.open_index(saved(tmp_path)), PASSAGES[:39], encode)
  with pytest.raises(ValueError, match=r'has shape \(8,\)'):
    dense.open_index(saved(tmp_path, np.zeros(8)))
  np.save(tmp_path / 'object.npy', np.array([{}]), allow_pickle=True)
  (tmp_path / 'broken.index').write_bytes(b'<html>')
  for name in ('object.npy', 'broken.index', 'missing.npy', 'missing.index'):
    with pytest.raises(ValueError, match=name) as caught:
      dense.open_index(tmp_path / name)
    assert '\n' not in str(caught.value)


def test_without_faiss_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'faiss', None)
  with pytest.raises(ValueError, match=r"pip install 'sdar-jax\[dense\]'"):
    dense.open_index(saved(tmp_path))


def test_an_encoder_is_named(tmp_path):
  assert dense.load_encoder('json:dumps')([1]) == '[1]'
  for name in ('', 'json', 'json:nothing', 'no.such.module:f', ':f'):
    with pytest.raises(ValueError, match=r'package\.module:function'):
      dense.load_encoder(name)


def test_retrievers_by_name(tmp_path):
  with pytest.raises(ValueError, match=r'^config\.world\.retriever='):
    open_retriever('google')
  with pytest.raises(ValueError, match=r'^config\.world\.url='):
    open_retriever('http')
  corpus = tmp_path / 'corpus.jsonl'
  corpus.write_text('{"contents": "Ada\\nwrote"}\n')
  found = open_retriever('bm25', corpus=str(corpus)).search_many(['ada'], 3)[0]
  assert [passage[:2] for passage in found] == [('Ada', 'wrote')]
  assert open_retriever('http', url='http://127.0.0.1:1/retrieve').digest
