"""Recorded tokens as HTML: whose text it is, and what the colours say."""

import html.parser
import json

import pytest

from experiments import tokens
from sdar_jax.prompts.bank import SkillBank

HOSTILE = '</span></pre><script>alert("1")</script>&lt;\u202e\ud800 \'"> é'
EMPTY = SkillBank.empty('alfworld')


def recorded(texts, gates=None, **changes):
  """A trajectory of one turn, with as many tokens as texts."""
  count = len(texts)
  known = {'token_texts': texts, 'old_logprobs': [-1.0] * count, 'teacher_skills': []}
  if gates is not None:
    known |= {'gate': gates, 'gap': [0.25] * count, 'teacher_logprobs': [-0.75] * count}
  turn = {'prompt_text': 'a room', 'response': 'look', 'tokens': known}
  record = {'task_id': 'task', 'member': 0, 'outcome': 'failure', 'turns': [turn]}
  return {**record, **changes}


class Reader(html.parser.HTMLParser):
  """What a browser would make of it: tags, and the text between them."""

  def __init__(self, page):
    super().__init__()
    self.tags, self.spans, self.text = [], [], ''
    self.feed(page)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    if tag == 'span':
      self.spans.append(dict(attributes))

  def handle_data(self, data):
    self.text += data


def test_whatever_was_written_stays_text():
  safe, wild = (
    Reader(
      tokens.page(
        {
          **recorded([text, text], [0.5, 0.9], task_id=text, outcome=text),
          'turns': [
            {
              'prompt_text': text,
              'response': text,
              'tokens': {
                **recorded([text, text], [0.5, 0.9])['turns'][0]['tokens'],
                'teacher_skills': [text],
              },
            },
            {'prompt_text': text, 'response': text},
          ],
        },
        EMPTY,
      )
    )
    for text in ('word', HOSTILE)
  )
  assert wild.tags == safe.tags and 'script' not in wild.tags
  shown = HOSTILE.replace('\ud800', '\ufffd')  # No character, and no file may hold it.
  assert wild.text.count(shown) == safe.text.count('word') == 8
  assert [set(span) for span in wild.spans] == [{'style', 'title'}] * 2


def test_a_page_is_the_same_in_every_encoding():
  assert tokens.page(recorded([HOSTILE, 'é'], [0.1, 0.2]), EMPTY).isascii()


def test_colours_are_those_of_the_gates():
  page = Reader(tokens.page(recorded(list('abcd'), [0.0, 0.5, 0.75, 1.0]), EMPTY))
  colours = [
    [float(n) for n in span['style'].partition('(')[2].strip(')').split(',')]
    for span in page.spans
  ]
  red, none, half, green = colours
  assert red[0] > red[1] and green[1] > green[0]
  assert none[3] == 0 and red[3] == green[3] == 2 * half[3] > 0
  assert page.spans[0]['title'] == 'student -1.00, teacher -0.75, gap 0.25, gate 0.00'


def test_a_method_without_a_gate_has_no_colours():
  page = Reader(tokens.page(recorded(['a', '']), EMPTY))
  assert all(span['style'].endswith(',0.00)') for span in page.spans)
  assert [span['title'] for span in page.spans] == ['student -1.00'] * 2
  assert page.text.rstrip().endswith('a(end)')


def test_a_solved_episode_is_chosen_else_the_one_of_which_most_is_recorded():
  bare = recorded([], outcome='success')
  bare['turns'] = [{'prompt_text': '', 'response': ''}]
  short, long = recorded(['a']), recorded(['b'])
  long['turns'] = long['turns'] * 2
  assert tokens.chosen([bare, short, long]) is long
  solved = recorded(['c'], outcome='success')
  assert tokens.chosen([bare, short, solved, long]) is solved
  with pytest.raises(ValueError, match=r'set config\.log\.token_rows'):
    tokens.chosen([bare])


def test_a_run_gives_a_page_or_one_line(tmp_path, capsys):
  run = tmp_path / 'run'
  (run / 'trajectories').mkdir(parents=True)
  (run / 'config.json').write_text('{"skills.path": "", "world.name": "alfworld"}')
  record = recorded([HOSTILE], [0.7])
  (run / 'trajectories' / '000001.jsonl').write_text(json.dumps(record) + '\n')
  out = tmp_path / 'page.html'
  assert tokens.main([str(run), f'--html={out}']) == 0
  assert out.read_bytes().decode('ascii') == tokens.page(record, EMPTY)
  assert not capsys.readouterr().out
  assert tokens.main([str(run), f'--html={tmp_path}']) == 2
  assert capsys.readouterr().err.count('\n') == 1
