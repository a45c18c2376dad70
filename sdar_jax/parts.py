"""The parts of a run, each built from its room of the config."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdar_jax import (
  algorithms,
  batching,
  chat,
  contexts,
  files,
  optimizer,
  retrieval,
  rollout,
  skills,
  writers,
)
from sdar_jax import config as config_lib
from sdar_jax.config import ConfigError
from sdar_jax.envs import base, pool, worlds
from sdar_jax.hyperparameters import LossConfig
from sdar_jax.learner import Learner, LearnerConfig
from sdar_jax.models import convert, qwen, sharding
from sdar_jax.objective import Algorithm, StepData
from sdar_jax.request import SamplingParams
from sdar_jax.sampler import Sampler

# What the learner finds out of sampled tokens before the first update.
_SCORES = (
  'old_logprobs',
  'ref_logprobs',
  'teacher_logprobs',
  'old_entropy',
  'old_kl',
  'old_values',
)
_THOUGHT_ENDS = '</think>'
_LOOKED_AT = 256  # Tasks that are looked at before a run starts.


def make_world(config: ConfigDict) -> base.World:
  """The world of `config.world`."""
  values = config.world.to_dict()
  return worlds.make(values.pop('name'), values)


def make_pool(config: ConfigDict, world: base.World) -> pool.Pool:
  """The environments of `config.pool`."""
  c = config.pool
  return pool.make(
    world, workers=c.workers, deadline=c.deadline_seconds, retries=c.retries
  )


def make_chat(config: ConfigDict, world: base.World) -> chat.Chat:
  """The tokenizer and template of the policy."""
  return chat.Chat(
    config.model.tokenizer or config.model.path,
    enable_thinking=config.model.enable_thinking,
    instruction=world.instruction,
  )


def make_teacher(
  config: ConfigDict, world: base.World, tokenizer: chat.Chat
) -> skills.TeacherContext:
  """The privileged context: the skill bank and where it enters the prompt."""
  c = config.skills
  retriever = retrieval.Retriever(
    skills.SkillBank.load(c.path or world.skills_path),
    c.retrieval,
    limit=c.limit,
    ucb_coef=c.ucb_coef,
    keyword_scope=c.keyword_scope,
    seed=config.seed,
  )
  return skills.TeacherContext(
    retriever, tokenizer, c.placement, token_budget=c.token_budget
  )


def make_agent(
  config: ConfigDict,
  tokenizer: chat.Chat,
  teacher: skills.TeacherContext,
  *,
  temperature: float,
  sees_skills: Callable[[int], bool],
) -> rollout.Agent:
  """How the policy is prompted and sampled; which members of a group see skills."""

  def prompt(text: str, task: base.Task, member: int) -> Any:
    if sees_skills(member):
      return teacher.prompt(text, task)[0]
    return tokenizer.render(text)

  c = config.rollout
  anyone = any(map(sees_skills, range(c.group_size)))
  budget = config.skills.token_budget if anyone else 0
  return rollout.Agent(
    prompt=prompt,
    decode=tokenizer.decode,
    sampling=SamplingParams(
      temperature=temperature,
      top_p=c.top_p,
      top_k=c.top_k,
      max_tokens=c.max_response_tokens,
      stop_ids=tokenizer.stop_ids,
    ),
    max_prompt_tokens=c.max_prompt_tokens + budget,
  )


def make_mesh(config: ConfigDict) -> Mesh:
  """The device mesh of `config.mesh`."""
  return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


def load_model(
  config: ConfigDict, mesh: Mesh, tokenizer: chat.Chat
) -> tuple[qwen.ModelConfig, Any]:
  """The initial policy, in float32 on its sharding.

  Raises:
    ConfigError: the tokenizer has ids that the model's vocabulary lacks.
  """
  model = convert.read_config(config.model.path)
  if tokenizer.len_vocab > model.vocab_size:
    raise ConfigError(
      f'tokenizer of {tokenizer.len_vocab} ids, model {config.model.path} of'
      f' {model.vocab_size}: set config.model.tokenizer to the one that belongs to it'
    )
  model, params = convert.load(config.model.path, mesh, jnp.float32)
  return dataclasses.replace(model, attention=config.model.attention), params


def model_digest(config: ConfigDict) -> str:
  """What identifies the initial policy: a directory's content, or the hub id."""
  path = pathlib.Path(config.model.path)
  return files.digest_directory(path) if path.is_dir() else config.model.path


def make_sampler(
  config: ConfigDict,
  model: qwen.ModelConfig,
  params: Any,
  tokenizer: chat.Chat,
  mesh: Mesh,
  *,
  with_skills: bool,
) -> Sampler:
  """The sampler; `with_skills` leaves room for skills in the prompts."""
  c = config.rollout
  budget = config.skills.token_budget if with_skills else 0
  longest = c.max_prompt_tokens + budget
  buckets = tuple(c.prefill_buckets)
  if buckets[-1] < longest:
    buckets = (*buckets, longest)
  return Sampler(
    model,
    params,
    slots=c.slots,
    max_prompt_tokens=longest,
    max_response_tokens=c.max_response_tokens,
    prefill_buckets=buckets,
    prefill_tokens=c.prefill_tokens,
    decode_chunk=c.decode_chunk,
    valid_vocab=tokenizer.len_vocab,
    dtype=jnp.dtype(config.model.dtype),
    decode=tokenizer.decode,
    mesh=mesh,
  )


