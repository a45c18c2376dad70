"""WebShop as one object: shop, tasks, engine, prompt, parser and experts."""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdar_jax.envs import action_parser as parsers
from sdar_jax.envs import base
from sdar_jax.envs.webshop import (
  belief,
  disk_catalogue,
  engine,
  generated,
  nouns,
  official,
  pages,
  prompts,
)
from sdar_jax.envs.webshop import expert as experts
from sdar_jax.envs.webshop import instruction as wishes
from sdar_jax.envs.webshop.shop import Shop

SOURCES = ('generated', 'official')


class WebshopWorld:
  """WebShop, as rollout and evaluation see it; implements `envs.base.World`.

  Args:
    source: 'generated' or 'official' products and goals.
    data_dir: where the official files lie; '' means $WEBSHOP_DATA.
    size: of the official catalogue, 'small' (1,000; ref) or 'full' (1.18 million).
    human_goals: official goals that people wrote, not the synthetic ones (ref: no).
    reward: 'success' pays 1 for a perfect purchase (ref), 'score' its score.
    noun_source: of the reward: 'spacy', 'rule', or 'auto' for spaCy if it is there.
    max_turns: turns per episode (ref: 15).
    history_length: past exchanges that a prompt shows (ref: 2).
    prompt_style: 'paper', or 'compact' for the small model.
    parser: 'reference' or 'strict'.

  Attributes:
    instruction: the words that end every user message.
    skills_path: the skill bank of this world.
    noun_source: the source of nouns in use: 'rule' or the name of spaCy's model.
    digest: hex SHA-256 over everything that decides what an agent is shown and paid.
  """

  name = 'webshop'
  demonstrators = experts.KINDS
  names = ()

  def __init__(
    self,
    source: str = 'generated',
    data_dir: str = '',
    *,
    size: str = 'small',
    human_goals: bool = False,
    reward: str = 'success',
    noun_source: str = 'auto',
    max_turns: int = 15,
    history_length: int = 2,
    prompt_style: str = 'paper',
    parser: str = 'reference',
  ):
    base.check_choice('source', source, SOURCES)
    base.check_choice('size', size, disk_catalogue.SIZES)
    base.check_choice('reward', reward, engine.REWARDS)
    base.check_choice('prompt_style', prompt_style, prompts.STYLES)
    base.check_choice('parser', parser, parsers.MODES)
    base.check_at_least('max_turns', max_turns, 1)
    base.check_at_least('history_length', history_length, 0)
    self.source = source
    self.data_dir = data_dir
    self.size = size
    self.human_goals = human_goals
    self.reward = reward
    self.noun_source = nouns.NounSource(noun_source).name
    self.max_turns = max_turns
    self.history_length = history_length
    self.prompt_style = prompt_style
    self.parser = parser
    self.instruction = prompts.instruction(prompt_style)
    self.skills_path = Path(__file__).with_name('skills.json')
    self._tasks: dict[str, base.TaskSet] = {}

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_tasks': {}}  # Whoever needs them makes them again.

  @property
  def shop(self) -> Shop:
    """What all environments share: opened once per process, when it is needed."""
    source = 'rule' if self.noun_source == 'rule' else 'spacy'
    if self.source == 'generated':
      return _generated_shop(source)
    return official.open_shop(self.data_dir, self.size, source)

  @property
  def digest(self) -> str:
    """Identifies what episodes consist of, the training goals included."""
    truth = [self.name, self.tasks('train').digest, self.max_turns, self.parser]
    truth += [self.reward, self.noun_source]
    truth += [prompts.VERSION, self.prompt_style, self.history_length]
    return hashlib.sha256(json.dumps(truth).encode()).hexdigest()

  def tasks(self, split: str) -> base.TaskSet:
    """Of 'train', 'valid_seen', 'valid_unseen', 'test'; official 'train', 'valid',
    'test'.
    """
    if split not in self._tasks:
      self._tasks[split] = self._read_tasks(split)
    return self._tasks[split]

  def _read_tasks(self, split: str) -> base.TaskSet:
    if self.source == 'generated':
      return generated.GeneratedTasks(split)
    shelf = self.shop.catalogue
    try:
      return official.OfficialTasks(shelf, split, self.human_goals)
    except ValueError as error:
      if split not in official.SPLITS:
        raise
      root = official.data_root(self.data_dir)
      raise ValueError(f'{root} (size {self.size}): {error}') from None

  def make_env(self) -> engine.WebshopEnv:
    """A fresh environment; all share one shop."""
    return engine.WebshopEnv(self.shop, self.reward)

  def render(
    self,
    task: base.Task,
    history: Sequence[base.Exchange],
    observation: base.Observation,
  ) -> str:
    """The user message of the next turn; see `envs.base.World`."""
    return prompts.render(
      self.prompt_style, task, history, observation, self.history_length
    )

  def shorten(self, observation: base.Observation, characters: int) -> base.Observation:
    """The page with its long texts cut; all that can be clicked stays."""
    return pages.shorten(observation, characters)

  def parse(self, response: str, observation: base.Observation) -> base.ParsedAction:
    """Cuts the action out of a response; never raises.

    In strict mode a search needs a query, of any words, and a page with a search bar.
    """
    if self.parser == 'reference':
      return parsers.parse_reference(response, parsers.WEBSHOP_FALLBACK)
    return parsers.parse_strict(response, _Admissible(observation.admissible))

  def admits(self, action: str, observation: base.Observation) -> bool:
    """Whether the page offers the action; any query where it has a search bar."""
    return engine.admits(observation.admissible, action)

  def prefetch(self, actions: Iterable[str]) -> None:
    """Nothing is slow: the shop keeps what was searched for."""

  def expert(self, kind: str, seed: int = 0) -> experts.ShoppingExpert:
    """A scripted expert of the generated shop: 'informed', or 'blind'."""
    return experts.ShoppingExpert(kind, seed)

  def response(self, thought: str, action: str) -> str:
    """What an expert would write."""
    return f'<think>{thought}</think><action>{action}</action>'

  def mistake(self, observation: base.Observation, random: Any) -> str:
    """A search that leaves words out, or a link at random that buys nothing."""
    if engine.SEARCH_TEMPLATE in observation.admissible:
      return f'search[{_careless_query(observation.text, random)}]'
    links = [text for text in observation.admissible if text != 'click[buy now]']
    if not links or random.random() < 0.1:  # Something that is not on the page.
      return f'click[{random.integers(1, 30)}]'
    return links[int(random.integers(len(links)))]


class _Admissible(tuple):
  """Admissible actions, among which every search is if the template of one is."""

  def __contains__(self, action: object) -> bool:
    return engine.admits(tuple(self), action)


def _careless_query(text: str, random: Any) -> str:
  """A query about a page's instruction that does not ask for product lines."""
  instruction = belief.instruction_in(text)
  asked = wishes.read(instruction)
  if asked is None:
    words = instruction.split() or ['things']
    start = int(random.integers(len(words)))
    return ' '.join(words[start : start + 4])
  parts = [*asked.attributes, *asked.options.values()]
  kept = [part for part in parts if random.random() < 0.7]
  return ' '.join([*kept[:1], asked.kind, *kept[1:]])


@functools.cache
def _generated_shop(noun_source: str) -> Shop:
  return Shop(generated.catalogue(), nouns=nouns.NounSource(noun_source))
