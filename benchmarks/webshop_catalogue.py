"""Measures the full WebShop catalogue, with invented products in the official format.

  python benchmarks/webshop_catalogue.py                      # 1,180,000 products
  python benchmarks/webshop_catalogue.py --products=100000 --directory=DIR

Writes `items_shuffle.json` and `items_ins_v2.json` to a folder and opens it twice as
the world does, each time in a process of its own: the first builds the index. Prints
seconds of the clock and of the processor, memory, bytes on disk, milliseconds a query,
and how often a product is among the first 50 for its own title. Needs about 10 kB of
disk a product. A folder that is named is kept; `--step` repeats one step in it.

The invented products are as long as the official thousand, 4.3 kB each: medians of 12
words a title besides its kind and attributes, 73 a description (30 % have none), 4.6
bullet points of 17 words; 42 % have options, 42 % an instruction, with 16 goals each on
average. Word r of a million is drawn in proportion to (r + 12)^-0.8, beyond the 1,000th
to r^-1.67; 45 % repeat an earlier word of their text, 20 % are stop words. A thousand
have 13,000 different search terms (the official ones 12,100), 87 in a product (68), the
most frequent in 52 % of them (44 %). Half of the titles end in a model number that no
other has. What instructions always say, like 'price lower than', is about as frequent
in products as it is in the official ones.
"""

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from watch import Watch

from sdar_jax.envs.webshop import disk_catalogue, official
from sdar_jax.envs.webshop.goals import Goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.shop import Shop
from sdar_jax.process import flags, terminal

GIBIBYTE = 1 << 30
BYTES = 10_000  # Of disk per product: files, catalogue and index.
VOCABULARY, KNEE, REPEATED, STOPS = 1_000_000, 1000, 0.45, 0.2
KINDS, PHRASES, VALUES = 10_000, 2_000, 400
STOP_WORDS = 'and the for with of to in is a it this on are'.split()
SPOKEN = {'color': 5, 'size': 6, 'than': 200, 'find': 700, 'me': 1200}
SPOKEN |= {'price': 1500, 'lower': 1501, 'dollars': 8000}  # Word -> its rank.
CATEGORIES = ('beauty', 'electronics', 'garden', 'fashion', 'grocery')
BATCH = 1000  # Products invented at a time.
CONSONANTS, VOWELS = 'bdfgklmnprstvzhj', 'aeiou'


