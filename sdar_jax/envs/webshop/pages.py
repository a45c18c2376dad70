"""The shop's pages as text, with their clickables.

The wording is the original's in its text mode, misspellings included: what an agent
reads must be what was published. A page is the pieces of text that a browser would
show, joined by `SEPARATOR`.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence

from sdar_jax.envs import base, texts
from sdar_jax.envs.webshop.catalogue import Product

SEPARATOR = ' [SEP] '
SEARCH, BACK, PREVIOUS, NEXT = 'Search', 'Back to Search', '< Prev', 'Next >'
BUY = 'Buy Now'
SUB_PAGES = ('Description', 'Features', 'Reviews')
PER_PAGE = 10
_SHORT = 32  # Characters: prices, ratings and numbers of pages have no more.
_PAGE = re.compile(r'Page \d+ \(')
_RATING = 'N.A.'  # The released catalogues have no reviews.
_RECEIPT_HEAD = (
  'Thank you for shopping with us!',
  'Your code:',
  'None',
  '(Paste it in your MTurk interface.)',
  'Purchased',
  'asin',
)
_RECEIPT_TAIL = (
  'attrs',
  'None',
  'category',
  'None',
  'query',
  'None',
  'product category',
  'None',
  'Target',
  'asin',
  'options',
  'attrs',
  'price upper',
  'instuction text',
  'category',
  'product category',
  'query',
  'Goal',
  'None',
  'Reward',
  'Your score (min 0.0, max 1.0)',
)


def join(pieces: Iterable[str]) -> str:
  """Joins pieces as a browser shows them, without empty ones."""
  return SEPARATOR.join(piece.strip() for piece in pieces if piece not in ('', '\n'))


def instruction(text: str) -> str:
  """Writes the beginning of every page but the last."""
  return join(('Instruction:', text))


def start(head: str) -> tuple[str, list[str]]:
  """Writes the page with the search bar; `head` is `instruction(text)`."""
  return join(('WebShop', head, SEARCH)), [SEARCH.lower()]


def entry(product: Product) -> str:
  """Writes a product among results."""
  return join((product.asin, product.title, product.price_text))


def results(
  head: str, number: int, total: int, shown: Sequence[tuple[str, str]]
) -> tuple[str, list[str]]:
  """Writes page `number` of results; `shown` holds (asin, entry) pairs."""
  buttons = [BACK, PREVIOUS, NEXT] if number > 1 else [BACK, NEXT]
  found = f'Page {number} (Total results: {total})'
  entries = [text for _, text in shown]
  text = SEPARATOR.join((head, BACK, found, *buttons[1:], *entries))
  clickables = [button.lower() for button in buttons]
  return text, clickables + [asin.lower() for asin, _ in shown]


def item(product: Product) -> tuple[str, list[str]]:
  """Writes a product's own page, without the instruction."""
  options = [
    piece for name, values in product.options.items() for piece in (name, *values)
  ]
  price, rating = f'Price: {product.price_text}', f'Rating: {_RATING}'
  tail = (product.title, price, rating, *SUB_PAGES, BUY)
  clickables = [button.lower() for button in (BACK, PREVIOUS, *SUB_PAGES, BUY)]
  clickables += [value for values in product.options.values() for value in values]
  return join((BACK, PREVIOUS, *options, *tail)), list(dict.fromkeys(clickables))


def sub_page(product: Product, name: str) -> tuple[str, list[str]]:
  """Writes description, features or (no) reviews."""
  text = join((BACK, PREVIOUS, product.description if name == 'description' else ''))
  if name == 'features':  # Here empty lines are shown.
    text = SEPARATOR.join((text, *(line.strip() for line in product.bullet_points)))
  return text, [BACK.lower(), PREVIOUS.lower()]


def receipt(asin: str, options: Mapping[str, str], score: float) -> str:
  """Writes the last page, without clickables."""
  chosen = json.dumps(dict(options), sort_keys=True)
  for sign in "<>&'":  # Safe inside HTML, as the original's templates write it.
    chosen = chosen.replace(sign, f'\\u{ord(sign):04x}')
  bought = (asin, 'options', chosen)
  score_lines = (str(score), 'Reward Details', 'None')
  return join((*_RECEIPT_HEAD, *bought, *_RECEIPT_TAIL, *score_lines))


def shorten(observation: base.Observation, characters: int) -> base.Observation:
  """Cuts a page's longest texts, or the end of a sub page.

  What can be clicked, the instruction and what gives a page its form stay.

  Args:
    observation: a page.
    characters: about as long as the page shall be.
  """
  pieces = observation.text.split(SEPARATOR)
  head = 2 + pieces.index('Instruction:') if 'Instruction:' in pieces[:2] else 0
  clickable = {action.lower() for action in observation.admissible}
  free = [
    i
    for i, piece in enumerate(pieces)
    if i >= head and f'click[{piece.lower()}]' not in clickable
  ]
  if pieces[-1] == BUY or any(map(_PAGE.match, pieces[head : head + 2])):
    free = [i for i in free if len(pieces[i]) > _SHORT]
  elif free:
    pieces[free[0] :] = [SEPARATOR.join(pieces[free[0] :])]
    free = free[:1]
  lengths = [len(pieces[i]) for i in free]
  room = sum(lengths) - (len(observation.text) - characters)
  limit = texts.fair_limit(lengths, max(room, 0))
  for i in free:
    pieces[i] = texts.cut(pieces[i], limit)
  return base.Observation(SEPARATOR.join(pieces), observation.admissible)
