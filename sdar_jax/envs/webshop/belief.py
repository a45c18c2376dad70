"""An agent's knowledge from the pages it has read."""

import dataclasses
import math
import re
from collections.abc import Sequence

from sdar_jax.envs.base import Exchange, Observation
from sdar_jax.envs.webshop.engine import read_action
from sdar_jax.envs.webshop.instruction import ShopInstruction
from sdar_jax.envs.webshop.pages import BACK, BUY, NEXT, PREVIOUS, SEARCH, SEPARATOR

START, RESULTS, ITEM, DETAIL, DONE = 'start', 'results', 'item', 'detail', 'done'
_NUMBER = re.compile(r'Page (\d+) \(Total results: \d+\)')
_PRICE = re.compile(r'\$(\d+(?:\.\d+)?)')
_PRICES = re.compile(r'\$[\d.e+]+( to \$[\d.e+]+)?')
_LINKS = (BACK, PREVIOUS, NEXT)
_IDLE = frozenset({'a', 'an', 'and', 'for', 'in', 'of', 'the', 'to', 'with'})


def argument(action: str, verb: str) -> str:
  """Gives 'red' of 'click[Red]' for verb 'click'; '' for other verbs."""
  played = read_action(action)
  return played[1] if played and played[0] == verb else ''


def without_instruction(text: str) -> str:
  """Strips a page's heading with the instruction."""
  parts = text.split(SEPARATOR)
  if 'Instruction:' not in parts[:2]:
    return text
  return SEPARATOR.join(parts[parts.index('Instruction:') + 2 :])


def instruction_in(text: str) -> str:
  """Reads the instruction in a page's heading; '' for none."""
  parts = text.split(SEPARATOR)
  return parts[parts.index('Instruction:') + 1] if 'Instruction:' in parts[:2] else ''


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
  """A product as pages show it; `price` is the most it may cost."""

  title: str
  price: float

  @property
  def words(self) -> list[str]:
    """The meaningful words of the title, in lower case."""
    return [word for word in self.title.lower().split() if word not in _IDLE]

  @property
  def dollars(self) -> int:
    """The price in whole dollars, rounded up."""
    return math.ceil(self.price)


def _listing(title: str, price: str) -> Listing:
  return Listing(title, max(map(float, _PRICE.findall(price)), default=0.0))


@dataclasses.dataclass
class ShopBelief:
  """What the pages of an episode have told.

  Attributes:
    page: the kind of page that is open.
    query: what was searched for last.
    number: of the page of results.
    results: ids on the results page that was open last, in its order.
    listings: id -> what is known of a product from results and item pages.
    item: id of the product whose pages are open, or were last; '' for none.
    offered: id -> option names and values on its page.
    clicked: of those, what was clicked on the open item, in order.
    detail: which detail page is open, e.g. 'features', and `lines` what it says.
    features: id -> text of its features page.
    past: all actions so far, and whether each did nothing.
  """

  page: str = START
  query: str = ''
  number: int = 1
  results: list[str] = dataclasses.field(default_factory=list)
  listings: dict[str, Listing] = dataclasses.field(default_factory=dict)
  item: str = ''
  offered: dict[str, list[str]] = dataclasses.field(default_factory=dict)
  clicked: list[str] = dataclasses.field(default_factory=list)
  detail: str = ''
  lines: list[str] = dataclasses.field(default_factory=list)
  features: dict[str, str] = dataclasses.field(default_factory=dict)
  past: list[tuple[str, bool]] = dataclasses.field(default_factory=list)
  _text: str = ''

  def read(self, action: str, text: str) -> None:
    """Takes in the page after `action`; '' for an episode's first page."""
    clicked = argument(action, 'click')
    picks = self.page == ITEM and clicked in self.offered[self.item]
    if self._text:  # Not the first page.
      self.past.append((action, text == self._text and not picks))
    self._text = text
    parts = without_instruction(text).split(SEPARATOR)
    numbers = [int(n[1]) for n in map(_NUMBER.fullmatch, parts[:2]) if n]
    prices = [i for i, part in enumerate(parts) if part.startswith('Price: ')]
    if parts == [SEARCH]:
      self.page = START
    elif numbers:
      self._read_results(action, parts, numbers[0])
    elif prices and parts[-1] == BUY:
      self._read_item(clicked, parts, prices[-1])
    elif parts[0].startswith('Thank you'):
      self.page = DONE
    else:
      self._read_detail(clicked, [part for part in parts if part not in _LINKS])

  def _read_results(self, action: str, parts: list[str], number: int) -> None:
    self.page, self.number = RESULTS, number
    self.query = argument(action, 'search') or self.query
    rows = iter(part for part in parts[2:] if part not in _LINKS)
    self.results = []
    for asin in map(str.lower, rows):
      title = next(rows, '')
      # A product without a title has its price there.
      price = title if _PRICES.fullmatch(title) else next(rows, '')
      self.results.append(asin)
      self.listings[asin] = _listing('' if title == price else title, price)

  def _read_item(self, clicked: str, parts: list[str], price: int) -> None:
    if self.page == ITEM and clicked in self.offered[self.item]:
      self.clicked.append(clicked)
    elif self.page in (START, RESULTS):
      self.item = clicked if clicked in self.results else ''
      self.clicked = []
    self.page = ITEM
    self.listings[self.item] = _listing(parts[price - 1], parts[price])
    self.offered[self.item] = [
      part for part in parts[: price - 1] if part not in _LINKS
    ]

  def _read_detail(self, clicked: str, lines: list[str]) -> None:
    if self.page == ITEM:
      self.detail = clicked
    self.page, self.lines = DETAIL, lines
    if self.detail == 'features':
      self.features[self.item] = ' '.join(lines).lower()

  def options(self, observation: Observation) -> dict[str, list[str]]:
    """Lists the open item's options, name -> values."""
    options: dict[str, list[str]] = {}
    for part in self.offered[self.item]:
      if f'click[{part}]' not in observation.admissible:
        options[part] = []
      elif options:
        options[next(reversed(options))].append(part)
    return options

  def chosen(self, observation: Observation) -> dict[str, str]:
    """Lists the open item's chosen options, name -> value."""
    options = self.options(observation)
    return {
      name: part
      for part in self.clicked
      for name, values in options.items()
      if part in values
    }

  def lacks(self, asked: ShopInstruction, asin: str) -> str:
    """Names something asked for but missing by the pages read, or ''."""
    if asin in self.offered:
      for value in asked.options.values():
        if value not in self.offered[asin]:
          return value
    if asin in self.features:
      for attribute in asked.attributes:
        if attribute not in self.features[asin]:
          return attribute
    return ''

  def confirmed(self, asked: ShopInstruction, asin: str) -> bool:
    """Tells whether the pages read show everything asked for."""
    known = asin in self.offered and asin in self.features
    return known and not self.lacks(asked, asin)


def believe(history: Sequence[Exchange], observation: Observation) -> ShopBelief:
  """Builds the belief of an agent after a whole history."""
  belief = ShopBelief()
  texts = [exchange.observation for exchange in history] + [observation.text]
  actions = ['', *(exchange.action for exchange in history)]
  for action, text in zip(actions, texts, strict=True):
    belief.read(action, text)
  return belief
