"""What a machine does: decode, prefill and training, beside its own limits.

  python -m benchmarks.accelerator [--output=FILE.json] [--minutes=8]

On a GPU or TPU: the programs of a run of Qwen2.5-0.5B and 3B shapes with random
weights, each beside the matrix products and the memory bandwidth of the same device in
the same minutes; then five steps of the small model. On a CPU everything is smaller,
which shows that it runs. No network, no weights. Parts without time left are named.

Each figure is the median of several calls after one that compiles. Shares are of what
was measured here, not of a data sheet: FLOPs are 2 per weight and token forward, 6 for
a gradient, 8 with recomputed layers, without attention's own.
"""

import json
import math
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.process import flags, terminal

_REPEATS = 5
_SLOTS = (32, 128, 512)
# Prompt tokens of ALFWorld's `house` games in Qwen2.5's tokens: mean 462, longest about
# 800; a teacher's are about 730 longer (measured with the real tokenizer).
_LENGTHS = {'prompt': 800, 'response': 128, 'row': 1280, 'teacher': 2304}
_SMALL = {'prompt': 48, 'response': 8, 'row': 64, 'teacher': 96}


def _seconds(call: Callable[[], Any], repeats: int = _REPEATS) -> float:
  """Times calls after one that compiles; the median."""
  import jax

  jax.block_until_ready(call())
  taken = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(call())
    taken.append(time.perf_counter() - began)
  return statistics.median(taken)


def limits(small: bool) -> dict[str, float]:
  """Measures FLOP/s of matrix products in bfloat16, and bytes/s of copies."""
  import jax
  import jax.numpy as jnp

  size, count = (512, 2**22) if small else (8192, 2**30)
  a = jnp.ones((size, size), jnp.bfloat16)
  product = jax.jit(lambda x: x @ x)
  b = jnp.ones(count, jnp.bfloat16)
  double = jax.jit(lambda x: x + x)
  return {
    'flops': 2 * size**3 / _seconds(lambda: product(a)),
    'bytes': 2 * b.nbytes / _seconds(lambda: double(b)),
  }


def _config(model: str, slots: int, rows: int, sizes: dict[str, int]) -> Any:
  from experiments import alfworld

  c = alfworld.get_config(f'model={model}')
  c.rollout.slots = slots
  c.rollout.max_prompt_tokens = sizes['prompt']
  c.rollout.max_response_tokens = sizes['response']
  c.rollout.prefill_chunk = min(c.rollout.prefill_chunk, sizes['prompt'])
  c.train.microbatch_rows = c.train.minibatch_rows = rows
  c.train.length_buckets, c.train.teacher_buckets = (sizes['row'],), (sizes['teacher'],)
  return c


def _filled(path: Sequence[Any], shape: Any, sizes: dict[str, int]) -> Any:
  """Makes an argument: small random weights, full rows, running slots."""
  import jax.numpy as jnp
  import numpy as np

  name = str(getattr(path[-1], 'key', getattr(path[-1], 'name', ''))) if path else ''
  known = {
    'response_mask': True,
    'active': True,
    'limit': 10**6,
    'temperature': 1,
    'top_p': 1,
    'stop_ids': -1,
    'position': sizes['prompt'] // 2,
    'teaching': 1,
    'normaliser': 1000,
    'scale': 1,
  }
  if name in known:
    return jnp.full(shape.shape, known[name], shape.dtype, device=shape.sharding)
  if name in ('kernel', 'embedding', 'lora_a'):
    value = np.float32(0.02) * np.random.default_rng(0).standard_normal(
      min(math.prod(shape.shape), 2**20), np.float32
    )
    flat = jnp.resize(jnp.asarray(value, shape.dtype), shape.shape)
    return jnp.asarray(flat, device=shape.sharding)
  return jnp.zeros(shape.shape, shape.dtype, device=shape.sharding)


def _arguments(call: Any, sizes: dict[str, int]) -> list[Any]:
  import jax

  return [
    jax.tree_util.tree_map_with_path(lambda path, s: _filled(path, s, sizes), argument)
    for argument in call.arguments
  ]


def _parts(config: Any, model: Any) -> Any:
  import jax

  from benchmarks import programs
  from sdar_jax.models import sharding

  mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  return programs.make(config, model, mesh)


def decoding(
  model: Any, name: str, slots: int, sizes: dict[str, int], rate: Any
) -> Any:
  """Measures tokens per second of `slots` responses that run."""
  import jax
  import numpy as np

  from benchmarks import programs

  parts = _parts(_config(name, slots, 1, sizes), model)
  call = programs.of_sampler(parts)['decode']
  weights, cache, state, options, responses, _, _ = _arguments(call, sizes)
  steps = min(32, sizes['response'])
  held = [cache]

  def run() -> Any:
    # The state is the call's own every time: positions do not run away.
    held[0], *rest = call.program(
      weights, held[0], state, options, responses, np.int32(steps), np.int32(0)
    )
    return rest

  step = _seconds(run) / steps
  read = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
  # Half of the prompt's positions and those that follow are in use.
  used = (sizes['prompt'] // 2 + steps / 2) / cache.values[0].shape[2]
  read += used * sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
  return {
    'tokens_per_second': slots / step,
    'ms_per_step': 1e3 * step,
    'share_of_bandwidth': read / step / rate['bytes'],
  }


def learning(
  model: Any, name: str, rows: int, sizes: dict[str, int], rate: dict[str, float]
) -> dict[str, Any]:
  """Measures prefill, scoring, gradient and update, and peak memory."""
  import jax

  from benchmarks import programs

  parts = _parts(_config(name, 8, rows, sizes), model)
  count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parts.model_weights()))
  out: dict[str, Any] = {}
  tokens = {'gradient': rows * sizes['row'], 'score': rows * sizes['row']}
  tokens['score teacher'] = rows * sizes['teacher']
  found = programs.of_learner(parts)
  for kind, read in tokens.items():
    arguments = _arguments(found[kind], sizes)
    taken = _seconds(lambda c=found[kind], a=arguments: c.program(*a))
    again = 8 if parts.config.model.remat == 'full' else 6
    factor = again if kind == 'gradient' else 2
    out[kind] = _rated(taken, read, factor * count, rate)
    del arguments
  out['prefill'] = _rated(*_prefill(parts, sizes), 2 * count, rate)
  out['update'] = {'seconds': _update(found['update'], sizes)}
  stats = jax.devices()[0].memory_stats() or {}
  out['peak_gib'] = stats.get('peak_bytes_in_use', math.nan) / 2**30
  return out


