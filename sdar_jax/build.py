"""Builds each part of a run from its room of the config.

`parts` calls these functions, in the order in which wrong input is found soonest.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdar_jax.batching.packing import SHARES, Packing
from sdar_jax.config import ConfigError
from sdar_jax.envs import base, talking, worlds
from sdar_jax.envs.pool import pool
from sdar_jax.learner import lengths, memory, optimizer
from sdar_jax.learner.learner import Learner, LearnerConfig
from sdar_jax.learner.muon import make_muon
from sdar_jax.learner.scoring import Scoring
from sdar_jax.methods import table
from sdar_jax.methods.hyperparameters import KEYS as METHOD_KEYS
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm
from sdar_jax.models import (
  adapter_files,
  attention_kernels,
  decoder,
  hf,
  lora,
  sharding,
)
from sdar_jax.prompts import bank_file, chat, retrieval, skills, tags
from sdar_jax.prompts.skills import SkillBank
from sdar_jax.rollout import episodes
from sdar_jax.rollout.request import SamplingParams
from sdar_jax.sampler.sampler import Sampler


def make_world(config: ConfigDict) -> base.World:
  """Makes the world of `config.world`."""
  values = config.world.to_dict()
  return worlds.make(values.pop('name'), values)


def make_pool(config: ConfigDict, world: base.World) -> pool.Pool:
  """Makes the environments of `config.pool`."""
  c = config.pool
  return pool.make(
    world, workers=c.workers, deadline=c.deadline_seconds, retries=c.retries
  )


def make_chat(
  config: ConfigDict, world: base.World, folder: pathlib.Path | None = None
) -> chat.Chat:
  """Loads the tokenizer and template of the policy or of a `folder`.

  Raises:
    ConfigError: they cannot spell a tag that the world's answers need.
  """
  c = config.model
  path = folder or c.tokenizer or c.path
  tokenizer = chat.Chat(
    path,
    enable_thinking=c.enable_thinking,
    instruction=world.instruction,
    date=c.date,
    model=folder or c.path,
    tools=world.tools if isinstance(world, talking.TalkingWorld) else None,
  )
  for tag in _format_tags(world):
    if tag not in tokenizer.opening + tokenizer.decode(tokenizer.encode_response(tag)):
      raise ConfigError(
        f'tokenizer {path} cannot spell {tag}, so no answer in the format of'
        f' {world.name} is valid: set config.model.tokenizer to another'
      )
  return tokenizer


def _format_tags(world: base.World) -> tuple[str, ...]:
  """Finds the tags of answers that a world's experts write."""
  answer = world.response('x', 'x') if hasattr(world, 'response') else ''
  return tags.find(world.instruction + answer)


def make_teacher(
  config: ConfigDict, world: base.World, tokenizer: chat.Chat
) -> skills.TeacherContext:
  """Makes the privileged context: skill bank and place in the prompt."""
  c = config.skills
  path = c.path or world.skills_path
  retriever = retrieval.Retriever(
    bank_file.load(path) if path else SkillBank.empty(world.name),
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
) -> episodes.Agent:
  """Makes the agent that plays: prompts, decoding and sampling.

  Args:
    config: of the run.
    tokenizer: renders and decodes.
    teacher: shows skills.
    temperature: of sampling.
    sees_skills: whether a member of a group sees skills.
  """

  def prompt(text: str, task: base.Task, member: int) -> Any:
    if sees_skills(member):
      return teacher.prompt(text, task)
    return tokenizer.render(text), skills.NOTHING

  c = config.rollout
  if lengths.talks(config):
    tokenizer.check_follow()
  return episodes.Agent(
    prompt=prompt,
    decode=tokenizer.decode,
    sampling=SamplingParams(
      temperature=temperature,
      top_p=c.top_p,
      top_k=c.top_k,
      max_tokens=c.max_response_tokens,
      stop_ids=tokenizer.stop_ids,
    ),
    max_prompt_tokens=c.max_prompt_tokens,
    opening=tags.unclosed(tokenizer.opening),
    follow=tokenizer.follow if lengths.talks(config) else None,
    len_vocab=tokenizer.len_vocab,
  )


def make_mesh(config: ConfigDict) -> Mesh:
  """Makes the device mesh of `config.mesh`."""
  return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)


