"""Supervised fine-tuning on a scripted expert's episodes (`--mode=sft`).

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
from collections.abc import Callable, Iterator, Sequence
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
from sdar_jax.envs import base
from sdar_jax.learner import scoring
from sdar_jax.models import decoder, export, lora, sharding
from sdar_jax.process import terminal
from sdar_jax.prompts import chat, fitting
from sdar_jax.prompts.skills import NOTHING, SkillView

_SHORTEST_COPY, _LONGEST_COPY = 8, 48  # Tokens; what small models have to copy.
_STEPS_PER_LINE = 200

# encode(text) -> ids of a response, tags as tokens and the stop token at its end.
Encode = Callable[[str], np.ndarray]
Prompt = Callable[[str, base.Task], tuple[np.ndarray, SkillView]]


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """One turn to imitate: `prompt_ids` [L] and `response_ids` [R], int32."""

  prompt_ids: np.ndarray
  response_ids: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
  """Choice of experts, mistakes and limits of demonstrations.

  Attributes:
    skilled_fraction: of the episodes, those whose prompts show skills.
    informed_fraction: of the other episodes, those that the informed expert plays too.
    mistake_rate: chance that a mistake is played in place of the expert's action,
      whose answer to the situation is still what is imitated.
    seed: of the draws.
    max_prompt_tokens: longest prompt, skills not counted.
  """

  skilled_fraction: float
  informed_fraction: float
  mistake_rate: float
  seed: int
  max_prompt_tokens: int


def run_sft(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Imitates the expert and writes the result as a Hugging Face directory."""
  output = export.required(output)
  if not config.sft.rows:
    raise ConfigError('config.sft.rows=0: must be positive with --mode=sft')
  parts = parts_lib.imitation(config, checkpoint)
  c, batch_rows = config.sft, config.train.microbatch_rows
  rows = c.copy_rows + c.rows
  practice = itertools.islice(_practice(parts), c.copy_rows)
  made = batches(
    itertools.chain(practice, _lessons(parts)),
    rows=rows,
    batch_rows=batch_rows,
    buckets=parts.buckets,
    prompt_weight=c.prompt_weight,
    seed=config.seed,
  )
  trained = _fit(parts, made, count_steps(rows, batch_rows))
  export.keep(output, parts_lib.exported(dataclasses.replace(parts, **trained)))


def _practice(parts: parts_lib.Imitation) -> Iterator[Demonstration]:
  """Makes practice in copying tokens of text."""
  longest = parts.config.train.length_buckets[-1] // 2
  return copying(
    sorted(set(range(parts.chat.len_vocab)) - parts.chat.control_ids),
    shortest=min(_SHORTEST_COPY, longest),
    longest=min(_LONGEST_COPY, longest),
    seed=parts.config.seed,
  )


def _lessons(parts: parts_lib.Imitation) -> Iterator[Demonstration]:
  """Makes the demonstrations of `config.sft`."""
  c, limits = parts.config.sft, parts.config.rollout
  out = demonstrations(
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
    ),
  )
  if not c.new_names:
    return out
  names = _name_ids(parts)
  return with_new_names(out, names, vocab=parts.chat.len_vocab, seed=parts.config.seed)


def _encode(tokenizer: chat.Chat, limit: int, text: str) -> np.ndarray:
  """Encodes an expert's response; checks its length."""
  ids = tokenizer.encode_response(text)
  if len(ids) > limit:
    raise ConfigError(
      f'config.rollout.max_response_tokens={limit}: must hold the'
      f" expert's answers, here of {len(ids)} tokens"
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


def demonstrations(
  world: base.World,
  tasks: base.TaskSet,
  *,
  plain: Prompt,
  skilled: Prompt,
  encode: Encode,
  lessons: Lessons,
) -> Iterator[Demonstration]:
  """Plays expert turns, for ever: episode i plays task i.

  Prompts are those of rollout: one that cannot be made to fit ends its episode.

  Args:
    world: the world and its experts.
    tasks: the training tasks, used in order.
    plain: the prompt without skills.
    skilled: the prompt with skills.
    encode: response text to ids.
    lessons: what is demonstrated.

  Raises:
    ValueError: not even the first prompt fits.
  """
  for index in itertools.count():
    task = tasks[index % len(tasks)]
    random = np.random.default_rng([lessons.seed, index])
    with_skills = bool(random.random() < lessons.skilled_fraction)
    informed = with_skills or (  # A fraction of 0 takes no draw from what follows.
      lessons.informed_fraction > 0 and random.random() < lessons.informed_fraction
    )
    kind = world.demonstrators[0 if informed else 1]
    expert = world.expert(kind, seed=int(random.integers(2**31)))
    prompt = skilled if with_skills else plain
    turns = _episode(world, task, expert, prompt, lessons, random)
    empty = True
    for prompt_ids, text in turns:
      empty = False
      yield Demonstration(prompt_ids, encode(text))
    if empty and index == 0:
      raise ValueError(
        f'task {task.task_id}: its first prompt exceeds config.rollout.'
        f'max_prompt_tokens={lessons.max_prompt_tokens}: raise it'
      )


def _episode(
  world: base.World,
  task: base.Task,
  expert: base.Expert,
  prompt: Prompt,
  lessons: Lessons,
  random: np.random.Generator,
) -> Iterator[tuple[np.ndarray, str]]:
  """Plays one episode: its prompts and the expert's responses."""
  env = world.make_env()
  observation = env.reset(task)
  expert.reset(task, observation)
  history: list[base.Exchange] = []
  for _ in range(world.max_turns):
    thought, action = expert.plan(observation)
    fitted = fitting.fit(
      world,
      lambda text: prompt(text, task),
      task,
      history,
      observation,
      max_tokens=lessons.max_prompt_tokens,
    )
    if fitted is None:
      return
    yield fitted.ids, world.response(thought, action)
    if random.random() < lessons.mistake_rate:
      action = world.mistake(observation, random)
    result = env.step(action)
    history.append(base.Exchange(observation.text, action))
    observation = result.observation
    expert.observe(action, observation)
    if result.done:
      return


def with_new_names(
  source: Iterator[Demonstration], sets: Sequence[np.ndarray], *, vocab: int, seed: int
) -> Iterator[Demonstration]:
  """Exchanges names, anew in each demonstration.

  A name in a prompt then says nothing but itself: which surname follows a first name
  can only be read, not known, and names of unseen tasks are as good as any.

  Args:
    source: demonstrations.
    sets: ids that may stand for each other, [n] each.
    vocab: ids in all.
    seed: of the draws.
  """
  random = np.random.default_rng(seed)
  for demonstration in source:
    table = np.arange(vocab, dtype=np.int32)
    for ids in sets:
      table[ids] = random.permutation(ids)
    yield Demonstration(
      table[demonstration.prompt_ids], table[demonstration.response_ids]
    )


def copying(
  ids: Sequence[int], *, shortest: int, longest: int, seed: int
) -> Iterator[Demonstration]:
  """Makes practice in copying, for ever: random tokens, then the same.

  What a prompt names has to be written again exactly, names that training tasks never
  mention included. Random tokens teach that within a few hundred updates, because
  nothing else predicts them.

  Args:
    ids: the tokens to draw from.
    shortest: tokens of a prompt, at least.
    longest: tokens of a prompt, at most.
    seed: of the draws.
  """
  random = np.random.default_rng(seed)
  while True:
    length = int(random.integers(shortest, longest + 1))
    drawn = random.choice(np.asarray(ids, np.int32), length)
    yield Demonstration(drawn, drawn)


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
