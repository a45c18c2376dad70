"""The parts of each mode: one door from the config to all of them.

Training enters by `host_parts` and `training_parts`, eval and play by `player`, sft by
`imitation`, export by `policy`, memory by `memory_plan`. Behind each door what needs no
device comes first, so that wrong input is found before any device work.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdar_jax import build, numerics
from sdar_jax.batching.packing import Packing
from sdar_jax.envs import base
from sdar_jax.envs.pool.pool import Pool
from sdar_jax.evaluation import evaluate, manifests, panels
from sdar_jax.learner import checkpoint as checkpoints
from sdar_jax.learner import lengths, memory
from sdar_jax.learner.learner import Learner
from sdar_jax.learner.optimizer import TrainState
from sdar_jax.learner.scoring import Scoring
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm
from sdar_jax.models import adapter_files, decoder, export, hf, lora, sharding
from sdar_jax.process.team import ALONE, Alone
from sdar_jax.prompts import chat, skills
from sdar_jax.rollout import episodes, order
from sdar_jax.sampler.sampler import Sampler
from sdar_jax.storage import identity

_LOOKED_AT = 256  # Tasks that are looked at before a run starts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
  """Parts of every mode that need no device.

  Attributes:
    config: the whole configuration.
    world: where episodes are played.
    chat: tokenizer and template of the policy.
    teacher: the privileged context.
  """

  config: ConfigDict
  world: base.World
  chat: chat.Chat
  teacher: skills.TeacherContext


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostParts(Common):
  """Parts of training that need no device.

  Attributes:
    algorithm: the method.
    hyper: its numbers.
    tasks: the training tasks.
    pool: environments of the world.
    agent: prompts and sampling of training episodes.
    plan: what evaluations play and how.
    packing: how rows become minibatches.
  """

  algorithm: Algorithm
  hyper: Hyperparameters
  tasks: base.TaskSet
  pool: Pool
  agent: episodes.Agent
  plan: evaluate.Plan
  packing: Packing

  @property
  def shows_skills(self) -> bool:
    """Whether prompts that are sampled from may show skills."""
    c = self.config.eval
    return c.with_skills or self.algorithm.student_sees_skills != 'none'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts(HostParts):
  """All parts of training.

  Attributes:
    directory: of the run.
    inputs: what identifies the run, by the keys of `identity.INPUTS`.
    mesh: of devices.
    model: architecture of the policy.
    learner: scores rows and updates the policy.
    initial: the initial weights, or None where nothing reads them.
    store: the checkpoints.
  """

  directory: pathlib.Path
  inputs: dict[str, Any]
  mesh: Mesh
  model: decoder.ModelConfig
  learner: Learner
  initial: Any
  store: checkpoints.CheckpointStore

  def make_sampler(self, params: Any) -> Sampler:
    """Makes the sampler of training and its evaluations."""
    c, seen = self.config, self.shows_skills
    return build.make_sampler(
      c,
      self.chat,
      sharding.local_mesh(self.mesh),
      self.model,
      params,
      with_skills=seen,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy(Common):
  """A policy, the config's or a checkpoint's.

  Attributes:
    mesh: of devices.
    model: its architecture.
    params: its weights, or those of the model that it adapts.
    adapters: what trains beside the model, or None.
    weights: what names them in reports.
  """

  mesh: Mesh
  model: decoder.ModelConfig
  params: Any
  adapters: Any
  weights: dict[str, Any]

  @property
  def joined(self) -> Any:
    """The weights that a forward pass reads."""
    if self.adapters is None:
      return self.params
    return lora.joined(self.params, self.adapters, self.model.lora)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Player(Policy):
  """A policy that plays as `config.eval` says.

  Attributes:
    plan: what an evaluation plays and how.
    pool: environments of the world.
    sampler: completes prompts with the policy.
  """

  plan: evaluate.Plan
  pool: Pool
  sampler: Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imitation(Policy):
  """A policy that imitates as `config.sft` says.

  Attributes:
    buckets: padded lengths of demonstrations.
    scoring: how they are scored.
    tx: the optimizer.
  """

  buckets: tuple[int, ...]
  scoring: Scoring
  tx: optax.GradientTransformation


def host_parts(config: ConfigDict) -> HostParts:
  """Builds the parts of training that need no device."""
  world = build.make_world(config)
  tasks = world.tasks('train')
  panel, common = manifests.panel_of(world, config.eval), _common(config, world)
  algorithm = build.make_algorithm(config)
  hyper = build.make_hyperparameters(config)
  build.check_topk(hyper, algorithm, common.chat)
  build.check_teacher(config, hyper)
  packing = lengths.make_packing(config, algorithm, hyper)
  if algorithm.shows_skills(hyper):
    count = min(config.steps * config.rollout.tasks_per_step, len(tasks), _LOOKED_AT)
    first = order.tasks_at(tasks, seed=config.seed, cursor=0, count=count)
    common.teacher.check(first)
  return HostParts(
    **vars(common),
    algorithm=algorithm,
    hyper=hyper,
    tasks=tasks,
    pool=build.make_pool(config, world),
    agent=build.make_agent(
      config,
      common.chat,
      common.teacher,
      temperature=config.rollout.temperature,
      sees_skills=algorithm.sees_skills,
    ),
    plan=_plan(common, panel),
    packing=packing,
  )


def training_parts(
  host: HostParts, directory: pathlib.Path, config_digest: str, team: Alone = ALONE
) -> tuple[Parts, TrainState]:
  """Adds the parts of training that need a device.

  Args:
    host: of the same run.
    directory: of the run.
    config_digest: of the configuration that it has to go on with.
    team: the processes of the run.

  Returns:
    All parts, and the state of a run that begins.

  Raises:
    ValueError: one line naming what in the config or its files is wrong.
    files.DiskError: the disk refuses the checkpoints' directory.
  """
  config = host.config
  mesh, model, learner, sizes = _learner(host)
  memory.check(model, mesh, sizes)
  params = build.load_weights(config, mesh)
  inputs = inputs_of(host, config_digest)
  team.agree(inputs, 'give all processes the same files and variables')
  # Before the learner takes the weights over.
  initial = learner.make_initial(params) if learner.needs_initial else None
  given = build.load_teacher(config, mesh, params) if learner.takes_teacher else None
  state = learner.init_state(params, config.seed, given)
  place, keep = directory / 'checkpoints', config.checkpoint.keep
  store = checkpoints.CheckpointStore(place, keep, team)
  return Parts(
    **vars(host),
    directory=directory,
    inputs=inputs,
    mesh=mesh,
    model=model,
    learner=learner,
    initial=initial,
    store=store,
  ), state


def memory_plan(config: ConfigDict) -> tuple[dict[str, dict[str, float]], float]:
  """Adds up what a device will hold, as `memory.plan`, and has."""
  mesh, model, _, sizes = _learner(host_parts(config))
  return memory.plan(model, mesh, sizes), memory.limit(mesh)


def inputs_of(common: Common, config_digest: str) -> dict[str, Any]:
  """Digests the inputs of a run, by the keys of `identity.INPUTS`."""
  given = common.config.model.teacher
  return {
    **({'teacher_digest': hf.digest(given)} if given else {}),
    'seed': common.config.seed,
    'config_digest': config_digest,
    'world_digest': common.world.digest,
    'model_digest': _model_digest(common.config),
    'tokenizer_digest': common.chat.digest,
    'skills_digest': common.teacher.retriever.bank.digest,
    'numerics': numerics.describe(),
  }


def policy(config: ConfigDict, checkpoint: str | None) -> Policy:
  """Builds a policy: the config's, or that of a checkpoint."""
  common, exact = _common(config, build.make_world(config)), not config.export.adapter
  return _policy(common, checkpoint, exact=exact)


