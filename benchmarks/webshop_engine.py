"""Measures the WebShop engine: steps and searches per second, and a shop on disk.

  python benchmarks/webshop_engine.py                   # our generated shop
  python benchmarks/webshop_engine.py --data_dir=DIR    # the official 1,000 products
  python benchmarks/webshop_engine.py --data_dir=DIR --full=1180000

DIR holds items_shuffle_1000.json and items_ins_v2_1000.json, or the search engine's
documents.jsonl (also .xz) in the place of the former. `--full` builds a shop of that
many synthetic products on disk, whose texts are as long as those of the first shop, and
opens it in a process of its own. Seconds are those of the processor in one thread; the
clock's are beside them.
"""

import itertools
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags

from sdar_jax.envs import base
from sdar_jax.envs.webshop import catalogue, generated, store
from sdar_jax.envs.webshop.engine import WebshopEnv
from sdar_jax.envs.webshop.goals import Goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.shop import Shop

DATA_DIR = flags.DEFINE_string('data_dir', '', 'official files; empty: generated shop')
EPISODES = flags.DEFINE_integer('episodes', 2000, 'episodes to play')
FULL = flags.DEFINE_integer('full', 0, 'products of the shop on disk; 0: none')
SHOP_DIR = flags.DEFINE_string('shop_dir', '', 'where to build it; empty: a temporary')
LOAD = flags.DEFINE_string('load', '', 'only open the shop in this folder and query it')
SEED = flags.DEFINE_integer('seed', 0, 'of the walks and the synthetic products')
GIBIBYTE = 1 << 30


class Watch:
  """Seconds of this process since it was made: of the processor and of the clock."""

  def __init__(self):
    self._start = time.process_time(), time.perf_counter()

  def read(self):
    return time.process_time() - self._start[0], time.perf_counter() - self._start[1]


def first_shop():
  """The shop in memory, and its goals."""
  nouns = NounSource('rule')
  if not DATA_DIR.value:
    return Shop(generated.catalogue(), None, nouns), generated.goals()['train']
  folder = Path(DATA_DIR.value)
  documents = sorted(folder.glob('*.jsonl*'))
  if documents:
    instructions = folder / store.OFFICIAL['small'][1]
    products = catalogue.read_documents(documents[0], instructions)
    shop = Shop(catalogue.MemoryCatalogue(products), None, nouns)
  else:
    shop = store.open_official(folder, 'small', nouns)
  return shop, Goals(shop.catalogue)


def walk(env, goal, query):
  """Searches, looks at a product, chooses options, buys; returns the steps taken."""
  env.reset(base.Task('walk', '', goal.instruction_text, {}, goal))
  actions = [f'search[{query}]', 'click[next >]', 'click[< prev]']
  for action in actions:
    env.step(action)
  shown = [name for name in env.clickables if name.startswith('b0')]
  if not shown:
    return len(actions)
  choices = [f'click[{value}]' for _, value in goal.options if value]
  more = [f'click[{shown[0]}]', 'click[features]', 'click[< prev]', *choices]
  for action in [*more, 'click[buy now]']:
    env.step(action)
  return len(actions) + len(more) + 1


def queries(goals, count, rng):
  """Distinct queries: half of the words of an instruction, in its order."""
  texts = [goals[rng.randrange(len(goals))].instruction_text for _ in range(count)]
  for text in texts:
    words = text.split()
    kept = sorted(rng.sample(range(len(words)), max(1, len(words) // 2)))
    yield ' '.join(words[place] for place in kept)


def measure(shop, goals, episodes):
  """Prints the speed of steps, and of searches alone."""
  rng = random.Random(SEED.value)
  chosen = [goals[rng.randrange(len(goals))] for _ in range(episodes)]
  asked = list(queries(goals, episodes, rng))
  env, watch = WebshopEnv(shop), Watch()
  steps = sum(walk(env, goal, query) for goal, query in zip(chosen, asked))
  processor, clock = watch.read()
  print(
    f'{steps} steps, {len(set(asked))} different queries: {steps / processor:,.0f} '
    f'steps/s ({steps / clock:,.0f} by the clock), nouns by {shop.nouns.name}'
  )
  measure_search(shop, asked)


def measure_search(shop, asked):
  """Prints milliseconds a query takes, analysis included, nothing remembered."""
  spent = []
  for query in asked:
    watch = Watch()
    shop.index.search(query)
    spent.append(watch.read())
  processor, clock = (sorted(1000 * times for times in kind) for kind in zip(*spent))
  middle, high = len(spent) // 2, int(len(spent) * 0.95)
  print(
    f'search: {processor[middle]:.2f} ms median, {processor[high]:.2f} ms at 95 % '
    f'({clock[middle]:.2f} and {clock[high]:.2f} by the clock)'
  )


def synthetic(shop, count, seed):
  """Products as long as those of a shop, of their words and one new word each."""
  rng = random.Random(seed)
  models = [shop.catalogue[row] for row in range(len(shop.catalogue))]
  words = list(itertools.chain.from_iterable(m.search_text.split() for m in models))
  digits = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ'

  def shuffled(text):
    return ' '.join(rng.choices(words, k=len(text.split())))

  for number in range(count):
    model = rng.choice(models)
    code = ''.join(digits[number // 36**place % 36] for place in range(7))
    yield catalogue.Product(
      asin=f'B0S{code}',
      title=f'{code.lower()} {shuffled(model.title)}',
      description=shuffled(model.description),
      bullet_points=tuple(map(shuffled, model.bullet_points)),
      prices=model.prices,
      category=model.category,
      query=model.query,
      product_category=model.product_category,
      attributes=model.attributes,
      options=model.options,
      synthetic=catalogue.Instruction(f'find {model.query}', model.attributes[:2]),
    )


def peak():
  """The most memory this process has held, in GiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE


def build(shop, directory, count):
  """Builds a shop on disk and opens it in a fresh process."""
  watch = Watch()
  store.build(directory, synthetic(shop, count, SEED.value))
  processor, clock = watch.read()
  size = sum(file.stat().st_size for file in Path(directory).iterdir()) / GIBIBYTE
  print(
    f'{count} products: built in {processor:.0f} s ({clock:.0f} s by the clock), peak '
    f'{peak():.2f} GiB of memory, {size:.2f} GiB on disk'
  )
  command = [sys.executable, __file__, f'--load={directory}', f'--seed={SEED.value}']
  subprocess.run(command, check=True)


def load(directory):
  """Opens a shop on disk, queries it, and plays in it."""
  watch = Watch()
  shop = store.open_shop(directory, NounSource('rule'))
  processor, clock = watch.read()
  print(
    f'{len(shop.catalogue)} products, {len(shop.index.terms)} terms: opened in '
    f'{processor:.1f} s ({clock:.1f} s by the clock)'
  )
  measure(shop, Goals(shop.catalogue), 200)
  print(f'peak {peak():.2f} GiB of memory, mapped files included')


def main(arguments):
  """Measures what the flags ask for."""
  if len(arguments) > 1:
    raise app.UsageError(f'unexpected argument {arguments[1]!r}')
  if LOAD.value:
    load(LOAD.value)
    return
  watch = Watch()
  shop, goals = first_shop()
  processor, clock = watch.read()
  print(
    f'{len(shop.catalogue)} products: read and indexed in {processor:.1f} s '
    f'({clock:.1f} s by the clock)'
  )
  measure(shop, goals, EPISODES.value)
  if FULL.value:
    with tempfile.TemporaryDirectory() as temporary:
      build(shop, SHOP_DIR.value or f'{temporary}/shop', FULL.value)


if __name__ == '__main__':
  app.run(main)
