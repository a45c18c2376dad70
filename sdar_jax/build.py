"""The parts of a run, each built from its room of the config."""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdar_jax import batching, trajectory
from sdar_jax import config as config_lib
from sdar_jax.config import ConfigError
from sdar_jax.envs import base, worlds
from sdar_jax.envs.pool import pool
from sdar_jax.evaluation import evaluate
from sdar_jax.evaluation.panels import Panel
from sdar_jax.learner import optimizer
from sdar_jax.learner.learner import Learner, LearnerConfig
from sdar_jax.logs import sinks, writers
from sdar_jax.methods import table
from sdar_jax.methods.hyperparameters import LossConfig
from sdar_jax.methods.objective import Algorithm, StepData
from sdar_jax.models import hf, qwen, sharding
from sdar_jax.prompts import chat, retrieval, skills, tags
from sdar_jax.prompts import teacher as teacher_lib
from sdar_jax.rollout import episodes
from sdar_jax.rollout.request import SamplingParams
from sdar_jax.sampler.sampler import Sampler

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


def make_chat(
  config: ConfigDict, world: base.World, folder: pathlib.Path | None = None
) -> chat.Chat:
  """The tokenizer and template of the policy, or those of an exported `folder`.

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
  )
  for tag in _format_tags(world):
    if tag not in tokenizer.opening + tokenizer.decode(tokenizer.encode_response(tag)):
      raise ConfigError(
        f'tokenizer {path} cannot spell {tag}, so no answer in the format of'
        f' {world.name} is valid: set config.model.tokenizer to another'
      )
  return tokenizer


def _format_tags(world: base.World) -> tuple[str, ...]:
  """The tags of a world's answers, as its instruction and its experts write them."""
  answer = world.response('x', 'x') if hasattr(world, 'response') else ''
  return tags.find(world.instruction + answer)


def make_teacher(
  config: ConfigDict, world: base.World, tokenizer: chat.Chat
) -> skills.TeacherContext:
  """The privileged context: the skill bank and where it enters the prompt."""
  c = config.skills
  path = c.path or world.skills_path
  retriever = retrieval.Retriever(
    skills.SkillBank.load(path) if path else skills.SkillBank.empty(world.name),
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
  """How the policy is prompted and sampled; which members of a group see skills."""

  def prompt(text: str, task: base.Task, member: int) -> Any:
    if sees_skills(member):
      return teacher.prompt(text, task)
    return tokenizer.render(text), skills.NOTHING

  c = config.rollout
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
  )


def make_plan(
  config: ConfigDict, world: base.World, panel: Panel, agent: episodes.Agent
) -> evaluate.Plan:
  """What an evaluation plays and how."""
  c = config.eval
  return evaluate.Plan(panel, agent, c.attempts, c.seed, c.with_skills, world.digest)


