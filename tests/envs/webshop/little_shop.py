"""A few products of our own for tests."""

from sdar_jax.envs import base
from sdar_jax.envs.webshop.catalogue import Instruction, MemoryCatalogue, Product
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.shop import Shop


def product(asin, title, **given):
  fields = {
    'description': f'A fine {title.lower()}.',
    'bullet_points': (f'{title} for everybody', ''),
    'prices': (19.5,),
    'category': 'garden',
    'query': 'lamps',
    'product_category': 'Home › Lighting › Lamps',
    'attributes': ('easy clean',),
    'options': {},
    'synthetic': Instruction('find an easy clean lamp', ('easy clean',)),
  }
  return Product(asin=asin, title=title, **(fields | given))


def products():
  colors = {'color': ('red', 'dark blue'), 'size': ('small', 'large')}
  lamps = [
    product('B000000001', 'Oak Desk Lamp', options=colors),
    product('B000000002', 'Steel Floor Lamp', prices=(5.0, 9.25)),
    product('B000000003', 'Paper Lantern', query='lanterns', synthetic=None),
    product('B000000004', 'Oak Chair', category='office', query='chairs'),
  ]
  more = [product(f'B00000010{n}', f'Plain Lamp {n}', synthetic=None) for n in range(9)]
  return lamps + more


def shop(listed=None):
  return Shop(MemoryCatalogue(listed or products()), nouns=NounSource('rule'))


def task(goal):
  return base.Task('test', 'any', goal.instruction_text, {}, goal)
