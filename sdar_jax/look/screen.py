"""Shows episodes in a terminal, their tokens in colour. No JAX."""

import math
from collections.abc import Callable, Sequence

import rich.columns
import rich.console
import rich.padding
import rich.table
import rich.text

from sdar_jax.look import choice, skills
from sdar_jax.look import episode as episode_lib
from sdar_jax.look.episode import EpisodeView, Tokens, TurnView
from sdar_jax.look.folder import Head, RunFolder

# What --by names: a column of tokens, and how far a value of it leans, in [-1, 1].
BY: dict[str, tuple[str, Callable[[float], float]]] = {
  'gate': ('gate', lambda v: 2 * v - 1),
  'gap': ('gap', lambda v: v / 3),
  'advantage': ('advantages', lambda v: v / 2),
  'student': ('old_logprobs', lambda v: v / 5),
  'teacher': ('teacher_logprobs', lambda v: v / 5),
  'entropy': ('old_entropy', lambda v: v / 2.5),
  'mask': ('action_mask', lambda v: v / 2),
}
# Of a terminal: behind tokens that lean fully one way or the other, on dark and light.
_PLUS, _MINUS = (15, 139, 141), (217, 98, 43)
_GROUND = (24, 24, 24)
_INK = 'rgb(240,240,240)'
_WIDE = 120  # Columns from which two episodes stand side by side.
_TABLE = ('student', 'teacher', 'gap', 'gate', 'advantage', 'entropy')
_NAMES = {
  'student': 'old_logprobs',
  'teacher': 'teacher_logprobs',
  'gap': 'gap',
  'gate': 'gate',
  'advantage': 'advantages',
  'entropy': 'old_entropy',
}


def console() -> rich.console.Console:
  """Makes the console: nothing that is printed is taken for markup."""
  return rich.console.Console(markup=False, highlight=False, emoji=False)


def safe(text: str, *, lines: bool = True) -> str:
  """Escapes what a terminal would obey; line breaks stay where `lines`."""
  keep = lambda c: c.isprintable() or (lines and c == '\n')
  return ''.join(c if keep(c) else ascii(c)[1:-1] for c in text)


def listing(
  runs: Sequence[RunFolder], shown: Sequence[tuple[int, Head]], limit: int
) -> None:
  """Prints a table of episodes."""
  table = rich.table.Table(box=None, pad_edge=False)
  names = [
    'step',
    'task',
    'member',
    'outcome',
    'return',
    'turns',
    'tokens',
    'adv.',
  ]
  names += ['gate'] if any('gate' in head.means for _, head in shown) else []
  for name in [*(['run'] if len(runs) > 1 else []), *names]:
    text = name in ('run', 'task', 'outcome')
    fold = 'fold' if name in ('run', 'task') else 'ellipsis'
    table.add_column(name, justify='left' if text else 'right', overflow=fold)
  for number, head in shown[:limit]:
    cells = {
      'run': runs[number].name,
      'step': f'{"eval " if head.kind == "eval" else ""}{head.step}',
      'task': head.task_id,
      'member': f'{head.member}',
      'outcome': head.outcome,
      'return': f'{head.episode_return:g}',
      'turns': f'{head.length}',
      'tokens': 'all' if head.recorded == head.length else f'{head.recorded or "-"}',
      'adv.': _mean(head, 'advantage', '+.2f'),
      'gate': _mean(head, 'gate', '.2f'),
    }
    style = 'green' if head.success else ''
    row = [safe(cells[column.header], lines=False) for column in table.columns]
    table.add_row(*(rich.text.Text(cell) for cell in row), style=style)
  out = console()
  out.print(table)
  if len(shown) > limit:
    out.print(f'{len(shown) - limit} more: --limit=N, --html=FILE, or say which')
  _notes(out, runs)


def episodes(
  runs: Sequence[RunFolder],
  one: tuple[int, Head],
  other: tuple[int, Head] | None,
  by: str,
) -> None:
  """Prints an episode, and one of the other run beside it or below."""
  out = console()
  both = [_episode(runs, item, by) for item in (one, other) if item is not None]
  if len(both) == 2 and out.width >= _WIDE:
    grid = rich.table.Table.grid(expand=True, padding=(0, 2))
    grid.add_column(ratio=1)
    grid.add_column(ratio=1)
    grid.add_row(*both)
    out.print(grid)
  else:
    for shown in both:
      out.print(shown)
  _notes(out, runs)


def _episode(
  runs: Sequence[RunFolder], item: tuple[int, Head], by: str
) -> rich.console.Group:
  run, head = runs[item[0]], item[1]
  view = episode_lib.load(head, skills.of(run.config))
  parts = [_title(run, head), _facts(head), _group(run, head)]
  shown = ''
  for number, turn in enumerate(view.turns, 1):
    parts += _turn(view, number, turn, by, besides=shown)
    shown = turn.seen.teacher if turn.has_teacher else shown
  if view.left:
    parts.append(rich.text.Text(f'\n{view.left} more turns, which are not shown'))
  parts.append(rich.text.Text(f'\nthe end: {safe(head.outcome, lines=False)}', 'bold'))
  return rich.console.Group(*filter(None, parts))


def _title(run: RunFolder, head: Head) -> rich.text.Text:
  kind = 'evaluation at step' if head.kind == 'eval' else 'step'
  text = rich.text.Text(safe(head.goal or head.task_id, lines=False), 'bold')
  where = f'\n{head.task_id}, {kind} {head.step}, member {head.member}, {run.name}'
  text.append(safe(where), 'not bold dim')
  return text


