"""Prints what a run recorded of single tokens: prompts, log-probs, gap and gate.

  python -m experiments.tokens runs/quickstart [--step=1]

A run records a few turns of each step (`config.log.token_rows`).
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.envs import worlds
from sdar_jax.process import flags, terminal
from sdar_jax.prompts import bank_file
from sdar_jax.prompts.bank import SkillBank

_INDENT = '  '


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
  skills = {skill.id: skill for skill in bank.everything()}
  for number, turn in enumerate(record['turns'], 1):
    if 'tokens' not in turn:
      continue
    tokens = turn['tokens']
    lines = [f'{record["task_id"]}, episode {record["member"]}, turn {number}']
    lines += ['the student sees', *_indented(turn['prompt_text'])]
    shown = tokens.get('teacher_skills', [])
    if shown:
      known = [skills[name] for name in shown if name in skills]
      other = ', '.join(name for name in shown if name not in skills)
      block = bank.block(known) if known else ''
      lines += ['the teacher sees before it', *_indented(block + other)]
    yield '\n'.join([*lines, *_table(tokens)])


def _indented(text: str) -> list[str]:
  return [_INDENT + line for line in text.splitlines()]


def _table(tokens: Mapping[str, Any]) -> list[str]:
  """A line for each token, with what is known of it."""
  columns = {
    'student': tokens['old_logprobs'],
    'teacher': tokens.get('teacher_logprobs'),
    'gap': tokens.get('gap'),
    'gate': tokens.get('gate'),
  }
  known = {name: values for name, values in columns.items() if values is not None}
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


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints the turns that a command line asks for; returns the exit code."""
  parser = flags.Parser('python -m experiments.tokens', __doc__)
  parser.add_argument('run', type=pathlib.Path, help='directory of a run')
  parser.add_argument('--step', type=int, default=1, help='(default: %(default)s)')
  options = parser.parse_all(argv)
  bank = bank_of(files.read_json(options.run / 'config.json'))
  records = read(options.run / 'trajectories' / f'{options.step:06d}.jsonl')
  print('\n\n'.join(text for record in records for text in show(record, bank)))
  return 0


if __name__ == '__main__':
  main()
