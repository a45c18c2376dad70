"""Scripted experts of the generated shop, guided by the pages read.

What to do depends on the present page and on what the compact prompt shows of the past,
so whoever reads that prompt can learn it; and any state that a policy gets into can be
labelled.
"""

import random

from sdar_jax.envs.base import Observation, Task
from sdar_jax.envs.webshop import generated, instruction
from sdar_jax.envs.webshop.belief import DETAIL, ITEM, RESULTS, START, ShopBelief

KINDS = ('informed', 'blind')
_PAGES = 3  # Of results to look through.


class ShoppingExpert:
  """Buys the product asked for in the generated shop.

  Args:
    kind: 'informed' knows which product lines have which attributes, searches for
      those lines and passes over others; 'blind' guesses among all products of the
      right kind and price, in an order that the seed and the task decide. Neither
      opens features pages, which cost turns, but both heed one that has been read.
    seed: of the blind order.

  Attributes:
    belief: what has been read.
  """

  def __init__(self, kind: str = 'informed', seed: int = 0):
    if kind not in KINDS:
      raise ValueError(f'expert {kind!r}: must be one of {KINDS}')
    self.kind = kind
    self.seed = seed

  def reset(self, task: Task, observation: Observation) -> None:
    """Starts an episode from its first observation."""
    asked = instruction.read(task.goal)
    if asked is None:
      raise ValueError(
        f'expert {self.kind!r} plays the generated shop only: set '
        "config.world.source='generated'"
      )
    self._asked = asked
    category = generated.categories()[generated.category_of(asked.kind)]
    self._good = category.lines_with(asked.attributes)
    self._salt = f'{self.seed}/{task.task_id}'
    self.belief = ShopBelief()
    self.belief.read('', observation.text)

  def observe(self, action: str, observation: Observation) -> None:
    """Takes in the outcome of an action, its own or another's."""
    self.belief.read(action, observation.text)

  def plan(self, observation: Observation) -> tuple[str, str]:
    """Gives the purpose in a few words, and the action."""
    if self.belief.page == START:
      return self._search()
    if self.belief.page == RESULTS:
      return self._choose()
    if self.belief.page == ITEM:
      return self._finish(observation)
    if self.belief.page == DETAIL:
      return 'go on', 'click[< prev]'
    return 'all done', 'click[back to search]'

  @property
  def _query(self) -> str:
    """What to search for. The search engine does not know attributes."""
    known = self._good if self.kind == 'informed' else self._asked.attributes
    return ' '.join([*known, self._asked.kind, *self._asked.options.values()])

  def _search(self) -> tuple[str, str]:
    if self.kind == 'informed':
      return ' or '.join(self._good), f'search[{self._query}]'
    return f'look for {self._asked.kind}', f'search[{self._query}]'

  def _fault(self, asin: str) -> str:
    """Names a reason against a product in a few words, or ''."""
    belief, asked = self.belief, self._asked
    words = belief.listings[asin].words
    if asked.kind not in words:
      return f'no {asked.kind}'
    if belief.listings[asin].price >= asked.limit:
      return f'not under {asked.limit}'
    if self.kind == 'informed' and words[0] not in self._good:
      return f'not {words[0]}'
    lacking = belief.lacks(asked, asin)
    return f'no {lacking}' if lacking else ''

  def _choose(self) -> tuple[str, str]:
    """Opens a product of the page of results, or looks for others."""
    belief = self.belief
    fitting = [asin for asin in belief.results if not self._fault(asin)]
    if fitting:
      sure = [asin for asin in fitting if belief.confirmed(self._asked, asin)]
      asin = (sure or sorted(fitting, key=self._rank))[0]
      listing = belief.listings[asin]
      return f'{listing.words[0]} {listing.dollars} {asin}', f'click[{asin}]'
    searched = belief.query == self._query
    if searched and belief.results and belief.number < _PAGES:
      return 'none here', 'click[next >]'
    return 'search again', 'click[back to search]'

  def _rank(self, asin: str) -> float:
    """Sorts fitting products: smallest first."""
    if self.kind == 'informed':
      return self.belief.results.index(asin)
    return random.Random(f'{self._salt}/{asin}').random()

  def _finish(self, observation: Observation) -> tuple[str, str]:
    """Chooses the open item's options and buys it, or leaves it."""
    fault = self._fault(self.belief.item)
    if fault:
      return fault, 'click[< prev]'
    chosen = self.belief.chosen(observation).values()
    for value in self._asked.options.values():
      if value not in chosen:
        return f'choose {value}', f'click[{value}]'
    return 'buy it', 'click[buy now]'
