"""Writes the notebooks from the files of cells beside it.

  python -m experiments.notebooks.build

A cell begins at `# %%`, `[markdown]` if it is text, and a device if it is for the
notebook of that device alone.
"""

import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.process import flags, terminal

FOLDER = pathlib.Path(__file__).parent
_CELLS = '_cells.py'
# Where cells are, the device that some are for, and what Colab offers first for it:
# docs/hardware.md has what fits that.
NOTEBOOKS: dict[str, tuple[str, str, dict[str, Any]]] = {
  'quickstart': ('quickstart', '', {}),
  'method_lab': ('method_lab', '', {}),
  'tpu_demo': ('demo', 'tpu', {'accelerator': 'TPU', 'colab': {'gpuType': 'V5E1'}}),
  'gpu_demo': ('demo', 'gpu', {'accelerator': 'GPU', 'colab': {'gpuType': 'L4'}}),
}
_HEADER = re.compile(r'^# %%( \[markdown\])?(?: (\w+))?\n', re.MULTILINE)


def cells(name: str) -> Iterator[tuple[str, str]]:
  """Yields kind ('code' or 'markdown') and text of a notebook's cells."""
  source, device, _ = NOTEBOOKS[name]
  text = (FOLDER / f'{source}{_CELLS}').read_text(encoding='utf-8')
  _, *parts = _HEADER.split(text)
  for markdown, only, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
    if only not in (None, device):
      continue
    if markdown:
      yield 'markdown', re.sub('^# ?', '', body.strip(), flags=re.MULTILINE)
    else:
      yield 'code', body.strip()


def notebook(name: str) -> dict[str, Any]:
  """Makes a notebook without outputs, in format 4."""
  made = []
  for kind, text in cells(name):
    cell = {'cell_type': kind, 'metadata': {}, 'source': text.splitlines(True)}
    code = {'execution_count': None, 'outputs': []} if kind == 'code' else {}
    made.append({**cell, **code})
  kernel = {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'}
  about = {'kernelspec': kernel, 'language_info': {'name': 'python'}}
  return {
    'cells': made,
    'metadata': {**NOTEBOOKS[name][2], **about},
    'nbformat': 4,
    'nbformat_minor': 4,
  }


def contents() -> dict[pathlib.Path, str]:
  """Makes path and text of each notebook."""
  return {
    FOLDER / f'{name}.ipynb': json.dumps(notebook(name), indent=1) + '\n'
    for name in NOTEBOOKS
  }


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Writes the notebooks; returns the exit code."""
  flags.Parser('python -m experiments.notebooks.build', __doc__).parse_all(argv)
  for path, text in contents().items():
    files.write_atomic(path, text.encode())
  return 0


if __name__ == '__main__':
  main()