def _facts(head: Head) -> rich.text.Text:
  text = rich.text.Text(
    safe(head.outcome, lines=False), 'green' if head.success else 'yellow'
  )
  facts = [f'return {head.episode_return:g}', f'{head.length} turns']
  facts += [] if head.score is None else [f'score {head.score:g}']
  facts += [f'{name} {value:+.3f}' for name, value in head.means.items()]
  return text.append('  ' + '  '.join(facts), 'default')


def _group(run: RunFolder, head: Head) -> rich.columns.Columns | None:
  """The members of its group: return and advantage."""
  members = choice.members(run.episodes, head)
  if len(members) < 2:
    return None
  cells = [rich.text.Text('group', 'dim')]
  for other in members:
    said = f'{other.member}: {other.episode_return:g}'
    if 'advantage' in other.means:
      said += f' ({other.means["advantage"]:+.2f})'
    style = 'green' if other.success else 'default'
    style = f'bold underline {style}' if other == head else style
    cells.append(rich.text.Text(said, style, no_wrap=True))
  return rich.columns.Columns(cells, padding=(0, 2))


def _turn(
  view: EpisodeView, number: int, turn: TurnView, by: str, besides: str
) -> list[rich.console.RenderableType]:
  means = '  '.join(f'{name} {value:+.2f}' for name, value in turn.means.items())
  parts = [rich.text.Text.assemble((f'\nturn {number}', 'bold'), f'  {means}')]
  if number == 1:
    prompt = safe(turn.seen.before + turn.seen.student + turn.seen.after).strip()
    parts.append(rich.text.Text('  the student sees', 'dim'))
    parts.append(_indented(rich.text.Text(prompt), 4))
  told = turn.seen.teacher.strip()
  if turn.has_teacher and told and told != besides.strip():  # Once, while it stays.
    parts.append(rich.text.Text('  the teacher sees besides', 'dim'))
    parts.append(_indented(rich.text.Text(safe(told), 'yellow'), 4))
  if turn.tokens is None:
    parts.append(_indented(rich.text.Text(safe(turn.response))))
  else:
    parts.append(_indented(_tokens(turn.tokens, by)))
    parts.append(_indented(_leaning(turn.tokens, by)))
  action = rich.text.Text.assemble(('action  ', 'dim'), safe(turn.action))
  for said, is_so in (
    (' (malformed)', not turn.valid),
    (' (does nothing here)', not turn.admissible),
  ):
    action.append(said if is_so else '', 'red')
  parts.append(_indented(action))
  if number < len(view.turns):
    answer = view.turns[number].observation
    parts.append(
      _indented(rich.text.Text.assemble(('world   ', 'dim'), safe(answer.strip())))
    )
  return parts


def _tokens(tokens: Tokens, by: str) -> rich.text.Text:
  """The response, each token on its colour."""
  name, lean = BY[by]
  values = tokens.columns.get(name) or (None,) * len(tokens.texts)
  text = rich.text.Text()
  for said, value in zip(tokens.texts, values, strict=True):
    shown = safe(said).replace('\n', '↵\n') or '◌'
    text.append(shown, _style(0.0 if value is None else lean(value)))
  return text


def _style(lean: float) -> str:
  """A colour behind text: none in the middle."""
  if not abs(lean) > 0.03:  # Nor of what is no number.
    return ''
  share = min(1.0, abs(lean))
  colour = _PLUS if lean > 0 else _MINUS
  mixed = (round(g + share * (c - g)) for g, c in zip(_GROUND, colour, strict=True))
  return f'{_INK} on rgb({",".join(map(str, mixed))})'


def _leaning(tokens: Tokens, by: str) -> rich.console.RenderableType:
  """A table of the tokens that lean most, with what is known of them."""
  name, lean = BY[by]
  values = tokens.columns.get(name) or ()
  far = [i for i, v in enumerate(values) if v is not None and abs(lean(v)) > 0.1]
  chosen = sorted(sorted(far, key=lambda i: -abs(lean(values[i])))[:5])
  if not chosen:
    return rich.text.Text('no token stands out', 'dim') if values else rich.text.Text()
  table = rich.table.Table(box=None, pad_edge=False, header_style='dim')
  table.add_column('', overflow='fold', max_width=28)
  known = [n for n in _TABLE if _NAMES[n] in tokens.columns]
  for title in known:
    table.add_column(title, justify='right')
  for i in chosen:
    numbers = (tokens.columns[_NAMES[title]][i] for title in known)
    table.add_row(
      rich.text.Text(safe(tokens.texts[i], lines=False).strip() or '◌'),
      *(rich.text.Text(_number(value)) for value in numbers),
    )
  return table


def _number(value: float | None) -> str:
  return '-' if value is None else f'{value:z.2f}'


def _mean(head: Head, name: str, form: str) -> str:
  value = head.means.get(name, math.nan)
  return '-' if math.isnan(value) else format(value, form)


def _indented(what: rich.console.RenderableType, by: int = 2) -> rich.padding.Padding:
  return rich.padding.Padding(what, (0, 0, 0, by), expand=False)


def _notes(out: rich.console.Console, runs: Sequence[RunFolder]) -> None:
  for note in (note for run in runs for note in run.notes):
    out.print(rich.text.Text(f'note: {safe(note, lines=False)}', 'dim'))
