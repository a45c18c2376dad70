"""Speed and reach of retrieval for Search-QA.

  python benchmarks/search_qa_retrieval.py                           # invented passages
  python benchmarks/search_qa_retrieval.py --passages=corpus.json.xz --questions=q.json

Prints passages, seconds and bytes to index them, milliseconds per query asked alone, in
one batch, and in one batch through our own server, and (with `--questions`) how often a
gold answer stands in the passages found for the question as it is.
"""

import random
import resource
import threading
import time

from sdar_jax.envs.search_qa.answers import normalize
from sdar_jax.envs.search_qa.datasets import read_corpus, read_questions
from sdar_jax.envs.search_qa.retrieval.base import Passage
from sdar_jax.envs.search_qa.retrieval.bm25 import BM25Retriever
from sdar_jax.envs.search_qa.retrieval.client import HttpRetriever
from sdar_jax.envs.search_qa.server import Server
from sdar_jax.process import flags, terminal

_WORDS = 80  # per invented passage


def invented(size):
  """Passages whose words are distributed as in language, roughly: 1 / rank."""
  chance = random.Random(0)
  words = [f'w{rank}' for rank in range(50_000)]
  total, weights = 0.0, []
  for rank in range(len(words)):
    total += 1 / (rank + 1)
    weights.append(total)
  for number in range(size):
    text = chance.choices(words, cum_weights=weights, k=_WORDS)
    yield Passage(f'title {number}', ' '.join(text))


def sub_match(text, golden):
  """Whether a text contains any gold answer, both normalised."""
  normal = normalize(text)
  return any(normalize(gold) in normal for gold in golden)


def milliseconds(ask, queries):
  """Per query, best of three."""
  times = []
  for _ in range(3):
    start = time.perf_counter()
    ask(queries)
    times.append(time.perf_counter() - start)
  return 1000 * min(times) / len(queries)


def arguments(argv):
  """Reads the flags."""
  parser = flags.Parser('python benchmarks/search_qa_retrieval.py', __doc__)
  parser.add_argument('--passages', help='file of passages (default: invented ones)')
  parser.add_argument('--questions', help='file of questions')
  parser.add_argument('--data_set', default='2wikimultihopqa', help='of the questions')
  parser.add_argument('--size', type=int, default=6119, help='passages to invent')
  parser.add_argument('--topk', type=int, default=3, help='passages per query')
  return parser.parse_all(argv)


@terminal.program
def main(argv):
  """Prints the figures."""
  options = arguments(argv)
  corpus, topk = options.passages, options.topk
  passages = read_corpus(corpus) if corpus else list(invented(options.size))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  start = time.perf_counter()
  retriever = BM25Retriever(passages)
  seconds = time.perf_counter() - start
  grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
  print(f'{len(passages):,} passages indexed in {seconds:.2f} s, {grown:.0f} MiB more')
  if options.questions:
    questions = read_questions(options.questions, options.data_set)
    queries = [question.question for question in questions]
  else:
    queries = [' '.join(p.text.split()[:8]) for p in passages[::20]][:1000]

  def one_by_one(texts):
    for text in texts:
      retriever.search_many([text], topk)

  print(f'asked alone  {milliseconds(one_by_one, queries):.3f} ms/query')
  batched = milliseconds(lambda texts: retriever.search_many(texts, topk), queries)
  print(f'in one batch {batched:.3f} ms/query')
  server = Server(('127.0.0.1', 0), retriever)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  client = HttpRetriever(server.url)
  print(
    f'over HTTP    {milliseconds(lambda t: client.search_many(t, topk), queries):.3f}'
    ' ms/query'
  )
  server.shutdown()
  if options.questions:
    found = retriever.search_many(queries, topk)
    hits = sum(
      any(sub_match(passage.contents, question.golden_answers) for passage in answer)
      for question, answer in zip(questions, found)
    )
    print(f'top {topk} contains the answer: {hits} of {len(found)}')
  return 0


if __name__ == '__main__':
  main()
