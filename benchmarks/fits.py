"""Compiles a run's programs for a chip that need not be here; prints what they need.

  python -m benchmarks.fits --config=experiments/alfworld.py:model=qwen2.5-3b \\
    --chip=h100 --devices=8 --config.mesh.fsdp=8 [--output=FILE.json]

For each program: GiB per device of its temporaries, FLOPs per device, and the largest
operations between devices; then what a device holds in each phase of a step. Not in
the figures: workspaces of cuBLAS and NCCL (1 to 2 GiB) and fragmentation.
`benchmarks.fits_table` compiles all rows of docs/hardware.md.
"""

import dataclasses
import json
import math
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import chips
from sdar_jax.cli import config_file
from sdar_jax.process import flags, terminal

_GIB = 2**30
_SHOWN = 4  # Operations between devices of a program.
# What XLA says of a program that does not fit: 'Used 17.24G of 15.75G hbm'.
_TOO_LARGE = re.compile(r'Used ([0-9.]+)([GM]) of')


@dataclasses.dataclass(frozen=True)
class Need:
  """What one compiled program needs of a device.

  Attributes:
    temporaries: GiB beside its arguments, outputs that are no argument included.
    flops: of one call.
    collectives: the largest operations between devices, formatted.
    seconds: that compiling took.
  """

  temporaries: float
  flops: float
  collectives: Sequence[str]
  seconds: float

  def record(self) -> dict[str, Any]:
    """Collects the figures for JSON; what is not known is None."""
    values = dataclasses.asdict(self)
    values['collectives'] = [line.strip() for line in self.collectives]
    known = lambda value: not isinstance(value, float) or math.isfinite(value)
    return {name: value if known(value) else None for name, value in values.items()}


def need(lowered: Any) -> Need:
  """Compiles a program and reads what it needs."""
  import jax

  from benchmarks import hlo

  began = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    found = _TOO_LARGE.search(str(error))
    if found is None:
      raise
    total = float(found[1]) / (1 if found[2] == 'G' else 1024)
    given = local_bytes(lowered.in_avals) / _GIB
    return Need(total - given, math.nan, (), time.perf_counter() - began)
  memory = compiled.memory_analysis()
  fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
  found = hlo.summary(hlo.collectives(compiled.as_text()))[:_SHOWN]
  return Need(
    (memory.temp_size_in_bytes + fresh) / _GIB,
    (compiled.cost_analysis() or {}).get('flops', math.nan),
    found,
    time.perf_counter() - began,
  )


def local_bytes(tree: Any) -> int:
  """Adds up shapes with shardings, bytes on one device."""
  import jax

  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def phases(parts: Any, needs: Mapping[str, Need]) -> dict[str, dict[str, float]]:
  """Adds up what a device holds in each phase of a step, GiB by part."""
  from benchmarks import programs

  size = lambda tree: local_bytes(tree) / _GIB
  state, learner = parts.state(), parts.learner
  moments = size(state.opt_state) * (parts.config.optimizer.moments == 'device')
  kept = {'trained': size(state.params), 'moments': moments}
  kept |= {'teacher': size(state.teacher)}
  kept |= {'initial': size(parts.reference()) if learner.needs_initial else 0.0}
  several = parts.config.train.minibatch_rows > parts.config.train.microbatch_rows
  gradients = size(state.params)
  temporaries = lambda *names: max(
    (needs[name].temporaries for name in names if name in needs), default=0.0
  )
  return {
    'rollout': {
      **kept,
      'weights to decode': size(parts.decoded()),
      'cache': size(programs.cache(parts)),
      'temporaries': temporaries('prefill', 'decode'),
    },
    'scoring': {**kept, 'temporaries': temporaries('score', 'score teacher')},
    'gradient': {
      **kept,
      'gradients so far': gradients if several else 0.0,
      'temporaries': temporaries('gradient'),
    },
    'update': {
      **kept,
      'gradients': gradients,
      'temporaries': temporaries('update'),
    },
  }


def model_of(config: Any) -> Any:
  """Finds the architecture of a config without its weights."""
  from experiments import arguments
  from sdar_jax import build
  from sdar_jax.models import hf_config, presets

  c = config.model
  run = {'attention': c.attention, 'lora': build.make_lora(c)}
  for name, path in arguments.MODELS.items():
    if path == config.model.path:
      return dataclasses.replace(presets.PRESETS[name], **run)
  return dataclasses.replace(hf_config.read_config(config.model.path), **run)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Compiles for a chip and prints the tables."""
  parser = flags.Parser('python -m benchmarks.fits', __doc__)
  parser.add_argument('--config', required=True, help='as of sdar')
  parser.add_argument('--chip', default='cpu', help='cpu, h100 or v5e')
  parser.add_argument('--devices', type=int, default=1)
  parser.add_argument('--programs', help='some of them, comma-separated')
  parser.add_argument('--output', help='a file for the figures, JSON')
  options, words = parser.parse(argv)
  config = config_file.read(options.config, words)
  found = chips.find(options.chip, options.devices)
  from benchmarks import programs
  from sdar_jax.models import sharding

  c = config.mesh
  mesh = sharding.make_mesh(c.data, c.fsdp, c.tensor, found.devices)
  parts = programs.make(config, model_of(config), mesh)
  wanted, needs = options.programs.split(',') if options.programs else None, {}
  for name, call in programs.calls(parts).items():
    if wanted is not None and name not in wanted:
      continue
    needs[name] = one = need(call.lower())
    print(
      f'{name}: temporaries {one.temporaries:.2f} GiB, {one.flops:.3g} FLOPs,'
      f' compiled in {one.seconds:.0f} s',
      flush=True,
    )
    for line in one.collectives:
      print(f'  {line}')
  print(f'\nGiB on each of {options.devices} {options.chip}, {found.memory} usable:')
  held = phases(parts, needs)
  for phase, sizes in held.items():
    said = ', '.join(f'{part} {size:.2f}' for part, size in sizes.items() if size)
    print(f'{phase}: {sum(sizes.values()):.2f} ({said})')
  worst = max(sum(sizes.values()) for sizes in held.values())
  fits = worst <= found.memory
  print('fits' if fits else 'does not fit')
  if options.output:
    figures = {
      'programs': {name: one.record() for name, one in needs.items()},
      'phases': held,
      'usable': found.memory,
      'fits': fits,
    }
    text = json.dumps(figures, indent=1, allow_nan=False)
    pathlib.Path(options.output).write_text(text + '\n')
  return 0


if __name__ == '__main__':
  main()
