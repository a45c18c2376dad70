"""Prints what a run recorded of single tokens: prompts, log-probs, gap and gate.

  python -m experiments.tokens runs/quickstart [--step=1] [--html=episode.html]

A run records a few turns of each step (`config.log.token_rows`). As HTML it is one
episode, a solved one if there is any, and the background of a token is its gate's.
"""

import html
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.envs import worlds
from sdar_jax.process import flags, terminal
from sdar_jax.prompts import bank_file
from sdar_jax.prompts.bank import SkillBank

_INDENT = '  '
_SHUT, _OPEN = '200,30,30', '20,140,40'  # Red and green, of gates of 0 and 1.
_OPACITY = 0.6  # Of them; a gate of 1/2, as without advice, has no colour.
_PAGE = 'background:#fff;color:#000;padding:1em'  # Whatever the theme around it.
_TOKENS = 'white-space:pre-wrap;font-family:monospace;line-height:1.6'


def bank_of(config: Mapping[str, Any]) -> SkillBank:
  """The skill bank of a run, from its flattened config."""
  path = config['skills.path']
  if not path:
    settings = {
      key.removeprefix('world.'): value
      for key, value in config.items()
      if key.startswith('world.') and key != 'world.name'
    }
    path = worlds.make(config['world.name'], settings).skills_path
  if not path:
    return SkillBank.empty(config['world.name'])
  return bank_file.load(path)


def show(record: Mapping[str, Any], bank: SkillBank) -> Iterator[str]:
  """The recorded turns of a trajectory, as text.

  Args:
    record: a line of a run's trajectories.
    bank: the skills that its teachers may have been shown.
  """
  for number, turn in enumerate(record['turns'], 1):
    if 'tokens' not in turn:
      continue
    tokens = turn['tokens']
    lines = [f'{record["task_id"]}, episode {record["member"]}, turn {number}']
    lines += ['the student sees', *_indented(turn['prompt_text'])]
    advice = _advice(tokens, bank)
    if advice:
      lines += ['the teacher sees before it', *_indented(advice)]
    yield '\n'.join([*lines, *_table(tokens)])


def page(record: Mapping[str, Any], bank: SkillBank) -> str:
  """A trajectory as HTML: each recorded token on the colour of its gate.

  Green is open, red is shut, and what else is known of a token is its title. Whatever a
  model, a world or a skill wrote is escaped, in ASCII.

  Args: as of `show`.
  """
  title = f'{record["task_id"]}, episode {record["member"]}: {record["outcome"]}'
  parts = [f'<b>{_escaped(title)}</b>']
  for number, turn in enumerate(record['turns'], 1):
    tokens = turn.get('tokens')
    parts += [
      f'<p><b>turn {number}</b></p>',
      _folded('the student sees', turn['prompt_text']),
    ]
    if tokens is None:
      parts.append(f'<div style="{_TOKENS}">{_escaped(turn["response"])}</div>')
      continue
    parts.append(_folded('the teacher sees before it', _advice(tokens, bank)))
    spans = ''.join(_span(tokens, i) for i in range(len(tokens['token_texts'])))
    parts.append(f'<div style="{_TOKENS}">{spans}</div>')
  return f'<div style="{_PAGE}">\n' + '\n'.join(filter(None, parts)) + '\n</div>\n'


def _span(tokens: Mapping[str, Any], i: int) -> str:
  """A token as HTML."""
  values = {name: float(column[i]) for name, column in _columns(tokens).items()}
  title = ', '.join(f'{name} {value:z.2f}' for name, value in values.items())
  gate = values.get('gate', 0.5)
  colour, depth = _OPEN if gate > 0.5 else _SHUT, _OPACITY * abs(2 * gate - 1)
  style = f'background:rgba({colour},{depth:.2f})'
  text = _escaped(tokens['token_texts'][i] or '(end)')
  return f'<span style="{style}" title="{title}">{text}</span>'


def _folded(heading: str, text: str) -> str:
  if not text:
    return ''
  shown = f'<pre style="white-space:pre-wrap">{_escaped(text)}</pre>'
  return f'<details><summary>{heading}</summary>{shown}</details>'


def _escaped(text: str) -> str:
  """Text that is text in HTML, in whatever encoding that is stored."""
  return html.escape(text).encode('ascii', 'xmlcharrefreplace').decode()


def _advice(tokens: Mapping[str, Any], bank: SkillBank) -> str:
  """The skills that a turn's teacher was shown; of unknown ones their ids."""
  skills = {skill.id: skill for skill in bank.everything()}
  shown = tokens.get('teacher_skills', [])
  known = [skills[name] for name in shown if name in skills]
  other = ', '.join(name for name in shown if name not in skills)
  return (bank.block(known) if known else '') + other


def _indented(text: str) -> list[str]:
  return [_INDENT + line for line in text.splitlines()]


def _columns(tokens: Mapping[str, Any]) -> dict[str, Sequence[float]]:
  """What is known of each token."""
  columns = {
    'student': tokens['old_logprobs'],
    'teacher': tokens.get('teacher_logprobs'),
    'gap': tokens.get('gap'),
    'gate': tokens.get('gate'),
  }
  return {name: values for name, values in columns.items() if values is not None}


def _table(tokens: Mapping[str, Any]) -> list[str]:
  """A line for each token, with what is known of it."""
  known = _columns(tokens)
  texts = [text or '(end)' for text in tokens['token_texts']]
  width = max(map(len, (*texts, 'the sampled tokens')))
  heading = 'the sampled tokens'.ljust(width) + ''.join(f'{n:>9}' for n in known)
  lines = [heading]
  for i, text in enumerate(texts):
    numbers = ''.join(f'{values[i]:9.2f}' for values in known.values())
    lines.append(text.ljust(width) + numbers.replace('-0.00', ' 0.00'))
  return lines


def read(path: pathlib.Path) -> list[dict[str, Any]]:
  """The trajectories of one step of a run.

  Raises:
    ValueError: the file is damaged.
  """
  lines = path.read_text(encoding='utf-8').splitlines()
  return [files.parse_json(line, f'{path} line {i}') for i, line in enumerate(lines, 1)]


def chosen(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """The episode with the most recorded turns, a solved one if there is any.

  Raises:
    ValueError: no turn is recorded.
  """
  counts = [sum('tokens' in turn for turn in record['turns']) for record in records]
  if not any(counts):
    raise ValueError('no turn has its tokens: set config.log.token_rows')
  ranks = [(n > 0, r['outcome'] == 'success', n) for n, r in zip(counts, records)]
  return records[ranks.index(max(ranks))]


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints the turns that a command line asks for; returns the exit code."""
  parser = flags.Parser('python -m experiments.tokens', __doc__)
  parser.add_argument('run', type=pathlib.Path, help='directory of a run')
  parser.add_argument('--step', type=int, default=1, help='(default: %(default)s)')
  parser.add_argument('--html', metavar='FILE', help='write one episode as HTML')
  options = parser.parse_all(argv)
  bank = bank_of(files.read_json(options.run / 'config.json'))
  records = read(options.run / 'trajectories' / f'{options.step:06d}.jsonl')
  if options.html is not None:
    output = files.local_path(options.html, '--html')
    files.check_file(output, '--html')
    files.write_atomic(output, page(chosen(records), bank).encode())
    return 0
  print('\n\n'.join(text for record in records for text in show(record, bank)))
  return 0


if __name__ == '__main__':
  main()
