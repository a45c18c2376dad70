"""The original shop's own draws of prices and goals, and its search documents."""

import collections

from sdar_jax import files
from sdar_jax.envs import records
from sdar_jax.envs.webshop import catalogue, goals


def read_documents(documents_path, instructions_path):
  """Reads the search engine's documents: JSON lines with a 'product' each."""
  known = dict(catalogue.read_known(instructions_path, records.Omitted()))
  for place, line in records.lines(documents_path):
    row = files.parse_json(line, place)
    with records.naming(place):
      raw = records.fields(row.get('product'))
      asin = records.text(raw, 'asin')
      options = {name: tuple(values) for name, values in raw['options'].items()}
      people = raw.get('instructions', [])
      people = catalogue.human_instructions(people, asin, records.Omitted())
      prices = tuple(raw['pricing'])
    yield catalogue.make_product(raw, prices, options, known.get(asin), people)


def draw_prices(products, rng):
  """Draws prices in row order, from ranges only."""
  prices = {}
  for row in range(len(products)):
    product = products[row]
    ranged = len(product.prices) > 1
    prices[product.asin] = rng.uniform(*product.prices) if ranged else product.prices[0]
  return prices


def draw_goals(products, prices, rng, shuffle_seed=233, human=False):
  """Draws all goals in the original's order, each with its relative frequency.

  Args:
    products: the catalogue.
    prices: of every product, drawn from the same generator just before.
    rng: the generator; left as the original leaves its own.
    shuffle_seed: 233 in the original, the environment's seed in SDAR's copy.
    human: the goals that people wrote instead of the synthetic ones.
  """
  drawn, said = [], collections.Counter()
  for row in range(len(products)):
    product = products[row]
    for instruction in goals.instructions(product, human):
      bound = goals.draw_bound(prices[product.asin], rng)
      for options in goals.choices(product, instruction, human):
        drawn.append(goals.make_goal(product, instruction, options, bound))
        said.update(instruction.attributes)
  pairs = [(goal, 1.0 if human else _weight(goal, said)) for goal in drawn]
  rng.seed(shuffle_seed)
  rng.shuffle(pairs)
  return pairs


def _weight(goal, said):
  """Weighs rare attributes more: the mean of one over how many goals say them."""
  return sum(1.0 / said[name] for name in goal.attributes) / len(goal.attributes)
