"""Search-QA as one object: questions, retrieval, engine and prompts.

The user message of a turn is in our own words. In the style 'paper' it is the question,
the last searches with all that they found, where the episode stands, then how to
answer.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sdar_jax.envs import base, benchmark
from sdar_jax.envs.base import Exchange, Observation, Task
from sdar_jax.envs.search_qa import (
  datasets,
  engine,
  generated,
  relations,
  retrievers,
)
from sdar_jax.envs.search_qa import expert as experts
from sdar_jax.envs.search_qa import parser as parsers
from sdar_jax.envs.search_qa.retrieval import client, wire
from sdar_jax.envs.search_qa.retrieval.base import PassageRetriever, Searcher
from sdar_jax.envs.search_qa.retrieval.bm25 import BM25Retriever

PAPER_INSTRUCTION = (
  'First think about what is known so far and what is still missing, between <think> '
  'and </think>. Then do one of two things. If something is missing, write a short '
  'query between <search> and </search>; the documents that fit it best will be shown '
  'to you. If you know enough, write only the answer itself, as briefly as it can be '
  'said, between <answer> and </answer>; that ends the task.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchQAWorld(benchmark.BenchmarkWorld):
  """Search-QA, questions to answer with the help of a library.

  Args:
    source: 'generated' or 'official' questions.
    data_dir: where the official questions lie; see `datasets.read_split`.
    train_sets: data sets of the official training split (ref: NQ and HotpotQA).
    data_sets: data sets of every other official split (ref: all seven).
    retriever: 'bm25', 'dense' or 'http'.
    corpus: file of passages; '' means the generated library (for 'bm25' only).
    index: FAISS index or .npy of the passages' embeddings, for 'dense'.
    encoder: 'package.module:function' from texts to embeddings, for 'dense'.
    url: of a `/retrieve` server, for 'http'.
    shape: of the requests, 'batch' or 'single', for 'http'.
    topk: passages per query (ref: 3).
    max_characters: of the documents of one search (ref: 500 tokens).
    max_turns: turns per episode, the answer's included (ref: 4).
    history_length: past turns that a prompt shows (ref: 4).
    prompt_style: 'paper', or 'compact' for the small model.
    parser: 'reference' takes actions as the paper's code does, 'strict' only in the
      form that is asked for.
  """

  name = 'search_qa'
  prompt_version = 1
  paper_instruction = PAPER_INSTRUCTION
  demonstrators = experts.KINDS
  names = generated.words()
  train_sets: tuple[str, ...] = ('nq', 'hotpotqa')
  data_sets: tuple[str, ...] = tuple(datasets.DATA_SETS)
  retriever: str = base.setting('bm25', choices=retrievers.KINDS)
  corpus: str = ''
  index: str = ''
  encoder: str = ''
  url: str = ''
  shape: str = base.setting('batch', choices=client.SHAPES)
  topk: int = base.setting(3, least=1)
  max_characters: int = base.setting(engine.MAX_OBSERVATION, least=1)
  max_turns: int = base.setting(engine.MAX_TURNS, least=1)
  history_length: int = base.setting(4, least=0)

  def __post_init__(self):
    super().__post_init__()
    if self.source == 'official':
      self._check_given("source='official'", 'data_dir')
    self._opener()

  @functools.cached_property
  def searcher(self) -> Searcher:
    """The retriever and its memory, shared by all environments."""
    return Searcher(self._opener(), self.topk)

  def _opener(self) -> Callable[[], PassageRetriever]:
    """Makes a picklable opener of the retriever; checks its settings."""
    if self.retriever == 'http':
      wire.check_url(self.url)
    elif self.retriever == 'dense':
      self._check_given("retriever='dense'", 'corpus', 'index', 'encoder')
    elif self.source == 'generated' and not self.corpus:
      return open_library
    else:
      self._check_given("source='official'", 'corpus')
    keys = ('corpus', 'index', 'encoder', 'url', 'shape')
    places = {key: getattr(self, key) for key in keys}
    return functools.partial(retrievers.open_retriever, self.retriever, **places)

  def _check_given(self, reason: str, *keys: str) -> None:
    """Raises ValueError unless all these settings say something."""
    for key in keys:
      if not getattr(self, key):
        raise ValueError(f"config.world.{key}='': must be set with {reason}")

  def _rules(self) -> list[Any]:
    return [self.searcher.retriever.digest, self.topk, self.max_characters]

  def _generated(self, split: str) -> base.TaskSet:
    return generated.GeneratedQuestions(split)

  def _official(self, split: str) -> base.TaskSet:
    data_sets = self.train_sets if split == 'train' else self.data_sets
    return datasets.read_split(self.data_dir, split, data_sets)

  def make_env(self) -> engine.SearchQAEnv:
    """Makes a fresh environment; all share one retriever and its memory."""
    return engine.SearchQAEnv(self.searcher, self.max_turns, self.max_characters)

  def paper(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for real models."""
    parts = [
      'You answer a question with the help of a library that you can search, one '
      'search per turn.',
      f'Question: {engine.question_text(task.goal)}',
    ]
    for turn, action, result in _turns(history, observation, self.history_length):
      if action is None:
        parts.append(f'In turn {turn} you got\n{result}')
        continue
      kind, text = engine.read_action(action)
      told = f'you searched for: {text}' if kind else 'you did nothing that counts'
      parts.append(f'In turn {turn} {told}\n{result}')
    parts += [
      _standing(len(base.whole(history)) + 1, self.max_turns),
      self.paper_instruction,
    ]
    return '\n\n'.join(parts)

  def now(self, turn: int, before: Observation | None, observation: Observation) -> str:
    """Writes what came of the turn before, and where the episode stands."""
    del before  # What can be done does not change.
    return f'{observation.text}\n\n{_standing(turn, self.max_turns)}'

  def compact(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for the small model.

    Lines, all in lower case: the question; for each past turn `query` and what was
    searched for, then `doc` and a sentence for each document (`query` alone where
    nothing was searched, or where there is room for no query); how many turns are left,
    this one included.
    """
    lines = [engine.question_text(task.goal).lower()]
    for _, action, result in _turns(history, observation, self.history_length):
      kind, text = engine.read_action(action or '')
      lines.append(f'query {text.lower()}' if kind == engine.SEARCH else 'query')
      lines += [f'doc {sentence}' for sentence in engine.sentences(result)]
    lines.append(f'left {max(self.max_turns - len(base.whole(history)), 1)}')
    return '\n'.join(lines)

  def shorten(self, observation: Observation, characters: int) -> Observation:
    """Cuts an observation's documents, longest first; other texts stay."""
    found = engine.read_documents(observation.text)
    if not found:
      return observation
    frame = len(engine.format_documents(found, 0))
    text = engine.format_documents(found, max(characters - frame, 0))
    return Observation(text, observation.admissible)

  def parse(self, response: str, observation: Observation) -> base.ParsedAction:
    """Cuts the action out of a response; never raises."""
    del observation  # Whatever was seen, anything may be searched or answered.
    if self.parser == 'strict':
      return parsers.parse_strict(response)
    return parsers.parse_reference(response)

  def admits(self, action: str, observation: Observation) -> bool:
    """Tests for a search or an answer."""
    return engine.read_action(action) != ('', '')

  def prefetch(self, actions: Iterable[str]) -> None:
    """Retrieves for all searches of a turn in one batch."""
    self.searcher.prefetch(engine.queries(actions))

  def expert(self, kind: str, seed: int = 0) -> experts.ScriptedExpert:
    """Makes an expert for generated questions: 'informed' or 'blind'."""
    self._check_kind(kind)
    return experts.ScriptedExpert(kind, seed, self.max_turns)

  def response(self, thought: str, action: str) -> str:
    """Writes an expert's response.

    The space keeps a name one token in any place.
    """
    kind, text = engine.read_action(action)
    return f'<think>{thought}</think>' + engine.write_action(kind, f' {text}')

  def mistake(self, observation: Observation, random: Any) -> str:
    """Draws a search for something just read of, with a random word."""
    names = [passage.title for passage in engine.read_documents(observation.text)]
    asked = relations.read(observation.text)
    names += [asked[1]] if asked else []
    words = [names[int(random.integers(len(names)))].lower()] if names else []
    words.append(relations.KEYS[int(random.integers(len(relations.KEYS)))])
    return engine.write_action(engine.SEARCH, ' '.join(words))


def _turns(
  history: Sequence[Exchange], observation: Observation, length: int
) -> Iterator[tuple[int, str | None, str]]:
  """Yields (turn, action, outcome) of the last `length` turns.

  The newest result is shown even where its turn is not: then the action is None.
  """
  past = base.whole(history)
  results = [exchange.observation for exchange in past[1:]] + [observation.text]
  turns = [(i, e.action, r) for i, (e, r) in enumerate(zip(past, results), start=1)]
  shown = min(length, len(history))
  if turns and length and not shown:
    yield turns[-1][0], None, observation.text
  yield from turns[len(turns) - shown :]


def _standing(turn: int, max_turns: int) -> str:
  standing = f'This is turn {turn} of {max_turns}.'
  if turn >= max_turns:
    standing += ' It is the last one: only an answer still counts.'
  return standing


@functools.cache
def open_library() -> BM25Retriever:
  """Opens the generated library, indexed once per process."""
  return BM25Retriever(generated.passages())
