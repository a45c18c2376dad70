"""Shops on disk are the shops in memory; official folders are opened either way."""

import json
import os
import pickle
import subprocess
import sys
import time

import little_shop
import numpy as np
import pytest

from sdar_jax.envs.webshop import disk_catalogue, goals
from sdar_jax.envs.webshop.catalogue import Instruction, MemoryCatalogue
from sdar_jax.envs.webshop.goals import Goals
from sdar_jax.envs.webshop.nouns import NounSource
from sdar_jax.envs.webshop.official import SPLITS, OfficialGoals


@pytest.fixture
def shop(tmp_path):
  disk_catalogue.build(tmp_path / 'shop', little_shop.products())
  return disk_catalogue.open_shop(tmp_path / 'shop', NounSource('rule'))


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
  assert splits(ours) == splits(theirs)


def splits(shelf, human=False):
  parts = Goals(shelf, human).split({'test': 1, 'valid': 2})
  return {name: part.tolist() for name, part in parts.items()}


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
    disk_catalogue.build(tmp_path / 'shop', broken())
  assert not list(tmp_path.iterdir())


def test_a_build_replaces_what_was_there(tmp_path):
  disk_catalogue.build(tmp_path / 'shop', little_shop.products()[:2])
  disk_catalogue.build(tmp_path / 'shop', little_shop.products())
  same(disk_catalogue.open_shop(tmp_path / 'shop'))
  assert [path.name for path in tmp_path.iterdir()] == ['shop']


def test_others_may_read_a_shop_as_they_may_read_any_new_file(tmp_path):
  before = os.umask(0o022)
  try:
    disk_catalogue.build(tmp_path / 'shop', little_shop.products())
  finally:
    os.umask(before)
  assert (tmp_path / 'shop').stat().st_mode & 0o777 == 0o755


def write_official(folder, size, count=12):
  """Official files that hold `count` lamps, every one with an instruction."""
  products_name, known_name = disk_catalogue.OFFICIAL[size]
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
  shop = disk_catalogue.open_official(tmp_path, size)
  assert type(shop.catalogue) is (kind or disk_catalogue.DiskCatalogue)
  assert len(Goals(shop.catalogue)) == 12
  assert shop.index.search('lamp 7')[0] == 7
  person = {'instruction_attributes': ['bright'], 'instruction_options': []}
  people = {'B000000003': [person | {'instruction': 'a lamp.'}]}
  (tmp_path / disk_catalogue.HUMAN).write_text(json.dumps(people))
  again = disk_catalogue.open_official(tmp_path, size)
  assert len(Goals(again.catalogue, human=True)) == 1, 'the new file was read'


def test_the_full_shop_is_built_once(tmp_path, monkeypatch):
  write_official(tmp_path, 'full')
  built = []
  build = disk_catalogue.build
  monkeypatch.setattr(
    disk_catalogue, 'build', lambda *given: built.append(build(*given))
  )
  first = disk_catalogue.open_official(tmp_path, 'full').catalogue.digest
  assert disk_catalogue.open_official(tmp_path, 'full').catalogue.digest == first
  assert len(built) == 1
  write_official(tmp_path, 'full', 13)
  assert len(disk_catalogue.open_official(tmp_path, 'full').catalogue) == 13
  monkeypatch.setattr(disk_catalogue, 'VERSION', disk_catalogue.VERSION + 1)
  disk_catalogue.open_official(tmp_path, 'full')
  assert len(built) == 3


def test_files_that_were_only_copied_are_not_read_again(tmp_path, monkeypatch):
  write_official(tmp_path, 'full')
  disk_catalogue.open_official(tmp_path, 'full')
  path = tmp_path / disk_catalogue.OFFICIAL['full'][0]
  os.utime(path, ns=(0, 0))
  monkeypatch.setattr(disk_catalogue, 'build', None)
  assert len(disk_catalogue.open_official(tmp_path, 'full').catalogue) == 12
  monkeypatch.setattr(disk_catalogue.files, 'digest', None)
  disk_catalogue.open_official(tmp_path, 'full')  # The new date is known by now.
  monkeypatch.undo()
  text = path.read_text().replace('Lamp 11', 'Lamp 99')
  path.write_text(text)  # As many bytes.
  assert disk_catalogue.open_official(tmp_path, 'full').catalogue[11].title == 'Lamp 99'


