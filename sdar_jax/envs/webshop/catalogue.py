"""Products: what a shop sells, and how to read them from the official files."""

import dataclasses
import functools
import hashlib
import json
import lzma
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

DEFAULT_PRICE = 100.0
_UNKNOWN_ATTRIBUTES = ('DUMMY_ATTR',)
_CHUNK = 1 << 20  # Characters read at a time from a long file.


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
    bullet_points: lines of the features page; may be none.
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
    first = self.bullet_points[0] if self.bullet_points else ''
    return ' '.join((self.title, self.description, first, options)).lower()

  @property
  def goals(self) -> tuple[int, int]:
    """How many synthetic and how many human goals the product gives."""
    choices = math.prod(len(values) for values in self.options.values())
    return choices if self.synthetic else 0, len(self.human)


class Catalogue(Protocol):
  """Products by row, and rows by asin. Immutable and picklable.

  Attributes:
    asins: of all products, by row.
    goals: int32 [products, 2], `Product.goals` of every row.
    digest: hex SHA-256 of the products.
  """

  asins: Sequence[str]
  goals: np.ndarray
  digest: str

  def __len__(self) -> int: ...

  def __getitem__(self, row: int) -> Product: ...

  def row_of(self, asin: str) -> int | None:
    """The row of a product, or None."""

  def rows_with(self, field: str, value: str) -> Sequence[int]:
    """Rows whose 'category' or 'query' is `value`, ascending."""

  def families(self, human: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """What `goals.find_families` finds in all synthetic or human goals; None if
    nobody has looked.
    """


class MemoryCatalogue:
  """A catalogue that fits in memory; implements `Catalogue`."""

  def __init__(self, products: Iterable[Product]):
    self._products = list(products)
    self.asins = [product.asin for product in self._products]
    goals = [product.goals for product in self._products]
    self.goals = np.array(goals, np.int32).reshape(-1, 2)
    self._rows = {asin: row for row, asin in enumerate(self.asins)}
    self._rows_with = defaultdict(list)
    for row, product in enumerate(self._products):
      self._rows_with['category', product.category].append(row)
      self._rows_with['query', product.query].append(row)

  def __len__(self) -> int:
    return len(self._products)

  def __getitem__(self, row: int) -> Product:
    return self._products[row]

  @functools.cached_property
  def digest(self) -> str:
    """Hex SHA-256 of the products."""
    return hashlib.sha256(b''.join(map(to_json, self._products))).hexdigest()

  def row_of(self, asin: str) -> int | None:
    return self._rows.get(asin)

  def rows_with(self, field: str, value: str) -> Sequence[int]:
    return self._rows_with.get((field, value), ())

  def families(self, human: bool) -> None:
    return None


def to_json(product: Product) -> bytes:
  """One line of JSON."""
  fields = [getattr(product, name) for name in Product.__slots__]
  text = json.dumps(fields, separators=(',', ':'), default=dataclasses.astuple)
  return text.encode() + b'\n'


def from_json(line: bytes) -> Product:
  """The product of a line that `to_json` wrote."""
  fields = json.loads(line)
  fields[3], fields[4], fields[8] = map(tuple, (fields[3], fields[4], fields[8]))
  fields[9] = {name: tuple(values) for name, values in fields[9].items()}
  if fields[10] is not None:
    fields[10] = _instruction(*fields[10])
  fields[11] = tuple(_instruction(*entry) for entry in fields[11])
  return Product(*fields)


def _instruction(text: str, attributes: list, options: list) -> Instruction:
  return Instruction(text, tuple(attributes), tuple(options))


def own_price(product: Product) -> float:
  """What a product costs: fixed, or drawn from its range by its asin alone."""
  if len(product.prices) == 1:
    return product.prices[0]
  return random.Random(f'price/{product.asin}').uniform(*product.prices)


def reference_prices(catalogue: Catalogue, rng: random.Random) -> dict[str, float]:
  """Prices drawn as the original draws them: in row order, from ranges only."""
  prices = {}
  for row in range(len(catalogue)):
    product = catalogue[row]
    ranged = len(product.prices) > 1
    prices[product.asin] = rng.uniform(*product.prices) if ranged else product.prices[0]
  return prices


def read_products(
  products_path: str | Path,
  instructions_path: str | Path,
  human_path: str | Path | None = None,
  limit: int | None = None,
) -> Iterator[Product]:
  """Products of the official files, in their order, one at a time.

  Args:
    products_path: items_shuffle.json or items_shuffle_1000.json.
    instructions_path: items_ins_v2.json or items_ins_v2_1000.json.
    human_path: items_human_ins.json; None for no human instructions.
    limit: how many entries of the products file are looked at; None for all.

  Raises:
    FileNotFoundError: a file is missing.
    ValueError: a file is not what it should be.
  """
  known = _load(instructions_path)
  people = _load(human_path) if human_path else {}
  seen = set()
  for number, raw in enumerate(_stream(products_path)):
    if number == limit:
      return
    asin = raw['asin']
    if asin == 'nan' or len(asin) > 10 or asin in seen:
      continue
    seen.add(asin)
    yield _product(
      raw, _read_prices(raw), _read_options(raw), known.get(asin), people.get(asin)
    )


def read_documents(
  documents_path: str | Path, instructions_path: str | Path
) -> Iterator[Product]:
  """Products of the search engine's documents: JSON lines with a 'product' each."""
  known = _load(instructions_path)
  opened = lzma.open if str(documents_path).endswith('.xz') else open
  with opened(documents_path, 'rt', encoding='utf-8') as lines:
    for line in lines:
      raw = json.loads(line)['product']
      options = {name: tuple(values) for name, values in raw['options'].items()}
      people = raw.get('instructions')
      entry = known.get(raw['asin'])
      yield _product(raw, tuple(raw['pricing']), options, entry, people)


def _product(
  raw: Mapping[str, Any],
  prices: tuple[float, ...],
  options: Mapping[str, tuple[str, ...]],
  known: Mapping[str, Any] | None,
  people: Sequence[Mapping[str, Any]] | None,
) -> Product:
  """Puts together what the files say about one product."""
  points = raw['small_description']
  known = known or {}
  return Product(
    asin=raw['asin'],
    title=raw['name'],
    description=raw['full_description'],
    bullet_points=tuple(points) if isinstance(points, list) else (points,),
    prices=prices,
    category=raw['category'],
    query=raw['query'].lower().strip(),
    product_category=raw['product_category'],
    attributes=tuple(known.get('attributes', _UNKNOWN_ATTRIBUTES)),
    options=options,
    synthetic=Instruction(known['instruction'], tuple(known['instruction_attributes']))
    if known.get('instruction') is not None
    else None,
    human=tuple(
      Instruction(
        entry['instruction'].strip('.'),
        tuple(entry['instruction_attributes']),
        tuple(entry['instruction_options']),
      )
      for entry in people or ()
      if entry['instruction_attributes']
    ),
  )


def _read_prices(raw: Mapping[str, Any]) -> tuple[float, ...]:
  """One price or the first two of '$12.50$1,020.00'."""
  parts = (raw.get('pricing') or '').split('$')[1:]
  try:
    prices = tuple(float(re.sub(r'[^\d.]', '', part)) for part in parts[:2])
  except ValueError:
    raise ValueError(
      f'pricing {raw["pricing"]!r} of product {raw["asin"]}: must be like $5.00'
    ) from None
  return prices or (DEFAULT_PRICE,)


def _read_options(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  return {
    name.lower(): tuple(
      entry['value'].strip().replace('/', ' | ').lower() for entry in entries
    )
    for name, entries in (raw['customization_options'] or {}).items()
    if entries is not None
  }


def _load(path: str | Path) -> Any:
  with open(path, encoding='utf-8') as file:
    return json.load(file)


def _stream(path: str | Path) -> Iterator[Any]:
  """The entries of a JSON list, without reading the whole file at once."""
  decode = json.JSONDecoder().raw_decode
  with open(path, encoding='utf-8') as file:
    text = file.read(_CHUNK).lstrip()
    if not text.startswith('['):
      raise ValueError(f'{path}: must be a JSON list of products')
    start = 1
    while True:
      start = re.compile(r'[\s,]*').match(text, start).end()
      try:
        entry, start = decode(text, start)
      except json.JSONDecodeError as error:
        if text[start : start + 1] == ']':
          return
        more = file.read(max(_CHUNK, len(text) - start))
        if not more:
          raise ValueError(f'{path}: {error.msg} near the end of the file') from None
        text, start = text[start:] + more, 0
        continue
      yield entry
