"""Fills the blocks of README.md and docs/ that follow from the code, and a picture.

  python -m docs.generate            # rewrites what has changed
  python -m docs.generate --check    # names it, and exits with 1

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

import argparse
import inspect
import json
import pathlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import fits_table
from benchmarks import growth as growth_lib
from experiments import courses, tables
from sdar_jax import train
from sdar_jax.cli import describe
from sdar_jax.evaluation import presentation
from sdar_jax.logs import metrics
from sdar_jax.look import episode, folder, picture
from sdar_jax.methods import table
from sdar_jax.prompts.skills import SkillBank

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')))
_BLOCK = re.compile(r'(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)', re.DOTALL)
_RECORD = ROOT / 'docs' / 'tokens.jsonl'  # Two turns of a run, with their tokens.
_MEASURED = ROOT / 'benchmarks' / 'measured'
_WORLDS = [tables.RESULTS / name for name in tables.WORLDS]


def _fenced(text: str, language: str = '') -> str:
  return f'```{language}\n{text.rstrip()}\n```\n'


def step() -> str:
  """The training loop, word for word."""
  return _fenced(inspect.getsource(train.loop), 'python')


def tokens() -> str:
  """Two recorded turns as a picture."""
  notes: list[str] = []
  heads = folder.index('train', _RECORD, 0, notes)
  if notes:
    raise ValueError(notes[0])
  return picture.svg([episode.load(head, SkillBank.empty('')) for head in heads])


def runs() -> str:
  """Every run of the worlds' studies."""
  return '\n'.join(tables.runs_table(_WORLDS)) + '\n'


def compared() -> str:
  """The methods of the worlds' studies."""
  return '\n'.join(tables.methods_table(_WORLDS)) + '\n'


def small() -> str:
  """The small study."""
  return '\n'.join(tables.study_table(tables.RESULTS / 'small')) + '\n'


def controls() -> str:
  """SDAR's controls, against SDAR."""
  return '\n'.join(tables.study_table(tables.RESULTS / 'controls', 'sdar')) + '\n'


def collapse() -> str:
  """GRPO and SDAR after a hundred steps."""
  return '\n'.join(tables.study_table(tables.RESULTS / 'collapse')) + '\n'


def ends() -> str:
  """How those hundred steps began and ended."""
  runs = courses.read(tables.RESULTS / 'collapse' / 'metrics.csv')
  return '\n'.join(courses.table(runs)) + '\n'


def tuned() -> str:
  """SDAR and controls, each with the number that it chose, against SDAR."""
  return '\n'.join(tables.study_table(tables.RESULTS / 'tuned', 'sdar')) + '\n'


def tried() -> str:
  """What they tried before."""
  return '\n'.join(tables.sweep_table(tables.RESULTS / 'tuned')) + '\n'


def costs() -> str:
  """What their steps cost."""
  runs = courses.read(tables.RESULTS / 'tuned' / 'costs.csv', courses.COSTS)
  return '\n'.join(courses.costs(runs)) + '\n'


def _recorded(name: str) -> Any:
  return json.loads((_MEASURED / name).read_text())


def bars() -> str:
  """What was to be reached beside what was."""
  lines = ['| what | wanted | reached | | how, at which commit |']
  lines.append('|---|---|---|---|---|')
  verdicts = {True: 'met', False: '**missed**', None: 'open'}
  for bar in _recorded('bars.json'):
    why = f'; {bar["why"]}' if bar['why'] else ''
    how = ', '.join(filter(None, (bar['how'], bar['at'])))
    lines.append(
      f'| {bar["what"]} | {bar["wanted"]} | {bar["reached"]}{why}'
      f' | {verdicts[bar["met"]]} | {how} |'
    )
  return '\n'.join(lines) + '\n'


def growth() -> str:
  """The sampler's time per token by sizes."""
  found = _recorded('growth.json').items()
  points = {name: {int(k): point for k, point in p.items()} for name, p in found}
  return growth_lib.table(points) + '\n'


def fits() -> str:
  """What compiled programs need of chips that were not there."""
  lines = [
    '| model, devices | changed | rollout | scoring | gradient | temporaries of it |',
    '|---|---|--:|--:|--:|--:|',
  ]
  found = _recorded(fits_table.FIGURES.name)
  for row in fits_table.ROWS:
    lines.append(f'| {" | ".join(fits_table.cells(row, found[row.name]))} |')
  return '\n'.join(lines) + '\n'


def measured() -> str:
  """What an H200 did, by programs and models."""
  found = _recorded('h200.json')
  programs = {
    'gradient': 'gradient, rows of 1,280, layers recomputed',
    'score': 'scoring, rows of 1,280',
    'score teacher': "scoring, teachers' rows of 2,304",
    'prefill': 'prefill, chunks of 64 tokens',
  }
  programs |= {f'decode, {n} slots': f'decode, {n} slots' for n in (32, 128, 512)}
  models = {'qwen2.5-0.5b': 'Qwen2.5-0.5B', 'qwen2.5-3b': 'Qwen2.5-3B'}
  heads = [head for name in models.values() for head in (f'{name}, tokens/s', 'share')]
  rows = []
  for program, title in programs.items():
    share = 'share_of_bandwidth' if 'decode' in program else 'share_of_products'
    cells = [title]
    for name in models:
      point = found.get(f'{name} {program}') or found[f'{name} learner'].get(program)
      cells += (
        ['', '']
        if point is None
        else [
          f'{point["tokens_per_second"]:,.0f}',
          f'{100 * point[share]:.0f} %',
        ]
      )
    rows.append(cells)
  return '\n'.join(presentation.table(['program', *heads], rows)) + '\n'


BLOCKS: dict[str, Callable[[], str]] = {
  'step': step,
  'compared': compared,
  'runs': runs,
  'small': small,
  'controls': controls,
  'collapse': collapse,
  'ends': ends,
  'tuned': tuned,
  'tried': tried,
  'costs': costs,
  'methods': table.markdown,
  'metrics': metrics.markdown,
  'bars': bars,
  'fits': fits,
  'measured': measured,
  'growth': growth,
  'keys': describe.markdown,
}


# Files that are nothing but what a function makes.
PICTURES: dict[str, Callable[[], str]] = {'docs/images/tokens.svg': tokens}


def names(page: str) -> list[str]:
  """The blocks of a page."""
  return [match[2] for match in _BLOCK.finditer(page)]


def filled(page: str) -> str:
  """A page with what belongs into its blocks."""
  return _BLOCK.sub(lambda match: match[1] + BLOCKS[match[2]]() + match[3], page)


def main(argv: Sequence[str]) -> int:
  """Entry point; returns the exit code."""
  parser = argparse.ArgumentParser(prog='python -m docs.generate')
  parser.description = 'Fills the blocks of README.md and docs/.'
  parser.add_argument('--check', action='store_true', help='write nothing')
  options = parser.parse_args(argv)
  stale = 0
  made = {path: filled(path.read_text(encoding='utf-8')) for path in PAGES}
  made |= {ROOT / name: make() for name, make in PICTURES.items()}
  for path, text in made.items():
    if not path.exists() or path.read_text(encoding='utf-8') != text:
      stale += 1
      print(f'{path.relative_to(ROOT)}: {"stale" if options.check else "written"}')
      if not options.check:
        path.write_text(text, encoding='utf-8')
  return 1 if options.check and stale else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
