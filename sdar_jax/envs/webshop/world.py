"""WebShop as one object: shop, tasks, engine, prompts and experts.

The user message of a turn is in our own words. In the style 'paper' it is role,
request, the last few turns, the page and the possible actions, then how to answer.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax.envs import action_parser, base, benchmark
from sdar_jax.envs.base import Exchange, Observation, Task
from sdar_jax.envs.webshop import (
  disk_catalogue,
  engine,
  generated,
  instruction,
  official,
  pages,
  published,
)
from sdar_jax.envs.webshop import expert as experts
from sdar_jax.envs.webshop import nouns as noun_sources
from sdar_jax.envs.webshop.belief import (
  DETAIL,
  ITEM,
  RESULTS,
  ShopBelief,
  argument,
  believe,
  instruction_in,
  without_instruction,
)
from sdar_jax.envs.webshop.instruction import ShopInstruction
from sdar_jax.envs.webshop.shop import Shop

PAPER_INSTRUCTION = (
  'First think about what the request demands, what the page shows and which action '
  'brings you closer, between <think> and </think>. Then give the one action you '
  'choose between <action> and </action>: a link exactly as listed, or a search with '
  'words of your own in the brackets.'
)
_TITLE_WORDS = 2  # Of a title, in the compact style.
_ACTION_WORDS = 3  # Of a past action, in the compact style.


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
  prompt_version = 1
  paper_instruction = PAPER_INSTRUCTION
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

  def published(self, rows: Sequence[Mapping[str, Any]]) -> list[Task]:
    """Finds the official goals that a manifest words."""
    return published.find(rows, official.SPLITS, self._official)

  def make_env(self) -> engine.WebshopEnv:
    """Makes a fresh environment; all share one shop."""
    return engine.WebshopEnv(self.shop, self.reward)

  def paper(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for real models."""
    parts = [
      'You shop in an online store that you see as text, one action per turn. Find a '
      'product that meets the request, choose the options it names, then buy it.',
      f'The request: {task.goal}',
    ]
    turns = len(base.whole(history))
    parts += base.past_turns(
      history, self.history_length, 'the page', without_instruction
    )
    parts += [self.now(turns + 1, None, observation), self.paper_instruction]
    return '\n\n'.join(parts)

  def now(self, turn: int, before: Observation | None, observation: Observation) -> str:
    """Writes the page of a turn and what can be done there, or has changed."""
    page = without_instruction(observation.text)
    listed = before.admissible if before else ()
    actions = base.actions_since(listed, observation.admissible)
    return f'Turn {turn}, the page: {page}\n\n{actions}'

  def compact(
    self, task: Task, history: Sequence[Exchange], observation: Observation
  ) -> str:
    """Writes the prompt for the small model, from the pages so far.

    Lines: the goal; the last actions, '?' marking one that did nothing; the kind of
    page and what it shows. A product is the first words of its title, its price in
    whole dollars and its id (what follows is easier to copy than what comes before);
    'no' marks one that a page has shown not to fit, 'yes' one that has all that is
    wished for. The marks and the chosen options are a view of the whole history, since
    a policy without memory needs to know what it has been through.
    """
    asked = instruction.read(task.goal)
    belief = believe(base.whole(history), observation)
    shown = min(self.history_length, len(history))
    lines = [_goal(asked) if asked else task.goal, _last(belief, shown)]
    if belief.page == RESULTS:
      page = [str(belief.number)] if belief.number > 1 else []
      lines.append(' '.join([RESULTS, *page, belief.query]))
      lines += [_shown(belief, asin, asked, asin) for asin in belief.results]
    elif belief.page == ITEM:
      lines.append(f'{ITEM} {_shown(belief, belief.item, asked)}')
      options = belief.options(observation)
      lines += [' '.join([name, *values]) for name, values in options.items()]
      chosen = belief.chosen(observation)
      lines.append(' '.join(['chose', *chosen.values()]) if chosen else '')
    elif belief.page == DETAIL:
      lines.append(f'{belief.detail} {_shown(belief, belief.item, asked)}')
      lines += [line.lower() for line in belief.lines]
    else:
      lines.append(belief.page)
    return '\n'.join(line for line in lines if line)

  def shorten(self, observation: Observation, characters: int) -> Observation:
    """Cuts the long texts of a page; its clickables stay."""
    return pages.shorten(observation, characters)

  def admits(self, action: str, observation: Observation) -> bool:
    """Tests an action of a page; any query fits a search bar."""
    return engine.admits(observation.admissible, action)

  def expert(self, kind: str, seed: int = 0) -> experts.ShoppingExpert:
    """Makes a scripted expert of the generated shop: 'informed', or 'blind'."""
    self._check_kind(kind)
    return experts.ShoppingExpert(kind, seed)

  def mistake(self, observation: Observation, random: Any) -> str:
    """Draws a query without some words, or a harmless link."""
    if engine.SEARCH_TEMPLATE in observation.admissible:
      return f'search[{_careless_query(observation.text, random)}]'
    links = [text for text in observation.admissible if text != 'click[buy now]']
    if not links or random.random() < 0.1:  # Something that is not on the page.
      return f'click[{random.integers(1, 30)}]'
    return links[int(random.integers(len(links)))]


def _goal(asked: ShopInstruction) -> str:
  """Writes 'backpack waterproof padded color red size large under 40'."""
  options = [word for pair in asked.options.items() for word in pair]
  return ' '.join([asked.kind, *asked.attributes, *options, 'under', str(asked.limit)])


def _last(belief: ShopBelief, length: int) -> str:
  """Lists the last actions in short, '?' after one without effect."""
  words = []
  for action, idle in belief.past[len(belief.past) - min(length, len(belief.past)) :]:
    text = 'search' if argument(action, 'search') else argument(action, 'click')
    shown = (text or action).split()[:_ACTION_WORDS] or ['nothing']
    words.append(' '.join(shown + ['?'] * idle))
  return 'did ' + ', '.join(words) if words else ''


def _shown(
  belief: ShopBelief, asin: str, asked: ShopInstruction | None, label: str = ''
) -> str:
  """Writes 'velmo trek 35 no', with `label` before the mark."""
  words = ['unknown']
  if asin in belief.listings:
    listing = belief.listings[asin]
    words = [*listing.words[:_TITLE_WORDS], str(listing.dollars)]
  words += [label] if label else []
  if asked and asin in belief.listings:
    if belief.lacks(asked, asin):
      words.append('no')
    elif belief.confirmed(asked, asin):
      words.append('yes')
  return ' '.join(words)


def _careless_query(text: str, random: Any) -> str:
  """Draws a query about a page's instruction, without its product lines."""
  asked = instruction_in(text)
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
