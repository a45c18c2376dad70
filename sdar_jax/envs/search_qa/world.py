"""Search-QA as one object: questions, retrieval, engine, prompt, parser and experts."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdar_jax.envs import base
from sdar_jax.envs.search_qa import (
  datasets,
  engine,
  generated,
  prompts,
  relations,
  retrievers,
)
from sdar_jax.envs.search_qa import expert as experts
from sdar_jax.envs.search_qa import parser as parsers
from sdar_jax.envs.search_qa.retrieval import client, wire
from sdar_jax.envs.search_qa.retrieval.base import Retriever, Searcher
from sdar_jax.envs.search_qa.retrieval.bm25 import BM25Retriever

SOURCES = ('generated', 'official')


class SearchQAWorld:
  """Search-QA, as rollout and evaluation see it; implements `envs.base.World`.

  Args:
    source: 'generated' or 'official' questions.
    data_dir: where the official questions lie; see `datasets.read_split`.
    train_sets: data sets of the official training split (ref: NQ and HotpotQA).
    data_sets: data sets of every other official split (ref: all seven).
    retriever: 'bm25', 'dense' or 'http'.
    corpus: file of passages for 'bm25' and 'dense'; '' means the generated library,
      which 'bm25' searches.
    index: FAISS index or .npy of the passages' embeddings, for 'dense'.
    encoder: 'package.module:function' from texts to embeddings, for 'dense'.
    url: of a `/retrieve` server, for 'http'.
    shape: of the requests, 'batch' or 'single', for 'http'.
    topk: passages per query (ref: 3).
    max_characters: of the documents of one search (ref: 500 tokens).
    max_turns: turns per episode, the answer's included (ref: 4).
    history_length: past turns that a prompt shows (ref: 4).
    prompt_style: 'paper', or 'compact' for the small model.
    parser: 'reference' or 'strict'.

  Attributes:
    instruction: the words that end every user message.
    skills_path: the skill bank of this world.
    digest: hex SHA-256 over everything that decides what an agent is shown.
  """

  name = 'search_qa'
  demonstrators = experts.KINDS
  names = generated.words()

  def __init__(
    self,
    source: str = 'generated',
    data_dir: str = '',
    *,
    train_sets: tuple[str, ...] = ('nq', 'hotpotqa'),
    data_sets: tuple[str, ...] = tuple(datasets.DATA_SETS),
    retriever: str = 'bm25',
    corpus: str = '',
    index: str = '',
    encoder: str = '',
    url: str = '',
    shape: str = 'batch',
    topk: int = 3,
    max_characters: int = engine.MAX_OBSERVATION,
    max_turns: int = engine.MAX_TURNS,
    history_length: int = 4,
    prompt_style: str = 'paper',
    parser: str = 'reference',
  ):
    base.check_choice('source', source, SOURCES)
    base.check_choice('retriever', retriever, retrievers.KINDS)
    base.check_choice('shape', shape, client.SHAPES)
    base.check_choice('prompt_style', prompt_style, prompts.STYLES)
    base.check_choice('parser', parser, parsers.MODES)
    base.check_at_least('topk', topk, 1)
    base.check_at_least('max_characters', max_characters, 1)
    base.check_at_least('max_turns', max_turns, 1)
    base.check_at_least('history_length', history_length, 0)
    if source == 'official':
      _check_given("source='official'", data_dir=data_dir)
    self.source = source
    self.data_dir = data_dir
    self.train_sets = tuple(train_sets)
    self.data_sets = tuple(data_sets)
    self.max_characters = max_characters
    self.max_turns = max_turns
    self.history_length = history_length
    self.prompt_style = prompt_style
    self.parser = parser
    self.instruction = prompts.instruction(prompt_style)
    self.skills_path = Path(__file__).with_name('skills.json')
    places = {'corpus': corpus, 'index': index, 'encoder': encoder, 'url': url}
    self._searcher = Searcher(_opener(source, retriever, places, shape), topk)
    self._tasks: dict[str, base.TaskSet] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_tasks': {}}  # Whoever needs them reads them again.

  @property
  def digest(self) -> str:
    """Identifies what episodes consist of, the training questions included."""
    truth = [self.name, self.tasks('train').digest, self.max_turns, self.parser]
    truth += [self._searcher.retriever.digest, self._searcher.topk, self.max_characters]
    truth += [prompts.VERSION, self.prompt_style, self.history_length]
    return hashlib.sha256(json.dumps(truth).encode()).hexdigest()

  def tasks(self, split: str) -> base.TaskSet:
    """Of 'train', 'valid_seen', 'valid_unseen', or of the official file so named."""
    if split not in self._tasks:
      self._tasks[split] = self._read_tasks(split)
    return self._tasks[split]

  def _read_tasks(self, split: str) -> base.TaskSet:
    if self.source == 'generated':
      return generated.GeneratedTasks(split)
    data_sets = self.train_sets if split == 'train' else self.data_sets
    return datasets.read_split(self.data_dir, split, data_sets)

  def make_env(self) -> engine.SearchQAEnv:
    """A fresh environment; all share one retriever and its memory."""
    return engine.SearchQAEnv(self._searcher, self.max_turns, self.max_characters)

  def render(
    self,
    task: base.Task,
    history: Sequence[base.Exchange],
    observation: base.Observation,
  ) -> str:
    """The user message of the next turn; see `envs.base.World`."""
    window = (self.history_length, self.max_turns)
    return prompts.render(self.prompt_style, task, history, observation, *window)

  def shorten(self, observation: base.Observation, characters: int) -> base.Observation:
    """The documents with the longest cut first."""
    return prompts.shorten(observation, characters)

  def parse(self, response: str, observation: base.Observation) -> base.ParsedAction:
    """Cuts the action out of a response; never raises."""
    del observation  # Whatever was seen, anything may be searched or answered.
    if self.parser == 'strict':
      return parsers.parse_strict(response)
    return parsers.parse_reference(response)

  def admits(self, action: str, observation: base.Observation) -> bool:
    """Whether the action is a search or an answer."""
    return engine.read_action(action) != ('', '')

  def prefetch(self, actions: Iterable[str]) -> None:
    """Retrieves for all searches of a turn in one batch."""
    self._searcher.prefetch(engine.queries(actions))

  def expert(self, kind: str, seed: int = 0) -> experts.ScriptedExpert:
    """A scripted expert for generated questions: 'informed' or 'blind'."""
    if kind not in experts.KINDS:
      raise ValueError(f'expert {kind!r}: must be one of {experts.KINDS}')
    return experts.ScriptedExpert(kind, seed, self.max_turns)

  def response(self, thought: str, action: str) -> str:
    """What an expert would write. The space keeps a name one token in any place."""
    kind, text = engine.read_action(action)
    return f'<think>{thought}</think>' + engine.write_action(kind, f' {text}')

  def mistake(self, observation: base.Observation, random: Any) -> str:
    """A search for something just read of, with a random word."""
    names = [passage.title for passage in engine.read_documents(observation.text)]
    asked = relations.read(observation.text)
    names += [asked[1]] if asked else []
    words = [names[int(random.integers(len(names)))].lower()] if names else []
    words.append(relations.KEYS[int(random.integers(len(relations.KEYS)))])
    return engine.write_action(engine.SEARCH, ' '.join(words))


@functools.cache
def open_library() -> BM25Retriever:
  """Search in the generated library, indexed once per process."""
  return BM25Retriever(generated.passages())


def _opener(
  source: str, retriever: str, places: Mapping[str, str], shape: str
) -> Callable[[], Retriever]:
  """A picklable function that opens the retriever, once its settings make sense."""
  if retriever == 'http':
    wire.check_url(places['url'])
  elif retriever == 'dense':
    keys = ('corpus', 'index', 'encoder')
    _check_given("retriever='dense'", **{key: places[key] for key in keys})
  elif source == 'generated' and not places['corpus']:
    return open_library
  else:
    _check_given("source='official'", corpus=places['corpus'])
  return functools.partial(retrievers.open_retriever, retriever, **places, shape=shape)


def _check_given(reason: str, **settings: str) -> None:
  """Raises ValueError unless all these settings say something."""
  for key, value in settings.items():
    if not value:
      raise ValueError(f"config.world.{key}='': must be set with {reason}")
