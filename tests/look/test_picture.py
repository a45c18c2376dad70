"""The picture of tokens: well-formed, and its colours those of the gates."""

import json
from xml.etree import ElementTree

import look_cases

from sdar_jax.look import episode, folder, picture
from sdar_jax.prompts.skills import SkillBank

_SVG = '{http://www.w3.org/2000/svg}'


def _drawn(path, change=None):
  if change is not None:
    records = look_cases.lines(path)
    change(records[0]['turns'][0])
    text = ''.join(json.dumps(record) + '\n' for record in records)
    (path / 'trajectories' / '000001.jsonl').write_text(text)
  heads = folder.read(path).episodes[:1]
  text = picture.svg([episode.load(head, SkillBank.empty('')) for head in heads])
  return text, ElementTree.fromstring(text)


def test_tokens_stand_on_the_colours_of_their_gates(tmp_path):
  gates = [0.0, 0.5, 0.5, 0.75, 0.5, 0.5, 1.0]
  path = look_cases.write(tmp_path / 'run', steps=[1], recorded=[(0, 0)])
  text, root = _drawn(path, lambda turn: turn['tokens'].update(gate=gates))
  boxes = [r for r in root.iter(f'{_SVG}rect') if r.get('class') in ('plus', 'minus')]
  said = [(r.get('class'), float(r.get('opacity'))) for r in boxes]
  assert said == [('minus', 0.62), ('plus', 0.31), ('plus', 0.62)]
  words = [t.text for t in root.iter(f'{_SVG}text')]
  assert [*map(words.count, ('<think>', '€', '◌'))] == [1, 1, 1]
  numbers = [w for w in words if w and w.startswith('student ')]
  assert [w.rpartition('gate ')[2] for w in numbers] == ['0.00', '0.75', '1.00']
  assert text.isascii() and text == _drawn(path)[0]
  edge = float(root.get('width'))
  for box in boxes:
    assert (
      0 < float(box.get('x')) < float(box.get('x')) + float(box.get('width')) < edge
    )


def test_whatever_was_said_stays_text(tmp_path):
  wild = look_cases.HOSTILE
  path = look_cases.write(tmp_path / 'run', steps=[1], text=wild, recorded=[(0, 0)])
  text, root = _drawn(path)
  tags = {element.tag.removeprefix(_SVG) for element in root.iter()}
  assert tags <= {'svg', 'title', 'style', 'rect', 'text', 'line'} and text.isascii()
  assert '<script>' in ''.join(root.itertext()) and 'href' not in text
