"""Pages as a parser of HTML sees them: escaping, policy, what they hold."""

import base64
import hashlib
import html.parser
import json
import pathlib
import re
import tomllib

import look_cases
import pytest

import sdar_jax
from sdar_jax.look import folder, page, view

ROOM = pathlib.Path(sdar_jax.__file__).parent / 'look'


class Reader(html.parser.HTMLParser):
  """Elements with their attributes and the text in each."""

  def __init__(self, text):
    super().__init__()
    self.elements = [['', {}, '']]
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.elements.append([tag, dict(attributes), ''])

  def handle_endtag(self, tag):
    self.elements.append(['', {}, ''])  # Of what follows.

  def handle_data(self, data):
    self.elements[-1][2] += data

  def all(self, tag):
    return [(given, text) for name, given, text in self.elements if name == tag]

  def block(self, name):
    (found,) = [t for given, t in self.all('script') if given.get('id') == name]
    return json.loads(found)


def _page(*paths, **settings):
  runs = [folder.read(path) for path in paths]
  shown = [(i, head) for i, run in enumerate(runs) for head in run.episodes]
  return page.page(runs, shown, **{'limit': 1000} | settings)


def test_a_page_holds_what_the_records_say(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  read = Reader(_page(path))
  data = read.block('data')
  records = look_cases.lines(path)
  for place, record in enumerate(records):
    row = dict(zip(data['fields'], data['episodes'][place], strict=True))
    assert row['task'] == record['task_id'] and row['goal'] == record['goal']
    assert row['return'] == record['return'] and row['length'] == record['length']
    assert row['advantage'] == record['means']['advantage']
    turns = read.block(f'e{place}')['turns']
    for turn, said in zip(turns, record['turns'], strict=True):
      assert turn['observation'] == said['observation']
      assert (turn['tokens'] is None) == ('tokens' not in said)
      if turn['tokens'] is not None:
        for name in ('gate', 'gap', 'advantages', 'teacher_logprobs'):
          assert turn['tokens']['columns'][name] == said['tokens'][name]
        assert turn['tokens']['texts'] == said['tokens']['token_texts']
        assert turn['tokens']['ids'] == said['response_ids']


def _structure(text):
  return [(tag, sorted(given)) for tag, given, _ in Reader(text).elements]


def test_nothing_that_was_said_becomes_markup(tmp_path):
  wild = look_cases.HOSTILE
  one = look_cases.write(tmp_path / 'calm', task='t')
  two = look_cases.write(tmp_path / 'wild', text=wild, task=wild)
  (two / 'run.json').write_text(json.dumps({'method': wild}))
  said = look_cases.lines(two)
  known = wild.replace('\ud800', '\ufffd')
  said[0]['turns'][0]['tokens'] |= {
    'teacher_skills': [known],
    'token_texts': [known] * len(look_cases.TEXTS),
  }
  text = ''.join(json.dumps(record) + '\n' for record in said)
  (two / 'trajectories' / '000001.jsonl').write_text(text)
  calm, hostile = _page(one), _page(two)
  assert _structure(hostile) == _structure(calm)
  assert all(t.isascii() for given, t in Reader(hostile).all('script') if given)
  read = Reader(hostile)
  data = read.block('data')
  assert data['episodes'][0][data['fields'].index('task')] == known + '0'
  turn = read.block('e0')['turns'][0]
  assert turn['tokens']['teacher'] == [known] and turn['observation'] == known
  assert turn['tokens']['texts'] == [known] * len(look_cases.TEXTS)


@pytest.mark.parametrize('mark', ['<', '>', '&', '\u2028', '\u2029', 'é', '\x00'])
def test_nothing_embedded_means_anything_to_html(mark):
  """Of `<!--<script` alone a browser makes another state, with no end in sight."""
  value = {f'a{mark}': [f'</script{mark}<!--<script', 1.5, None]}
  text = page.embedded(value)
  assert mark not in text and json.loads(text) == value


def test_a_folder_with_a_wild_name_has_a_page(tmp_path):
  path = look_cases.write(tmp_path / '<b>&"{{data}}\'')
  text = _page(path)
  assert _structure(text) == _structure(_page(look_cases.write(tmp_path / 'x')))
  ((_, title),) = Reader(text).all('title')
  assert title.endswith('/<b>&"{{data}}\'')


def test_the_policy_admits_the_own_script_and_style_alone(tmp_path):
  text = _page(look_cases.write(tmp_path / 'run'))
  read = Reader(text)
  (policy,) = [g['content'] for g, _ in read.all('meta') if 'http-equiv' in g]
  rules = dict(rule.strip().split(' ', 1) for rule in policy.split(';'))
  assert rules['default-src'] == rules['base-uri'] == rules['form-action'] == "'none'"
  (script,) = [t for given, t in read.all('script') if 'type' not in given]
  ((_, style),) = read.all('style')
  for name, said in (('script-src', script), ('style-src', style)):
    digest = base64.b64encode(hashlib.sha256(said.encode()).digest()).decode()
    assert rules[name] == f"'sha256-{digest}'"
  assert 'unsafe' not in policy and 'http' not in policy
  assert not [given for _, given, _ in read.elements if 'style' in given]
  assert not re.findall(r'(?:src|href)=(?!"data:,")', text.partition('<script')[0])
  assert not re.findall(r'https?://(?!www\.w3\.org/2000/svg)', text)


def test_scripts_never_write_markup():
  for path in ROOM.glob('*.js'):
    text = path.read_text()
    for name in ('innerHTML', 'outerHTML', 'insertAdjacent', 'eval(', 'document.write'):
      assert name not in text, (path, name)


def test_the_wheel_carries_the_templates():
  root = ROOM.parents[1]
  wheel = tomllib.loads((root / 'pyproject.toml').read_text())['tool']['hatch']['build']
  assert 'sdar_jax' in wheel['targets']['wheel']['only-include']  # Files of any kind.
  assert {p.name for p in ROOM.glob('page.*')} >= {'page.html', 'page.css', 'page.js'}
  for path in (*ROOM.glob('*.js'), *ROOM.glob('*.css'), *ROOM.glob('*.html')):
    assert len(path.read_text().splitlines()) <= 400, path


def test_infinities_and_unknown_values_survive(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  records = look_cases.lines(path)
  values = ['Infinity', '-Infinity', None, 1e-300, -0.0, 5, 0.1]
  records[0]['turns'][0]['tokens']['gap'] = values
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (path / 'trajectories' / '000001.jsonl').write_text(text)
  block = Reader(_page(path)).block('e0')
  assert block['turns'][0]['tokens']['columns']['gap'] == values


def test_of_many_episodes_the_recorded_ones_and_their_groups_come_first(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1], count=9, recorded=[(8, 0)])
  read = Reader(_page(path, limit=4, start=1))
  blocks = {given['id'] for given, _ in read.all('script') if 'id' in given} - {'data'}
  assert blocks == {'e1', 'e8', 'e9', 'e0'}
  assert len(read.block('data')['episodes']) == 18


def test_a_page_is_bounded(tmp_path, monkeypatch):
  path = look_cases.write(tmp_path / 'run', steps=[1], count=9)
  monkeypatch.setattr(page, 'MOST_BYTES', 9_000)
  text = _page(path)
  read = Reader(text)
  count = len([g for g, _ in read.all('script') if g.get('id', '').startswith('e')])
  assert 1 <= count < 18 and len(text) < 80_000
  assert read.block('data')['runs'][0]['notes'] == [
    f'the turns of {count} episodes fill this page'
  ]


def test_a_damaged_episode_is_noted_on_the_page(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  records = look_cases.lines(path)
  records[1]['turns'][0]['observation'] = 7
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (path / 'trajectories' / '000001.jsonl').write_text(text)
  read = Reader(_page(path))
  (note,) = read.block('data')['runs'][0]['notes']
  assert "000001.jsonl line 2: '7' is no text" in note
  assert not [given for given, _ in read.all('script') if given.get('id') == 'e1']


def test_the_program_writes_a_page_or_one_line(tmp_path, capsys):
  path, out = look_cases.write(tmp_path / 'run'), tmp_path / 'page.html'
  assert view.main([str(path), f'--html={out}', '--step=1']) == 0
  assert '4 episodes' in capsys.readouterr().out
  data = Reader(out.read_text()).block('data')
  assert len(data['episodes']) == 4 and data['beside'] is None
  assert view.main([str(path), str(path), f'--html={out}', '--worst']) == 0
  data = Reader(out.read_text()).block('data')
  assert (data['start'], data['beside']) == (0, 8)
  capsys.readouterr()
  for words, said in (
    ([f'--html={tmp_path}'], 'is a directory'),
    ([f'--html={out}', '--limit=0'], '--limit=0: must be at least 1'),
    (['--limit=3'], '--limit: it needs --list or --html'),
    (['--list', '--by=gap'], '--by: only a single episode shows tokens'),
    ([f'--html={out}', '--by=gap'], '--by: only'),
    ([f'--html={out}', '--list'], '--list: --html writes all of them'),
    (['--best', '--worst'], 'not allowed with'),
    (['--step=9'], 'no episodes of step 9'),
    (['--member=7'], 'no episode is of member 7'),
  ):
    assert view.main([str(path), *words]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count('\n') == 1


def test_paths_are_the_user_s(tmp_path, capsys, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  look_cases.write(tmp_path / 'run')
  assert view.main(['~/run', '~/run', '--html=~/new/folder/page.html']) == 0
  assert (tmp_path / 'new' / 'folder' / 'page.html').is_file()
  capsys.readouterr()
  assert view.main(['gs://bucket/run']) == 2
  error = capsys.readouterr().err
  assert 'remote paths are not supported' in error and error.count('\n') == 1


@pytest.mark.parametrize('name', ['page', 'report'])
def test_templates_have_a_place_for_each_part(name):
  shell, body = ((ROOM / f'{part}.html').read_text() for part in ('shell', name))
  assert shell.count('{{body}}') == 1
  places = re.findall(r'\{\{(\w+)\}\}', shell.replace('{{body}}', ''))
  assert sorted(places) == ['policy', 'script', 'style', 'title']
  assert not {'policy', 'script', 'style'} & {*re.findall(r'\{\{(\w+)\}\}', body)}