def make_sinks(
  config: ConfigDict, directory: pathlib.Path, resume_step: int | None
) -> list[writers.Sink]:
  """Where numbers go besides the work directory's own files."""
  sinks: list[writers.Sink] = []
  if config.log.tensorboard:
    sinks.append(writers.TensorBoardSink(directory / 'tensorboard', resume_step))
  if config.log.wandb_project:
    values = config_lib.flatten(config)
    sinks.append(writers.WandbSink(config.log.wandb_project, directory, values))
  return sinks


def make_loss_config(config: ConfigDict) -> LossConfig:
  """The coefficients of the objective."""
  names = [field.name for field in dataclasses.fields(LossConfig)]
  return LossConfig(**{name: config.algorithm[name] for name in names})


def make_algorithm(config: ConfigDict) -> Algorithm:
  """The method: a row of the table, or two combined."""
  try:
    return algorithms.find(config.algorithm.name)
  except KeyError as error:
    raise ConfigError(f'config.algorithm.name={error.args[0]}') from None


def make_learner(
  config: ConfigDict, model: qwen.ModelConfig, tokenizer: chat.Chat, mesh: Mesh
) -> Learner:
  """The learner with its optimizer."""
  c = config.optimizer
  tx = optimizer.make_optimizer(
    b1=c.b1,
    b2=c.b2,
    eps=c.eps,
    weight_decay=c.weight_decay,
    max_grad_norm=c.max_grad_norm,
  )
  settings = LearnerConfig(
    max_response_tokens=config.rollout.max_response_tokens,
    temperature=config.rollout.temperature,
    valid_vocab=tokenizer.len_vocab,
    dtype=config.model.dtype,
    remat=config.model.remat,
    logprob_chunk=config.model.logprob_chunk,
    learning_rate=c.learning_rate,
    warmup_steps=c.warmup_steps,
    mean_over=config.algorithm.mean_over,
    accumulation=config.train.minibatch_rows // config.train.microbatch_rows,
  )
  algorithm, loss = make_algorithm(config), make_loss_config(config)
  return Learner(model, settings, algorithm, loss, tx, mesh)


def tasks_at(tasks: base.TaskSet, *, seed: int, cursor: int, count: int) -> list:
  """Tasks `cursor` to `cursor + count` of the training order.

  The order is a function of the seed alone, equal across methods: each pass over the
  split is a permutation of its own.
  """
  out = []
  for position in range(cursor, cursor + count):
    epoch, index = divmod(position, len(tasks))
    out.append(tasks[int(_epoch_order(seed, epoch, len(tasks))[index])])
  return out


def first_tasks(config: ConfigDict, tasks: base.TaskSet) -> list:
  """The first tasks that a run of this config trains on, `_LOOKED_AT` at most."""
  count = min(config.steps * config.rollout.tasks_per_step, len(tasks), _LOOKED_AT)
  return tasks_at(tasks, seed=config.seed, cursor=0, count=count)


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> Any:
  return np.random.default_rng([seed, epoch]).permutation(size)


def fetch(batch: list[Any], host: list[Any]) -> list[dict[str, Any]]:
  """Microbatches of all minibatches on the host: what it knew, and the scores."""
  out = []
  for on_device, on_host in zip(
    itertools.chain(*batch), itertools.chain(*host), strict=True
  ):
    scores = {name: on_device[name] for name in _SCORES if name in on_device}
    out.append({**on_host, **jax.device_get(scores)})
  return out


def step_data(
  rows: list[batching.Row],
  views: list[skills.SkillView] | None,
  scored: list[dict[str, Any]],
  algorithm: Algorithm,
  loss: LossConfig,
  tokenizer: chat.Chat,
  step: int,
) -> StepData:
  """What credit assignment reads of a step's rows; `scored` comes from `fetch`."""
  width = max(len(row.turn.response_ids) for row in rows)
  sizes = np.asarray([len(row.turn.response_ids) for row in rows])
  columns = np.arange(width)
  action_mask = None
  if loss.action_weight != 1:
    ends = [tokenizer.end_of(row.turn.response_ids, _THOUGHT_ENDS) for row in rows]
    action_mask = (columns >= np.asarray(ends)[:, None]) & (columns < sizes[:, None])
  return StepData(
    **batching.identities(rows),
    sees_skills=np.asarray([algorithm.sees_skills(r.trajectory.member) for r in rows]),
    taught=None if views is None else contexts.taught(views),
    response_mask=columns < sizes[:, None],
    **{name: batching.gather(scored, name, len(rows), width) for name in _SCORES},
    action_mask=action_mask,
    step=step,
  )
