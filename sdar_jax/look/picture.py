"""Draws turns as an SVG: two prompts, and tokens by their gates. No JAX."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from sdar_jax.look.episode import EpisodeView, Tokens, TurnView
from sdar_jax.look.page import escaped

_WIDTH, _MARGIN, _LINE = 860, 22, 20  # Pixels; so are all numbers here.
_LETTER, _SMALL = 8.0, 7.2  # Of a letter of tokens, and of prompts.
_OPACITY = 0.62  # Of a gate of 0 or 1; one of 1/2 has no colour.
_TOLD = 0.2  # From a gate of 1/2: a token whose numbers are told.
_STYLE = """
  .paper { fill: #ffffff; stroke: #e6e2dc; } text { fill: #1d1c1a; }
  .soft { fill: #6d6962; } .mark { fill: #fdf0c4; } .edge { stroke: #e6e2dc; }
  .plus { fill: #0f8b8d; } .minus { fill: #d9622b; }
  text { font: 14px ui-sans-serif, system-ui, 'Segoe UI', Roboto, sans-serif; }
  .mono { font-family: ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace; }
  .small { font-size: 12px; } .title { font-weight: 600; font-size: 15px; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #1c1c1a; stroke: #31302d; } text { fill: #ebe8e2; }
    .soft { fill: #9c978e; } .mark { fill: #4a4020; } .edge { stroke: #31302d; }
    .plus { fill: #3fc1c0; } .minus { fill: #f0844c; }
  }
"""


def svg(views: Sequence[EpisodeView]) -> str:
  """Draws the recorded turns of episodes, one below the other.

  The same episodes give the same text, in ASCII. Nothing in it is fetched.
  """
  parts: list[str] = []
  y = _MARGIN + 8.0
  for view in views:
    for number, turn in enumerate(view.turns, 1):
      if turn.tokens is not None:
        if parts:
          parts.append(_rule(y))
          y += 30
        drawn, y = _turn(view, number, turn, turn.tokens, y)
        parts += drawn
  height = round(y + _MARGIN - 20)
  head = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
    f' width="{_WIDTH}" height="{height}" role="img">'
  )
  title = '<title>Sampled tokens, each on the colour of its gate</title>'
  paper = f'<rect class="paper" x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}"'
  paper += ' rx="12"/>'
  style = f'<style>{_STYLE}</style>'
  return '\n'.join([head, title, style, paper, *parts, '</svg>']) + '\n'


def _turn(
  view: EpisodeView, number: int, turn: TurnView, tokens: Tokens, y: float
) -> tuple[list[str], float]:
  """Draws a turn from `y` down; returns its parts and where it ends."""
  head, seen = view.head, turn.seen
  parts = [_text(_MARGIN, y, head.goal or head.task_id, 'title')]
  where = f'{head.task_id}, member {head.member}, turn {number}'
  parts.append(_text(_WIDTH - _MARGIN, y, where, 'small soft', end=True))
  half = _WIDTH / 2 + 8
  top = y + 28
  parts.append(_text(_MARGIN, top, 'the student sees', 'small soft'))
  parts.append(_text(half, top, 'the teacher sees', 'small soft'))
  columns = int((half - _MARGIN - 24) / _SMALL)
  ends = []
  for x, own in ((_MARGIN, seen.student), (half, seen.teacher)):
    at = top + _LINE
    rest = own[len(own.rstrip()) :].removeprefix('\n') + seen.after
    marked = ((own.rstrip(), True), (rest, False))
    for text, mark in ((seen.before, False), *marked):
      for line in _wrapped(text.strip('\n') if mark else text.rstrip('\n'), columns):
        parts += _line(x, at, line, mark)
        at += _LINE - 2
    ends.append(at)
  y = max(ends) + 14
  drawn, y = _tokens(tokens, y)
  return parts + drawn, y + 16


def _tokens(tokens: Tokens, y: float) -> tuple[list[str], float]:
  """Draws the response on lines, and the numbers of what stands out."""
  parts, x = [], float(_MARGIN)
  told: list[tuple[float, str]] = []
  gates = tokens.columns.get('gate') or (None,) * len(tokens.texts)
  for i, (text, gate) in enumerate(zip(tokens.texts, gates, strict=True)):
    shown = text.replace('\n', '\u21b5') or '\u25cc'
    width = len(shown) * _LETTER
    if x + width > _WIDTH - _MARGIN:
      x, y = float(_MARGIN), y + 44
    lean = 0.0 if gate is None else 2 * gate - 1
    if abs(lean) > 0.01:
      kind = 'plus' if lean > 0 else 'minus'
      opacity = f' opacity="{_OPACITY * abs(lean):.2f}"'
      parts.append(_rect(x, y - 15, width, 21, kind, opacity))
    parts.append(_text(x, y, shown, 'mono', width=width))
    if abs(lean) > 2 * _TOLD:
      told.append((x, _numbers(tokens, i)))
    x += width
  for place, (at, said) in enumerate(told):
    y += 25 if place == 0 else 18
    parts.append(
      _text(min(at, _WIDTH - _MARGIN - 7 * len(said)), y, said, 'small soft')
    )
  return parts, y + 14


def _numbers(tokens: Tokens, i: int) -> str:
  names = {
    'student': 'old_logprobs',
    'teacher': 'teacher_logprobs',
    'gap': 'gap',
    'gate': 'gate',
  }
  known = {k: tokens.columns[v][i] for k, v in names.items() if v in tokens.columns}
  said = (f'{k} {v:z.2f}' for k, v in known.items() if v is not None)
  return ', '.join(said).replace('-', '\u2212')


def _line(x: float, y: float, text: str, mark: bool) -> Iterator[str]:
  width = len(text) * _SMALL
  if mark and text:
    yield _rect(x - 3, y - 13, width + 6, 18, 'mark', '')
  yield _text(x, y, text, 'mono small', width=width)


def _wrapped(text: str, columns: int) -> Iterable[str]:
  """Cuts a text into lines of so many letters, at blanks."""
  if not text:
    return []
  return itertools.chain.from_iterable(_cut(line, columns) for line in text.split('\n'))


def _cut(line: str, columns: int) -> Iterator[str]:
  while len(line) > columns:
    at = line.rfind(' ', 1, columns + 1)
    at = columns if at < 0 else at
    yield line[:at]
    line = line[at:].lstrip()
  yield line


def _rect(x: float, y: float, width: float, height: float, kind: str, more: str) -> str:
  size = f'width="{width:.1f}" height="{height:.1f}" rx="3"'
  return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" {size}{more}/>'


def _rule(y: float) -> str:
  ends = f'x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{y:.1f}" y2="{y:.1f}"'
  return f'<line class="edge" {ends}/>'


def _text(
  x: float, y: float, text: str, kind: str, *, width: float = 0, end: bool = False
) -> str:
  """Text at a place; a width holds in whatever font there is."""
  # Control characters are none in XML, however they are written.
  text = ''.join(c if c.isprintable() else '\ufffd' for c in text)
  size = f' textLength="{width:.1f}" lengthAdjust="spacingAndGlyphs"' if width else ''
  anchor = ' text-anchor="end"' if end else ''
  place = f'class="{kind}" x="{x:.1f}" y="{y:.1f}" xml:space="preserve"'
  return f'<text {place}{size}{anchor}>{escaped(text)}</text>'
