"""Shows how sampling grows with slots, prompts, responses, groups and vocabulary.

  python -m benchmarks.growth [--output=FILE.svg] [--only=slots,prompt]

A model of the size of the small ones with random weights; one size changes at a time
and the others stay at 32 slots, 256 tokens of prompt, 64 of response, groups of one
and a vocabulary of 8,192. Twice as many requests as slots. Per point, in a process of
its own: processor and clock time of the second round per token that was read or
written, and what the process held at most. Tokens per second of several sizes may be
compared, not those of several machines.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.evaluation import presentation
from sdar_jax.process import flags, terminal

_BASE = {'slots': 32, 'prompt': 256, 'response': 64, 'group': 1, 'vocab': 8192}
_SIZES = {
  'slots': (8, 16, 32, 64, 128, 256),
  'prompt': (128, 256, 512, 1024, 2048, 4096),
  'response': (32, 64, 128, 256, 512),
  'group': (1, 2, 4, 8, 16),
  'vocab': (1024, 8192, 32_768, 151_936),
}


def measure(size: dict[str, int]) -> dict[str, float]:
  """Measures one point in this process."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from benchmarks.watch import Watch
  from experiments.tiny import build
  from sdar_jax.models import parameters
  from sdar_jax.rollout.request import Request, SamplingParams
  from sdar_jax.sampler.sampler import Sampler

  model = build.model_config(size['vocab'])
  sampler = Sampler(
    model,
    parameters.init_params(model, jax.random.key(0), jnp.float32),
    slots=size['slots'],
    max_prompt_tokens=size['prompt'],
    max_response_tokens=size['response'],
    valid_vocab=size['vocab'],
  )
  count, how = 2 * size['slots'], SamplingParams(max_tokens=size['response'])
  random = np.random.default_rng(0)
  for rest in ('compiles', 'is measured'):
    prompts = random.integers(0, size['vocab'], (count, size['prompt']))
    requests = [
      Request(i, prompts[i // size['group']], how, (i, len(rest))) for i in range(count)
    ]
    watch = Watch()
    sampler.submit(requests)
    written = 0
    while done := sampler.poll():
      written += sum(len(one.token_ids) for one in done)
    clock, processor = watch.read()
  tokens = count * size['prompt'] + written
  return {
    'clock_us': 1e6 * clock / tokens,
    'processor_us': 1e6 * processor / tokens,
    'tokens': tokens,
    'mib': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
  }


def _point(size: dict[str, int]) -> dict[str, float]:
  command = [sys.executable, '-m', 'benchmarks.growth', f'--here={json.dumps(size)}']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise ValueError(f'{size}: {files.one_line(ValueError(done.stderr), 200)}')
  return files.parse_json(done.stdout.splitlines()[-1], 'a point')


def table(found: dict[str, dict[int, Any]]) -> str:
  """Formats the points as Markdown."""
  rows = [
    [
      name,
      f'{size:,}',
      f'{point["processor_us"]:.0f}',
      f'{point["clock_us"]:.0f}',
      f'{point["mib"]:,.0f}',
    ]
    for name, points in found.items()
    for size, point in points.items()
  ]
  heads = ('what', 'size', 'microseconds a token, processor', 'clock', 'MiB')
  return '\n'.join(presentation.table(heads, rows))


def plot(found: dict[str, dict[int, Any]], path: pathlib.Path) -> None:
  """Draws processor time per token over each size."""
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(
    1, len(found), figsize=(3 * len(found), 3), sharey=True
  )
  for axis, (name, points) in zip(list(getattr(axes, 'flat', [axes])), found.items()):
    times = [point['processor_us'] for point in points.values()]
    axis.loglog(list(points), times, marker='o')
    axis.set_xlabel(name)
  figure.axes[0].set_ylabel('processor µs a token')
  figure.tight_layout()
  figure.savefig(path)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Measures every point and prints the table."""
  parser = flags.Parser('python -m benchmarks.growth', __doc__)
  parser.add_argument('--output', type=pathlib.Path, help='a plot: .svg, .png or .pdf')
  parser.add_argument('--record', type=pathlib.Path, help='JSON of all points')
  parser.add_argument('--only', help='some of the sizes, comma-separated')
  parser.add_argument('--here', help=argparse.SUPPRESS)
  options = parser.parse_all(argv)
  if options.here:
    print(json.dumps(measure(json.loads(options.here))))
    return 0
  found: dict[str, dict[int, Any]] = {}
  for name in options.only.split(',') if options.only else _SIZES:
    points = found.setdefault(name, {})
    for size in _SIZES[name]:
      points[size] = _point(_BASE | {name: size})
      print(name, size, json.dumps(points[size]), flush=True)
  print(table(found))
  if options.record is not None:
    files.write_atomic(options.record, json.dumps(found, indent=1).encode())
  if options.output is not None:
    plot(found, options.output)
  return 0


if __name__ == '__main__':
  main()
