"""Writes episodes of runs as one HTML page. No JAX.

The page carries its data as JSON in ASCII, in which no character that means something
to HTML is left, and draws them by a script of its own: all that a model, a world or a
file said reaches the document as text. A policy in its head lets it run that script and
nothing else, and load nothing.
"""

import base64
import hashlib
import html
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax.look import episode as episode_lib
from sdar_jax.look import skills
from sdar_jax.look.episode import TurnView
from sdar_jax.look.folder import Head, LookError, RunFolder

_HERE = pathlib.Path(__file__).parent
_PLACE = re.compile(r'\{\{(\w+)\}\}')
# Of an episode in the list, in the page's own short words.
_FIELDS = {
  'run': None,
  'kind': 'kind',
  'step': 'step',
  'task': 'task_id',
  'goal': 'goal',
  'type': 'task_type',
  'group': 'group_id',
  'member': 'member',
  'outcome': 'outcome',
  'return': 'episode_return',
  'score': 'score',
  'length': 'length',
  'recorded': 'recorded',
}
_MEANS = ('advantage', 'gap', 'gate')
_LONGEST_NAME = 300  # Characters of a task's id, type or goal in the list.
MOST_BYTES = 48 * 2**20  # Of all turns that a page holds.


def page(
  runs: Sequence[RunFolder],
  shown: Sequence[tuple[int, Head]],
  *,
  start: int = 0,
  beside: int | None = None,
  limit: int,
) -> str:
  """Makes the page.

  Args:
    runs: whose episodes they are.
    shown: (place in `runs`, head) of every episode in the list, in its order.
    start: place in `shown` of the episode that is open at first.
    beside: of another one next to it, or None.
    limit: episodes whose turns the page holds at most, those of which tokens are
      recorded and their groups first; of others it names the command that shows them.
  """
  banks = [skills.of(run.config) for run in runs]
  first = [place for place in (start, beside) if place is not None]
  blocks, left, notes = {}, MOST_BYTES, []
  for place in list(dict.fromkeys([*first, *_by_interest(shown)]))[:limit]:
    number, head = shown[place]
    try:
      view = episode_lib.load(head, banks[number])
    except LookError as error:
      notes.append(f'left out: {error}')
      continue
    if view.left:
      where = f'{head.path} line {head.line}'
      notes.append(f'{where}: its last {view.left} turns are not shown')
    text = embedded({'turns': [_turn(turn) for turn in view.turns]})
    left -= len(text)
    if left < 0 and blocks:
      notes.append(f'the turns of {len(blocks)} episodes fill this page')
      break
    blocks[place] = text
  data = {
    'runs': [_run(run) for run in runs],
    'fields': [*_FIELDS, *_MEANS],
    'columns': [[name, *said] for name, said in episode_lib.COLUMNS.items()],
    'skills': {s.id: s.text for bank in banks for s in bank.everything()},
    'episodes': [_row(number, head) for number, head in shown],
    'start': start,
    'beside': beside,
  }
  data['runs'][0]['notes'] += notes
  block = '<script type="application/json" id="e{}">{}</script>'
  return filled(
    'page',
    title=' and '.join(run.name for run in runs),
    data=embedded(data),
    episodes='\n'.join(block.format(*item) for item in sorted(blocks.items())),
  )


def filled(name: str, *, title: str, **parts: str) -> str:
  """Fills a template of this room with its style, its script and parts.

  Args:
    name: of NAME.html, which shell.html holds, NAME.css and NAME.js.
    title: text.
    parts: HTML by the name of its place.
  """
  style, script = (_read(f'{name}.{kind}') for kind in ('css', 'js'))
  policy = (
    f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}';"
    " img-src data:; base-uri 'none'; form-action 'none'"
  )
  given = {
    'policy': html.escape(policy, quote=False),
    'title': escaped(title),
    'style': style,
    'script': script,
    **parts,
  }
  document = _read('shell.html').replace('{{body}}', _read(f'{name}.html'))
  return _PLACE.sub(lambda match: given[match[1]], document)


def embedded(value: Any) -> str:
  """Formats JSON for a script element: ASCII without <, > and &."""
  text = json.dumps(value, allow_nan=False, separators=(',', ':'))
  for mark in '<>&':
    text = text.replace(mark, f'\\u{ord(mark):04x}')
  return text


def escaped(text: str) -> str:
  """Escapes text for HTML, in whatever encoding that is stored."""
  text = text.encode('utf-8', 'replace').decode()
  return html.escape(text).encode('ascii', 'xmlcharrefreplace').decode()


def _read(name: str) -> str:
  return (_HERE / name).read_text(encoding='utf-8')


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f'sha256-{base64.b64encode(digest).decode()}'


def _by_interest(shown: Sequence[tuple[int, Head]]) -> list[int]:
  """Places of episodes: recorded ones, their groups, all others."""
  group = lambda number, h: (number, h.kind, h.step, h.group_id)
  with_tokens = {group(*item) for item in shown if item[1].recorded}
  rank = lambda item: (not item[1].recorded, group(*item) not in with_tokens)
  return sorted(range(len(shown)), key=lambda place: rank(shown[place]))


def _run(run: RunFolder) -> dict[str, Any]:
  return {
    'name': run.name,
    'path': str(run.path),
    'method': run.method,
    'notes': list(run.notes),
  }


def _row(number: int, head: Head) -> list[Any]:
  values = [
    number if name is None else getattr(head, name) for name in _FIELDS.values()
  ]
  values += [head.means.get(name) for name in _MEANS]
  return [_plain(v[:_LONGEST_NAME] if isinstance(v, str) else v) for v in values]


def _plain(value: Any) -> Any:
  """A number as JSON has it: an infinity is a text, as in a run's files."""
  if isinstance(value, float) and not math.isfinite(value):
    return 'Infinity' if value > 0 else '-Infinity' if value < 0 else None
  return value


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
  return {name: _plain(value) for name, value in values.items()}


def _turn(turn: TurnView) -> dict[str, Any]:
  seen, tokens = turn.seen, turn.tokens
  return {
    'seen': [seen.before, seen.student, seen.teacher, seen.after],
    'taught': turn.has_teacher,
    'observation': turn.observation,
    'response': turn.response,
    'action': turn.action,
    'valid': turn.valid,
    'admissible': turn.admissible,
    'reward': _plain(turn.reward),
    'stop': turn.stop_reason,
    'dropped': turn.history_dropped,
    'cut': turn.observation_cut,
    'skills': turn.skills,
    'means': _numbers(turn.means),
    'tokens': None
    if tokens is None
    else {
      'texts': tokens.texts,
      'ids': tokens.ids,
      'columns': {k: [*map(_plain, v)] for k, v in tokens.columns.items()},
      'teacher': tokens.teacher or (),
      'teaching': _plain(tokens.teaching),
    },
  }
