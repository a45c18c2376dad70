"""Supervised fine-tuning on a scripted expert's episodes (`--mode=sft`).

Where the prompt shows skills, the expert that searches likely places first answers;
where it does not, one that explores blindly. So the policy learns to act by what its
prompt tells it, and skills in the prompt are worth having: a student, and a better
informed teacher in the same weights. The informed expert may also answer some prompts
without skills: knowledge that the student has, and seldom acts on.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdar_jax import batching
from sdar_jax.envs import base
from sdar_jax.learner import scoring
from sdar_jax.models import qwen
from sdar_jax.prompts import fitting
from sdar_jax.prompts.skills import SkillView

# encode(text) -> ids of a response, tags as tokens and the stop token at its end.
Encode = Callable[[str], np.ndarray]
Prompt = Callable[[str, base.Task], tuple[np.ndarray, SkillView]]


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """One turn to imitate: `prompt_ids` [L] and `response_ids` [R], int32."""

  prompt_ids: np.ndarray
  response_ids: np.ndarray


def demonstrations(
  world: base.World,
  tasks: base.TaskSet,
  *,
  plain: Prompt,
  skilled: Prompt,
  encode: Encode,
  skilled_fraction: float,
  informed_fraction: float,
  mistake_rate: float,
  seed: int,
  max_prompt_tokens: int,
) -> Iterator[Demonstration]:
  """Expert turns, for ever: episode i plays task i with draws of its own.

  Prompts are those of rollout: one that cannot be made to fit ends its episode.

  Args:
    world: the world and its experts.
    tasks: the training tasks, used in order.
    plain: the prompt without skills.
    skilled: the prompt with skills.
    encode: response text to ids.
    skilled_fraction: of the episodes.
    informed_fraction: of the other episodes, those that the informed expert plays too.
    mistake_rate: chance that a mistake is played in place of the expert's action,
      whose answer to the situation is still what is imitated.
    seed: of the draws.
    max_prompt_tokens: longest prompt, skills not counted.

  Raises:
    ValueError: not even the first prompt fits.
  """
  for index in itertools.count():
    task = tasks[index % len(tasks)]
    random = np.random.default_rng([seed, index])
    with_skills = bool(random.random() < skilled_fraction)
    informed = with_skills or (  # A fraction of 0 takes no draw from what follows.
      informed_fraction > 0 and random.random() < informed_fraction
    )
    kind = world.demonstrators[0 if informed else 1]
    expert = world.expert(kind, seed=int(random.integers(2**31)))
    prompt = skilled if with_skills else plain
    turns = _episode(
      world, task, expert, prompt, mistake_rate, random, max_prompt_tokens
    )
    empty = True
    for prompt_ids, text in turns:
      empty = False
      yield Demonstration(prompt_ids, encode(text))
    if empty and index == 0:
      raise ValueError(
        f'task {task.task_id}: its first prompt exceeds config.rollout.'
        f'max_prompt_tokens={max_prompt_tokens}: raise it'
      )


def _episode(
  world: base.World,
  task: base.Task,
  expert: base.Expert,
  prompt: Prompt,
  mistake_rate: float,
  random: np.random.Generator,
  max_prompt_tokens: int,
) -> Iterator[tuple[np.ndarray, str]]:
  """The prompts of one episode, and what the expert says to them."""
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
      max_tokens=max_prompt_tokens,
    )
    if fitted is None:
      return
    yield fitted.ids, world.response(thought, action)
    if random.random() < mistake_rate:
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
  """Demonstrations in which names have changed places, anew in each.

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
  """Practice in copying, for ever: a prompt of random tokens and the same once more.

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
  """Batches of rows of similar length: `tokens` [M, T] i32, `weights` [M, T] f32.

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
  width = batching.bucket(longest, buckets, 'train.length_buckets')
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
  model: qwen.ModelConfig,
  tx: optax.GradientTransformation,
  *,
  peak: float,
  warmup_steps: int,
  steps: int,
  valid_vocab: int,
  dtype: Any,
  remat: bool,
  chunk: int,
) -> Callable[..., Any]:
  """A jitted update: (params, opt_state, batch, i) -> (params, opt_state, metrics).

  The loss is the weighted mean negative log-likelihood, nats per token; the learning
  rate rises linearly over `warmup_steps` and falls along a cosine to 0 at `steps`.
  """
  schedule = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps)

  def loss_fn(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
    tokens, weights = batch['tokens'], batch['weights']
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    logprobs, _ = scoring.token_logprobs(
      model,
      params,
      tokens,
      positions,
      temperature=1.0,
      valid_vocab=valid_vocab,
      dtype=dtype,
      remat=remat,
      chunk=chunk,
    )
    loss = -jnp.sum(weights * logprobs) / jnp.maximum(jnp.sum(weights), 1.0)
    response = weights == 1.0
    nll = -jnp.sum(jnp.where(response, logprobs, 0)) / jnp.maximum(response.sum(), 1)
    return loss, nll

  def step(params: Any, opt_state: Any, batch: Any, i: jax.Array) -> Any:
    (_, nll), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(lambda p, u: p + schedule(i) * u, params, updates)
    return params, opt_state, {'nll': nll, 'grad_norm': optax.tree.norm(grads)}

  return jax.jit(step, donate_argnums=(0, 1))


def count_steps(rows: int, batch_rows: int, pool_rows: int = 4096) -> int:
  """Batches that `batches` yields."""
  full, rest = divmod(rows, pool_rows)
  return full * math.ceil(pool_rows / batch_rows) + math.ceil(rest / batch_rows)
