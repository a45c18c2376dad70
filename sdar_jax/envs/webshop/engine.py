"""The WebShop engine: the shop's pages and pay in plain Python.

Facts of the original that look odd are kept on purpose: the pages and their clickables
must be the original's, character for character. Where the original would crash, the
action does nothing.
"""

import json
import random
import re

from sdar_jax.envs import base
from sdar_jax.envs.webshop import pages
from sdar_jax.envs.webshop.goals import Goal
from sdar_jax.envs.webshop.reward import PurchaseScore
from sdar_jax.envs.webshop.shop import Shop

REWARDS = ('success', 'score')
# Stands for any search among admissible actions.
SEARCH_TEMPLATE = 'search[<your query>]'
_ACTION = re.compile(r'(.+)\[(.+)\]')


def read_action(text: str) -> tuple[str, str] | None:
  """Splits 'name[argument]', the argument lower-case, or gives None."""
  match = _ACTION.match(text)
  return None if match is None else (match[1], match[2].lower())


def admits(admissible: tuple[str, ...], action: str) -> bool:
  """Tests an action; any query fits the search template.

  The engine itself searches on every page: this is for parsers that are strict.
  """
  match read_action(action):
    case 'search', query:
      return bool(query.strip()) and SEARCH_TEMPLATE in admissible
    case 'click', name:
      return f'click[{name}]' in admissible
  return False


class WebshopEnv:
  """Shops for a task's `Goal`; implements `envs.base.TextEnv`.

  Args:
    shop: the shop, shared by all environments.
    reward: 'success' pays 1 for a perfect purchase, 'score' pays the purchase's score.
    rng: what '<r>' queries draw from; None for a generator of the goal and the turn.

  Attributes:
    clickables: of the page, in its order, as the original lists them.
    purchase: the last purchase's score with all its parts; None before.
    options: option name -> value as chosen on the product's page.
  """

  clickables: list[str]
  purchase: PurchaseScore | None
  options: dict[str, str]

  def __init__(
    self, shop: Shop, reward: str = 'success', rng: random.Random | None = None
  ):
    base.check_choice('reward', reward, REWARDS)
    self.shop = shop
    self.reward = reward
    self._rng = rng

  def reset(self, task: base.Task) -> base.Observation:
    """Starts on the search page with the goal in `task.payload`."""
    self._goal: Goal = task.payload
    self._head = pages.instruction(self._goal.instruction_text)
    self._turn = 0
    self.purchase = None
    return self._show_start()

  def step(self, action: str) -> base.StepResult:
    """Plays one action; unparsable text is a no-op."""
    self._turn += 1
    match read_action(action):
      case 'search', query:
        self._search(query.split(' '))
      case 'click', name if name in self.clickables and name != pages.SEARCH.lower():
        if name == pages.BUY.lower():
          return self._buy()
        self._click(name)
    return base.StepResult(self._observation, 0.0, False, False, score=0.0)

  def _show(self, page: str, text: str, clickables: list[str]) -> base.Observation:
    self._page, self.clickables = page, clickables
    admissible = tuple(f'click[{name}]' for name in clickables)
    if page == 'start':
      admissible = (SEARCH_TEMPLATE,)
    self._observation = base.Observation(text, admissible)
    return self._observation

  def _show_start(self) -> base.Observation:
    self._keywords, self._number, self._row, self.options = [], 0, None, {}
    return self._show('start', *pages.start(self._head))

  def _search(self, keywords: list[str]) -> None:
    """Shows the first page of a query's results, or stays."""
    found = self._find(keywords)
    if found is not None:
      self._keywords = keywords
      self._show_results(1, found)

  def _find(self, keywords: list[str]):
    rng = self._rng
    if rng is None:
      rng = random.Random(f'query/{self._goal.goal_id}/{self._turn}')
    return self.shop.find(keywords, rng)

  def _show_results(self, number: int, found=None) -> None:
    """Shows a page of results; the original searches anew every time."""
    found = self._find(self._keywords) if found is None else found
    self._number, self._row, self.options = number, None, {}
    window = slice((number - 1) * pages.PER_PAGE, number * pages.PER_PAGE)
    shown = [self.shop.entry(int(row)) for row in found[window]]
    self._show('results', *pages.results(self._head, number, len(found), shown))

  def _show_item(self) -> None:
    body, clickables, _ = self.shop.item(self._row)
    self._show('item', self._head + pages.SEPARATOR + body, clickables)

  def _show_sub_page(self, name: str) -> None:
    body, clickables = pages.sub_page(self.shop.catalogue[self._row], name)
    self._show('sub', self._head + pages.SEPARATOR + body, clickables)

  def _click(self, name: str) -> None:
    """Follows a button, a product or an option of the page."""
    if name == pages.BACK.lower():
      self._show_start()
    elif name == pages.NEXT.lower() and self._page == 'results':
      self._show_results(self._number + 1)
    elif name == pages.PREVIOUS.lower():
      self._go_back()
    elif name in map(str.lower, pages.SUB_PAGES):
      self._show_sub_page(name)
    elif self._page == 'results':
      self._row = self.shop.catalogue.row_of(name.upper())
      self._show_item()
    else:
      self.options[self.shop.item(self._row)[2][name]] = name

  def _go_back(self) -> None:
    """Goes one page up.

    The original reads the kind of page out of an address that holds the query and the
    options, so these can pretend to be another page's name.
    """
    address = '+'.join(self._keywords) + json.dumps(self.options)
    if self._page == 'results' or 'search_results' in address:
      self._show_results(self._number - 1)
    elif self._page == 'item' or 'item_page' in address:
      self._show_results(self._number)
    else:
      self._show_item()

  def _buy(self) -> base.StepResult:
    """Ends the episode with the purchase of the product on the page."""
    self.purchase = self.shop.score(self._row, self.options, self._goal)
    score = self.purchase.total
    asin = self.shop.catalogue.asins[self._row]
    observation = self._show('done', pages.receipt(asin, self.options, score), [])
    success = score == 1.0
    reward = score if self.reward == 'score' else float(success)
    return base.StepResult(observation, reward, done=True, success=success, score=score)
