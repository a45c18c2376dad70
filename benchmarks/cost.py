"""Predicts what a step costs: tokens, FLOPs, bytes, seconds on named machines.

  python -m benchmarks.cost --config=experiments/alfworld.py:model=qwen2.5-3b \\
    --chip=a100 --devices=4 --turns=18 --prompt=1500 --response=110 --skills=730

Arithmetic, nothing is run. A product of matrices is 2 FLOPs per weight and token, a
gradient three times that and a recomputed layer once more; attention adds 4 for each
layer, query, key and channel. The output head runs on sampled tokens alone. Decoding
reads all weights and the live part of the cache once per token of a slot. Seconds are
of the chip's peak, and of a share of it that `--share` assumes: rows are ragged, and
programs wait for memory and for each other.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax.process import flags, terminal


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one device, by its maker's data sheet.

  Attributes:
    flops: of dense products in bfloat16, per second.
    bytes: of its memory, per second.
  """

  flops: float
  bytes: float


CHIPS = {
  'a100': Chip(312e12, 2.04e12),  # SXM, 80 GB.
  'h100': Chip(989e12, 3.35e12),  # SXM.
  'h200': Chip(989e12, 4.8e12),
  'v5e': Chip(197e12, 0.819e12),
  'v5p': Chip(459e12, 2.77e12),
  'v6e': Chip(918e12, 1.64e12),
}


@dataclasses.dataclass(frozen=True)
class Episodes:
  """Means of what a step plays.

  Attributes:
    rows: turns of all episodes.
    prompt, response: tokens of a turn.
    skills: tokens that a teacher's prompt has more.
    cached: share of prompt tokens that the sampler has computed before.
  """

  rows: int
  prompt: float
  response: float
  skills: float
  cached: float


@dataclasses.dataclass(frozen=True)
class Weights:
  """Sizes of a model that decide what a token costs.

  Attributes:
    layers: weights of all layers.
    head: those of the output head.
    attended: FLOPs of attention for each pair of a query and a key.
    cached: numbers kept of a token.
  """

  layers: int
  head: int
  attended: int
  cached: int


def weights_of(model: Any) -> Weights:
  """Counts the weights of a `decoder.ModelConfig`."""
  import jax

  sizes = jax.tree.map(lambda spec: math.prod(spec.shape), model.param_specs())
  return Weights(
    layers=sum(jax.tree.leaves(sizes['layers'])),
    head=model.vocab_size * model.hidden_size,
    attended=4 * model.num_layers * model.num_heads * model.head_dim,
    cached=2 * model.num_layers * model.num_kv_heads * model.head_dim,
  )


def passes(
  weights: Weights, played: Episodes, *, reference: bool, teacher: bool, remat: bool
) -> dict[str, tuple[float, float]]:
  """Counts tokens and FLOPs of each pass over a step's rows.

  Returns:
    {pass: (tokens, FLOPs)}; `decode` has its arithmetic, which is seldom its limit.
  """
  row = played.prompt + played.response

  def pass_of(length: float, scored: float, times: float) -> tuple[float, float]:
    tokens = played.rows * length
    flops = 2 * weights.layers * tokens + weights.attended * tokens * length / 2
    return tokens, times * (flops + 2 * weights.head * played.rows * scored)

  fresh = played.rows * played.prompt * (1 - played.cached)
  seen = weights.attended * played.prompt / 2
  sampled = played.rows * played.response
  each = 2 * (weights.layers + weights.head) + weights.attended * row
  out = {
    'prefill': (fresh, fresh * (2 * weights.layers + seen)),
    'decode': (sampled, sampled * each),
    'old': pass_of(row, played.response, 1),
  }
  if reference:
    out['reference'] = out['old']
  if teacher:
    out['teacher'] = pass_of(row + played.skills, played.response, 1)
  return {**out, 'update': pass_of(row, played.response, 4 if remat else 3)}


def decode_bytes(weights: Weights, played: Episodes, slots: int, ways: int) -> float:
  """Counts bytes that decoding reads of each device, in 16 bits.

  Args:
    weights: of the model.
    played: what a step plays.
    slots: of all devices, all of them busy.
    ways: devices, each with its share of the slots and all weights.
  """
  steps = played.rows * played.response / slots
  live = slots / ways * (played.prompt + played.response / 2) * weights.cached
  return 2 * steps * (weights.layers + weights.head + live)


def seconds(
  found: Mapping[str, tuple[float, float]], read: float, chip: Chip, devices: int
) -> dict[str, float]:
  """Predicts seconds of each pass at the chip's peaks."""
  out = {name: flops / devices / chip.flops for name, (_, flops) in found.items()}
  return {**out, 'decode': max(out['decode'], read / chip.bytes)}


def _parser() -> flags.Parser:
  parser = flags.Parser('python -m benchmarks.cost', __doc__)
  parser.add_argument('--config', required=True, help='as of sdar')
  parser.add_argument('--chip', choices=CHIPS, default='h100')
  parser.add_argument('--devices', type=int, default=1)
  parser.add_argument('--turns', type=float, default=20.0, help='of an episode')
  parser.add_argument('--prompt', type=float, default=462.0, help='tokens of a prompt')
  parser.add_argument('--response', type=float, default=80.0, help='tokens of a turn')
  parser.add_argument('--skills', type=float, default=730.0, help="a teacher's more")
  parser.add_argument('--cached', type=float, default=0.35, help='share of prompts')
  parser.add_argument('--share', type=float, default=0.4, help='of a peak, assumed')
  return parser


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints a line for each pass of a step."""
  options, words = _parser().parse(argv)
  from benchmarks import fits
  from sdar_jax import build
  from sdar_jax.cli import config_file

  config = config_file.read(options.config, words)
  algorithm, hyper = build.make_algorithm(config), build.make_hyperparameters(config)
  c, chip = config.rollout, CHIPS[options.chip]
  played = Episodes(
    round(c.tasks_per_step * c.group_size * options.turns),
    options.prompt,
    options.response,
    options.skills,
    options.cached,
  )
  weights = weights_of(fits.model_of(config))
  found = passes(
    weights,
    played,
    reference=hyper.needs_reference,
    teacher=algorithm.needs_teacher(hyper),
    remat=config.model.remat == 'full',
  )
  read = decode_bytes(weights, played, c.slots, options.devices)
  taken = seconds(found, read, chip, options.devices)
  head = ('pass', 'tokens', 'FLOPs', 'at peak', f'at {options.share:.0%}')
  print('{:10}{:>12}{:>11}{:>11}{:>10}'.format(*head))
  for name, (tokens, flops) in found.items():
    time = taken[name]
    print(
      f'{name:10}{tokens:12,.0f}{flops:11.2g}{time:9.1f} s{time / options.share:8.1f} s'
    )
  total = sum(taken.values())
  print(f'{"together":10}{"":23}{total:9.1f} s{total / options.share:8.1f} s')
  return 0


if __name__ == '__main__':
  main()