def test_families_of_human_goals_are_stored_too(tmp_path, monkeypatch):
  said = ('a', 'a', 'b', 'b', 'c', 'd', 'e')
  lamps = [
    little_shop.product(f'B{n}', 'Lamp', human=(Instruction(f'lamp {word}', ('x',)),))
    for n, word in enumerate(said)
  ]
  disk_catalogue.build(tmp_path / 'shop', lamps)
  expected = splits(MemoryCatalogue(lamps), human=True)
  monkeypatch.setattr(goals, 'family_keys', None)
  assert splits(disk_catalogue.DiskCatalogue(tmp_path / 'shop'), human=True) == expected


def told(tasks):
  return len(tasks), tasks.digest, [tasks[i].task_id for i in range(0, len(tasks), 50)]


def test_official_splits_are_found_once_and_are_those_in_memory(tmp_path, monkeypatch):
  write_official(tmp_path, 'full', 1600)
  read = lambda: MemoryCatalogue(
    disk_catalogue.catalogue.read_products(
      *(tmp_path / n for n in disk_catalogue.OFFICIAL['full'])
    )
  )
  memory = read()
  expected = [told(OfficialGoals(memory, split)) for split in SPLITS]
  shelf = disk_catalogue.open_official(tmp_path, 'full').catalogue
  monkeypatch.setattr(goals, 'family_keys', None)  # Nothing is hashed any more.
  assert [told(OfficialGoals(shelf, split)) for split in SPLITS] == expected
  monkeypatch.undo()
  write_official(tmp_path, 'full', 1601)
  shelf = disk_catalogue.open_official(tmp_path, 'full').catalogue
  changed = [told(OfficialGoals(shelf, split)) for split in SPLITS]
  memory = read()
  assert changed == [told(OfficialGoals(memory, split)) for split in SPLITS]
  assert not {digest for _, digest, _ in changed} & {
    digest for _, digest, _ in expected
  }


# Opens a shop; argument 2 is how many seconds every product takes to be read.
OPEN = """
import sys, time
from sdar_jax.envs.webshop import disk_catalogue
read = disk_catalogue.catalogue.read_products
def slow(*paths):
  for product in read(*paths):
    time.sleep(float(sys.argv[2]))
    yield product
disk_catalogue.catalogue.read_products = slow
digest = disk_catalogue.files.digest
def told(path):
  print('hashed', file=sys.stderr)
  return digest(path)
disk_catalogue.files.digest = told
shop = disk_catalogue.open_official(sys.argv[1], 'full')
print(len(shop.catalogue), shop.catalogue.digest, shop.index.search('lamp 7')[0])
"""


def opening(folder, seconds=0.0):
  """A process that opens a shop."""
  command = [sys.executable, '-c', OPEN, str(folder), str(seconds)]
  pipe = subprocess.PIPE
  return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)


def test_processes_that_open_a_new_folder_at_once_build_it_once(tmp_path):
  write_official(tmp_path, 'full')
  processes = [opening(tmp_path, seconds=0.1) for _ in range(4)]
  said = [process.communicate(timeout=600) for process in processes]
  assert [process.returncode for process in processes] == [0] * 4, said
  assert len({out for out, _ in said}) == 1
  assert sum('building the shop once' in err for _, err in said) == 1
  assert sum(err.count('hashed') for _, err in said) == 2, 'by who built it'
  builder = next(p for p, (_, e) in zip(processes, said) if 'building the' in e)
  waiting = [err for _, err in said if 'waiting' in err]
  assert all(f'/sdar_jax_shop: being built by pid {builder.pid} ' in e for e in waiting)


