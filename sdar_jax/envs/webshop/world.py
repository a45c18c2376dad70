"""WebShop as one object: shop, tasks, engine, prompt and experts."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax.envs import action_parser, base, benchmark
from sdar_jax.envs.webshop import (
  belief,
  disk_catalogue,
  engine,
  generated,
  instruction,
  official,
  pages,
  prompts,
  published,
)
from sdar_jax.envs.webshop import expert as experts
from sdar_jax.envs.webshop import nouns as noun_sources
from sdar_jax.envs.webshop.shop import Shop


@dataclasses.dataclass(frozen=True, kw_only=True)
class WebshopWorld(benchmark.BenchmarkWorld):
  """WebShop, an online store as text.

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
    parser: 'reference' or 'strict' (a search then needs a query and a search bar).
  """

  name = 'webshop'
  prompts = prompts
  fallback = action_parser.WEBSHOP_FALLBACK
  demonstrators = experts.KINDS
  size: str = base.setting('small', choices=disk_catalogue.SIZES)
  human_goals: bool = False
  reward: str = base.setting('success', choices=engine.REWARDS)
  noun_source: str = base.setting('auto', choices=noun_sources.SOURCES)
  max_turns: int = base.setting(15, least=1)

  def __post_init__(self):
    super().__post_init__()
    self.nouns  # noqa: B018 - refuses spaCy without a model at once

  @functools.cached_property
  def nouns(self) -> noun_sources.NounSource:
    """The source of nouns in use."""
    return noun_sources.NounSource(self.noun_source)

  @property
  def shop(self) -> Shop:
    """The shop of all environments: opened once per process, on demand."""
    if self.source == 'generated':
      return _generated_shop(self.nouns)
    return official.open_shop(self.data_dir, self.size, self.nouns)

  def _rules(self) -> list[Any]:
    return [self.reward, self.nouns.name]

  def _generated(self, split: str) -> base.TaskSet:
    return generated.GeneratedGoals(split)

  def _official(self, split: str) -> base.TaskSet:
    base.check_split(split, official.SPLITS)
    try:
      return official.OfficialGoals(self.shop.catalogue, split, self.human_goals)
    except ValueError as error:
      root = official.data_root(self.data_dir)
      raise ValueError(f'{root} (size {self.size}): {error}') from None

  def published(self, rows: Sequence[Mapping[str, Any]]) -> list[base.Task]:
    """Finds the official goals that a manifest words."""
    return published.find(rows, official.SPLITS, self._official)

  def make_env(self) -> engine.WebshopEnv:
    """Makes a fresh environment; all share one shop."""
    return engine.WebshopEnv(self.shop, self.reward)

  def shorten(self, observation: base.Observation, characters: int) -> base.Observation:
    """Cuts the long texts of a page; its clickables stay."""
    return pages.shorten(observation, characters)

  def admits(self, action: str, observation: base.Observation) -> bool:
    """Tests an action of a page; any query fits a search bar."""
    return engine.admits(observation.admissible, action)

  def expert(self, kind: str, seed: int = 0) -> experts.ShoppingExpert:
    """Makes a scripted expert of the generated shop: 'informed', or 'blind'."""
    self._check_kind(kind)
    return experts.ShoppingExpert(kind, seed)

  def mistake(self, observation: base.Observation, random: Any) -> str:
    """Draws a query without some words, or a harmless link."""
    if engine.SEARCH_TEMPLATE in observation.admissible:
      return f'search[{_careless_query(observation.text, random)}]'
    links = [text for text in observation.admissible if text != 'click[buy now]']
    if not links or random.random() < 0.1:  # Something that is not on the page.
      return f'click[{random.integers(1, 30)}]'
    return links[int(random.integers(len(links)))]


def _careless_query(text: str, random: Any) -> str:
  """Draws a query about a page's instruction, without its product lines."""
  asked = belief.instruction_in(text)
  goal = instruction.read(asked)
  if goal is None:
    words = asked.split() or ['things']
    start = int(random.integers(len(words)))
    return ' '.join(words[start : start + 4])
  parts = [*goal.attributes, *goal.options.values()]
  kept = [part for part in parts if random.random() < 0.7]
  return ' '.join([*kept[:1], goal.kind, *kept[1:]])


@functools.cache
def _generated_shop(noun_source: noun_sources.NounSource) -> Shop:
  return Shop(generated.catalogue(), nouns=noun_source)