def _prefill(parts: Any, sizes: dict[str, int]) -> tuple[float, int]:
  """Times a prefill; returns its seconds and tokens."""
  import jax.numpy as jnp

  from benchmarks import programs

  call = programs.of_sampler(parts)['prefill']
  weights, cache, tokens, positions, rows = _arguments(call, sizes)
  # Half of the prompt is there already, in every slot.
  positions += sizes['prompt'] // 2 + jnp.arange(positions.shape[1])
  rows = (rows + jnp.arange(rows.size)) % parts.config.rollout.slots
  held = [cache]

  def run() -> Any:
    held[0] = call.program(weights, held[0], tokens, positions, rows)
    return held[0]

  return _seconds(run), tokens.size


def _update(call: Any, sizes: dict[str, int]) -> float:
  """Times the optimizer."""
  state, grads, loss = _arguments(call, sizes)
  kept = [state]

  def run() -> Any:
    kept[0], metrics = call.program(kept[0], grads, loss)
    return metrics

  return _seconds(run)


def _rated(seconds: float, tokens: int, flops: float, rate: Any) -> dict[str, float]:
  return {
    'seconds': seconds,
    'tokens_per_second': tokens / seconds,
    'share_of_products': tokens * flops / seconds / rate['flops'],
  }


def small_model(steps: int, words: Sequence[str] = ()) -> dict[str, Any]:
  """Trains the small model for a few steps; success before and after."""
  with tempfile.TemporaryDirectory() as folder:
    run = pathlib.Path(folder, 'run')
    command = [sys.executable, '-m', 'sdar_jax.main', f'--workdir={run}']
    command += [
      '--config=experiments/alfworld.py:model=tiny',
      f'--config.steps={steps}',
    ]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      return {'error': files.one_line(ValueError(done.stderr), 300)}
    lines = (run / 'timing.jsonl').read_text().splitlines()
    timings = [files.parse_json(line, 'timing.jsonl') for line in lines]
    reports = [files.read_json(path) for path in sorted(run.glob('eval/*.json'))]
    success = [
      statistics.mean(task['success'] for task in report['tasks']) for report in reports
    ]
  return {
    'seconds': time.perf_counter() - began,
    'step_seconds': [line['perf/step_seconds'] for line in timings],
    'success': success,
  }


def parts_of(small: bool, rate: dict[str, float]) -> Iterator[tuple[str, Callable]]:
  """Names the measurements, in the order in which they are wanted."""
  from sdar_jax.models import hf_config, presets

  sizes = _SMALL if small else _LENGTHS
  if small:
    models = {'tiny': (hf_config.read_config('experiments/tiny/alfworld'), (4, 8), 4)}
  else:
    models = {
      'qwen2.5-0.5b': (presets.PRESETS['qwen2.5-0.5b'], _SLOTS, 16),
      'qwen2.5-3b': (presets.PRESETS['qwen2.5-3b'], _SLOTS, 4),
    }
  for name, (model, counts, rows) in models.items():
    yield (
      f'{name} learner',
      lambda m=model, n=name, r=rows: learning(m, n, r, sizes, rate),
    )
    for slots in counts:
      yield (
        f'{name} decode, {slots} slots',
        lambda m=model, n=name, s=slots: decoding(m, n, s, sizes, rate),
      )
  words = ('--config.eval.tasks=8', '--config.rollout.tasks_per_step=2')
  yield 'small model', lambda: small_model(1, words) if small else small_model(5)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Measures and prints; writes JSON where asked."""
  parser = flags.Parser('python -m benchmarks.accelerator', __doc__)
  parser.add_argument('--output', type=pathlib.Path, help='JSON of all figures')
  parser.add_argument('--minutes', type=float, default=8.0, help='no part begins later')
  options = parser.parse_all(argv)
  began = time.monotonic()
  import jax

  device = jax.devices()[0]
  small = device.platform == 'cpu'
  rate = limits(small)
  out: dict[str, Any] = {
    'date': time.strftime('%Y-%m-%d'),
    'device': device.device_kind,
    'versions': {'jax': jax.__version__, 'python': platform.python_version()},
    'limits': rate,
  }
  print(json.dumps(out), flush=True)
  for name, measure in parts_of(small, rate):
    if time.monotonic() - began > 60 * options.minutes:
      out[name] = 'no time left'
    else:
      try:
        out[name] = measure()
      except jax.errors.JaxRuntimeError as error:  # Of memory, most likely.
        out[name] = {'error': files.one_line(error, 200)}
    print(name, json.dumps(out[name]), flush=True)
    if options.output is not None:
      files.write_atomic(options.output, json.dumps(out, indent=1).encode())
  return 0


if __name__ == '__main__':
  main()
