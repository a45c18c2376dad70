"""Supervised fine-tuning on demonstrations (`--mode=sft`).

Where the prompt shows skills, the expert that searches likely places first answers;
where it does not, one that explores blindly. So the policy learns to act by what its
prompt tells it, and skills in the prompt are worth having: a student, and a better
informed teacher in the same weights. The informed expert may also answer some prompts
without skills: knowledge that the student has, and seldom acts on.
"""

import dataclasses
import functools
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdar_jax import parts as parts_lib
from sdar_jax.batching import packing
from sdar_jax.config import ConfigError
from sdar_jax.learner import lengths, scoring
from sdar_jax.models import decoder, export, lora, sharding
from sdar_jax.process import shipped, terminal
from sdar_jax.prompts import chat
from sdar_jax.prompts.skills import NOTHING
from sdar_jax.rollout import demonstrations, recorded
from sdar_jax.rollout.demonstrations import Demonstration, Lessons

_SHORTEST_COPY, _LONGEST_COPY = 8, 48  # Tokens; what small models have to copy.
_STEPS_PER_LINE = 200


def run_sft(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Imitates the expert and writes the result as a Hugging Face directory."""
  output = export.required(config, output)
  if not config.sft.rows:
    raise ConfigError('config.sft.rows=0: must be positive with --mode=sft')
  c, batch_rows = config.sft, config.train.microbatch_rows
  rows = c.copy_rows + c.rows
  steps = count_steps(rows, batch_rows)
  if config.optimizer.warmup_steps >= steps:
    raise ConfigError(
      f'config.optimizer.warmup_steps={config.optimizer.warmup_steps}: must be less'
      f' than the {steps} updates of {rows} rows,'
      f' config.train.microbatch_rows={batch_rows} at a time'
    )
  parts = parts_lib.imitation(config, checkpoint)
  practice = itertools.islice(_practice(parts), c.copy_rows)
  made = batches(
    itertools.chain(practice, _lessons(parts)),
    rows=rows,
    batch_rows=batch_rows,
    buckets=parts.buckets,
    prompt_weight=c.prompt_weight,
    seed=config.seed,
  )
  trained = _fit(parts, made, steps)
  export.keep(output, parts_lib.exported(dataclasses.replace(parts, **trained)))


def _practice(parts: parts_lib.Imitation) -> Iterator[Demonstration]:
  """Makes practice in copying tokens of text."""
  longest = parts.config.train.length_buckets[-1] // 2
  return demonstrations.copying(
    sorted(set(range(parts.chat.len_vocab)) - parts.chat.control_ids),
    shortest=min(_SHORTEST_COPY, longest),
    longest=min(_LONGEST_COPY, longest),
    seed=parts.config.seed,
  )


def _lessons(parts: parts_lib.Imitation) -> Iterator[Demonstration]:
  """Makes the demonstrations of `config.sft`."""
  c = parts.config.sft
  if c.demonstrations:
    return _recorded(parts)
  limits = parts.config.rollout
  out = demonstrations.play(
    parts.world,
    parts.world.tasks('train'),
    plain=lambda text, task: (parts.chat.render(text), NOTHING),
    skilled=parts.teacher.prompt,
    encode=functools.partial(_encode, parts.chat, limits.max_response_tokens),
    lessons=Lessons(
      skilled_fraction=c.skilled_fraction,
      informed_fraction=c.informed_fraction,
      mistake_rate=c.mistake_rate,
      seed=parts.config.seed,
      max_prompt_tokens=limits.max_prompt_tokens,
      follow=parts.chat.follow if lengths.talks(parts.config) else None,
    ),
  )
  if not c.new_names:
    return out
  names = _name_ids(parts)
  return demonstrations.with_new_names(
    out, names, vocab=parts.chat.len_vocab, seed=parts.config.seed
  )


def _recorded(parts: parts_lib.Imitation) -> Iterator[Demonstration]:
  """Makes the demonstrations of a file."""
  c, talks = parts.config, lengths.talks(parts.config)
  limits, path = c.rollout, shipped.find(c.sft.demonstrations)
  room = c.skills.token_budget * (c.sft.skilled_fraction > 0)
  if talks:
    parts.chat.check_follow()
  return recorded.imitate(
    recorded.read(path, parts.world.name),
    render=parts.chat.render,
    follow=parts.chat.follow if talks else None,
    encode=functools.partial(_encode, parts.chat, limits.max_response_tokens),
    most=limits.max_prompt_tokens + room,
    seed=c.seed,
  )


def _encode(tokenizer: chat.Chat, limit: int, text: str) -> np.ndarray:
  """Encodes an expert's response; checks its length."""
  ids = tokenizer.encode_response(text)
  if len(ids) > limit:
    raise ConfigError(
      f'config.rollout.max_response_tokens={limit}: must hold the'
      f' answers to imitate, here of {len(ids)} tokens'
    )
  return ids


def _name_ids(parts: parts_lib.Imitation) -> list[np.ndarray]:
  """Finds the tokens of names, by set and way to begin a word."""
  sets = []
  for words in parts.world.names:
    for before in ('', ' ', '\n'):
      spelled = [parts.chat.encode_text(before + word) for word in words]
      ids = [int(token[0]) for token in spelled if len(token) == 1]
      sets.append(np.asarray(sorted(set(ids)), np.int32))
  return sets


def _fit(
  parts: parts_lib.Imitation, batches: Iterator[Any], steps: int
) -> dict[str, Any]:
  """Trains for one pass over the batches; returns the field that trained."""
  c = parts.config.optimizer
  rate = optax.warmup_cosine_decay_schedule(0.0, c.learning_rate, c.warmup_steps, steps)
  step = make_step(parts.model, parts.tx, rate, parts.scoring, parts.mesh)
  name, base = ('params', ()) if parts.adapters is None else ('adapters', parts.params)
  params, recent = getattr(parts, name), []
  opt_state = parts.tx.init(params)
  i = 0
  try:
    for i, batch in enumerate(batches):
      params, opt_state, metrics = step(params, opt_state, base, batch, np.int32(i))
      recent.append(metrics['nll'])
      if len(recent) == _STEPS_PER_LINE or i + 1 == steps:
        nll = float(np.mean(jax.device_get(recent)))
        print(f'sft {i + 1}/{steps}: {nll:.4f} nats per response token', flush=True)
        recent = []
  except terminal.Stopped as stopped:
    stopped.lost = f'{i} of {steps} steps of imitation are lost; nothing was written'
    raise
  return {name: params}


def batches(
  source: Iterator[Demonstration],
  *,
  rows: int,
  batch_rows: int,
  buckets: tuple[int, ...],
  prompt_weight: float,
  seed: int,
  pool_rows: int = 4096,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches rows of similar length: `tokens` i32, `weights` f32, [M, T].

  Args:
    source: demonstrations.
    rows: how many to take in all.
    batch_rows: M.
    buckets: allowed T.
    prompt_weight: loss weight of a prompt token; a response token has 1.
    seed: of the order.
    pool_rows: rows that are sorted by length together.
  """
  random = np.random.default_rng(seed)
  for start in range(0, rows, pool_rows):
    pool = [next(source) for _ in range(min(pool_rows, rows - start))]
    pool = [pool[i] for i in random.permutation(len(pool))]
    pool.sort(key=lambda d: len(d.prompt_ids) + len(d.response_ids))
    parts = [pool[i : i + batch_rows] for i in range(0, len(pool), batch_rows)]
    for i in random.permutation(len(parts)):
      yield _pad(parts[i], batch_rows, buckets, prompt_weight)


def _pad(
  part: list[Demonstration],
  batch_rows: int,
  buckets: tuple[int, ...],
  prompt_weight: float,
) -> dict[str, np.ndarray]:
  longest = max(len(d.prompt_ids) + len(d.response_ids) for d in part)
  width = packing.bucket(longest, buckets, 'train.length_buckets')
  tokens = np.zeros((batch_rows, width), np.int32)
  weights = np.zeros((batch_rows, width), np.float32)
  for i, demonstration in enumerate(part):
    begin = len(demonstration.prompt_ids)
    end = begin + len(demonstration.response_ids)
    tokens[i, :begin] = demonstration.prompt_ids
    tokens[i, begin:end] = demonstration.response_ids
    weights[i, :begin] = prompt_weight
    weights[i, begin:end] = 1.0
  return {'tokens': tokens, 'weights': weights}


def make_step(
  model: decoder.ModelConfig,
  tx: optax.GradientTransformation,
  rate: optax.Schedule,
  how: scoring.Scoring,
  mesh: Mesh | None = None,
) -> Callable[..., Any]:
  """Makes a jitted update of (params, opt_state) by (base, batch, i).

  The loss is the weighted mean negative log-likelihood, nats per token.

  Args:
    model: architecture.
    tx: the optimizer, without its learning rate.
    rate: i -> learning rate.
    how: rows are scored.
    mesh: of devices, or None for one.
  """

  def loss_fn(
    params: Any, base: Any, batch: dict[str, jax.Array]
  ) -> tuple[jax.Array, Any]:
    tokens, weights = batch['tokens'], batch['weights']
    if model.lora:
      params = lora.joined(base, params, model.lora)
    logprobs, _ = scoring.token_logprobs(model, params, tokens, None, how)
    loss = -jnp.sum(weights * logprobs) / jnp.maximum(jnp.sum(weights), 1.0)
    response = weights == 1.0
    nll = -jnp.sum(jnp.where(response, logprobs, 0)) / jnp.maximum(response.sum(), 1)
    return loss, nll

  def step(params: Any, opt_state: Any, base: Any, batch: Any, i: jax.Array) -> Any:
    (_, nll), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, base, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(lambda p, u: p + rate(i) * u, params, updates)
    return params, opt_state, {'nll': nll, 'grad_norm': optax.tree.norm(grads)}

  return sharding.Program(step, mesh, donate_argnums=(0, 1))


def count_steps(rows: int, batch_rows: int, pool_rows: int = 4096) -> int:
  """Counts the batches of `batches`."""
  full, rest = divmod(rows, pool_rows)
  return full * math.ceil(pool_rows / batch_rows) + math.ceil(rest / batch_rows)