def player(config: ConfigDict, checkpoint: str | None) -> Player:
  """Builds a policy that plays, with what it plays."""
  c = config.eval
  lengths.check_context(config, with_skills=c.with_skills)
  world = build.make_world(config)
  panel = manifests.panel_of(world, config.eval)
  common = _common(config, world)
  known = _policy(common, checkpoint)
  drawn = config, known.chat, known.mesh, known.model, known.joined
  return Player(
    **vars(known),
    plan=_plan(common, panel),
    pool=build.make_pool(config, world),
    sampler=build.make_sampler(*drawn, with_skills=c.with_skills),
  )


def imitation(config: ConfigDict, checkpoint: str | None) -> Imitation:
  """Builds a policy that imitates, with its optimizer."""
  buckets = lengths.sft_buckets(config)
  known = policy(config, checkpoint)
  return Imitation(
    **vars(known),
    buckets=buckets,
    scoring=build.make_scoring(config, known.chat, temperature=1.0),
    tx=build.make_optimizer(config, muon=config.sft.muon),
  )


def exported(policy: Policy) -> export.ExportedPolicy:
  """Collects the parts of an export."""
  c = policy.config
  params = policy.joined
  if policy.adapters is not None and not c.export.adapter:
    params = sharding.Program(lora.merged, policy.mesh)(params)
  return export.ExportedPolicy(
    source=c.model.path,
    tokenizer=c.model.tokenizer or c.model.path,
    chat=policy.chat,
    load_chat=functools.partial(build.make_chat, c, policy.world),
    model=policy.model,
    params=params,
    adapters=policy.adapters if c.export.adapter else None,
    dtype=c.export.dtype,
  )


