"""Goals: what to buy, which options to choose, and what it may cost."""

import dataclasses

NO_BOUND = 1_000_000.0


@dataclasses.dataclass(frozen=True, slots=True)
class Goal:
  """One thing to buy: the payload of a WebShop `Task`.

  Attributes:
    goal_id: stable identity, '{asin}-{12 hex digits}'; everything random about the
      goal (its price bound) derives from it.
    asin: the product the goal was made of.
    category: of that product, as `query`, `name` (its title) and `product_category`.
    instruction_text: the instruction as the pages show it.
    attributes: what the bought product must have; not empty.
    options: (name, value) pairs in the order of names; the name is '' in goals that
      people wrote, which state values only.
    price_upper: the most it may cost, in dollars; `NO_BOUND` for no limit.
    weight: relative frequency where goals are drawn at random.
  """

  goal_id: str
  asin: str
  category: str
  query: str
  name: str
  product_category: str
  instruction_text: str
  attributes: tuple[str, ...]
  options: tuple[tuple[str, str], ...]
  price_upper: float
  weight: float = 1.0
