"""The generated shop: a seeded catalogue and goals of our own.

`shop.json` states what exists. In every category five product lines, named by a title's
first word, have two attributes each; attributes stand on the features page only, where
neither search results nor the search engine show them. So whoever knows the lines buys
well at once, and others have to look or to guess. Everything derives from the version
and from names: the same goal is the same on every machine.
"""

import dataclasses
import functools
import hashlib
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sdar_jax import files
from sdar_jax.envs import base
from sdar_jax.envs.webshop import instruction
from sdar_jax.envs.webshop.catalogue import MemoryCatalogue, Product
from sdar_jax.envs.webshop.goals import Goal
from sdar_jax.envs.webshop.instruction import ShopInstruction

VERSION = 1
# Tasks per split, and twentieths of all possible instructions that belong to it.
SPLITS = {'train': 5000, 'valid_seen': 500, 'valid_unseen': 500, 'test': 500}
_SHARES = {'train': 10, 'valid_seen': 2, 'valid_unseen': 4, 'test': 4}
_UNSEEN = ('valid_unseen', 'test')
_PER_LINE = 8  # Products of each line and kind...
_HELD_OUT = 2  # ...of which so many are goals in the unseen splits only.
_PRICES = tuple(10 * tens + ones for tens in range(1, 6) for ones in (2, 5, 8))
_ROOM = (10, 10, 20, 30)  # Limits lie less than so much above the price.
_STARTS = tuple(a + b for a in 'bdfklmnprst' for b in 'aeo')
_ENDS = tuple(a + b for a in 'bdgklmnrtvz' for b in 'iu')
_FILE = Path(__file__).with_name('shop.json')


@dataclasses.dataclass(frozen=True)
class Category:
  """One category of shop.json.

  Attributes:
    path: the department that its products are filed under.
    nouns: kinds of product.
    lines: product line -> the attributes that its products have.
    styles: second words of titles; they mean nothing.
    purposes: last words of titles, likewise.
    options: name -> values, of which every product offers some.
    about: the first bullet point, which says nothing.
    extras: bullet points of which every product has one, likewise.
  """

  path: str
  nouns: tuple[str, ...]
  lines: Mapping[str, tuple[str, ...]]
  styles: tuple[str, ...]
  purposes: tuple[str, ...]
  options: Mapping[str, tuple[str, ...]]
  about: str
  extras: tuple[str, ...]

  def lines_with(self, attributes: Sequence[str]) -> tuple[str, ...]:
    """Lists the lines with all `attributes`."""
    return tuple(
      line for line, has in self.lines.items() if set(attributes) <= set(has)
    )


@functools.cache
def categories() -> Mapping[str, Category]:
  """Reads the categories of shop.json by name."""
  table = files.read_json(_FILE)
  return {
    name: Category(
      path=row['path'],
      nouns=tuple(row['nouns']),
      lines={line: tuple(has) for line, has in row['lines'].items()},
      styles=tuple(row['styles']),
      purposes=tuple(row['purposes']),
      options={option: tuple(values) for option, values in row['options'].items()},
      about=row['about'],
      extras=tuple(row['extras']),
    )
    for name, row in table['categories'].items()
  }


def category_of(kind: str) -> str:
  """Finds the category of a kind of product."""
  return next(name for name, row in categories().items() if kind in row.nouns)


@functools.cache
def digest() -> str:
  """Hashes everything behind goods and goals: hex SHA-256."""
  truth = f'{VERSION}/{hashlib.sha256(_FILE.read_bytes()).hexdigest()}'
  return hashlib.sha256(truth.encode()).hexdigest()


@functools.cache
def catalogue() -> MemoryCatalogue:
  """Makes all products, once per process."""
  return MemoryCatalogue(
    product
    for number, name in enumerate(categories())
    for product in _products(name, number)
  )


def _products(name: str, number: int) -> Iterator[Product]:
  """Yields the products of one category, the `number`-th.

  In an asin the first two syllables tell the category's products apart, and the last
  two are the category's.
  """
  row = categories()[name]
  words = [a + b for a, b in itertools.product(_STARTS, _ENDS)]
  random.Random(f'asins/{VERSION}').shuffle(words)
  ending, words = words[number], words[len(categories()) :]
  kinds = list(itertools.product(row.nouns, row.lines, range(_PER_LINE)))
  rng = random.Random(f'products/{VERSION}/{name}')
  for word, (noun, line, _) in zip(rng.sample(words[: len(kinds)], len(kinds)), kinds):
    yield _product(rng, name, noun, line, f'B0{word}{ending}'.upper())


