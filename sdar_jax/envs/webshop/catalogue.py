"""Products: the goods of a shop, and readers of the official files."""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sdar_jax import files
from sdar_jax.envs import records

DEFAULT_PRICE = 100.0  # Dollars, where the file states none, as in the original.
_UNKNOWN_ATTRIBUTES = ('DUMMY_ATTR',)
MAX_CHOICES = 1_000_000  # Goals of one product; the official 1,000 have up to 558.
_ASIN = re.compile(r'[0-9A-Z]{1,10}')  # Pages link to the lower case of it.
_AMOUNT = re.compile(
  r'\$ ?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)'
)


@dataclasses.dataclass(frozen=True, slots=True)
class Instruction:
  """A shopper's request, before prices and options are named.

  Attributes:
    text: the instruction in words.
    attributes: what the product must have; never empty.
    options: option values to choose; only people's instructions state them here.
  """

  text: str
  attributes: tuple[str, ...]
  options: tuple[str, ...] = ()


Known = tuple[tuple[str, ...], Instruction | None]  # Attributes, and instruction.


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
    """Finds the row of a product, or None."""

  def rows_with(self, field: str, value: str) -> Sequence[int]:
    """Lists rows with this 'category' or 'query', ascending."""

  def families(self, human: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Gives the result of `goals.find_families`; None if not computed."""


class MemoryCatalogue:
  """A catalogue in memory; implements `Catalogue`."""

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
  """Writes a product as one line of JSON."""
  fields = [getattr(product, name) for name in Product.__slots__]
  text = json.dumps(fields, separators=(',', ':'), default=dataclasses.astuple)
  return text.encode() + b'\n'


def from_json(line: bytes) -> Product:
  """Reads a line written by `to_json`."""
  fields = files.parse_json(line, 'a product', list)
  fields[3], fields[4], fields[8] = map(tuple, (fields[3], fields[4], fields[8]))
  fields[9] = {name: tuple(values) for name, values in fields[9].items()}
  if fields[10] is not None:
    fields[10] = _instruction(*fields[10])
  fields[11] = tuple(_instruction(*entry) for entry in fields[11])
  return Product(*fields)


def _instruction(text: str, attributes: list, options: list) -> Instruction:
  return Instruction(text, tuple(attributes), tuple(options))


def own_price(product: Product) -> float:
  """Gives a product's price: fixed, or drawn from its range by its asin."""
  if len(product.prices) == 1:
    return product.prices[0]
  return random.Random(f'price/{product.asin}').uniform(*product.prices)


def read_products(
  products_path: str | Path,
  instructions_path: str | Path,
  human_path: str | Path | None = None,
) -> Iterator[Product]:
  """Products of the official files, in their order, one at a time.

  What is left out or filled in, as the original does it, is said once at the end.

  Args:
    products_path: items_shuffle.json or items_shuffle_1000.json.
    instructions_path: items_ins_v2.json or items_ins_v2_1000.json.
    human_path: items_human_ins.json; None for no human instructions.

  Raises:
    FileError: one line that names the file, the record and what is wrong with it.
  """
  omitted = records.Omitted()
  known = dict(read_known(instructions_path, omitted))
  people = dict(_read_people(human_path, omitted)) if human_path else {}
  seen = set()
  for place, raw in records.items(products_path, 'products'):
    with records.naming(place):
      asin = records.text(records.fields(raw), 'asin')
      if asin in seen:
        omitted.add('entries of a product that came before left out', asin)
        continue
      if asin == 'nan' or not _ASIN.fullmatch(asin):
        omitted.add('entries left out for their asin', asin)
        continue
      seen.add(asin)
    with records.naming(f'{place} ({asin})'):
      prices, options = _read_prices(raw, omitted), _read_options(raw, omitted)
      product = make_product(
        raw, prices, options, known.get(asin), people.get(asin, ())
      )
      if product.goals[0] > MAX_CHOICES:
        raise ValueError(f'its options give more than {MAX_CHOICES} goals')
    if product.synthetic and not product.goals[0]:
      omitted.add('instructions without a goal, as an option has no values', asin)
    yield product
  for source in (known, people):
    for asin in itertools.filterfalse(seen.__contains__, source):
      omitted.add('instructions for products that are not here', asin)
  omitted.say(products_path)


def make_product(
  raw: Mapping[str, Any],
  prices: tuple[float, ...],
  options: Mapping[str, tuple[str, ...]],
  known: Known | None,
  people: tuple[Instruction, ...],
) -> Product:
  """Puts together the files' facts about one product."""
  points = raw.get('small_description')
  if not isinstance(points, list):
    points = [records.text(raw, 'small_description', blank=True)]
  attributes, synthetic = known or (_UNKNOWN_ATTRIBUTES, None)
  return Product(
    asin=raw['asin'],
    title=records.text(raw, 'name', blank=True),
    description=records.text(raw, 'full_description', blank=True),
    bullet_points=records.checked_texts(points, 'small_description', blank=True),
    prices=prices,
    category=records.text(raw, 'category', blank=True),
    query=records.text(raw, 'query', blank=True).lower().strip(),
    product_category=records.text(raw, 'product_category', blank=True),
    attributes=attributes,
    options=options,
    synthetic=synthetic,
    human=people,
  )


def read_known(
  path: str | Path, omitted: records.Omitted
) -> Iterator[tuple[str, Known]]:
  """Yields the attributes and the instruction of every asin."""
  for place, asin, entry in records.members(path, 'instructions by asin'):
    with records.naming(place):
      attributes, instruction = _UNKNOWN_ATTRIBUTES, None
      if 'attributes' in records.fields(entry):
        attributes = records.texts(entry, 'attributes')
      if entry.get('instruction') is not None:
        wanted = records.texts(entry, 'instruction_attributes', least=1)
        instruction = Instruction(records.text(entry, 'instruction'), wanted)
      elif entry.get('instruction_attributes'):
        omitted.add('instructions without words left out', asin)
    yield asin, (attributes, instruction)


def _read_people(
  path: str | Path, omitted: records.Omitted
) -> Iterator[tuple[str, tuple[Instruction, ...]]]:
  """Yields people's instructions for every asin."""
  for place, asin, entries in records.members(path, 'instructions by asin'):
    with records.naming(place):
      people = human_instructions(entries, asin, omitted)
    yield asin, people


def human_instructions(
  entries: Any, asin: str, omitted: records.Omitted
) -> tuple[Instruction, ...]:
  """Reads people's instructions for one product, if with attributes."""
  if not isinstance(entries, list):
    raise ValueError(f'must be a list of instructions, not {records.shown(entries)}')
  people = []
  for entry in map(records.fields, entries):
    wanted = records.texts(entry, 'instruction_attributes')
    options = records.texts(entry, 'instruction_options')
    words = records.text(entry, 'instruction').strip('.')
    if wanted:
      people.append(Instruction(words, wanted, options))
    else:
      omitted.add("people's instructions without attributes left out", asin)
  return tuple(people)


def _read_prices(raw: Mapping[str, Any], omitted: records.Omitted) -> tuple[float, ...]:
  """Reads one price or the first two of '$12.50$1,020.00'.

  Signs, other currencies and decimal commas are refused: read as the original reads,
  they would be other prices.
  """
  if raw.get('pricing') in (None, ''):
    omitted.add(f'products without a price cost ${DEFAULT_PRICE}', raw['asin'])
    return (DEFAULT_PRICE,)
  said = records.text(raw, 'pricing')
  between = [part.strip() for part in _AMOUNT.split(said)]
  amounts = [
    float(found.group().lstrip('$ ').replace(',', ''))
    for found in _AMOUNT.finditer(said)
  ]
  wrong = between[0] or between[-1] or not set(between[1:-1]) <= {'', '-', '–', 'to'}
  if not amounts or wrong or not all(map(math.isfinite, amounts)):
    raise ValueError(
      f'its pricing {records.shown(said)} must be like $5.00, $1,250.00 or $5.00$7.50'
    )
  if len(amounts) > 2:
    omitted.add('products with more than two prices have the first two', raw['asin'])
  return tuple(amounts[:2])


def _read_options(
  raw: Mapping[str, Any], omitted: records.Omitted
) -> dict[str, tuple[str, ...]]:
  """Reads values by option, lower-case; a null option has none."""
  if 'customization_options' not in raw:
    raise ValueError("has no 'customization_options'")
  given = raw['customization_options']
  options = {}
  if given is None or given == '':
    return options
  if not isinstance(given, dict):
    raise ValueError(f"its 'customization_options' is {records.shown(given)}")
  for name, entries in given.items():
    if entries is None:
      continue
    if not isinstance(entries, list):
      raise ValueError(f'its option {name[:40]!r} is {records.shown(entries)}')
    if name.lower() in options:
      omitted.add('options named twice but for case have the last values', raw['asin'])
    values = [records.fields(entry).get('value') for entry in entries]
    records.checked_texts(values, 'value', blank=True)
    values = tuple([value.strip().replace('/', ' | ').lower() for value in values])
    if '' in values:
      omitted.add('options with an empty value, which nobody can click', raw['asin'])
    options[records.checked_text(name, 'option', blank=True).lower()] = values
  return options
