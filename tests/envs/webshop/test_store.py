"""Shops on disk are the shops in memory; official folders are opened either way."""

import json
import pickle

import little_shop
import numpy as np
import pytest

from sdar_jax.envs.webshop import store
from sdar_jax.envs.webshop.catalogue import MemoryCatalogue
from sdar_jax.envs.webshop.goals import Goals
from sdar_jax.envs.webshop.nouns import NounSource


@pytest.fixture
def shop(tmp_path):
  store.build(tmp_path / 'shop', little_shop.products())
  return store.open_shop(tmp_path / 'shop', NounSource('rule'))


def same(shop):
  memory = little_shop.shop()
  ours, theirs = shop.catalogue, memory.catalogue
  assert list(ours) == list(theirs)
  assert list(ours.asins) == theirs.asins and ours.digest == theirs.digest
  assert (ours.goals == theirs.goals).all()
  for asin in [*theirs.asins, 'B', '', 'C000000001', 'B0000000011']:
    assert ours.row_of(asin) == theirs.row_of(asin)
  for field, value in (('category', 'garden'), ('query', 'lamps'), ('query', 'x')):
    assert list(ours.rows_with(field, value)) == list(theirs.rows_with(field, value))
  for query in ('oak', 'plain lamp', 'easy', ''):
    assert shop.index.search(query).tolist() == memory.index.search(query).tolist()
  assert list(Goals(ours)) == list(Goals(theirs))


def test_a_shop_on_disk_is_the_shop_in_memory(shop):
  same(shop)
  with pytest.raises(IndexError):
    shop.catalogue[13]


def test_a_shop_on_disk_pickles_as_its_path(shop):
  data = pickle.dumps(shop)
  assert len(data) < 1000
  same(pickle.loads(data))


def test_nothing_is_left_of_a_build_that_failed(tmp_path):
  def broken():
    yield little_shop.products()[0]
    raise OSError('disk full')

  with pytest.raises(OSError, match='disk full'):
    store.build(tmp_path / 'shop', broken())
  assert not list(tmp_path.iterdir())


def test_a_build_replaces_what_was_there(tmp_path):
  store.build(tmp_path / 'shop', little_shop.products()[:2])
  store.build(tmp_path / 'shop', little_shop.products())
  same(store.open_shop(tmp_path / 'shop'))
  assert [path.name for path in tmp_path.iterdir()] == ['shop']


def write_official(folder, size, count=12):
  """Official files that hold `count` lamps, every one with an instruction."""
  products_name, known_name = store.OFFICIAL[size]
  entries = [
    {
      'asin': f'B{n:09d}',
      'name': f'Lamp {n}',
      'full_description': '',
      'small_description': [],
      'pricing': '$5.00',
      'category': 'garden',
      'query': 'lamps',
      'product_category': 'Home',
      'customization_options': {},
    }
    for n in range(count)
  ]
  known = {'attributes': [], 'instruction_attributes': ['bright']}
  known = {e['asin']: known | {'instruction': f'find {e["name"]}'} for e in entries}
  (folder / products_name).write_text(json.dumps(entries))
  (folder / known_name).write_text(json.dumps(known))


@pytest.mark.parametrize('size, kind', [('small', MemoryCatalogue), ('full', None)])
def test_official_folders(tmp_path, size, kind):
  write_official(tmp_path, size)
  shop = store.open_official(tmp_path, size)
  assert type(shop.catalogue) is (kind or store.DiskCatalogue)
  assert len(Goals(shop.catalogue)) == 12
  assert shop.index.search('lamp 7')[0] == 7
  person = {'instruction_attributes': ['bright'], 'instruction_options': []}
  people = {'B000000003': [person | {'instruction': 'a lamp.'}]}
  (tmp_path / store.HUMAN).write_text(json.dumps(people))
  again = store.open_official(tmp_path, size)
  assert len(Goals(again.catalogue, human=True)) == 1, 'the new file was read'


def test_the_full_shop_is_built_once(tmp_path, monkeypatch):
  write_official(tmp_path, 'full')
  built = []
  build = store.build
  monkeypatch.setattr(store, 'build', lambda *given: built.append(build(*given)))
  first = store.open_official(tmp_path, 'full').catalogue.digest
  assert store.open_official(tmp_path, 'full').catalogue.digest == first
  assert len(built) == 1
  write_official(tmp_path, 'full', 13)
  assert len(store.open_official(tmp_path, 'full').catalogue) == 13
  monkeypatch.setattr(store, 'VERSION', store.VERSION + 1)
  store.open_official(tmp_path, 'full')
  assert len(built) == 3


def test_missing_files_and_sizes_are_named(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r'items_shuffle_1000\.json: not found; set'
  ):
    store.open_official(tmp_path)
  with pytest.raises(ValueError, match="size='huge': must be one of"):
    store.open_official(tmp_path, 'huge')


def test_many_products_are_found_by_their_asins(tmp_path):
  rng = np.random.default_rng(0)
  asins = [f'B{n:09d}' for n in rng.permutation(500)]
  store.build(tmp_path / 'shop', [little_shop.product(asin, 'X') for asin in asins])
  shelf = store.DiskCatalogue(tmp_path / 'shop')
  assert [shelf.row_of(asin) for asin in asins] == list(range(500))
