"""What docs/hardware.md says fits, compiled for chips that are not here.

Run with `pytest -m slow tests/learner/test_fits.py`: minutes of CPU for each row. It
wants libtpu, or jax's CUDA plugin, as that page says.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SMALL = 'train.microbatch_rows=4 rollout.slots=32'
ADAPTERS = f'{SMALL} model.lora_rank=16'
ROWS = [
  ('h100', 1, 'qwen2.5-1.5b', 'train.microbatch_rows=8 rollout.slots=64'),
  ('h100', 1, 'qwen2.5-3b', SMALL),
  ('h100', 1, 'qwen2.5-7b', ADAPTERS),
  ('h100', 1, 'qwen3-8b', ADAPTERS),
  ('h100', 8, 'qwen2.5-7b', 'mesh.fsdp=8'),
  ('h100', 8, 'qwen2.5-7b', 'mesh.fsdp=2 mesh.tensor=4'),
  ('h100', 8, 'qwen3-8b', 'mesh.fsdp=8'),
  ('v5e', 1, 'qwen2.5-0.5b', 'train.microbatch_rows=2 rollout.slots=16'),
  ('v5e', 1, 'qwen2.5-0.5b,scale=demo', ''),
  ('v5e', 1, 'qwen3-0.6b', 'train.microbatch_rows=1 rollout.slots=8'),
  (
    'v5e',
    1,
    'qwen2.5-1.5b',
    'train.microbatch_rows=2 rollout.slots=16 model.lora_rank=16',
  ),
  (
    'v5e',
    1,
    'qwen2.5-3b',
    'train.microbatch_rows=1 rollout.slots=8 model.lora_rank=16',
  ),
  ('v5e', 64, 'qwen2.5-7b', 'mesh.fsdp=16 mesh.tensor=4 train.microbatch_rows=64'),
]


def fits(chip, devices, model, changed, *more):
  """What the program prints for a row; skips where its compiler is not installed."""
  command = [sys.executable, '-m', 'benchmarks.fits', f'--chip={chip}']
  command += [f'--config=experiments/alfworld.py:model={model}', f'--devices={devices}']
  command += [f'--config.{change}' for change in changed.split()]
  # Its own device count and flags, not those of these tests.
  env = {k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'JAX_PLATFORMS')}
  done = subprocess.run(
    [*command, *more], cwd=ROOT, env=env, capture_output=True, text=True
  )
  if 'XLA cannot compile' in done.stderr:
    pytest.skip(done.stderr.strip().splitlines()[-1])
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=lambda row: ' '.join(map(str, row[:3])))
def test_the_rows_of_the_table_fit(row):
  said = fits(*row)
  assert said.splitlines()[-1] == 'fits', said


@pytest.mark.slow
@pytest.mark.parametrize('chip', ['h100', 'v5e'])
def test_an_update_holds_weights_and_moments_once(chip):
  changed = 'train.microbatch_rows=1 rollout.slots=8'
  said = fits(chip, 1, 'qwen2.5-0.5b', changed, '--programs=update')
  assert float(re.search(r'update: temporaries ([0-9.]+) GiB', said)[1]) < 0.1
