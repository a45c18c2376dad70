"""Counts the code that one reads to change SDAR on ALFWorld.

  python benchmarks/core_path.py

The core path is what a token passes from the environment to the gradient: loop, rows,
methods, losses, learner, sampler, decoder, prompts and a world's interface. The tables
(keys, numbers, methods, sizes of a model) are looked up one entry at a time. A line of
code is one that holds more than a comment or part of a docstring.
"""

import ast
import io
import pathlib
import tokenize
from collections.abc import Sequence

from sdar_jax.process import flags, terminal

PACKAGE = pathlib.Path(__file__).parents[1] / 'sdar_jax'
CORE = (
  'train trajectory batching/rows batching/packing rollout/episodes rollout/request',
  'methods/interface methods/sdar methods/gates methods/credit',
  'advantages/grpo losses/masked losses/policy losses/distill losses/objective',
  'learner/learner learner/scoring learner/optimizer',
  'sampler/sampler sampler/admission sampler/decoding sampler/draw',
  'models/decoder models/attention',
  'prompts/chat prompts/skills prompts/teacher prompts/fitting',
  'envs/base envs/action_parser envs/benchmark envs/alfworld/world',
)
TABLES = ('config methods/hyperparameters methods/table models/parameters',)
_NO_CODE = (
  tokenize.COMMENT,
  tokenize.NL,
  tokenize.NEWLINE,
  tokenize.INDENT,
  tokenize.DEDENT,
  tokenize.ENCODING,
  tokenize.ENDMARKER,
)


def code_lines(text: str) -> int:
  """Counts lines of code, without docstrings, comments and blanks."""
  docstrings = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
      first = node.body[0] if node.body else None
      if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        docstrings.update(range(first.lineno, first.end_lineno + 1))
  lines = set()
  for token in tokenize.generate_tokens(io.StringIO(text).readline):
    if token.type not in _NO_CODE:
      lines.update(range(token.start[0], token.end[0] + 1))
  return len(lines - docstrings)


def count(paths: list[pathlib.Path]) -> tuple[int, int, int]:
  """Counts files, their lines and their lines of code."""
  texts = [path.read_text() for path in paths]
  lines = sum(text.count('\n') for text in texts)
  return len(paths), lines, sum(map(code_lines, texts))


def named(lines: Sequence[str]) -> list[pathlib.Path]:
  """Lists the files of the package that some lines name."""
  return [PACKAGE / f'{name}.py' for line in lines for name in line.split()]


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints files, lines and lines of code of the three."""
  flags.Parser('python benchmarks/core_path.py', __doc__).parse_all(argv)
  kinds = {'core path': named(CORE), 'tables': named(TABLES)}
  for name, paths in {**kinds, 'package': [*PACKAGE.rglob('*.py')]}.items():
    print('{}: {} files, {:,} lines, {:,} of code'.format(name, *count(paths)))
  return 0


if __name__ == '__main__':
  main()