def wait_for(folder, pattern):
  deadline = time.monotonic() + 600
  while not list(folder.glob(pattern)):
    assert time.monotonic() < deadline, f'no {pattern}'
    time.sleep(0.01)


def test_a_builder_that_is_killed_is_succeeded_and_leaves_nothing(tmp_path):
  write_official(tmp_path, 'full')
  builder = opening(tmp_path, seconds=3600)
  wait_for(tmp_path, '.sdar_jax_shop-*/products.jsonl')
  waiting = opening(tmp_path)
  assert 'being built by pid' in waiting.stderr.readline()
  assert not (tmp_path / 'sdar_jax_shop').exists() and waiting.poll() is None
  builder.kill()
  builder.communicate()
  out, err = waiting.communicate(timeout=600)
  assert waiting.returncode == 0 and 'building the shop once' in err
  expected = disk_catalogue.open_official(tmp_path, 'full').catalogue.digest
  assert out.split() == ['12', expected, '7']
  names = {path.name for path in tmp_path.iterdir()} - set(
    disk_catalogue.OFFICIAL['full']
  )
  assert names == {'sdar_jax_shop', '.sdar_jax_shop-lock'}


def test_missing_files_and_sizes_are_named(tmp_path):
  with pytest.raises(
    FileNotFoundError, match=r'items_shuffle_1000\.json: not found; set'
  ):
    disk_catalogue.open_official(tmp_path)
  with pytest.raises(ValueError, match="size='huge': must be one of"):
    disk_catalogue.open_official(tmp_path, 'huge')


def test_many_products_are_found_by_their_asins(tmp_path):
  rng = np.random.default_rng(0)
  asins = [f'B{n:09d}' for n in rng.permutation(500)]
  disk_catalogue.build(
    tmp_path / 'shop', [little_shop.product(asin, 'X') for asin in asins]
  )
  shelf = disk_catalogue.DiskCatalogue(tmp_path / 'shop')
  assert [shelf.row_of(asin) for asin in asins] == list(range(500))


def cut(path):
  os.truncate(path, path.stat().st_size // 2)


DAMAGE = [
  ('shop.json', lambda path: path.write_text('{"version"')),
  ('shop.json', lambda path: path.write_text('[]')),
  (
    'shop.json',
    lambda path: path.write_text('{"version": 2, "digest": "", "bytes": 1}'),
  ),
  (
    'shop.json',
    lambda path: path.write_text(f'{{"version": {disk_catalogue.VERSION}}}'),
  ),
  *((name, cut) for name in ('products.jsonl', 'names.json', 'terms.json', 'rows.npy')),
  *((name, os.unlink) for name in ('asins.npy', 'offsets.npy')),
]


@pytest.mark.parametrize('name, spoil', DAMAGE)
def test_a_damaged_shop_is_named_or_built_again(tmp_path, name, spoil, caplog):
  write_official(tmp_path, 'full')
  expected = disk_catalogue.open_official(tmp_path, 'full').catalogue.digest
  folder = tmp_path / disk_catalogue.FOLDER
  spoil(folder / name)
  with pytest.raises(
    disk_catalogue.files.FileError, match='delete the folder'
  ) as caught:
    disk_catalogue.open_shop(folder)
  assert str(folder) in str(caught.value) and '\n' not in str(caught.value)
  caplog.clear()
  shop = disk_catalogue.open_official(tmp_path, 'full')
  assert shop.catalogue.digest == expected and shop.index.search('lamp 7')[0] == 7
  assert f'{folder}: not used: ' in caplog.messages[0]


def test_damage_that_keeps_the_sizes_is_named_where_it_is_met(tmp_path):
  disk_catalogue.build(tmp_path / 'shop', little_shop.products())
  path = tmp_path / 'shop/products.jsonl'
  path.write_bytes(b'[' + b' ' * (path.stat().st_size - 1))
  shelf = disk_catalogue.DiskCatalogue(tmp_path / 'shop')
  with pytest.raises(disk_catalogue.files.FileError, match=r'shop: damaged .*delete'):
    shelf[0]
