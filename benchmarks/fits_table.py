"""Compiles the rows of docs/hardware.md's table of what fits, one after another.

  python -m benchmarks.fits_table [--output=benchmarks/measured/fits.json] [--again]

Some four minutes of one core for each row. The file keeps what was compiled, by row,
and the same command goes on with the rows that it lacks; `--again` compiles all. It
wants libtpu and jax's CUDA plugin, as that page says.
"""

import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from sdar_jax.process import flags, terminal

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURES = ROOT / 'benchmarks' / 'measured' / 'fits.json'
_COMPILERS = {'h100': 'jax-cuda12-plugin', 'v5e': 'libtpu'}


class Fit(NamedTuple):
  """A row: a model on devices, and the keys of the experiment that are changed."""

  chip: str
  devices: int
  model: str  # As the argument of experiments/alfworld.py has it.
  changed: str

  @property
  def name(self) -> str:
    """Formats the row as one word for files and tests."""
    return ' '.join((self.chip, str(self.devices), self.model, self.changed)).strip()

  @property
  def words(self) -> list[str]:
    """Lists the arguments of `benchmarks.fits`."""
    return [
      f'--config=experiments/alfworld.py:model={self.model}',
      f'--chip={self.chip}',
      f'--devices={self.devices}',
      *(f'--config.{change}' for change in self.changed.split()),
    ]


_FEW = 'train.microbatch_rows=4 rollout.slots=32'
_FEWER = 'train.microbatch_rows=2 rollout.slots=16'
_FEWEST = 'train.microbatch_rows=1 rollout.slots=8'
_ADAPTERS = ' model.lora_rank=16'
ROWS = (
  Fit('h100', 1, 'qwen2.5-1.5b', 'train.microbatch_rows=8 rollout.slots=64'),
  Fit('h100', 1, 'qwen2.5-3b', _FEW),
  Fit('h100', 1, 'qwen2.5-7b', _FEW + _ADAPTERS),
  Fit('h100', 1, 'qwen3-8b', _FEW + _ADAPTERS),
  Fit('h100', 8, 'qwen2.5-7b', 'mesh.fsdp=8'),
  Fit('h100', 8, 'qwen2.5-7b', 'mesh.fsdp=2 mesh.tensor=4'),
  Fit('h100', 8, 'qwen3-8b', 'mesh.fsdp=8'),
  Fit('v5e', 1, 'qwen2.5-0.5b', _FEWER),
  Fit('v5e', 1, 'qwen2.5-0.5b,scale=demo', ''),
  Fit('v5e', 1, 'qwen3-0.6b', _FEWEST),
  Fit('v5e', 1, 'qwen2.5-1.5b', _FEWER + _ADAPTERS),
  Fit('v5e', 1, 'qwen2.5-3b', _FEWEST + _ADAPTERS),
  Fit('v5e', 64, 'qwen2.5-7b', 'mesh.fsdp=16 mesh.tensor=4 train.microbatch_rows=64'),
)


def compiled(row: Fit, *more: str) -> dict[str, Any]:
  """Compiles a row in a process of its own; returns its figures.

  Args:
    row: what to compile.
    *more: arguments of `benchmarks.fits` beyond the row's.

  Raises:
    ValueError: the last line of its error, e.g. which compiler is not installed.
  """
  # Its own device count and flags, not those of whoever asks.
  env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'figures.json')
    command = [sys.executable, '-m', 'benchmarks.fits', *row.words, *more]
    done = subprocess.run(
      [*command, f'--output={path}'], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if done.returncode:
      raise ValueError(f'{row.name}: {(done.stderr.strip() or "?").splitlines()[-1]}')
    return json.loads(path.read_text())


def cells(row: Fit, figures: Any) -> list[str]:
  """Formats a row's line: model and devices, keys, GiB of three phases and one part."""
  model, _, argument = row.model.partition(',')
  head, _, tail = model.partition('-')
  title = f'{head.capitalize()}-{tail.upper()}'
  title += ' adapters' if 'lora_rank' in row.changed else ''
  chip = {'h100': 'H100', 'v5e': 'v5e'}[row.chip]
  changed = f'`{row.changed}`' if row.changed else f'the argument `{argument}`'
  held = figures['phases']
  sizes = [sum(held[name].values()) for name in ('rollout', 'scoring', 'gradient')]
  sizes.append(held['gradient']['temporaries'])
  return [
    f'{title}, {"one" if row.devices == 1 else row.devices} {chip}',
    changed,
    *(f'{size:.1f}' for size in sizes),
  ]


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Compiles what the file lacks; returns the exit code."""
  parser = flags.Parser('python -m benchmarks.fits_table', __doc__)
  parser.add_argument('--output', default=str(FIGURES), help='default: %(default)s')
  parser.add_argument('--again', action='store_true', help='compile what is there, too')
  options = parser.parse_all(argv)
  path = pathlib.Path(options.output)
  known = json.loads(path.read_text()) if path.exists() else {}
  for row in ROWS:
    if options.again or row.name not in known:
      known[row.name] = compiled(row)
      known[row.name]['compilers'] = {
        name: importlib.metadata.version(name) for name in ('jax', _COMPILERS[row.chip])
      }
      path.write_text(json.dumps(known, indent=1) + '\n')
    print(' | '.join(cells(row, known[row.name])), flush=True)
  return 0


if __name__ == '__main__':
  main()