def spell(rank: int) -> str:
  """A word that can be spoken, short for low ranks."""
  word, rank = '', rank + 80
  while rank:
    rank, syllable = divmod(rank, 80)
    word = CONSONANTS[syllable // 5] + VOWELS[syllable % 5] + word
  return word


class Inventor:
  """Makes products up."""

  def __init__(self, seed: int):
    self._rng = np.random.default_rng(seed)
    self._words = np.array([spell(n) for n in range(VOCABULARY)] + STOP_WORDS, object)
    self._words[list(SPOKEN.values())] = list(SPOKEN)
    weights = (np.arange(VOCABULARY) + 12.0) ** -0.8
    tail = np.arange(KNEE, VOCABULARY) / KNEE
    weights[KNEE:] = weights[KNEE] * tail**-1.67
    self._chances = np.cumsum(weights / weights.sum())
    self._kinds = self._phrases(KINDS)
    self._attributes = self._phrases(PHRASES)
    self._values = self._phrases(VALUES)

  def _draw(self, count: int) -> np.ndarray:
    ranks = np.searchsorted(self._chances, self._rng.random(count))
    return np.minimum(ranks, VOCABULARY - 1)

  def _phrases(self, count: int) -> list[str]:
    """Phrases of one to three words."""
    sizes = self._rng.integers(1, 4, count)
    return [' '.join(self._words[self._draw(size)]) for size in sizes]

  def _texts(self, sizes: np.ndarray) -> Iterator[str]:
    """Texts of so many words each."""
    total, ends = int(sizes.sum()), np.cumsum(sizes)
    words, draws = self._draw(total), self._rng.random((3, total))
    starts = np.repeat(ends - sizes, sizes)
    place = np.arange(total) - starts
    earlier = starts + (draws[0] * place).astype(np.int64)
    words = np.where(draws[1] < REPEATED, words[earlier], words)
    stops = VOCABULARY + (draws[0] * len(STOP_WORDS)).astype(np.int64)
    listed = self._words[np.where(draws[2] < STOPS, stops, words)].tolist()
    for start, end in zip((ends - sizes).tolist(), ends.tolist()):
      yield ' '.join(listed[start:end])

  def _sizes(self, count: int, median: float, spread: float, most: int) -> np.ndarray:
    """Log-normal numbers of words."""
    sizes = self._rng.lognormal(np.log(median), spread, count)
    return np.clip(sizes, 1, most).astype(np.int64)

  def products(self, count: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Entries of the two official files."""
    rng = random.Random(int(self._rng.integers(1 << 32)))
    for start in range(0, count, BATCH):
      size = min(BATCH, count - start)
      titles = self._texts(self._sizes(size, 12, 0.6, 35))
      described = self._sizes(size, 73, 1.09, 2300)
      described[self._rng.random(size) < 0.3] = 0
      descriptions = self._texts(described)
      bullets = np.clip(self._rng.poisson(4.6, size), 1, 8)
      lines = self._texts(self._sizes(int(bullets.sum()), 17, 1.03, 450))
      for number in range(size):
        points = [next(lines) for _ in range(bullets[number])]
        yield self._product(
          start + number, next(titles), next(descriptions), points, rng
        )

  def _product(
    self, number: int, title: str, description: str, points: list[str], rng
  ) -> tuple[dict[str, Any], dict[str, Any]]:
    asin = f'B{number * 48_271 % 999_999_937:09d}'  # Each once, in no order.
    kind = self._kinds[int(KINDS * rng.random() ** 3)]
    attributes = [
      self._attributes[int(PHRASES * rng.random() ** 2)]
      for _ in range(rng.choice((0, 1, 2, 2, 3, 3, 4, 6)))
    ]
    price = f'${rng.lognormvariate(3, 0.8):,.2f}'
    if rng.random() < 0.2:
      price += f'${1000 * rng.random():,.2f}'
    model = f' {number:x}m' if rng.random() < 0.5 else ''
    entry = {
      'asin': asin,
      'name': f'{" ".join(attributes[:2])} {kind} {title}{model}'.title(),
      'full_description': description,
      'small_description': [' '.join((*attributes[2:], points[0])), *points[1:]],
      'pricing': price,
      'images': [f'https://images.example/I/{asin}{n}.jpg' for n in range(8)],
      'category': rng.choice(CATEGORIES),
      'query': kind,
      'product_category': ' › '.join(kind.split()),
      'average_rating': '',
      'product_information': {f'Detail {n}': 13 * asin for n in range(15)},
      'customization_options': self._options(rng) if rng.random() < 0.42 else '',
    }
    known: dict[str, Any] = {'attributes': attributes}
    if attributes and rng.random() < 0.51:
      asked = attributes[:3]
      words = ', '.join(asked[:-1])
      known['instruction'] = f'Find me {words} {kind} with {asked[-1]}'
      known['instruction_attributes'] = asked
    return entry, known

  def _options(self, rng: random.Random) -> dict[str, Any]:
    names = rng.choice((('color',), ('size',), ('color', 'size'), ('color', 'style')))
    scale, options = rng.lognormvariate(1.4, 0.75), {}
    for name in names:
      count = min(45, 2 + int(rng.expovariate(1 / scale)))
      values = rng.sample(self._values, count)
      options[name] = [{'value': v, 'image': None, 'url': f'/dp/{v}'} for v in values]
    return options


def invent(folder: Path, options: argparse.Namespace) -> None:
  """Writes the two official files."""
  watch = Watch()
  names = disk_catalogue.OFFICIAL['full']
  products = Inventor(options.seed).products(options.products)
  with open(folder / names[0], 'w') as items, open(folder / names[1], 'w') as asked:
    for number, (entry, known) in enumerate(products):
      items.write(f'{", " if number else "["}{json.dumps(entry)}')
      asked.write(f'{", " if number else "{"}"{entry["asin"]}": {json.dumps(known)}')
    items.write(']')
    asked.write('}')
  print(f'{options.products:,} products invented in {watch}, {size(folder):.2f} GiB')


def size(folder: Path) -> float:
  """GiB of a folder's files."""
  return sum(file.stat().st_size for file in folder.rglob('*')) / GIBIBYTE


def memory() -> str:
  """The most this process has held, and what of it is no mapped file just now."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBIBYTE
  status = Path('/proc/self/status').read_text()
  own = int(status.split('RssAnon:')[1].split()[0]) * 1024 / GIBIBYTE
  return f'peak {peak:.2f} GiB of memory, {own:.2f} GiB now without mapped files'


def build(folder: Path, options: argparse.Namespace) -> None:
  """Opens the folder for the first time."""
  watch = Watch()
  disk_catalogue.open_official(folder, 'full', NounSource('rule'))
  print(f'first opened in {watch}, {memory()}')
  print(f'index and catalogue: {size(folder / disk_catalogue.FOLDER):.2f} GiB on disk')


def query(folder: Path, options: argparse.Namespace) -> None:
  """Opens the folder again and searches."""
  watch = Watch()
  shop = disk_catalogue.open_official(folder, 'full', NounSource('rule'))
  print(f'opened again in {watch}, {memory()}')
  watch = Watch()
  sizes = {}
  for split in official.SPLITS:
    tasks = official.OfficialGoals(shop.catalogue, split)
    sizes[split] = f'{len(tasks):,} {split}'
  print(f'goals: {", ".join(sizes.values())} in {watch}; digest {tasks.digest[:12]}')
  rng, goals = random.Random(options.seed), Goals(shop.catalogue)
  draw = lambda things: [rng.randrange(len(things)) for _ in range(options.queries)]
  texts = [goals[n].instruction_text for n in draw(goals)]
  halves = [' '.join(w for w in text.split() if rng.random() < 0.5) for text in texts]
  rows = draw(shop.catalogue)
  titles = [shop.catalogue[row].title for row in rows]
  ask(shop, 'whole instructions', texts)
  ask(shop, 'half of their words', halves)
  found = ask(shop, 'titles', titles)
  seen = sum(row in listed for row, listed in zip(rows, found))
  print(f'found by their own titles: {seen} of {len(rows)} products')
  print(f'after all queries: {memory()}')


def ask(shop: Shop, name: str, texts: list[str]) -> list[list[int]]:
  """Rows found for each query; prints milliseconds, analysis included."""
  spent, found = [], []
  for text in texts:
    watch = Watch()
    found.append(shop.index.search(text).tolist())
    spent.append(watch.read())
  clock, processor = (np.array(seconds) * 1000 for seconds in zip(*spent))
  print(
    f'{name}: {np.median(clock):.2f} ms a query, {np.percentile(clock, 95):.2f} ms at '
    f'95 % (of the processor {np.median(processor):.2f} and '
    f'{np.percentile(processor, 95):.2f})'
  )
  return found


STEPS = {'invent': invent, 'build': build, 'query': query}


def arguments(argv: Sequence[str]) -> argparse.Namespace:
  """Reads the flags."""
  parser = flags.Parser('python benchmarks/webshop_catalogue.py', __doc__)
  parser.add_argument('--products', type=int, default=1_180_000, help='to be invented')
  parser.add_argument('--directory', help='where to (default: a temporary folder)')
  parser.add_argument('--queries', type=int, default=200, help='of each kind')
  parser.add_argument('--seed', type=int, default=0, help='of products and queries')
  parser.add_argument('--step', choices=STEPS, help='only this one, in --directory')
  options = parser.parse_all(argv)
  for name, least in (('products', 2000), ('queries', 20)):
    if getattr(options, name) < least:
      raise ValueError(f'--{name}={getattr(options, name)}: must be at least {least}')
  if options.step and not options.directory:
    raise ValueError(f'--directory is missing: --step={options.step} needs it')
  return options


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Takes one step, or all of them, each in a process of its own."""
  options = arguments(argv)
  if options.step:
    STEPS[options.step](Path(options.directory), options)
    return 0
  with tempfile.TemporaryDirectory() as temporary:
    folder = Path(options.directory or temporary)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = options.products * BYTES, shutil.disk_usage(folder).free
    if free < needed:
      raise ValueError(
        f'--products={options.products}: needs {needed / GIBIBYTE:.0f} GiB, {folder}'
        f' has {free / GIBIBYTE:.0f}'
      )
    for step in ('invent', 'build', 'query'):
      command = [sys.executable, __file__, f'--step={step}', f'--directory={folder}']
      for name in ('products', 'queries', 'seed'):
        command.append(f'--{name}={getattr(options, name)}')
      if subprocess.run(command).returncode:
        raise ValueError(f'step {step} failed')
  return 0


if __name__ == '__main__':
  main()
