"""A shop on disk, for a million products: built once, then mapped.

Also the way from a folder of official files to a shop.
"""

import array
import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdar_jax import files
from sdar_jax.envs.base import check_choice
from sdar_jax.envs.webshop import catalogue, goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.search import SearchIndex
from sdar_jax.envs.webshop.shop import Shop

VERSION = 3  # Of the files on disk.
SIZES = ('small', 'full')
OFFICIAL = {  # size -> file of products, file of instructions
  'small': ('items_shuffle_1000.json', 'items_ins_v2_1000.json'),
  'full': ('items_shuffle.json', 'items_ins_v2.json'),
}
HUMAN = 'items_human_ins.json'  # Optional.
FOLDER = 'sdar_jax_shop'  # Beside the files of 'full': what is built of them.
_FIELDS = ('category', 'query')
_PRODUCTS = 20_000  # Decoded products that are kept.
_FAMILIES = {False: 'families', True: 'human_families'}  # By `human`.
_MAX_NAMES = 2**28  # Bytes of names.json.
_log = logging.getLogger(__name__)


class DiskCatalogue:
  """A catalogue in a folder made by `build`; implements `Catalogue`."""

  def __init__(self, directory: str | Path):
    self.directory = Path(directory)
    with _rebuildable(self.directory):
      facts = _facts(self.directory)
      self.digest = facts['digest']
      names = ('ends', 'asins', 'order', 'goals', *_FIELDS)
      arrays = [np.load(self.directory / f'{n}.npy', mmap_mode='r') for n in names]
      self._ends, self.asins, self._order, self.goals = arrays[:4]
      self._codes = dict(zip(_FIELDS, arrays[4:]))
      self._names = files.read_json(self.directory / 'names.json', limit=_MAX_NAMES)
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
    with _rebuildable(self.directory):
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

  def families(self, human: bool) -> tuple[np.ndarray, np.ndarray]:
    name = _FAMILIES[human]
    sizes = np.load(self.directory / f'{name}.npy', mmap_mode='r')
    return sizes, np.load(self.directory / f'{name}_order.npy', mmap_mode='r')


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
    self._keys = {human: array.array('Q') for human in _FAMILIES}

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
        for human, keys in self._keys.items():
          keys.extend(goals.family_keys(product, human))
        yield product.search_text

  def finish(self, source: Mapping[str, Any]) -> None:
    """Writes the arrays over all products."""
    asins = np.array(self.asins)
    arrays = {
      'ends': np.array(self._ends, np.int64),
      'asins': asins,
      'order': np.argsort(asins, kind='stable').astype(np.int32),
      'goals': np.array(self._goals, np.int32),
      **{field: np.array(self._codes[field], np.int32) for field in _FIELDS},
    }
    for human, name in _FAMILIES.items():
      keys = np.array(self._keys[human], np.uint64)
      arrays[name], arrays[f'{name}_order'] = goals.find_families(keys)
    for name, values in arrays.items():
      np.save(self._directory / f'{name}.npy', values)
    (self._directory / 'names.json').write_text(json.dumps(self._names))
    facts = {
      'version': VERSION,
      'source': dict(source),
      'digest': self._hash.hexdigest(),
      'bytes': {path.name: path.stat().st_size for path in self._directory.iterdir()},
    }
    (self._directory / 'shop.json').write_text(json.dumps(facts))


def build(
  directory: str | Path,
  products: Iterable[catalogue.Product],
  source: Mapping[str, Any] | None = None,
) -> None:
  """Writes a catalogue and its search index to a folder, all or nothing.

  Args:
    directory: the folder; replaced if it exists.
    products: read once, one at a time.
    source: what the products were made of, as JSON.
  """
  directory = Path(directory)
  directory.parent.mkdir(parents=True, exist_ok=True)
  draft, old = (_beside(directory, f'{os.getpid()}-{kind}') for kind in ('new', 'old'))
  shutil.rmtree(draft, ignore_errors=True)
  try:
    draft.mkdir()
    writer = _Writer(draft)
    # The index reads `writer.asins` when it has read all texts.
    SearchIndex.build(writer.write(products), writer.asins).save(draft)
    writer.finish(source or {})
    for path in (*draft.iterdir(), draft):
      files.sync(path)
    if directory.exists():
      os.rename(directory, old)
    os.rename(draft, directory)
    files.sync(directory.parent)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _beside(directory: Path, ending: str) -> Path:
  return directory.with_name(f'.{directory.name}-{ending}')


