"""Products: what a shop sells, in memory or in a folder on disk."""

import dataclasses
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

DEFAULT_PRICE = 100.0


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
  """What a shopper wants of a product, before prices and options are named.

  Attributes:
    text: the instruction in words.
    attributes: what the product must have; never empty.
    options: option values to choose; only people's instructions state them here.
  """

  text: str
  attributes: tuple[str, ...]
  options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Product:
  """One product as pages and rewards see it.

  Attributes:
    asin: the product's id, at most 10 characters, upper-case.
    title: the name.
    description: one text; may be ''.
    bullet_points: lines of the features page; at least one, may be ''.
    prices: one price, or the two ends of a range, in dollars.
    category: the shop's department, e.g. 'beauty'.
    query: the kind of product in lower-case words, e.g. 'console tables'.
    product_category: path of categories joined by ' › '.
    attributes: what the product is known to be, lower-case.
    options: name -> values, all lower-case, in the order that the page shows.
    synthetic: the machine-made instruction, if there is one.
    human: instructions that people wrote.
  """

  asin: str
  title: str
  description: str
  bullet_points: tuple[str, ...]
  prices: tuple[float, ...]
  category: str
  query: str
  product_category: str
  attributes: tuple[str, ...]
  options: Mapping[str, tuple[str, ...]]
  synthetic: Instruction | None = None
  human: tuple[Instruction, ...] = ()

  @property
  def price_text(self) -> str:
    """The price as pages show it: '$5.0' or '$5.0 to $7.5'."""
    return ' to '.join(f'${price}' for price in self.prices)

  @property
  def search_text(self) -> str:
    """What the search engine indexes."""
    options = ', and '.join(
      f'{name}: {", ".join(values)}' for name, values in self.options.items()
    )
    parts = (self.title, self.description, self.bullet_points[0], options)
    return ' '.join(parts).lower()


class Catalogue(Protocol):
  """Products by row, and rows by asin. Immutable and picklable."""

  def __len__(self) -> int: ...

  def __getitem__(self, row: int) -> Product: ...

  def row_of(self, asin: str) -> int | None:
    """The row of a product, or None."""


class MemoryCatalogue:
  """A catalogue that fits in memory; implements `Catalogue`."""

  def __init__(self, products: Iterable[Product]):
    self._products = list(products)
    self._rows = {product.asin: row for row, product in enumerate(self._products)}

  def __len__(self) -> int:
    return len(self._products)

  def __getitem__(self, row: int) -> Product:
    return self._products[row]

  def row_of(self, asin: str) -> int | None:
    return self._rows.get(asin)


def own_price(product: Product) -> float:
  """What a product costs: fixed, or drawn from its range by its asin alone."""
  if len(product.prices) == 1:
    return product.prices[0]
  return random.Random(f'price/{product.asin}').uniform(*product.prices)


def reference_prices(
  catalogue: Sequence[Product], rng: random.Random
) -> dict[str, float]:
  """Prices drawn as the original draws them: in row order, from ranges only."""
  return {
    product.asin: product.prices[0]
    if len(product.prices) == 1
    else rng.uniform(*product.prices)
    for product in catalogue
  }
