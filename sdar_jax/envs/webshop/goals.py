"""Goals: a product to buy, its options and its price bound.

The original's goals depend on the state of one generator; here a goal's price bound
derives from its identity, and splits are disjoint in goals and in words.
"""

import dataclasses
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sdar_jax.envs.base import Task
from sdar_jax.envs.webshop.catalogue import Catalogue, Instruction, Product, own_price

NO_BOUND = 1_000_000.0
SPLIT_SIZES = {'test': 500, 'valid': 1000}  # The rest is 'train'.
_BOUNDS = [10.0 * step for step in range(1, 100)]

Options = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
  """One thing to buy: the payload of a WebShop `Task`.

  Attributes:
    goal_id: stable identity, '{asin}-{12 hex digits}', with '-2' and so on where a
      product lists a choice twice; all that is random about the goal derives from it.
    asin: the product the goal was made of.
    category: of that product, as `query`, `name` (its title) and `product_category`.
    instruction_text: the instruction as the pages show it.
    attributes: what the bought product must have; not empty.
    options: (name, value) pairs in the order of names; the name is '' in goals that
      people wrote, which state values only.
    price_upper: the most it may cost, in dollars; `NO_BOUND` for no limit.
  """

  goal_id: str
  asin: str
  category: str
  query: str
  name: str
  product_category: str
  instruction_text: str
  attributes: tuple[str, ...]
  options: Options
  price_upper: float

  def task(self, task_id: str) -> Task:
    """Makes the task of reaching this goal."""
    metadata = {'task_type': self.category, 'object': self.query}
    return Task(task_id, self.category, self.instruction_text, metadata, self)


def make_goal(
  product: Product,
  instruction: Instruction,
  options: Options,
  bound: float | None = None,
  repeat: int = 0,
) -> Goal:
  """Makes a goal of a product, the `repeat`-th of its wording.

  Its price bound is drawn by its identity unless it is given.
  """
  words = _words(instruction, options)
  identity = (product.asin, instruction.attributes, options, words)
  goal_id = f'{product.asin}-{_hash(identity, 6):012x}'
  if repeat:
    goal_id += f'-{repeat + 1}'
  if bound is None:
    bound = draw_bound(own_price(product), random.Random(f'bound/{goal_id}'))
  if bound != NO_BOUND:
    words += f', and price lower than {bound:.2f} dollars'
  return Goal(
    goal_id=goal_id,
    asin=product.asin,
    category=product.category,
    query=product.query,
    name=product.title,
    product_category=product.product_category,
    instruction_text=words,
    attributes=instruction.attributes,
    options=options,
    price_upper=bound,
  )


def draw_bound(price: float, rng: random.Random) -> float:
  """Draws the larger of two of the next four multiples of 10 dollars."""
  above = [bound for bound in _BOUNDS if bound > price][:4]
  return max(rng.sample(above, 2)) if len(above) > 1 else NO_BOUND