def _product(rng: random.Random, name: str, noun: str, line: str, asin: str) -> Product:
  row = categories()[name]
  style, purpose = rng.choice(row.styles), rng.choice(row.purposes)
  options = {}
  for option, values in row.options.items():
    count = rng.choice((2, 3, 4)) if len(values) > 4 else rng.choice((1, 2, 2, 3))
    chosen = rng.sample(values, count)
    options[option] = tuple(value for value in values if value in chosen)
  has = rng.sample(row.lines[line], len(row.lines[line]))
  return Product(
    asin=asin,
    title=f'{line.title()} {style.title()} {noun.title()} for {purpose.title()}',
    description=f'{noun.title()} in {style} look from the {line} line, for {purpose}.',
    bullet_points=(row.about, *(f'Sold as {x}' for x in has), rng.choice(row.extras)),
    prices=(float(rng.choice(_PRICES)),),
    category=name,
    query=noun,
    product_category=f'{row.path} › {noun.title()}',
    attributes=row.lines[line],
    options=options,
  )


def _hash(text: str) -> int:
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _split_of(place: int, name: str) -> str | None:
  """Finds the split of an instruction for the product at `place`."""
  point = _hash(f'split/{VERSION}/{name}') % sum(_SHARES.values())
  ends = itertools.accumulate(_SHARES.values())
  split = next(split for split, end in zip(_SHARES, ends) if point < end)
  held_out = place % _PER_LINE < _HELD_OUT
  return split if (split in _UNSEEN) == held_out else None


def _goal(
  product: Product, name: str, wanted: tuple[str, ...], values: Sequence[str]
) -> Goal:
  """Makes the goal of buying `product` by instruction `name`."""
  options = dict(zip(product.options, values, strict=True))
  drawn = _hash(f'goal/{VERSION}/{product.asin}/{name}')
  limit = int(product.prices[0]) // 10 * 10 + _ROOM[drawn % len(_ROOM)]
  wording = drawn // len(_ROOM) % instruction.WORDINGS
  return Goal(
    goal_id=f'{product.asin}-{hashlib.sha256(name.encode()).hexdigest()[:12]}',
    asin=product.asin,
    category=product.category,
    query=product.query,
    name=product.title,
    product_category=product.product_category,
    instruction_text=instruction.write(
      ShopInstruction(product.query, wanted, options, limit), wording
    ),
    attributes=wanted,
    options=tuple(sorted(options.items())),
    price_upper=float(limit),
  )


@functools.cache
def goals() -> Mapping[str, tuple[Goal, ...]]:
  """Makes the goals of every split.

  An instruction names a kind of product, attributes and options. Each belongs to one
  split, so none occurs in two; and the products that goals of the unseen splits are
  made of are those of no goal of the others.
  """
  found: dict[str, dict[str, Goal]] = {split: {} for split in SPLITS}
  for place in range(len(catalogue())):
    product = catalogue()[place]
    singles = ((word,) for word in product.attributes)
    for wanted in (*singles, product.attributes):
      for values in itertools.product(*product.options.values()):
        name = '/'.join((product.query, *wanted, *values))
        split = _split_of(place, name)
        if split:
          goal = _goal(product, name, wanted, values)
          found[split].setdefault(goal.instruction_text, goal)
  return {
    split: tuple(_in_order(list(named.values()), split))
    for split, named in found.items()
  }


def _in_order(every: list[Goal], split: str) -> list[Goal]:
  """Takes a split's number of goals, categories in turns."""
  every.sort(key=lambda goal: _hash(f'order/{goal.goal_id}'))
  ranks: dict[str, int] = {name: 0 for name in categories()}
  placed = []
  for goal in every:
    placed.append((ranks[goal.category], goal))
    ranks[goal.category] += 1
  placed.sort(key=lambda pair: pair[0])  # Stable: first the first of every category.
  return [goal for _, goal in placed[: SPLITS[split]]]


class GeneratedGoals(base.Tasks):
  """The tasks of one split of the generated shop.

  Args:
    split: 'train', 'valid_seen' (known products, new instructions), 'valid_unseen' or
      'test' (new instructions for products that no other goal is made of).
  """

  def __init__(self, split: str):
    base.check_split(split, SPLITS)
    truth = ['generated', digest(), split, SPLITS[split]]
    super().__init__(split, SPLITS[split], functools.partial(make_task, split), truth)


def make_task(split: str, index: int) -> base.Task:
  """Makes one task of a split."""
  goal = goals()[split][index]
  return goal.task(f'generated/{split}/{goal.goal_id}')