def read_model(
  config: ConfigDict, mesh: Mesh, tokenizer: chat.Chat
) -> decoder.ModelConfig:
  """Reads the architecture of the initial policy; no weights.

  Raises:
    ConfigError: the devices lack the attention that the config asks for, or the
      tokenizer has ids that the model's vocabulary lacks.
  """
  c = config.model
  attention_kernels.check_platform(c.attention, mesh.devices.flat[0].platform)
  model = hf.read_config(c.path)
  if tokenizer.len_vocab > model.vocab_size:
    raise ConfigError(
      f'tokenizer of {tokenizer.len_vocab} ids, model {c.path} of'
      f' {model.vocab_size}: set config.model.tokenizer to the one that belongs to it'
    )
  return dataclasses.replace(model, attention=c.attention, lora=make_lora(c))


def load_weights(config: ConfigDict, mesh: Mesh, *, exact: bool = False) -> Any:
  """Loads the initial policy on its sharding.

  In float32; beside adapters, which then are what trains, in the compute type.

  Args:
    config: of the run.
    mesh: of devices.
    exact: in float32 in any case, for what is to be written.
  """
  c = config.model
  dtype = jnp.dtype(c.dtype if c.lora_rank and not exact else 'float32')
  model, params = hf.load(c.path, mesh, dtype)
  return adapter_files.merge_into(params, model, c.adapter) if c.adapter else params


def check_teacher(config: ConfigDict, hyper: Hyperparameters) -> None:
  """Raises ConfigError where a teacher is to be given and cannot be."""
  c, given = config.model, hyper.teacher_weights == 'given'
  if given and not c.teacher:
    raise ConfigError(
      "config.algorithm.teacher_weights='given': set config.model.teacher to a trained"
      ' model'
    )
  if c.teacher and not given:
    raise ConfigError(
      f'config.model.teacher={c.teacher!r}: nothing reads it unless'
      " config.algorithm.teacher_weights is 'given'"
    )
  if given and c.lora_rank:
    raise ConfigError(
      f'config.model.lora_rank={c.lora_rank}: a given teacher is a whole model; set it'
      ' to 0'
    )


def load_teacher(config: ConfigDict, mesh: Mesh, like: Any) -> Any:
  """Loads the given teacher, whose weights are shaped as the policy's."""
  path = config.model.teacher
  _, params = hf.load(path, mesh, jnp.dtype('float32'))
  shapes = [jax.tree.map(jnp.shape, weights) for weights in (params, like)]
  if shapes[0] != shapes[1]:
    raise ConfigError(
      f'config.model.teacher={path!r}: its weights are not shaped as those of'
      f' config.model.path={config.model.path!r}'
    )
  return params


def make_lora(config: ConfigDict) -> lora.Lora | None:
  """Makes the settings of adapters from `config.model`; None without."""
  if not config.lora_rank:
    return None
  return lora.Lora(config.lora_rank, config.lora_alpha, config.lora_targets)