def _common(config: ConfigDict, world: base.World) -> Common:
  spoken = build.make_chat(config, world)
  teacher = build.make_teacher(config, world, spoken)
  return Common(config=config, world=world, chat=spoken, teacher=teacher)


def _plan(common: Common, panel: panels.Panel) -> evaluate.Plan:
  """Makes the plan of evaluations."""
  c = common.config.eval
  agent = build.make_agent(
    common.config,
    common.chat,
    common.teacher,
    temperature=c.temperature,
    sees_skills=lambda member: c.with_skills,
  )
  digest = common.world.digest
  return evaluate.Plan(panel, agent, c.attempts, c.seed, c.with_skills, digest)


def _model_digest(config: ConfigDict) -> str:
  c = config.model
  return adapter_files.digest_with(hf.digest(c.path), c.adapter)


def _place(common: Common) -> tuple[Mesh, decoder.ModelConfig]:
  """Finds the devices, and the model for them. Device work begins here."""
  numerics.prepare()
  mesh = build.make_mesh(common.config)
  return mesh, build.read_model(common.config, mesh, common.chat)


def _learner(
  host: HostParts,
) -> tuple[Mesh, decoder.ModelConfig, Learner, memory.Sizes]:
  """Makes the learner where it runs, and finds what decides its memory."""
  (mesh, model), c, seen = _place(host), host.config, host.shows_skills
  learner = build.make_learner(c, host.chat, mesh, model, host.algorithm, host.hyper)
  sizes = build.make_sizes(c, learner, host.packing, with_skills=seen)
  return mesh, model, learner, sizes


def _policy(common: Common, checkpoint: str | None, *, exact: bool = False) -> Policy:
  mesh, model = _place(common)
  params = build.load_weights(common.config, mesh, exact=exact)
  adapters = None
  if model.lora:
    adapters = lora.make(model.adapter_specs(), mesh, common.config.seed)
  weights = {'step': 0, 'model_digest': _model_digest(common.config)}
  made = Policy(
    **vars(common),
    mesh=mesh,
    model=model,
    params=params,
    adapters=adapters,
    weights=weights,
  )
  return made if checkpoint is None else _restored(made, pathlib.Path(checkpoint))


def _restored(policy: Policy, run: pathlib.Path) -> Policy:
  """Puts the weights and skill counts of a run's last checkpoint in."""
  trained = 'params' if policy.adapters is None else 'adapters'
  like = {'params': getattr(policy, trained)}
  restored = checkpoints.load(run / 'checkpoints', like, subset=True)
  if restored is None:
    raise checkpoints.CheckpointError(f'{run / "checkpoints"}: no checkpoint there')
  inputs = {'tokenizer_digest': policy.chat.digest}
  inputs['model_digest'] = policy.weights['model_digest']
  identity.check(restored.host, inputs, restored.step, run)
  policy.teacher.retriever.restore(restored.host['retrieval'])
  digests = {key: restored.host[key] for key in ('model_digest', 'config_digest')}
  weights = {'step': restored.step, **digests}
  changes = {trained: restored.state['params'], 'weights': weights}
  return dataclasses.replace(policy, **changes)