def row_buckets(
  config: ConfigDict, algorithm: Algorithm, loss: LossConfig
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """Padded lengths of students' and teachers' rows; the last hold whatever may come.

  Those of the config, and one more for students that see skills.

  Raises:
    ConfigError: the model's context is shorter than what a run of this method reads.
  """
  c = config.rollout
  longest = c.max_prompt_tokens + c.max_response_tokens
  seen = any(map(algorithm.sees_skills, range(c.group_size)))
  budget = config.skills.token_budget
  taught = algorithm.needs_teacher(loss)
  check_context(config, with_skills=seen or taught or config.eval.with_skills)
  return (
    _reaching(config.train.length_buckets, longest + budget * seen),
    _reaching(config.train.teacher_buckets, longest + budget),
  )


def sft_buckets(config: ConfigDict) -> tuple[int, ...]:
  """Padded lengths of demonstrations, some of which show skills."""
  c, budget = config.rollout, config.skills.token_budget
  longest = c.max_prompt_tokens + c.max_response_tokens
  skilled = config.sft.skilled_fraction > 0
  return _reaching(config.train.length_buckets, longest + budget * skilled)


def _reaching(buckets: Sequence[int], length: int) -> tuple[int, ...]:
  return (*buckets, length) if buckets[-1] < length else tuple(buckets)


def check_context(config: ConfigDict, *, with_skills: bool) -> None:
  """Compares the longest sequence with the model's context; reads no weights.

  Args:
    config: of the run.
    with_skills: some prompt shows them: a student's, a teacher's or an evaluation's.

  Raises:
    ConfigError: the model has fewer positions.
  """
  c, positions = config.rollout, hf.read_context(config.model.path)
  keys = ['rollout.max_prompt_tokens', 'rollout.max_response_tokens']
  keys += ['skills.token_budget'] if with_skills else []
  sizes = [c.max_prompt_tokens, c.max_response_tokens, config.skills.token_budget]
  sizes = sizes[: len(keys)]
  if positions is not None and sum(sizes) > positions:
    said = ' + '.join(f'config.{k}={n}' for k, n in zip(keys, sizes, strict=True))
    raise ConfigError(
      f'{said} is {sum(sizes)} tokens, model {config.model.path} has {positions}'
      ' positions (max_position_embeddings): lower them'
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
  model = hf.read_config(config.model.path)
  if tokenizer.len_vocab > model.vocab_size:
    raise ConfigError(
      f'tokenizer of {tokenizer.len_vocab} ids, model {config.model.path} of'
      f' {model.vocab_size}: set config.model.tokenizer to the one that belongs to it'
    )
  model, params = hf.load(config.model.path, mesh, jnp.float32)
  return dataclasses.replace(model, attention=config.model.attention), params


def model_digest(config: ConfigDict) -> str:
  """What identifies the initial policy: its hyperparameters and weights."""
  return hf.digest(config.model.path)


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
  return Sampler(
    model,
    params,
    slots=c.slots,
    max_prompt_tokens=longest,
    max_response_tokens=c.max_response_tokens,
    prefill_buckets=_reaching(c.prefill_buckets, longest),
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
  out: list[writers.Sink] = []
  if config.log.tensorboard:
    out.append(sinks.TensorBoardSink(directory / 'tensorboard', resume_step))
  if config.log.wandb_project:
    values = config_lib.flatten(config)
    project = config.log.wandb_project
    out.append(sinks.WandbSink(project, directory, values, resume_step))
  return out


def make_loss_config(config: ConfigDict) -> LossConfig:
  """The coefficients of the objective."""
  names = [field.name for field in dataclasses.fields(LossConfig)]
  return LossConfig(**{name: config.algorithm[name] for name in names})


def make_algorithm(config: ConfigDict) -> Algorithm:
  """The method: a row of the table, or two combined.

  Raises:
    ConfigError: there is no such row, or groups are too small for it.
  """
  try:
    algorithm = table.find(config.algorithm.name)
  except KeyError as error:
    raise ConfigError(f'config.algorithm.name={error.args[0]}') from None
  size = config.rollout.group_size
  least = algorithm.least_group_size(make_loss_config(config))
  if size < least:
    raise ConfigError(
      f'config.rollout.group_size={size}: must be at least {least} for'
      f' config.algorithm.name={config.algorithm.name}, which compares members of a'
      ' group'
    )
  return algorithm


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


def first_tasks(config: ConfigDict, tasks: base.TaskSet) -> list:
  """The first tasks that a run of this config trains on, `_LOOKED_AT` at most."""
  count = min(config.steps * config.rollout.tasks_per_step, len(tasks), _LOOKED_AT)
  return episodes.tasks_at(tasks, seed=config.seed, cursor=0, count=count)


def fetch(batch: list[Any], host: list[Any]) -> list[dict[str, Any]]:
  """Microbatches of all minibatches on the host: what it knew, and the scores."""
  out = []
  for on_device, on_host in zip(
    itertools.chain(*batch), itertools.chain(*host), strict=True
  ):
    scores = {name: on_device[name] for name in _SCORES if name in on_device}
    out.append({**on_host, **jax.device_get(scores)})
  return out


def _thought_end(tokenizer: chat.Chat, turn: trajectory.Turn) -> int:
  """Response tokens up to the action; 0 where the template closed the thought."""
  if _THOUGHT_ENDS in tokenizer.opening and _THOUGHT_ENDS not in turn.response:
    return 0
  return tokenizer.end_of(turn.response_ids, _THOUGHT_ENDS)


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
    ends = [_thought_end(tokenizer, row.turn) for row in rows]
    action_mask = (columns >= np.asarray(ends)[:, None]) & (columns < sizes[:, None])
  return StepData(
    **batching.identities(rows),
    sees_skills=np.asarray([algorithm.sees_skills(r.trajectory.member) for r in rows]),
    taught=None if views is None else teacher_lib.taught(views),
    response_mask=columns < sizes[:, None],
    **{name: batching.gather(scored, name, len(rows), width) for name in _SCORES},
    action_mask=action_mask,
    step=step,
  )
