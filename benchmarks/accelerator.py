"""What a machine does: decode, prefill and training, beside its own limits.

  python -m benchmarks.accelerator [--output=FILE.json] [--minutes=8] \\
    [--tokenizer=DIR] [--parts=limits,decode]

On a GPU or TPU: the programs of a run of Qwen2.5-0.5B and 3B shapes with random
weights, each beside the matrix products and the memory bandwidth of the same device in
the same minutes; whole steps of both shapes, if there is Qwen's tokenizer; then five
steps of the small model. On a CPU everything is smaller, which shows that it runs. No
network, no weights. Parts without time left, and those that fail, are named.

Each figure is the median of several calls of a compiled program. Shares are of what was
measured here, not of a data sheet: FLOPs are 2 per weight and token forward, 6 for a
gradient, 8 with recomputed layers, without attention's own; the head's of the positions
that it reads.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import json
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.process import flags, terminal

_Measurements = Iterator[tuple[str, Callable[[], Any]]]
# As it was given; a model of 3B needs more than the three quarters that JAX takes.
_ENVIRONMENT = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95', **os.environ}
_REPEATS = 5
_SLOTS = (32, 128, 512)
# Prompt tokens of ALFWorld's `house` games in Qwen2.5's tokens: mean 462, longest about
# 800; a teacher's are about 730 longer (measured with the real tokenizer).
_LENGTHS = {'prompt': 800, 'response': 128, 'row': 1280, 'teacher': 2304}
# In a process of its own: one that has seen a GPU keeps most of its memory.
_ABOUT = """
import json, platform, time, jax
device = jax.devices()[0]
print(json.dumps({
  'date': time.strftime('%Y-%m-%d'), 'platform': device.platform,
  'device': device.device_kind, 'jax': jax.__version__,
  'python': platform.python_version(),
}))
"""
_SMALL = {'prompt': 48, 'response': 8, 'row': 64, 'teacher': 96}


def _seconds(call: Callable[[], Any], repeats: int = _REPEATS) -> float:
  """Times calls after a first one; the median."""
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


class Programs:
  """The programs of a run of a model, compiled side by side.

  Args:
    name: of the model, for `experiments/alfworld.py`.
    slots: of the samplers.
    rows: of a microbatch.
    sizes: tokens of prompts, responses and rows.
  """

  def __init__(self, name: str, slots: Sequence[int], rows: int, sizes: dict[str, int]):
    import jax

    from benchmarks import fits, programs
    from sdar_jax.models import sharding

    mesh = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    model = fits.model_of(_config(name, slots[0], rows, sizes))
    make = lambda count: programs.make(_config(name, count, rows, sizes), model, mesh)
    first = make(slots[0])
    self.config, self.sizes = first.config, sizes
    leaves = jax.tree.leaves(first.model_weights()['layers'])
    self.layers = sum(math.prod(leaf.shape) for leaf in leaves)
    self.head = model.vocab_size * model.hidden_size
    self.calls = dict(programs.of_learner(first))
    self.calls['prefill'] = programs.of_sampler(first)['prefill']
    for count in slots:
      of_sampler = programs.of_sampler(make(count))
      self.calls[f'decode, {count} slots'] = of_sampler['decode']
    self._compiled: dict[str, Any] = {}

  def compile(self) -> dict[str, Any]:
    """Compiles all at once; seconds of each, or why it failed."""
    import jax

    def timed(lowered: Any) -> tuple[Any, float]:
      began = time.perf_counter()
      return lowered.compile(), time.perf_counter() - began

    began, said = time.perf_counter(), {}
    with concurrent.futures.ThreadPoolExecutor(len(self.calls)) as pool:
      waiting = {
        name: pool.submit(timed, call.lower()) for name, call in self.calls.items()
      }
      for name, future in waiting.items():
        try:
          self._compiled[name], said[name] = future.result()
        except jax.errors.JaxRuntimeError as error:
          said[name] = files.one_line(error, 200)
    return {'seconds': time.perf_counter() - began, 'each': said}

  def seconds(self, name: str, prepare: Callable[..., Any] = lambda *a: a) -> float:
    """Times a compiled program; what it takes over is the next call's.

    Args:
      name: of the program.
      prepare: changes the arguments of the first call.
    """
    program, arguments = self._compiled[name], list(self.arguments(name, prepare))
    taken_over = {'update': 0, 'sum': 0, 'prefill': 1}
    place = 1 if name.startswith('decode') else taken_over.get(name)

    def run() -> Any:
      out = program(*arguments)
      if place is None:
        return out
      alone = name in ('prefill', 'sum')
      arguments[place], rest = (out, ()) if alone else (out[0], out[1:])
      return arguments[place], rest

    return _seconds(run)

  def arguments(self, name: str, prepare: Callable[..., Any] = lambda *a: a) -> Any:
    """Makes arguments for a program's shapes."""
    import jax

    fill = lambda path, shape: _filled(path, shape, self.sizes)
    shapes = self.calls[name].arguments
    return prepare(*(jax.tree_util.tree_map_with_path(fill, one) for one in shapes))


