"""BM25 against the formula written out, and on real passages."""

import collections
import math
import random

import pytest
from shared import shared_path

from benchmarks.search_qa_retrieval import sub_match
from sdar_jax.envs.search_qa.datasets import read_corpus, read_questions
from sdar_jax.envs.search_qa.retrieval.base import Passage
from sdar_jax.envs.search_qa.retrieval.bm25 import STOP_WORDS, BM25Retriever, tokenize

WORDS = ['ada', 'engine', 'river', 'town', 'born', 'of', 'the', 'x', '7', 'loom', 'ink']


def corpus(seed, size):
  chance = random.Random(seed)

  def words(most):
    return ' '.join(chance.choices(WORDS, k=chance.randrange(most)))

  return [Passage(words(3), words(20)) for _ in range(size)]


def scores(passages, query, k1, b):
  """Every passage's score, in double precision."""
  texts = [collections.Counter(tokenize(p.contents)) for p in passages]
  lengths = [sum(text.values()) for text in texts]
  mean = sum(lengths) / len(lengths)
  total = [0.0] * len(passages)
  for word in tokenize(query):
    holding = sum(word in text for text in texts)
    idf = math.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
    for i, text in enumerate(texts):
      norm = k1 * (1 - b + b * lengths[i] / mean)
      total[i] += idf * text[word] / (text[word] + norm)
  return total


@pytest.mark.parametrize('k1, b', [(0.9, 0.4), (1.5, 0.75), (1.2, 0.0)])
@pytest.mark.parametrize('size', [1, 7, 60])
def test_scores_and_order_are_the_formulas(k1, b, size):
  passages = corpus(size, size)
  retriever = BM25Retriever(passages, k1, b)
  queries = ['ada', 'the engine of ada', 'ada ada river', 'Born: TOWN, 7?', 'x loom']
  for query, hits in zip(queries, retriever.search_many(queries, 5)):
    truth = scores(passages, query, k1, b)
    best = sorted(truth, reverse=True)
    assert len(hits) == min(5, sum(score > 0 for score in truth))
    assert [hit.score for hit in hits] == pytest.approx(best[: len(hits)], rel=1e-5)
    for hit in hits:
      same = [i for i, p in enumerate(passages) if p[:2] == hit[:2]]
      assert any(truth[i] == pytest.approx(hit.score, rel=1e-5) for i in same)


def test_ties_go_to_the_first_and_all_of_them_count():
  passages = [Passage(f'{i}', 'same words') for i in range(50)]
  passages[40] = Passage('40', 'same same words')
  hits = BM25Retriever(passages).search_many(['same'], 4)[0]
  assert [hit.title for hit in hits] == ['40', '0', '1', '2']


def test_an_answer_depends_on_its_query_alone():
  passages = corpus(3, 200)
  retriever = BM25Retriever(passages)
  queries = [' '.join(random.Random(i).choices(WORDS, k=4)) for i in range(50)]
  together = retriever.search_many(queries, 3)
  assert together == [retriever.search_many([query], 3)[0] for query in queries]
  backwards = [' '.join(reversed(query.split())) for query in queries]
  assert together == retriever.search_many(backwards, 3)
  assert retriever.search_many(queries, 1) == [hits[:1] for hits in together]


def test_words():
  assert tokenize("The Ștefan O'Brien's café, 1,000 km²") == (
    ['stefan', 'o', 'brien', 's', 'cafe', '1', '000', 'km2']
  )
  assert len(STOP_WORDS) == 33 and not tokenize('to be or not to be')


def test_what_has_no_known_word_finds_nothing():
  retriever = BM25Retriever([Passage('a title', 'some text'), Passage('the', '')])
  assert retriever.search_many(['', 'unknown', 'the', '\ud800\x00'], 3) == [()] * 4
  assert retriever.search_many([], 3) == []
  only = BM25Retriever([Passage('the', '')])
  assert only.search_many(['the'], 3) == [()]


def test_the_digest_knows_corpus_and_settings():
  passages = corpus(1, 9)
  digests = [
    BM25Retriever(passages).digest,
    BM25Retriever(passages[::-1]).digest,
    BM25Retriever(passages, k1=1.0).digest,
    BM25Retriever(passages, b=0.5).digest,
  ]
  assert len(set(digests)) == 4
  assert BM25Retriever(corpus(1, 9)).digest == digests[0]


def test_an_empty_corpus_is_an_error():
  with pytest.raises(ValueError, match='no passage'):
    BM25Retriever([])


def test_real_passages_and_questions():
  folder = shared_path('data/search_qa')
  passages = read_corpus(folder / 'corpus_2wiki_6119.json.xz')
  questions = read_questions(folder / 'questions_2wiki.json', '2wikimultihopqa')
  assert (len(passages), len(questions)) == (6119, 888)
  retriever = BM25Retriever(passages)
  found = retriever.search_many([q.question for q in questions], 3)
  hits = sum(
    any(sub_match(passage.contents, question.golden_answers) for passage in answer)
    for question, answer in zip(questions, found)
  )
  assert 310 <= hits <= 350  # 36 %; bm25s with its defaults: 34 %, with ours: 35 %
  named = [p for p in passages if len(tokenize(p.title)) > 2][::30]
  titles = retriever.search_many([p.title for p in named], 3)
  own = sum(p.title in {hit.title for hit in hits} for p, hits in zip(named, titles))
  assert own > 0.9 * len(named)
