"""Products as the official files and the search engine's documents tell them."""

import json

import little_shop
import pytest
import webshop_records as records

from sdar_jax.envs.webshop import catalogue
from sdar_jax.envs.webshop.catalogue import Instruction


def raw(asin='B000000001', **given):
  """An entry of the official products file."""
  fields = {
    'asin': asin,
    'name': 'Oak Lamp',
    'full_description': 'Bright.',
    'small_description': ['One', 'Two'],
    'pricing': '$1,250.50',
    'category': 'garden',
    'query': ' Table Lamps ',
    'product_category': 'Home › Lamps',
    'customization_options': '',
  }
  return fields | given


def read(folder, entries, known=None, people=None, **given):
  paths = [folder / name for name in ('products.json', 'known.json', 'people.json')]
  for path, content in zip(paths, (entries, known or {}, people or {})):
    path.write_text(json.dumps(content, ensure_ascii=False))
  return list(catalogue.read_products(*paths, **given))


def test_all_recorded_products_are_as_the_original_loaded_them():
  for product, row in zip(records.products(), records.documents(), strict=True):
    loaded = row['product']
    assert product.search_text == row['contents']
    assert product.price_text == loaded['Price']
    assert product.title == loaded['Title']
    assert product.description == loaded['Description']
    assert list(product.bullet_points) == loaded['BulletPoints']
    assert list(product.attributes) == loaded['Attributes']
    assert product.query == loaded['query']
    options = {name: list(values) for name, values in product.options.items()}
    assert list(options.items()) == list(loaded['options'].items())


def test_official_files_give_the_same_products(tmp_path):
  """The official products file is rebuilt from the fields that loading kept."""
  entries, people = [], {}
  for row in records.documents():
    entry = dict(row['product'])
    entry['pricing'] = ''.join(f'${price}' for price in entry['pricing'])
    if 'instructions' in entry:
      people[entry['asin']] = entry['instructions']
    entries.append(entry)
  known = json.loads(records.instructions_path().read_text())
  assert read(tmp_path, entries, known, people) == list(records.products())


def test_fields_are_cleaned(tmp_path):
  options = {
    'Color': [{'value': ' Red/Blue '}, {'value': 'Dark Blue', 'image': 'x'}],
    'Size': None,
  }
  known = {
    'B000000001': {
      'attributes': ['easy clean'],
      'instruction': 'find a lamp.',
      'instruction_attributes': ['easy clean'],
    },
    'B000000002': {'attributes': []},
  }
  person = {
    'instruction': 'a lamp, please.',
    'instruction_attributes': ['bright'],
    'instruction_options': ['red'],
  }
  people = {'B000000002': [person, person | {'instruction_attributes': []}]}
  entries = [
    raw(customization_options=options),
    raw('B000000002', small_description='One', pricing='$5.00$7.25$9.00'),
    raw('B000000003', pricing=None),
  ]
  first, second, third = read(tmp_path, entries, known, people)
  assert first.options == {'color': ('red | blue', 'dark blue')}
  assert (first.prices, first.price_text) == ((1250.5,), '$1250.5')
  assert first.query == 'table lamps'
  assert first.synthetic == Instruction('find a lamp.', ('easy clean',))
  assert first.goals == (2, 0)
  assert second.bullet_points == ('One',)
  assert second.price_text == '$5.0 to $7.25'
  assert second.human == (Instruction('a lamp, please', ('bright',), ('red',)),)
  assert second.goals == (0, 1)
  assert (third.prices, third.attributes) == ((100.0,), ('DUMMY_ATTR',))


def test_repeated_and_odd_entries_are_left_out(tmp_path):
  entries = [raw(), raw(name='Copy'), raw('nan'), raw('B0000000001'), raw('B000000009')]
  assert [p.asin for p in read(tmp_path, entries)] == ['B000000001', 'B000000009']
  assert [p.title for p in read(tmp_path, entries)] == ['Oak Lamp'] * 2
  assert len(read(tmp_path, entries, limit=4)) == 1, 'the limit counts entries'


@pytest.mark.parametrize('chunk', (1, 7, 300, 10**6))
def test_long_files_are_read_in_pieces(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(catalogue, '_CHUNK', chunk)
  entries = [raw(f'B{n}', name='Lämp [1], {2} "3"]' * n) for n in range(5)]
  assert [p.title for p in read(tmp_path, entries)] == [e['name'] for e in entries]
  assert read(tmp_path, []) == []


@pytest.mark.parametrize(
  'text, message',
  [
    ('{"a": 1}', 'must be a JSON list of products'),
    ('[{"a": 1', 'near the end of the file'),
    ('', 'must be a JSON list of products'),
  ],
)
def test_broken_files_are_named(tmp_path, text, message):
  (tmp_path / 'products.json').write_text(text)
  (tmp_path / 'known.json').write_text('{}')
  with pytest.raises(ValueError, match=message) as error:
    list(catalogue.read_products(tmp_path / 'products.json', tmp_path / 'known.json'))
  assert 'products.json' in str(error.value) and '\n' not in str(error.value)


def test_a_price_that_is_none_is_named(tmp_path):
  with pytest.raises(ValueError, match="pricing '\\$x' of product B000000001"):
    read(tmp_path, [raw(pricing='$x')])


def test_products_survive_their_line_of_json():
  for product in [*little_shop.products(), *records.products()]:
    assert catalogue.from_json(catalogue.to_json(product)) == product


def test_prices_depend_on_the_product_alone():
  cheap, wide = little_shop.products()[:2]
  assert catalogue.own_price(cheap) == 19.5
  price = catalogue.own_price(wide)
  assert 5.0 < price < 9.25
  assert price == catalogue.own_price(
    little_shop.product(wide.asin, 'X', prices=(5, 9.25))
  )
  other = little_shop.product('B999999999', 'X', prices=(5, 9.25))
  assert price != catalogue.own_price(other)


def test_rows_are_found():
  shelf = catalogue.MemoryCatalogue(little_shop.products())
  assert shelf.row_of('B000000003') == 2 and shelf.row_of('b000000003') is None
  assert shelf.rows_with('category', 'office') == [3]
  assert list(shelf.rows_with('query', 'office')) == []
  assert shelf.goals[:4].tolist() == [[4, 0], [1, 0], [0, 0], [1, 0]]
  fewer = catalogue.MemoryCatalogue(little_shop.products()[1:])
  assert len(shelf.digest) == 64 and shelf.digest != fewer.digest
