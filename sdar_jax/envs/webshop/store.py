"""A shop on disk, for catalogues of a million products: built once, then mapped.

Also the way from a folder of official files to a shop.
"""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from sdar_jax.envs.base import check_choice
from sdar_jax.envs.webshop import catalogue
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.search import SearchIndex
from sdar_jax.envs.webshop.shop import Shop

VERSION = 1  # Of the files on disk.
SIZES = ('small', 'full')
OFFICIAL = {  # size -> file of products, file of instructions
  'small': ('items_shuffle_1000.json', 'items_ins_v2_1000.json'),
  'full': ('items_shuffle.json', 'items_ins_v2.json'),
}
HUMAN = 'items_human_ins.json'  # Optional.
_FIELDS = ('category', 'query')
_PRODUCTS = 20_000  # Decoded products that are kept.


class DiskCatalogue:
  """A catalogue in a folder that `build` wrote; implements `catalogue.Catalogue`."""

  def __init__(self, directory: str | Path):
    self.directory = Path(directory)
    self.digest = json.loads((self.directory / 'shop.json').read_text())['digest']
    names = ('ends', 'asins', 'order', 'goals', *_FIELDS)
    arrays = [np.load(self.directory / f'{n}.npy', mmap_mode='r') for n in names]
    self._ends, self.asins, self._order, self.goals = arrays[:4]
    self._codes = dict(zip(_FIELDS, arrays[4:]))
    self._names = json.loads((self.directory / 'names.json').read_text())
    self._lines = np.memmap(self.directory / 'products.jsonl', np.uint8, 'r')
    self._product = functools.lru_cache(_PRODUCTS)(self._read)

  def __reduce__(self):
    return type(self), (self.directory,)

  def __len__(self) -> int:
    return len(self.asins)

  def __getitem__(self, row: int) -> catalogue.Product:
    return self._product(range(len(self))[row])

  def _read(self, row: int) -> catalogue.Product:
    start = self._ends[row - 1] if row else 0
    return catalogue.from_json(self._lines[start : self._ends[row]].tobytes())

  def row_of(self, asin: str) -> int | None:
    wanted = np.array(asin, self.asins.dtype)
    place = int(np.searchsorted(self.asins, wanted, sorter=self._order))
    if place == len(self) or self.asins[self._order[place]] != asin:
      return None
    return int(self._order[place])

  def rows_with(self, field: str, value: str) -> Sequence[int]:
    code = self._names[field].get(value, -1)
    return np.flatnonzero(self._codes[field] == code)


class _Writer:
  """Writes products to a folder, one at a time."""

  def __init__(self, directory: Path):
    self._directory = directory
    self._hash = hashlib.sha256()
    self.asins: list[str] = []
    self._ends: list[int] = []
    self._goals: list[tuple[int, int]] = []
    self._names: dict[str, dict[str, int]] = {field: {} for field in _FIELDS}
    self._codes: dict[str, list[int]] = {field: [] for field in _FIELDS}

  def write(self, products: Iterable[catalogue.Product]) -> Iterator[str]:
    """Writes each product and yields the text to index."""
    end = 0
    with open(self._directory / 'products.jsonl', 'wb') as file:
      for product in products:
        line = catalogue.to_json(product)
        end += file.write(line)
        self._hash.update(line)
        self._ends.append(end)
        self.asins.append(product.asin)
        self._goals.append(product.goals)
        for field in _FIELDS:
          names = self._names[field]
          code = names.setdefault(getattr(product, field), len(names))
          self._codes[field].append(code)
        yield product.search_text

  def finish(self, source: Mapping[str, int]) -> None:
    """Writes what is known once all products have been seen."""
    asins = np.array(self.asins)
    arrays = {
      'ends': np.array(self._ends, np.int64),
      'asins': asins,
      'order': np.argsort(asins, kind='stable').astype(np.int32),
      'goals': np.array(self._goals, np.int32),
      **{field: np.array(self._codes[field], np.int32) for field in _FIELDS},
    }
    for name, array in arrays.items():
      np.save(self._directory / f'{name}.npy', array)
    (self._directory / 'names.json').write_text(json.dumps(self._names))
    facts = {
      'version': VERSION,
      'source': dict(source),
      'digest': self._hash.hexdigest(),
    }
    (self._directory / 'shop.json').write_text(json.dumps(facts))


def build(
  directory: str | Path,
  products: Iterable[catalogue.Product],
  source: Mapping[str, int] | None = None,
) -> None:
  """Writes a catalogue and its search index to a folder, all or nothing.

  Args:
    directory: the folder; replaced if it exists.
    products: read once, one at a time.
    source: what the products were made of, e.g. file names with their sizes.
  """
  directory = Path(directory)
  directory.parent.mkdir(parents=True, exist_ok=True)
  draft = Path(tempfile.mkdtemp(prefix=f'.{directory.name}-', dir=directory.parent))
  try:
    writer = _Writer(draft)
    # The index reads `writer.asins` when it has read all texts.
    SearchIndex.build(writer.write(products), writer.asins).save(draft)
    writer.finish(source or {})
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(draft, directory)
  finally:
    shutil.rmtree(draft, ignore_errors=True)


def open_shop(directory: str | Path, nouns: NounSource | None = None) -> Shop:
  """The shop in a folder that `build` wrote."""
  return Shop(DiskCatalogue(directory), SearchIndex.load(directory), nouns)


def open_official(
  data_dir: str | Path, size: str = 'small', nouns: NounSource | None = None
) -> Shop:
  """The shop of the official files in a folder.

  The 1,000 products of 'small' are read into memory (seconds). The 1.18 million of
  'full' are first turned into a folder 'sdar_jax_shop' beside the files, once.

  Args:
    data_dir: holds the files named in `OFFICIAL`, and `HUMAN` if there is one.
    size: 'small' or 'full'.
    nouns: the source of nouns for the reward.

  Raises:
    ValueError: unknown size.
    FileNotFoundError: a file is missing.
  """
  check_choice('size', size, SIZES)
  data_dir = Path(data_dir)
  paths = [data_dir / name for name in OFFICIAL[size]]
  for path in paths:
    if not path.exists():
      raise FileNotFoundError(
        f'{path}: not found; set config.world.data_dir to the folder of WebShop files'
      )
  if (data_dir / HUMAN).exists():
    paths.append(data_dir / HUMAN)
  if size == 'small':
    return Shop(catalogue.MemoryCatalogue(catalogue.read_products(*paths)), None, nouns)
  source = {path.name: path.stat().st_size for path in paths}
  directory = data_dir / 'sdar_jax_shop'
  if _facts(directory) != (VERSION, source):
    build(directory, catalogue.read_products(*paths), source)
  return open_shop(directory, nouns)


def _facts(directory: Path) -> tuple[int, dict[str, int]] | None:
  """Version and source of the shop in a folder; None if there is none."""
  try:
    facts = json.loads((directory / 'shop.json').read_text())
  except FileNotFoundError:
    return None
  return facts['version'], facts['source']