class Goals(Sequence[Goal]):
  """All goals of a catalogue in its order, made one at a time.

  Args:
    catalogue: the products.
    human: the goals that people wrote instead of the synthetic ones.
  """

  def __init__(self, catalogue: Catalogue, human: bool = False):
    self.catalogue, self.human = catalogue, human
    counts = catalogue.goals[:, int(human)]
    self._rows = np.flatnonzero(counts)
    self._ends = np.cumsum(counts[self._rows])

  def __len__(self) -> int:
    return int(self._ends[-1]) if len(self._ends) else 0

  def __getitem__(self, index: int) -> Goal:
    index = range(len(self))[index]
    source = int(np.searchsorted(self._ends, index, side='right'))
    number = index - (int(self._ends[source - 1]) if source else 0)
    product = self.catalogue[int(self._rows[source])]
    if self.human:
      instruction = product.human[number]
      options = next(choices(product, instruction, human=True))
      repeat = product.human[:number].count(instruction)
    else:
      instruction = product.synthetic
      options, repeat = _choice(product, number)
    return make_goal(product, instruction, options, repeat=repeat)

  def split(self, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Indices of the goals of each split, in an order of their own.

    Goals that share their words (without the price) or their product, options and
    attributes are one family; families stay together. They are ordered by hash, so a
    goal's place depends on nothing but the goals themselves.

    Args:
      sizes: how many goals each split takes; what is left is 'train'.

    Raises:
      ValueError: there are too few goals.
    """
    sizes = dict(SPLIT_SIZES) if sizes is None else dict(sizes)
    if len(self) <= sum(sizes.values()):
      raise ValueError(f'splits {sizes} need more goals than the {len(self)} there are')
    counts, order = self._families()
    starts = np.cumsum(counts) - counts
    left, parts = dict(sizes), {name: [] for name in (*sizes, 'train')}
    for start, count in zip(map(int, starts), map(int, counts)):
      if not any(left.values()):
        parts['train'].append(order[start:])
        break
      name = next((name for name in left if left[name] >= count), 'train')
      if name != 'train':
        left[name] -= count
      parts[name].append(order[start : start + count])
    if any(left.values()):
      raise ValueError(f'splits {sizes}: {left} could not be filled by whole families')
    return {name: np.concatenate(part) for name, part in parts.items()}

  def _families(self) -> tuple[np.ndarray, np.ndarray]:
    """Finds families as `find_families` does."""
    known = self.catalogue.families(self.human)
    if known is not None:
      return known
    products = (self.catalogue[row] for row in self._rows.tolist())
    keys = (key for product in products for key in family_keys(product, self.human))
    return find_families(np.fromiter(keys, np.uint64, 2 * len(self)))


def family_keys(product: Product, human: bool) -> Iterator[int]:
  """Yields two 64-bit keys per goal: of its words, and of its content.

  The content is product, options and attributes.
  """
  for instruction in instructions(product, human):
    for options in choices(product, instruction, human):
      yield _hash(_words(instruction, options), 8)
      yield _hash((product.asin, options, instruction.attributes), 8)


def find_families(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Groups inseparable goals: those with a common key, and so on.

  Args:
    keys: uint64 [2 * goals], of `family_keys`, product by product.

  Returns:
    Sizes of the families, in a random order, and the goals in that order.
  """
  words, sames = keys[::2], keys[1::2]
  links = [np.unique(key, return_inverse=True)[1] for key in (words, sames)]
  families, before = words.copy(), None
  while before is None or (families != before).any():
    before = families
    for link in links:
      least = np.full(link.max(initial=-1) + 1, np.iinfo(np.uint64).max, np.uint64)
      np.minimum.at(least, link, families)
      families = least[link]
  _, counts = np.unique(families, return_counts=True)
  return counts, np.lexsort((sames, families))


def instructions(product: Product, human: bool) -> tuple[Instruction, ...]:
  """Lists the instructions of a product, people's or the synthetic one."""
  if human:
    return product.human
  return () if product.synthetic is None else (product.synthetic,)


def choices(
  product: Product, instruction: Instruction, human: bool
) -> Iterator[Options]:
  """Yields a goal's possible options: all combinations, or people's."""
  if human:
    yield tuple(('', value) for value in instruction.options)
    return
  names = sorted(product.options)
  for values in itertools.product(*(product.options[name] for name in names)):
    yield tuple(zip(names, values))


def _choice(product: Product, number: int) -> tuple[Options, int]:
  """Finds the `number`-th of `choices`, and its equals before it."""
  places = []
  for name in sorted(product.options, reverse=True):  # The last name turns fastest.
    number, place = divmod(number, len(product.options[name]))
    places.append((name, place))
  options, repeat = [], 0
  for name, place in reversed(places):
    values = product.options[name]
    value = values[place]
    options.append((name, value))
    repeat = repeat * values.count(value) + values[:place].count(value)
  return tuple(options), repeat


def _words(instruction: Instruction, options: Options) -> str:
  """Writes the instruction without its price bound."""
  listed = ', and '.join(f'{name}: {value}' for name, value in options if name)
  return f'{instruction.text} with {listed}' if listed else instruction.text


def _hash(value: object, size: int) -> int:
  data = json.dumps(value).encode()
  return int.from_bytes(hashlib.blake2b(data, digest_size=size).digest())