def make_sizes(
  config: ConfigDict, learner: Learner, packing: Packing, *, with_skills: bool
) -> memory.Sizes:
  """Collects what decides the memory of a run.

  Args:
    config: of the run.
    learner: of the run.
    packing: of its rows.
    with_skills: prompts that are sampled from may show skills.
  """
  c = config.rollout
  longest = c.max_prompt_tokens + config.skills.token_budget * with_skills
  return memory.Sizes(
    rows=packing.microbatch_rows,
    length=packing.length_buckets[-1],
    teacher_length=packing.teacher_buckets[-1] if learner.has_teacher else 0,
    several=packing.minibatch_rows > packing.microbatch_rows,
    logit_positions=config.model.logit_positions,
    scored_share=1.0 if lengths.talks(config) else 1 / SHARES[0],
    remat=config.model.remat,
    slots=c.slots,
    positions=longest + c.max_response_tokens,
    prefill_rows=max(1, c.prefill_tokens // c.prefill_chunk),
    prefill_chunk=c.prefill_chunk,
    dtype=config.model.dtype,
    moments=memory.moments(make_optimizer(config)),
    moments_at=config.optimizer.moments,
    needs_initial=learner.needs_initial,
    keeps_teacher=learner.keeps_teacher,
  )


def make_sampler(
  config: ConfigDict,
  tokenizer: chat.Chat,
  mesh: Mesh,
  model: decoder.ModelConfig,
  params: Any,
  *,
  with_skills: bool,
) -> Sampler:
  """Makes the sampler, with or without room for skills in prompts."""
  c = config.rollout
  budget = config.skills.token_budget if with_skills else 0
  longest = c.max_prompt_tokens + budget
  return Sampler(
    model,
    params,
    slots=c.slots,
    max_prompt_tokens=longest,
    max_response_tokens=c.max_response_tokens,
    prefill_chunk=c.prefill_chunk,
    prefill_tokens=c.prefill_tokens,
    decode_chunk=c.decode_chunk,
    valid_vocab=tokenizer.len_vocab,
    dtype=jnp.dtype(config.model.dtype),
    decode=tokenizer.decode,
    mesh=mesh,
  )


def make_hyperparameters(config: ConfigDict) -> Hyperparameters:
  """Makes the numbers of the method."""
  return Hyperparameters(**{name: config.algorithm[name] for name in METHOD_KEYS})


def check_topk(
  hyper: Hyperparameters, algorithm: Algorithm, tokenizer: chat.Chat
) -> None:
  """Raises ConfigError if a divergence compares more ids than there are."""
  if algorithm.needs_divergence(hyper) and hyper.topk > tokenizer.len_vocab:
    raise ConfigError(
      f'config.algorithm.topk={hyper.topk}: must be at most {tokenizer.len_vocab}, the'
      ' ids of the tokenizer; 0 compares all of them'
    )


def make_algorithm(config: ConfigDict) -> Algorithm:
  """Finds the method: a row of the table, or two combined.

  Raises:
    ConfigError: there is no such row, or groups are too small for it.
  """
  try:
    algorithm = table.find(config.algorithm.name)
  except KeyError as error:
    raise ConfigError(f'config.algorithm.name={error.args[0]}') from None
  size = config.rollout.group_size
  least = algorithm.least_group_size(make_hyperparameters(config))
  if size < least:
    raise ConfigError(
      f'config.rollout.group_size={size}: must be at least {least} for'
      f' config.algorithm.name={config.algorithm.name}, which compares members of a'
      ' group'
    )
  return algorithm


def make_scoring(
  config: ConfigDict, tokenizer: chat.Chat, *, temperature: float
) -> Scoring:
  """Makes the settings of scoring."""
  c = config.model
  return Scoring(
    temperature=temperature,
    valid_vocab=tokenizer.len_vocab,
    dtype=jnp.dtype(c.dtype),
    remat=c.remat,
    chunk=c.logit_positions,
  )


def make_optimizer(
  config: ConfigDict, *, muon: bool = False
) -> optax.GradientTransformation:
  """Makes the optimizer of `config.optimizer`, without its learning rate."""
  c = config.optimizer
  shared = {'weight_decay': c.weight_decay, 'max_grad_norm': c.max_grad_norm}
  if muon:
    return make_muon(**shared)
  return optimizer.make_optimizer(b1=c.b1, b2=c.b2, eps=c.eps, **shared)


def make_learner(
  config: ConfigDict,
  tokenizer: chat.Chat,
  mesh: Mesh,
  model: decoder.ModelConfig,
  algorithm: Algorithm,
  hyper: Hyperparameters,
) -> Learner:
  """Makes the learner with its optimizer."""
  optimizer.check_place(config.optimizer.moments, mesh.devices.flat[0])
  c, scores_old = config.rollout, config.train.old_logprobs == 'scored'
  read = algorithm.needs_entropy(hyper) or algorithm.has_critic
  if not scores_old and (read or hyper.kl_in == 'reward'):
    raise ConfigError(
      "config.train.old_logprobs='sampled': the method reads entropies, values or a KL"
      " of the pass that this leaves out: set it to 'scored'"
    )
  settings = LearnerConfig(
    make_scoring(config, tokenizer, temperature=c.temperature),
    max_response_tokens=c.max_response_tokens,
    learning_rate=config.optimizer.learning_rate,
    warmup_steps=config.optimizer.warmup_steps,
    mean_over=config.algorithm.mean_over,
    accumulation=config.train.minibatch_rows // config.train.microbatch_rows,
    moments=config.optimizer.moments,
    scores_old=scores_old,
  )
  return Learner(model, settings, algorithm, hyper, make_optimizer(config), mesh)
