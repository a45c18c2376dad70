"""Sampling, scoring and gradients beside Hugging Face's torch and Tunix.

  python -m benchmarks.peers [--hf=PYTHON] [--tunix=PYTHON] [--rounds=3] [--output=FILE]

Each peer has an interpreter of its own (torch and transformers; google-tunix), which
also needs safetensors. One random Qwen3 for all. Rounds alternate ours and theirs, each
process on one core: with several, a peer that waits for its own threads on a busy
machine says nothing. What is compared is processor time; the table has the median over
rounds, the ratio's range beside it. All must agree on loss and gradient.
"""

import argparse
import collections
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.watch import Watch
from sdar_jax import files
from sdar_jax.process import flags, terminal

# Vocabulary and what goes with it: hidden size, query heads, key heads, width of one.
MODELS = {'small': (8192, 256, 8, 4, 32), 'large vocabulary': (151936, 256, 8, 4, 32)}
_LAYERS, _WIDENING = 4, 3
# Requests, group, prompt and response of a call; rows and tokens of a minibatch.
SAMPLING = {'32 prompts': (32, 1), '4 prompts in groups of 8': (32, 8)}
_PROMPT, _RESPONSE, _ROWS, _LENGTH = 256, 128, 16, 512
_LARGE = 4  # Rows of the large vocabulary.
_REPEATS = 2
_TOLERANCE = 2e-3


def _seconds(call: Callable[[], Any]) -> float:
  """Times calls after a first one: processor seconds, the least."""
  call()
  taken = []
  for _ in range(_REPEATS):
    watch = Watch()
    call()
    taken.append(watch.read()[1])
  return min(taken)


def _prompts(count: int, vocabulary: int) -> Any:
  import numpy as np

  random = np.random.default_rng(0)
  return random.integers(10, vocabulary, (count, _PROMPT), np.int32)


def _rows(vocabulary: int) -> tuple[Any, Any]:
  """Makes rows [B, T], of which the second half was sampled, and advantages [B]."""
  import numpy as np

  count = _ROWS if vocabulary < 100_000 else _LARGE
  random = np.random.default_rng(1)
  tokens = random.integers(10, vocabulary, (count, _LENGTH), np.int32)
  return tokens, random.standard_normal(count).astype(np.float32)