def decoding(made: Programs, slots: int, rate: dict[str, float]) -> dict[str, float]:
  """Measures tokens per second of `slots` responses that run."""
  import jax
  import numpy as np

  name, sizes = f'decode, {slots} slots', made.sizes
  steps = min(32, sizes['response'])
  weights, cache = made.calls[name].arguments[:2]

  # The state is the first call's own every time: positions do not run away.
  step = made.seconds(name, lambda *a: (*a[:-2], np.int32(steps), np.int32(0))) / steps
  read = sum(_bytes(leaf) for leaf in jax.tree.leaves(weights))
  # Half of the prompt's positions and those that follow are in use.
  used = (sizes['prompt'] // 2 + steps / 2) / cache.values[0].shape[2]
  read += used * sum(_bytes(leaf) for leaf in jax.tree.leaves(cache))
  return {
    'tokens_per_second': slots / step,
    'ms_per_step': 1e3 * step,
    'share_of_bandwidth': read / step / rate['bytes'],
  }


def _bytes(shape: Any) -> int:
  return math.prod(shape.shape) * shape.dtype.itemsize


def learning(made: Programs, rate: dict[str, float]) -> dict[str, Any]:
  """Measures prefill, scoring, gradient and update, and peak memory."""
  import jax

  again = 8 if made.config.model.remat == 'full' else 6
  out: dict[str, Any] = {}
  for kind, flops in (('gradient', again), ('score', 2), ('score teacher', 2)):
    sheet = made.calls[kind].arguments[-1]
    tokens, read = (math.prod(sheet[name].shape) for name in ('tokens', 'places'))
    # The head is multiplied with what was sampled alone.
    products = flops * (made.layers * tokens + made.head * read)
    out[kind] = _rated(made.seconds(kind), tokens, products, rate)
  tokens = math.prod(made.calls['prefill'].arguments[2].shape)
  seconds = made.seconds('prefill', lambda *a: _behind(*a, made))
  out['prefill'] = _rated(seconds, tokens, 2 * made.layers * tokens, rate)
  out['update'] = {'seconds': made.seconds('update')}
  stats = jax.devices()[0].memory_stats() or {}
  if 'peak_bytes_in_use' in stats:
    out['peak_gib'] = stats['peak_bytes_in_use'] / 2**30
  return out


def _behind(
  weights: Any, cache: Any, tokens: Any, positions: Any, rows: Any, made: Programs
) -> tuple[Any, ...]:
  """Makes a prefill of prompts of which every slot has half."""
  import jax.numpy as jnp

  positions += made.sizes['prompt'] // 2 + jnp.arange(positions.shape[1])
  rows = (rows + jnp.arange(rows.size)) % made.config.rollout.slots
  return weights, cache, tokens, positions, rows


def _rated(seconds: float, tokens: int, flops: float, rate: Any) -> dict[str, float]:
  return {
    'seconds': seconds,
    'tokens_per_second': tokens / seconds,
    'share_of_products': flops / seconds / rate['flops'],
  }


def train(config: str, words: Sequence[str], steps: int = 0) -> dict[str, Any]:
  """Trains in a process of its own; seconds of each step's phases, and successes.

  Args:
    config: file of the run.
    words: of its command line.
    steps: after so many the process is killed, with nothing saved; 0 is to its end.
  """
  with tempfile.TemporaryDirectory() as folder:
    run, said = pathlib.Path(folder, 'run'), pathlib.Path(folder, 'said')
    command = [sys.executable, '-m', 'sdar_jax.main', f'--config={config}']
    command += [f'--workdir={run}', *words]
    began = time.perf_counter()
    with said.open('w') as out:
      process = subprocess.Popen(command, stdout=out, stderr=out, env=_ENVIRONMENT)
      while process.poll() is None and (not steps or len(_timings(run)) < steps):
        time.sleep(0.2)
      process.kill()
    spent, timings = time.perf_counter() - began, _timings(run)
    if process.wait() and (not steps or len(timings) < steps):
      return {'error': files.one_line(ValueError(said.read_text()[-2000:]), 2000)}
    reports = [files.read_json(path) for path in sorted(run.glob('eval/*.json'))]
  success = [
    statistics.mean(task['success'] for task in report['tasks']) for report in reports
  ]
  short = [
    {
      name.removeprefix('perf/'): round(value, 3)
      for name, value in line.items()
      if name.endswith(('_seconds', '_per_second', 'occupancy', 'padding', '_share'))
    }
    for line in timings
  ]
  return {'seconds': spent, 'success': success, 'steps': short}


def _timings(run: pathlib.Path) -> list[dict[str, float]]:
  """Reads the lines of a run that are whole."""
  path = run / 'timing.jsonl'
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  whole = [line for line in lines if line.endswith('\n')]
  return [files.parse_json(line, 'timing.jsonl') for line in whole]


def whole_step(
  name: str, rows: int, tokenizer: pathlib.Path, small: bool
) -> dict[str, Any]:
  """Trains two steps of a model of random weights, whose turns all are too long.

  16 tasks of 8 episodes of 10 turns of 64 tokens, none of which is an action: every
  episode goes on to its end, so each step has 1,280 rows.

  Args:
    name: of the model.
    rows: of a microbatch.
    tokenizer: folder of Qwen2.5's.
    small: a few rows.
  """
  # Weights are drawn on the CPU: a process that has used a GPU keeps its memory.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import jax
  import jax.numpy as jnp

  from benchmarks import fits
  from experiments import alfworld
  from sdar_jax.models import hf, parameters

  model = fits.model_of(alfworld.get_config(f'model={name}'))
  with tempfile.TemporaryDirectory() as folder:
    params = parameters.init_params(model, jax.random.key(0), jnp.float32)
    hf.save(folder, model, params, jnp.bfloat16)
    del params
    for path in tokenizer.glob('*token*'):
      shutil.copy(path, folder)
    words = {'model.path': folder, 'steps': 2, 'eval.tasks': 1, 'eval.every': 0}
    if small:
      words |= {'world.max_turns': 2, 'rollout.max_response_tokens': 8}
      words |= {'rollout.tasks_per_step': 2, 'rollout.group_size': 2}
    else:
      words |= {'world.max_turns': 10, 'rollout.max_response_tokens': 64}
      words |= {'rollout.slots': 128, 'rollout.max_prompt_tokens': 832}
      words |= {'train.microbatch_rows': rows, 'train.compile_ahead': True}
      words |= {'train.length_buckets': (512, 640, 768, 896)}
      words |= {'train.teacher_buckets': (1280, 1408, 1536, 1920)}
    return train(
      f'experiments/alfworld.py:model={name}',
      [f'--config.{key}={value}' for key, value in words.items()],
      steps=2,
    )


def small_model(small: bool) -> dict[str, Any]:
  """Trains the small model for a few steps; success before and after."""
  words = [f'--config.steps={1 if small else 5}']
  if small:
    words += ['--config.eval.tasks=8', '--config.rollout.tasks_per_step=2']
  return train('experiments/alfworld.py:model=tiny', words)


def parts_of(
  small: bool, tokenizer: pathlib.Path | None
) -> dict[str, Callable[[], _Measurements]]:
  """Names the groups of measurements, each for a process of its own."""
  models = {'qwen2.5-0.5b': (_SLOTS, 16), 'qwen2.5-3b': (_SLOTS, 4)}
  if small:
    models, tokenizer = {'tiny': ((4, 8), 4)}, pathlib.Path('experiments/tiny/alfworld')

  def programs(name: str) -> _Measurements:
    counts, rows = models[name]
    rate: dict[str, float] = {}
    yield f'{name} limits', lambda: rate.update(limits(small)) or rate
    sizes = _SMALL if small else _LENGTHS
    made = Programs(name, counts, rows, sizes)
    yield f'{name} compile', made.compile
    yield f'{name} learner', lambda: learning(made, rate)
    for count in counts:
      yield f'{name} decode, {count} slots', lambda c=count: decoding(made, c, rate)

  def one(name: str, call: Callable[[], Any]) -> _Measurements:
    yield name, call

  out = {name: functools.partial(programs, name) for name in models}
  if tokenizer:
    for name in models:
      call = functools.partial(whole_step, name, models[name][1], tokenizer, small)
      out[f'{name} steps'] = functools.partial(one, f'{name} steps', call)
  call = functools.partial(small_model, small)
  out['small model'] = functools.partial(one, 'small model', call)
  return out


def _measure(group: str, small: bool, tokenizer: pathlib.Path | None) -> None:
  """Prints a line of JSON for each measurement of a group."""
  for name, measure in parts_of(small, tokenizer)[group]():
    try:
      found = measure()
    except Exception as error:  # The others are still to be measured.
      found = {'error': files.one_line(error, 300)}
    print(json.dumps({name: found}), flush=True)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Measures and prints; writes JSON where asked."""
  parser = flags.Parser('python -m benchmarks.accelerator', __doc__)
  parser.add_argument('--output', type=pathlib.Path, help='JSON of all figures')
  parser.add_argument('--minutes', type=float, default=8.0, help='for all of it')
  parser.add_argument('--tokenizer', type=pathlib.Path, help="Qwen2.5's, a directory")
  parser.add_argument('--parts', help='some of them, comma-separated')
  parser.add_argument('--here', help=argparse.SUPPRESS)  # One part, in this process.
  options = parser.parse_all(argv)
  began = time.monotonic()
  about = json.loads(
    subprocess.run(
      [sys.executable, '-c', _ABOUT], capture_output=True, text=True, check=True
    ).stdout
  )
  small = about['platform'] == 'cpu'
  if options.here:
    _measure(options.here, small, options.tokenizer)
    return 0
  print(json.dumps(about), flush=True)
  out: dict[str, Any] = {'about': about}
  groups = parts_of(small, options.tokenizer)
  wanted = options.parts.split(',') if options.parts else groups
  for group in wanted:
    if group not in groups:
      raise ValueError(f'--parts: {group!r} must be one of {", ".join(groups)}')
  for group in wanted:
    left = 60 * options.minutes - (time.monotonic() - began)
    for line in _child(group, options, left):
      print(line, flush=True)
      out |= files.parse_json(line, group)
      if options.output is not None:
        files.write_atomic(options.output, json.dumps(out, indent=1).encode())
  return 0


def _child(group: str, options: Any, seconds: float) -> Iterator[str]:
  """Measures a group in a process; its lines as they come."""
  if seconds < 10:
    yield json.dumps({group: 'no time left'})
    return
  command = [sys.executable, '-m', 'benchmarks.accelerator', f'--here={group}']
  if options.tokenizer:
    command.append(f'--tokenizer={options.tokenizer}')
  process = subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    text=True,
    env=_ENVIRONMENT,
    start_new_session=True,
  )

  def end() -> None:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)  # With what it has started.

  timer = threading.Timer(seconds, end)
  timer.start()
  try:
    yield from (line.rstrip() for line in process.stdout if line.startswith('{'))
    process.wait()
  finally:
    timer.cancel()
    end()
  if process.returncode:
    yield json.dumps({group: f'ended by exit code {process.returncode}'})


if __name__ == '__main__':
  main()