def open_shop(directory: str | Path, nouns: NounSource | None = None) -> Shop:
  """Opens the shop in a folder made by `build`.

  Raises:
    FileError: one line that names the folder, what is wrong and what to delete.
  """
  with _rebuildable(Path(directory)):
    index = SearchIndex.load(directory)
  return Shop(DiskCatalogue(directory), index, nouns)


@contextlib.contextmanager
def _rebuildable(directory: Path) -> Iterator[None]:
  """Turns damage of a built folder into one line with the cure."""
  try:
    yield
  except (ValueError, OSError, EOFError, LookupError, TypeError, AttributeError) as e:
    reason = files.one_line(e)
    raise files.FileError(
      f'{directory}: damaged shop ({reason}); delete the folder and it is built again'
    ) from None


def _facts(directory: Path) -> dict[str, Any]:
  """Reads shop.json after a check of its files' presence and sizes.

  Raises:
    FileError: it is of another version, or a file is missing or of another size.
  """
  facts = files.read_json(directory / 'shop.json')
  if facts.get('version') != VERSION:
    reason = f'version {facts.get("version")!r} is not {VERSION}'
    raise files.FileError(f'{directory / "shop.json"}: {reason}')
  for name, size in facts['bytes'].items():
    path = directory / name
    found = path.stat().st_size if path.is_file() else None
    if found != size:
      raise files.FileError(f'{path}: has {found} bytes, not {size}')
  return facts


def open_official(
  data_dir: str | Path, size: str = 'small', nouns: NounSource | None = None
) -> Shop:
  """Opens the shop of the official files in a folder.

  The 1,000 products of 'small' are read into memory (seconds). The 1.18 million of
  'full' are first turned into a folder (`FOLDER`) beside the files (minutes): once,
  however many processes ask for it at a time, until a file changes.

  Args:
    data_dir: holds the files named in `OFFICIAL`, and `HUMAN` if there is one.
    size: 'small' or 'full'.
    nouns: the source of nouns for the reward.

  Raises:
    ValueError: unknown size.
    FileNotFoundError: a file is missing.
    FileError: one line that names the file and what is wrong with it.
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
  directory = data_dir / FOLDER
  if not _is_current(directory, paths):
    say = functools.partial(_wait_for, directory)
    lock = files.lock(_beside(directory, 'lock'), say, 0o666)  # One builder at a time.
    try:
      if not _is_current(directory, paths):  # Nobody built it while we waited.
        _make_current(directory, paths)
    finally:
      files.unlock(lock)
  return open_shop(directory, nouns)


def _wait_for(directory: Path, holder: str) -> None:
  _log.warning('%s: being built by %s; waiting for it', directory, holder)


def _is_current(directory: Path, paths: Sequence[Path]) -> bool:
  """Compares a folder's shop with these files by sizes and dates."""
  source = _source(directory)
  return source is not None and source['stamps'] == _stamps(paths)


def _make_current(directory: Path, paths: Sequence[Path]) -> None:
  """Builds the shop, unless only the dates of the files are new."""
  stamps = _stamps(paths)
  source = {'stamps': stamps, 'digests': {p.name: files.digest(p) for p in paths}}
  known = _source(directory)
  if known is not None and known['digests'] == source['digests']:
    facts = _facts(directory) | {'source': source}
    files.write_atomic(directory / 'shop.json', json.dumps(facts).encode())
    return
  for left in directory.parent.glob(_beside(directory, '*-*').name):
    shutil.rmtree(left)  # By a builder that was killed.
  _log.warning('%s: building the shop once; the full one takes minutes', directory)
  build(directory, catalogue.read_products(*paths), source)


def _stamps(paths: Sequence[Path]) -> dict[str, list[int]]:
  """Gives bytes and nanoseconds of the last change, by name."""
  stats = {path.name: path.stat() for path in paths}
  return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def _source(directory: Path) -> dict[str, Any] | None:
  """Gives the source of a folder's shop; None if it is unusable."""
  if not (directory / 'shop.json').exists():
    return None
  try:
    source = _facts(directory)['source']
    return source if set(source) == {'stamps', 'digests'} else None
  except (ValueError, OSError, LookupError, TypeError, AttributeError) as error:
    _log.warning('%s: not used: %s', directory, files.one_line(error))
    return None
