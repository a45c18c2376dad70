"""What the original shop did, and the thousand products it did it with."""

import functools
import json
import lzma
import random

from shared import shared_path

from benchmarks import webshop_reference
from sdar_jax.envs.webshop import catalogue, goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.shop import Shop

SHUFFLE_SEED = 233  # The princeton variant's; sdar's is the environment's seed.


def read(name):
  path = shared_path(f'golden/webshop/webshop_{name}.public.jsonl.xz')
  with lzma.open(path, 'rt', encoding='utf-8') as lines:
    return [json.loads(line) for line in lines]


def documents():
  with lzma.open(shared_path('data/webshop/products_1k.jsonl.xz'), 'rt') as lines:
    return [json.loads(line) for line in lines]


def instructions_path():
  return shared_path('data/webshop/items_ins_v2_1000.json')


@functools.cache
def products():
  documents_path = shared_path('data/webshop/products_1k.jsonl.xz')
  return catalogue.MemoryCatalogue(
    webshop_reference.read_documents(documents_path, instructions_path())
  )


@functools.cache
def shop():
  return Shop(products(), nouns=NounSource('rule'))


@functools.cache
def original(variant, seed, human):
  """The shop, and (goal, weight) as the original draws them from one generator."""
  rng = random.Random(seed)
  prices = webshop_reference.draw_prices(products(), rng)
  shuffle_seed = SHUFFLE_SEED if variant == 'princeton' else seed
  pairs = webshop_reference.draw_goals(products(), prices, rng, shuffle_seed, human)
  return Shop(products(), shop().index, NounSource('rule'), prices), pairs


def setting(record):
  return record['variant'], record['seed'], record['human_goals']


def goal_of(record):
  """A goal as the records write it down."""
  options = record['goal_options']
  named = options.items() if isinstance(options, dict) else [('', o) for o in options]
  return goals.Goal(
    goal_id='recorded',
    asin=record['asin'],
    category=record['category'],
    query=record['query'],
    name=record['name'],
    product_category=record['product_category'],
    instruction_text=record['instruction_text'],
    attributes=tuple(record['attributes']),
    options=tuple(tuple(pair) for pair in named),
    price_upper=record['price_upper'],
  )
