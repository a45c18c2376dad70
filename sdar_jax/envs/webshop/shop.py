"""A shop, shared by all environments. Immutable and picklable."""

import functools
import random
from collections.abc import Mapping, Sequence

from sdar_jax.envs.webshop import pages, search
from sdar_jax.envs.webshop.catalogue import Catalogue, Product, own_price
from sdar_jax.envs.webshop.goals import Goal
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.reward import PurchaseScore, score_purchase

_PAGES = 20_000  # Products whose pages are kept.
_QUERIES = 4_096  # Queries whose results are kept.


class Shop:
  """A catalogue with its search engine, its prices and its judge.

  Args:
    catalogue: the products.
    index: over the same rows; None to build it here (a second for 1,000 products).
    nouns: the source of nouns for the reward.
    prices: by asin, for products with a range of prices; None for prices by identity.
  """

  def __init__(
    self,
    catalogue: Catalogue,
    index: search.SearchIndex | None = None,
    nouns: NounSource | None = None,
    prices: Mapping[str, float] | None = None,
  ):
    if index is None:
      texts = (catalogue[row].search_text for row in range(len(catalogue)))
      index = search.SearchIndex.build(texts, catalogue.asins)
    self.catalogue, self.index = catalogue, index
    self.nouns = NounSource() if nouns is None else nouns
    self.prices = prices
    self.entry = functools.lru_cache(_PAGES)(self._entry)
    self.item = functools.lru_cache(_PAGES)(self._item)
    self._search = functools.lru_cache(_QUERIES)(self._search_now)

  def __reduce__(self):
    return type(self), (self.catalogue, self.index, self.nouns, self.prices)

  def _entry(self, row: int) -> tuple[str, str]:
    """Gives the asin and the entry among results of a product."""
    product = self.catalogue[row]
    return product.asin, pages.entry(product)

  def _item(self, row: int) -> tuple[str, list[str], Mapping[str, str]]:
    """Gives a product's page, its clickables, and option names by value."""
    product = self.catalogue[row]
    names = {
      value: name for name, values in product.options.items() for value in values
    }
    return (*pages.item(product), names)

  def _search_now(self, query: str) -> Sequence[int] | None:
    try:
      return tuple(self.index.search(query).tolist())
    except search.LongQueryError:
      return None

  def find(self, keywords: Sequence[str], rng: random.Random) -> Sequence[int] | None:
    """Rows of the products for a query split at spaces, best first.

    A first word in angle brackets is a command: '<c> category', '<q> query' and '<r>',
    50 products drawn from `rng`. None where the original fails: '<c>' alone, '<a>',
    more terms than the search engine takes.
    """
    command = keywords[0]
    if command == '<r>':
      size = len(self.catalogue)
      return rng.sample(range(size), min(search.HITS, size))
    if command == '<a>' or list(keywords) == ['<c>']:
      return None
    if command == '<c>':
      return self.catalogue.rows_with('category', keywords[1].strip())
    if command == '<q>':
      return self.catalogue.rows_with('query', ' '.join(keywords[1:]).strip())
    return self._search(' '.join(keywords))

  def price(self, product: Product) -> float:
    """Gives a product's price in dollars."""
    return own_price(product) if self.prices is None else self.prices[product.asin]

  def score(self, row: int, chosen: Mapping[str, str], goal: Goal) -> PurchaseScore:
    """Scores the purchase of a product with the chosen options."""
    product = self.catalogue[row]
    return score_purchase(product, chosen, self.price(product), goal, self.nouns)
