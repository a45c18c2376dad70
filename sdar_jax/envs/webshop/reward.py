"""The worth of a purchase: kind, attributes, options and price.

score = r_type * (attributes met + options met + [price <= bound])
        / (attributes + options + 1)
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from sdar_jax.envs.webshop.catalogue import Product
from sdar_jax.envs.webshop.goals import Goal, Options

_ALIKE = 85  # Per cent; more than this is a match.
_LATIN_1 = dict.fromkeys(range(128, 256))
# A longer colour counts as the first of these that it contains: the order matters
# (the list of WebShop's released code).
COLORS = tuple(
  """
  alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze
  brown burgundy camel camo caramel champagne charcoal cheetah chestnut chocolate
  christmas coffee cognac copper coral cranberry cream crystal dark denim eggplant
  elephant espresso fuchsia gold granite grape graphite grass gray green grey heather
  indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve
  merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange
  peach pewter pink plum purple rainbow red rose royal rust sand sapphire seashell
  silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise
  violet walnut wheat white wine yellow
  """.split()
)


@dataclasses.dataclass(frozen=True)
class PurchaseScore:
  """A purchase's score and its parts.

  Attributes:
    total: in [0, 1]; 1.0 is success.
    r_type: 1, 0.5, 0.1 or 0: how much the product is of the kind that was asked for.
    r_att: share of attributes met, in [0, 1].
    w_att: the weight of attributes, as `w_option` and `w_price`; they sum to 1.
    query_match: both products came from one query.
    category_match: they share two categories or more.
    title_score: share of the wanted name's nouns that the bought one has.
    r_option: share of options met; None if none were asked for.
    w_option: None if none were asked for.
    r_price: whether the price keeps to the bound.
    w_price: weight of the price.
  """

  total: float
  r_type: float
  r_att: float
  w_att: float
  query_match: bool
  category_match: bool
  title_score: float
  r_option: float | None
  w_option: float | None
  r_price: bool
  w_price: float


def score_purchase(
  product: Product,
  chosen: Mapping[str, str],
  price: float,
  goal: Goal,
  nouns: Callable[[str], Sequence[str]],
) -> PurchaseScore:
  """Scores a purchase.

  Args:
    product: what was bought.
    chosen: option name -> value that was clicked.
    price: what the product costs, in dollars.
    goal: what was asked for; `price_upper` must be positive, attributes not empty.
    nouns: name of a product -> its nouns in lower case, repetitions included.

  Raises:
    ValueError: the goal asks for no attribute or has no positive bound.

  Source: Yao et al. 2022, 'WebShop' (arXiv:2207.01206), as the released code has it.
  """
  if not goal.attributes or goal.price_upper <= 0:
    raise ValueError(
      f'goal {goal.goal_id}: needs an attribute and a positive bound, '
      f'got {goal.attributes} and {goal.price_upper}'
    )
  query_match, category_match, title_score, r_type = _score_type(product, goal, nouns)
  attributes = _count_attributes(product, goal.attributes)
  options = _count_options(chosen.values(), goal.options)
  r_price = price <= goal.price_upper
  parts = len(goal.attributes) + len(goal.options) + 1
  return PurchaseScore(
    total=(attributes + options + r_price) / parts * r_type,
    r_type=r_type,
    r_att=attributes / len(goal.attributes),
    w_att=len(goal.attributes) / parts,
    query_match=query_match,
    category_match=category_match,
    title_score=title_score,
    r_option=options / len(goal.options) if goal.options else None,
    w_option=len(goal.options) / parts if goal.options else None,
    r_price=r_price,
    w_price=1 / parts,
  )


def _score_type(
  product: Product, goal: Goal, nouns: Callable[[str], Sequence[str]]
) -> tuple[bool, bool, float, float]:
  """Scores query match, category match, title and r_type."""
  query_match = product.query == goal.query
  ours, theirs = (
    _categories(product.product_category),
    _categories(goal.product_category),
  )
  category_match = len(ours & theirs) >= 2
  wanted = nouns(goal.name)
  # Shared nouns count once, the wanted ones with their repetitions.
  shared = len(set(nouns(product.title)) & set(wanted))
  title_score = shared / len(wanted) if wanted else 0.2
  if title_score == 0.0:
    r_type = 0.0
  elif title_score < 0.1:
    r_type = 0.1
  else:
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
  return query_match, category_match, title_score, r_type


def _categories(path: str) -> set[str]:
  return {name.strip() for name in path.split('›')}


def _count_attributes(product: Product, wanted: Sequence[str]) -> int:
  """Counts the wanted attributes of the product or in its texts."""
  texts = None
  met = 0
  for attribute in wanted:
    if any(alike(own, attribute) for own in product.attributes):
      met += 1
      continue
    if texts is None:
      texts = (product.title, ' '.join(product.bullet_points), product.description)
      texts = [text.lower() for text in texts]
    met += any(attribute in text for text in texts)
  return met


def _count_options(chosen: Iterable[str], wanted: Options) -> int:
  """Counts the chosen ones among wanted options."""
  chosen = [simplify_color(value) for value in chosen]
  met = 0
  for name, value in wanted:
    # The original compares a synthetic option as the pair of its name and value.
    option = _simplify_pair(name, value) if name else simplify_color(value)
    met += any(alike(own, option) for own in chosen)
  return met


def simplify_color(value: str) -> str:
  """Gives the first colour word in a value, or the value."""
  return next((color for color in COLORS if color in value), value)


def _simplify_pair(name: str, value: str) -> str:
  """Gives a colour if name or value is one; else the pair as text."""
  pair = (name, value)
  return next((color for color in COLORS if color in pair), str(pair))


@functools.lru_cache(maxsize=1 << 18)
def alike(first: str, second: str) -> bool:
  """Compares two texts: token set ratio above 85 per cent.

  The ratio is the best of three similarities between the sorted shared words, and
  these followed by the other words of either text (thefuzz 0.19 over difflib).
  """
  ours, theirs = _plain_words(first), _plain_words(second)
  if not ours or not theirs:
    return False
  shared = ' '.join(sorted(ours & theirs))
  if shared and (ours <= theirs or theirs <= ours):
    return True
  left = f'{shared} {" ".join(sorted(ours - theirs))}'.strip()
  right = f'{shared} {" ".join(sorted(theirs - ours))}'.strip()
  pairs = ((left, right), (shared, left), (shared, right))
  return any(_ratio(a, b) > _ALIKE for a, b in pairs if a and b)


def _plain_words(text: str) -> set[str]:
  """Splits into lower-case words without Latin-1 letters or signs."""
  return set(re.sub(r'\W', ' ', text.translate(_LATIN_1)).lower().split())


def _ratio(first: str, second: str) -> int:
  """Measures similarity in per cent, as difflib matches blocks."""
  matcher = difflib.SequenceMatcher(None, first, second)
  if round(100 * matcher.real_quick_ratio()) <= _ALIKE:  # An upper bound.
    return 0
  return round(100 * matcher.ratio())
