"""Products as the official files and the search engine's documents tell them."""

import gzip
import json
import lzma
import re

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


def read(folder, entries, known=None, people=None):
  paths = [folder / name for name in ('products.json', 'known.json', 'people.json')]
  for path, content in zip(paths, (entries, known or {}, people or {})):
    path.write_text(json.dumps(content, ensure_ascii=False))
  return list(catalogue.read_products(*paths))


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


@pytest.mark.parametrize('chunk', (1, 7, 300, 10**6))
def test_long_files_are_read_in_pieces(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr(catalogue.records, '_CHUNK', chunk)
  entries = [raw(f'B{n}', name='Lämp [1], {2} "3"]' * n) for n in range(5)]
  assert [p.title for p in read(tmp_path, entries)] == [e['name'] for e in entries]
  assert read(tmp_path, []) == []


KNOWN = {'instruction': 'a lamp', 'instruction_attributes': ['oak'], 'attributes': []}
PERSON = {
  'instruction': 'a lamp.',
  'instruction_attributes': ['oak'],
  'instruction_options': [],
}
GOOD = (
  [raw()],
  {'B000000001': KNOWN},
  {'B000000001': [PERSON]},
)


def refused(folder, entries, known, people, capture=catalogue.files.FileError):
  """The one line that refuses these contents; bytes are written as they are."""
  paths = [folder / name for name in ('products.json', 'known.json', 'people.json')]
  for path, content in zip(paths, (entries, known, people)):
    if not isinstance(content, bytes):
      content = json.dumps(content).encode()
    path.write_bytes(content)
  with pytest.raises(capture) as caught:
    list(catalogue.read_products(*paths))
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 400
  return str(caught.value)


def goods():
  return [json.dumps(content).encode() for content in GOOD]


@pytest.mark.parametrize('which', range(3))
@pytest.mark.parametrize(
  'spoil, message',
  [
    (lambda data: b'', 'is empty'),
    (lambda data: b' \n', 'must be a JSON'),
    (lambda data: b'<!DOCTYPE html><html>Quota exceeded</html>', 'is a web page'),
    (lambda data: b'\xef\xbb\xbf\n<html>', 'is a web page'),
    (lambda data: b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    (lambda data: data.decode().encode('utf-16'), 'is UTF-16'),
    (lambda data: data.replace(b'lamp', b'l\xe4mp').replace(b'Oak', b'\xe4'), 'utf-8'),
    (lambda data: b'PK\x03\x04' + data, 'zip archive'),
    (lambda data: data[:-2], 'cut off'),
    (lambda data: data[: len(data) // 2], 'cut off'),
    (lambda data: gzip.compress(data)[:-9], 'ended'),
    (lambda data: data + data, 'two files in one'),
    (lambda data: b'"B000000001"', 'must be a JSON'),
    (lambda data: b'[[' * 99_999, 'recursion|must be a JSON'),
    (lambda data: b'[{"asin": ' + b'9' * 9_999 + b'}]', 'digits|must be a JSON'),
  ],
)
def test_a_file_that_is_something_else_is_named(tmp_path, which, spoil, message):
  contents = goods()
  contents[which] = spoil(contents[which])
  line = refused(tmp_path, *contents)
  assert re.search(message, line), line
  assert ('products.json', 'known.json', 'people.json')[which] in line


@pytest.mark.parametrize(
  'pack', [gzip.compress, lzma.compress, lambda data: b'\xef\xbb\xbf' + data]
)
def test_files_compressed_or_marked_by_mistake_are_read(tmp_path, pack):
  paths = [tmp_path / f'{number}.json' for number in range(3)]
  for path, content in zip(paths, goods()):
    path.write_bytes(pack(content))
  assert list(catalogue.read_products(*paths)) == read(tmp_path, *GOOD)


NAN = float('nan')


class MISSING:  # A class, whose name is the same in every process.
  pass


WRONG = [MISSING, None, NAN, 7, ['wool'], {'a': 'wool'}, True, 'a\ud800']


@pytest.mark.parametrize('wrong', WRONG, ids=repr)
@pytest.mark.parametrize(
  'where, key',
  [
    *((0, key) for key in raw()),
    *((1, key) for key in KNOWN),
    *((2, key) for key in PERSON),
  ],
)
def test_every_field_of_a_wrong_form_is_named(tmp_path, where, key, wrong):
  contents = json.loads(json.dumps(GOOD))
  parts = contents[0][0], contents[1]['B000000001'], contents[2]['B000000001'][0]
  parts[where][key] = wrong
  if wrong is MISSING:
    del parts[where][key]
  absent = wrong is MISSING or wrong is None
  listed = key in ('small_description', *KNOWN, *PERSON) and wrong == ['wool']
  allowed = (
    (absent and key == 'pricing')
    or (wrong is None and key == 'customization_options')
    or (absent and where == 1 and key == 'instruction')
    or (wrong is MISSING and (where, key) == (1, 'attributes'))
    or (listed and key != 'instruction')
  )
  if allowed:
    assert len(read(tmp_path, *contents)) == 1
    return
  line = refused(tmp_path, *contents)
  assert 'B000000001' in line or (key == 'asin' and 'item 1' in line)
  assert ('products.json', 'known.json', 'people.json')[where] in line


@pytest.mark.parametrize(
  'where, key, wrong',
  [
    (0, 'small_description', ['One', None]),
    (0, 'customization_options', {'color': 'red'}),
    (0, 'customization_options', {'color': ['red']}),
    (0, 'customization_options', {'color': [{'value': 5}]}),
    (0, 'customization_options', {'color': [{}]}),
    (0, 'customization_options', [['color', 'red']]),
    (1, 'attributes', 'wool'),
    (1, 'attributes', [['wool']]),
    (1, 'attributes', ['']),
    (1, 'instruction', ''),
    (1, 'instruction_attributes', []),
    (1, 'instruction_attributes', 'wool'),
    (2, 'instruction_attributes', 'wool'),
    (2, 'instruction_options', 'red'),
    (2, 'instruction_options', ['red', None]),
  ],
)
def test_nothing_is_cut_into_letters_or_dropped(tmp_path, where, key, wrong):
  contents = json.loads(json.dumps(GOOD))
  parts = contents[0][0], contents[1]['B000000001'], contents[2]['B000000001'][0]
  parts[where][key] = wrong
  assert 'B000000001' in refused(tmp_path, *contents)


@pytest.mark.parametrize(
  'said, prices',
  [
    ('$5.00', (5.0,)),
    (' $ 1,250 ', (1250.0,)),
    ('$.99', (0.99,)),
    ('$0.00', (0.0,)),
    ('$12.50 - $20.00', (12.5, 20.0)),
    ('$5.45$3.99', (5.45, 3.99)),
    ('$5 to $7', (5.0, 7.0)),
    ('$5.00$7.25$9.00', (5.0, 7.25)),
    *((said, None) for said in ('12.50', ' ', '$', '-$5.00', '$-5.00', '$x', 'free')),
    *((said, None) for said in ('12.50$', '$12,50', '$1.250,00', '$1,25,00', '€5.00')),
    *((said, None) for said in ('CA$5.00', '$5.00 USD', '$5.00/$7.00', '$5.0.0')),
    *((said, None) for said in ('($5.00)', '$1e3', '$٣', '$nan', '$' + '9' * 400)),
    ('$5' + ' ' * 100_000 + 'x', None),
  ],
)
def test_prices_are_read_whole_or_refused(tmp_path, said, prices):
  if prices is None:
    line = refused(tmp_path, [raw(pricing=said)], {}, {})
    assert 'item 1 (B000000001): its' in line
  else:
    assert read(tmp_path, [raw(pricing=said)])[0].prices == prices


def test_what_is_left_out_or_filled_in_is_said_once(tmp_path, caplog):
  entries = [
    raw(pricing=''),
    raw(name='Copy'),
    raw('nan'),
    raw('b000000002'),
    raw('B000000003', pricing=None, customization_options={'A': [], 'a': []}),
  ]
  nobody = {'instruction_attributes': [], 'instruction_options': [], 'instruction': 'x'}
  known = {asin: KNOWN for asin in ('B000000003', 'B000000009')}
  read(tmp_path, entries, known, {'B000000003': [nobody, PERSON]})
  (line,) = caplog.messages
  assert line.startswith(f'{tmp_path}/products.json: ') and '\n' not in line
  for count in (
    '2 products without a price cost $100.0 (first: B000000001)',
    '1 entries of a product that came before left out (first: B000000001)',
    '2 entries left out for their asin (first: nan)',
    '1 instructions for products that are not here (first: B000000009)',
    "1 people's instructions without attributes left out (first: B000000003)",
    '1 instructions without a goal, as an option has no values (first: B000000003)',
    '1 options named twice but for case',
  ):
    assert count in line
  caplog.clear()
  read(tmp_path, [raw()], {'B000000001': KNOWN})
  assert not caplog.messages


def test_more_goals_than_anyone_can_list_are_refused(tmp_path):
  values = [{'value': str(number)} for number in range(10)]
  options = {f'option {number}': values for number in range(30)}
  entries = [raw(customization_options=options)]
  assert read(tmp_path, entries)[0].goals == (0, 0), 'without an instruction, none'
  line = refused(tmp_path, entries, {'B000000001': KNOWN}, {})
  assert 'item 1 (B000000001): its options give more than 1000000 goals' in line


def test_a_repeated_asin_among_instructions_is_named(tmp_path):
  text = json.dumps(KNOWN)
  known = f'{{"B000000001": {text}, "B000000001": {text}}}'.encode()
  assert 'B000000001: occurs twice' in refused(tmp_path, [raw()], known, {})


def test_a_value_without_end_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(catalogue.records, 'MAX_RECORD', 1000)
  monkeypatch.setattr(catalogue.records, '_CHUNK', 100)
  line = refused(tmp_path, b'[{"asin": "' + b'x' * 5000, {}, {})
  assert 'item 1: is damaged, or longer than 1000 characters' in line


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