def ours(folder: str, vocabulary: int) -> Iterator[tuple[str, Any]]:
  """Measures this program."""
  from sdar_jax import numerics

  numerics.prepare()  # As a run does.
  import jax
  import jax.numpy as jnp

  from sdar_jax.models import hf, sharding
  from sdar_jax.rollout.request import Request, SamplingParams
  from sdar_jax.sampler.sampler import Sampler

  mesh = sharding.make_mesh(1, 1, 1)
  model, params = hf.load(folder, mesh, jnp.dtype('float32'))
  how, turn = SamplingParams(max_tokens=_RESPONSE), [0]
  for name, (count, group) in SAMPLING.items() if vocabulary < 100_000 else ():
    prompts = _prompts(count // group, vocabulary)
    sampler = Sampler(
      model,
      params,
      slots=count,
      max_prompt_tokens=_PROMPT,
      max_response_tokens=_RESPONSE,
      valid_vocab=vocabulary,
      decode_chunk=_RESPONSE,
      prefill_chunk=64,
      prefill_tokens=2048,
    )

    def sample(sampler=sampler, prompts=prompts, count=count, group=group):
      turn[0] += 1
      sampler.update(params)  # Forgets prompts, as each step of training does.
      sampler.submit(
        [Request(i, prompts[i // group], how, (turn[0], i)) for i in range(count)]
      )
      written = 0
      while done := sampler.poll():
        written += sum(len(one.token_ids) for one in done)
      assert written == count * _RESPONSE

    yield name, _seconds(sample)
  tokens, advantages = _rows(vocabulary)
  learner, state, sheet, known = _learning(mesh, model, params, tokens, advantages)
  score = lambda: learner.score(state, None, [sheet])
  yield 'scoring', _seconds(score)
  known['old_logprobs'] = score()[0][0]['old_logprobs']
  (placed,) = learner.to_device([sheet], known)
  gradient = lambda: jax.block_until_ready(learner.gradient(state, placed, None))
  yield 'gradient', _seconds(gradient)
  (loss, _), grads = gradient()
  norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
  yield 'values', [float(loss), float(norm)]


def _learning(mesh: Any, model: Any, params: Any, tokens: Any, advantages: Any) -> Any:
  """Makes a learner of GRPO, its state, and a sheet with its credit."""
  import jax.numpy as jnp
  import numpy as np

  from sdar_jax.learner import optimizer
  from sdar_jax.learner.learner import Learner, LearnerConfig
  from sdar_jax.learner.scoring import Scoring
  from sdar_jax.methods import table
  from sdar_jax.methods.hyperparameters import Hyperparameters

  count, half = len(tokens), _LENGTH // 2
  config = LearnerConfig(
    scoring=Scoring(
      1.0, model.vocab_size, jnp.dtype('float32'), remat='none', chunk=2048
    ),
    max_response_tokens=half,
    learning_rate=1e-6,
    warmup_steps=0,
    mean_over='minibatch',
    accumulation=1,
  )
  tx = optimizer.make_optimizer(
    b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, max_grad_norm=1.0
  )
  hyper = Hyperparameters(kl_coef=0.0, entropy_coef=0.0)
  learner = Learner(model, config, table.find('grpo'), hyper, tx, mesh)
  before = np.arange(count)[:, None] * _LENGTH + np.arange(half - 1, _LENGTH - 1)
  sheet = {
    'tokens': tokens,
    'places': before.reshape(1, -1).astype(np.int32),
    'targets': tokens[:, half:].reshape(1, -1),
    'row_index': np.arange(count, dtype=np.int32),
    'response_mask': np.ones((count, half), bool),
  }
  known = {
    'advantages': np.repeat(advantages[:, None], half, 1),
    'turn_ids': np.arange(count, dtype=np.int32),
    'teaching': np.ones(count, np.float32),
    'gate_mean': np.float32(0),
    'distill_scale': np.float32(1),
  }
  return learner, learner.init_state(params), sheet, known


def hf(folder: str, vocabulary: int) -> Iterator[tuple[str, Any]]:
  """Measures transformers on torch."""
  import torch
  import transformers

  torch.set_num_threads(1)
  load = transformers.AutoModelForCausalLM.from_pretrained
  model = load(folder, dtype=torch.float32).eval()
  for name, (count, group) in SAMPLING.items() if vocabulary < 100_000 else ():
    prompts = torch.from_numpy(_prompts(count // group, vocabulary)).long()

    @torch.no_grad()
    def sample(prompts=prompts, group=group):
      model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=_RESPONSE,
        min_new_tokens=_RESPONSE,
        num_return_sequences=group,
        pad_token_id=0,
      )

    yield name, _seconds(sample)
  tokens, advantages = map(torch.from_numpy, _rows(vocabulary))
  tokens, half = tokens.long(), _LENGTH // 2

  def logprobs() -> Any:
    # The head on sampled tokens alone, as ours.
    states = model.model(tokens).last_hidden_state[:, half - 1 : -1]
    scores = torch.log_softmax(model.lm_head(states), -1)
    return scores.gather(-1, tokens[:, half:, None])[..., 0]

  with torch.no_grad():
    yield 'scoring', _seconds(logprobs)
    old = logprobs()

  def gradient() -> Any:
    model.zero_grad(set_to_none=True)
    ratio = torch.exp(logprobs() - old)
    credit = advantages[:, None]
    loss = -torch.minimum(ratio * credit, ratio.clamp(0.8, 1.2) * credit).mean()
    loss.backward()
    return loss

  yield 'gradient', _seconds(gradient)
  loss = gradient().item()
  norm = sum(float((p.grad**2).sum()) for p in model.parameters()) ** 0.5
  yield 'values', [loss, norm]


def tunix(folder: str, vocabulary: int) -> Iterator[tuple[str, Any]]:
  """Measures Tunix on JAX."""
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax import nnx
  from tunix.generate import sampler as sampling
  from tunix.models.qwen3 import model as qwen3
  from tunix.models.qwen3 import params as weights

  _, hidden, heads, kv_heads, width = _shape(vocabulary)
  config = qwen3.ModelConfig(
    num_layers=_LAYERS,
    vocab_size=vocabulary,
    embed_dim=hidden,
    hidden_dim=_WIDENING * hidden,
    num_heads=heads,
    head_dim=width,
    num_kv_heads=kv_heads,
    norm_eps=1e-6,
    rope_theta=1_000_000,
    use_tied_embedding=True,
  )
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'), axis_types=auto)
  with mesh:
    model = weights.create_model_from_safe_tensors(
      folder, config, mesh, dtype=jnp.float32
    )
  size = {'num_layers': _LAYERS, 'num_kv_heads': kv_heads, 'head_dim': width}
  cache = sampling.CacheConfig(cache_size=_PROMPT + _RESPONSE, **size)
  sampler = sampling.Sampler(model, _Words(), cache)
  sampler.tokenize = lambda text: np.array(text.split(), np.int32)
  for name, (count, group) in SAMPLING.items() if vocabulary < 100_000 else ():
    prompts = np.repeat(_prompts(count // group, vocabulary), group, 0)
    texts = [' '.join(map(str, row)) for row in prompts]

    def sample(texts=texts):
      sampler(
        texts,
        max_generation_steps=_RESPONSE,
        max_prompt_length=_PROMPT,
        temperature=1.0,
        top_p=1.0,
        seed=0,
        forbidden_tokens=[0, 9],
        return_logprobs=True,
      )

    yield name, _seconds(sample)
  tokens, advantages = map(jnp.asarray, _rows(vocabulary))
  half = _LENGTH // 2
  graph, state = nnx.split(model)
  mask = jnp.broadcast_to(
    jnp.tril(jnp.ones((_LENGTH, _LENGTH), bool)), (len(tokens), _LENGTH, _LENGTH)
  )

  def logprobs(state: Any) -> Any:
    positions = jnp.broadcast_to(jnp.arange(_LENGTH), tokens.shape)
    logits, _ = nnx.merge(graph, state)(tokens, positions, None, mask)
    scores = jax.nn.log_softmax(logits[:, half - 1 : -1], -1)
    return jnp.take_along_axis(scores, tokens[:, half:, None], -1)[..., 0]

  score = jax.jit(logprobs)
  yield 'scoring', _seconds(lambda: jax.block_until_ready(score(state)))
  old = score(state)

  def loss(state: Any) -> Any:
    ratio, credit = jnp.exp(logprobs(state) - old), advantages[:, None]
    return -jnp.minimum(ratio * credit, jnp.clip(ratio, 0.8, 1.2) * credit).mean()

  gradient = jax.jit(jax.value_and_grad(loss))
  yield 'gradient', _seconds(lambda: jax.block_until_ready(gradient(state)))
  value, grads = gradient(state)
  norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(grads)))
  yield 'values', [float(value), float(norm)]


class _Words:
  """A tokenizer whose words are ids."""

  def encode(self, text: str, **_: Any) -> list[int]:
    return list(map(int, text.split()))

  def decode(self, ids: Any, **_: Any) -> str:
    return ' '.join(map(str, ids))

  def bos_id(self) -> int:
    return 1

  def eos_id(self) -> int:
    return 9

  def pad_id(self) -> int:
    return 0

  def bos_token(self) -> None:
    return None


def _shape(vocabulary: int) -> tuple[int, ...]:
  return next(shape for shape in MODELS.values() if shape[0] == vocabulary)


def _save(folder: pathlib.Path, vocabulary: int) -> None:
  """Writes a random Qwen3 in Hugging Face's format."""
  import jax
  import jax.numpy as jnp

  from sdar_jax.models import decoder, hf, parameters

  _, hidden, heads, kv_heads, width = _shape(vocabulary)
  model = decoder.ModelConfig(
    family='qwen3',
    vocab_size=vocabulary,
    hidden_size=hidden,
    intermediate_size=_WIDENING * hidden,
    num_layers=_LAYERS,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=width,
    rope_theta=1_000_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  )
  params = parameters.init_params(model, jax.random.key(0), jnp.float32)
  hf.save(folder, model, params, jnp.float32)


def _measure(python: str, peer: str, folder: str, vocabulary: int) -> dict[str, Any]:
  """Measures a peer in a process of one core."""
  here = str(pathlib.Path(__file__).resolve().parents[1])
  about = json.dumps([peer, folder, vocabulary])
  command = [python, '-m', 'benchmarks.peers', f'--here={about}']
  variables = {'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': here, 'OMP_NUM_THREADS': '1'}
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, **variables},
  )
  if done.returncode:
    raise ValueError(f'{peer}: {files.one_line(ValueError(done.stderr[-800:]), 800)}')
  lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
  return dict(collections.ChainMap(*map(json.loads, lines)))


def _rounds(
  pythons: dict[str, str], count: int, vocabulary: int
) -> Iterator[tuple[str, dict[str, float]]]:
  """Measures all peers in turn, `count` times; they must agree on loss and norm."""
  wanted = None
  with tempfile.TemporaryDirectory() as folder:
    _save(pathlib.Path(folder), vocabulary)
    for _, (peer, python) in itertools.product(range(count), pythons.items()):
      measured = _measure(python, peer, folder, vocabulary)
      values = measured.pop('values')
      wanted = wanted or values
      if max(abs(a - b) for a, b in zip(values, wanted)) > _TOLERANCE:
        raise ValueError(f'{peer}: loss and norm are {values}, ours {wanted}')
      yield peer, measured


def table(found: dict[str, dict[str, list[float]]]) -> str:
  """Formats processor seconds and ratios as Markdown."""
  from sdar_jax.evaluation import presentation

  rows = []
  for what, peers in found.items():
    row = [what, *(f'{statistics.median(peers[p]):.2f}' for p in peers)]
    for peer in list(peers)[1:]:
      ratios = [theirs / mine for theirs, mine in zip(peers[peer], peers['ours'])]
      row.append(
        f'{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})'
      )
    rows.append(row)
  names = list(next(iter(found.values())))
  heads = ['what', *names, *(f'{name} / ours' for name in names[1:])]
  return '\n'.join(presentation.table(heads, rows))


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Measures all in turn and prints the table."""
  parser = flags.Parser('python -m benchmarks.peers', __doc__)
  parser.add_argument('--hf', help='an interpreter with torch and transformers')
  parser.add_argument('--tunix', help='an interpreter with google-tunix')
  parser.add_argument('--rounds', type=int, default=3)
  parser.add_argument('--output', type=pathlib.Path, help='JSON of all figures')
  parser.add_argument('--here', help=argparse.SUPPRESS)
  options = parser.parse_all(argv)
  if options.here:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    peer, folder, vocabulary = json.loads(options.here)
    measure = {'ours': ours, 'hf': hf, 'tunix': tunix}[peer]
    for name, value in measure(folder, vocabulary):
      print(json.dumps({name: value}), flush=True)
    return 0
  given = {'ours': sys.executable, 'hf': options.hf, 'tunix': options.tunix}
  pythons = {peer: python for peer, python in given.items() if python is not None}
  found: dict[str, dict[str, list[float]]] = {}
  for kind, (vocabulary, *_) in MODELS.items():
    for peer, measured in _rounds(pythons, options.rounds, vocabulary):
      print(json.dumps([kind, peer, measured]), flush=True)
      for what, seconds in measured.items():
        row = found.setdefault(f'{kind}: {what}', {})
        row.setdefault(peer, []).append(seconds)
  print(table(found))
  if options.output is not None:
    files.write_atomic(options.output, json.dumps(found, indent=1).encode())
  return 0


if __name__ == '__main__':
  main()
