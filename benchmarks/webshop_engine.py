"""Measures the WebShop engine: steps and searches per second.

  python benchmarks/webshop_engine.py                   # our generated shop
  python benchmarks/webshop_engine.py --data_dir=DIR    # the official 1,000 products

DIR holds items_shuffle_1000.json and items_ins_v2_1000.json, or the search engine's
documents.jsonl (also .xz) in the place of the former. Seconds are those of the
processor in one thread; the clock's are beside them. `webshop_catalogue.py` measures
the full catalogue.
"""

import random
from pathlib import Path

import webshop_reference
from watch import Watch

from sdar_jax.envs import base
from sdar_jax.envs.webshop import catalogue, disk_catalogue, generated
from sdar_jax.envs.webshop.engine import WebshopEnv
from sdar_jax.envs.webshop.goals import Goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.shop import Shop
from sdar_jax.process import flags, terminal


def first_shop(data_dir):
  """The shop in memory, and its goals."""
  nouns = NounSource('rule')
  if not data_dir:
    return Shop(generated.catalogue(), None, nouns), generated.goals()['train']
  folder = Path(data_dir)
  documents = sorted(folder.glob('*.jsonl*'))
  if documents:
    instructions = folder / disk_catalogue.OFFICIAL['small'][1]
    products = webshop_reference.read_documents(documents[0], instructions)
    shop = Shop(catalogue.MemoryCatalogue(products), None, nouns)
  else:
    shop = disk_catalogue.open_official(folder, 'small', nouns)
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


def measure(shop, goals, episodes, seed):
  """Prints the speed of steps, and of searches alone."""
  rng = random.Random(seed)
  chosen = [goals[rng.randrange(len(goals))] for _ in range(episodes)]
  asked = list(queries(goals, episodes, rng))
  env, watch = WebshopEnv(shop), Watch()
  steps = sum(walk(env, goal, query) for goal, query in zip(chosen, asked))
  clock, processor = watch.read()
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
  clock, processor = (sorted(1000 * times for times in kind) for kind in zip(*spent))
  middle, high = len(spent) // 2, int(len(spent) * 0.95)
  print(
    f'search: {processor[middle]:.2f} ms median, {processor[high]:.2f} ms at 95 % '
    f'({clock[middle]:.2f} and {clock[high]:.2f} by the clock)'
  )


@terminal.program
def main(argv):
  """Measures what the flags ask for."""
  parser = flags.Parser('python benchmarks/webshop_engine.py', __doc__)
  parser.add_argument('--data_dir', help='official files (default: generated shop)')
  parser.add_argument('--episodes', type=int, default=2000, help='episodes to play')
  parser.add_argument('--seed', type=int, default=0, help='of the walks')
  options = parser.parse_all(argv)
  watch = Watch()
  shop, goals = first_shop(options.data_dir)
  clock, processor = watch.read()
  print(
    f'{len(shop.catalogue)} products: read and indexed in {processor:.1f} s '
    f'({clock:.1f} s by the clock)'
  )
  measure(shop, goals, options.episodes, options.seed)
  return 0


if __name__ == '__main__':
  main()
