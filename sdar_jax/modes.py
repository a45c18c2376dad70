"""What `main` can do besides training: sft, eval, play and export."""

import functools
import itertools
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sdar_jax import build, files, numerics, sft
from sdar_jax.config import ConfigError
from sdar_jax.evaluation import display, evaluate, panels
from sdar_jax.learner import checkpoint as checkpoints
from sdar_jax.learner import optimizer
from sdar_jax.logs.console import Console
from sdar_jax.models import export
from sdar_jax.process import terminal
from sdar_jax.prompts import fitting, skills
from sdar_jax.rollout import episodes
from sdar_jax.storage import identity

_SHORTEST_COPY, _LONGEST_COPY = 8, 48  # Tokens; what small models have to copy.


class OutputError(RuntimeError):
  """A result that could not be written where it was to go; says where it is."""

  exit_code = 74


class _Policy:
  """A world, a tokenizer and weights: the config's, or a checkpoint's."""

  def __init__(self, config: ConfigDict, checkpoint: str | None):
    numerics.pin()
    self.config = config
    self.world = build.make_world(config)
    self.chat = build.make_chat(config, self.world)
    self.teacher = build.make_teacher(config, self.world, self.chat)
    self.mesh = build.make_mesh(config)
    self.model, self.params = build.load_model(config, self.mesh, self.chat)
    self.weights = {'step': 0, 'model_digest': build.model_digest(config)}
    if checkpoint is not None:
      self._load(pathlib.Path(checkpoint))

  def _load(self, run: pathlib.Path) -> None:
    like = {'params': self.params}
    restored = checkpoints.load(run / 'checkpoints', like, subset=True)
    if restored is None:
      raise checkpoints.CheckpointError(f'{run / "checkpoints"}: no checkpoint there')
    inputs = {
      'model_digest': self.weights['model_digest'],
      'tokenizer_digest': self.chat.digest,
    }
    identity.check(restored.host, inputs, restored.step, run)
    self.params = restored.state['params']
    self.teacher.retriever.restore(restored.host['retrieval'])
    names = 'model_digest', 'config_digest'
    self.weights = {'step': restored.step, **{k: restored.host[k] for k in names}}

  def agent_and_sampler(self) -> tuple[episodes.Agent, Any]:
    """As `config.eval` wants them."""
    c = self.config.eval
    agent = build.make_agent(
      self.config,
      self.chat,
      self.teacher,
      temperature=c.temperature,
      sees_skills=lambda member: c.with_skills,
    )
    sampler = build.make_sampler(
      self.config,
      self.model,
      self.params,
      self.chat,
      self.mesh,
      with_skills=c.with_skills,
    )
    return agent, sampler


def run_eval(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Plays the panel of `config.eval` and prints the table; `output` takes the JSON."""
  build.check_context(config, with_skills=config.eval.with_skills)
  policy = _Policy(config, checkpoint)
  c = config.eval
  panel = panels.make_panel(policy.world, c.split, c.tasks)
  agent, sampler = policy.agent_and_sampler()
  plan = build.make_plan(config, policy.world, panel, agent)
  console = Console(0, sys.stdout)
  with build.make_pool(config, policy.world) as pool, console:
    console.phase('eval')
    result, played = evaluate.evaluate(
      plan, pool, sampler, policy.weights, progress=console.episodes
    )
  console.table(display.table({'success': result}))
  console.once('room', fitting.notice(played))
  if output is not None:
    _keep(output, json.dumps(result, indent=1))


def _keep(output: pathlib.Path, report: str) -> None:
  """Writes a report; where that fails, writes it elsewhere or prints it."""
  try:
    with terminal.uninterrupted():
      output.parent.mkdir(parents=True, exist_ok=True)
      files.write_atomic(output, report.encode())
  except OSError as error:
    what = f'--output={output}: {files.one_line(error)}'
    try:
      spare = pathlib.Path(tempfile.mkdtemp(prefix='sdar-')) / output.name
      files.write_atomic(spare, report.encode())
    except OSError:
      print(report)
      raise OutputError(f'{what}; the report is printed above') from error
    raise OutputError(f'{what}; the report is in {spare}') from error


def run_play(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Prints one episode of the first task of `config.eval.split`, turn by turn."""
  del output
  build.check_context(config, with_skills=config.eval.with_skills)
  policy = _Policy(config, checkpoint)
  task = policy.world.tasks(config.eval.split)[0]
  agent, sampler = policy.agent_and_sampler()
  identity = (config.seed, 0)
  with build.make_pool(config, policy.world) as pool:
    groups = episodes.collect(
      pool, [task], sampler, agent, group_size=1, identity=identity
    )
  trajectory = groups[0].trajectories[0]
  print(f'{trajectory.task_id}: {task.goal}')
  for i, turn in enumerate(trajectory.turns):
    print(f'\n[{i + 1}] {turn.observation}\n> {turn.response}')
  print(f'\n{trajectory.outcome.value} after {len(trajectory.turns)} turns')


def run_export(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Writes the policy as a Hugging Face directory with its tokenizer."""
  output = _required(output)
  policy = _Policy(config, checkpoint)
  _write(policy, policy.params, output)


def run_sft(
  config: ConfigDict, checkpoint: str | None, output: pathlib.Path | None
) -> None:
  """Imitates the expert and writes the result as a Hugging Face directory."""
  output, c = _required(output), config.sft
  if not c.rows:
    raise ConfigError('config.sft.rows=0: must be positive with --mode=sft')
  build.check_context(config, with_skills=c.skilled_fraction > 0)
  policy = _Policy(config, checkpoint)
  batch_rows = config.train.microbatch_rows
  longest = config.train.length_buckets[-1] // 2
  copying = sft.copying(
    sorted(set(range(policy.chat.len_vocab)) - policy.chat.control_ids),
    shortest=min(_SHORTEST_COPY, longest),
    longest=min(_LONGEST_COPY, longest),
    seed=config.seed,
  )
  demonstrations = sft.demonstrations(
    policy.world,
    policy.world.tasks('train'),
    plain=lambda text, task: (policy.chat.render(text), skills.NOTHING),
    skilled=policy.teacher.prompt,
    encode=lambda text: _encode(policy, text),
    skilled_fraction=c.skilled_fraction,
    informed_fraction=c.informed_fraction,
    mistake_rate=c.mistake_rate,
    seed=config.seed,
    max_prompt_tokens=config.rollout.max_prompt_tokens,
  )
  if c.new_names:
    demonstrations = sft.with_new_names(
      demonstrations,
      _name_ids(policy),
      vocab=policy.chat.len_vocab,
      seed=config.seed,
    )
  rows = c.copy_rows + c.rows
  batches = sft.batches(
    itertools.chain(itertools.islice(copying, c.copy_rows), demonstrations),
    rows=rows,
    batch_rows=batch_rows,
    buckets=build.sft_buckets(config),
    prompt_weight=c.prompt_weight,
    seed=config.seed,
  )
  steps = sft.count_steps(rows, batch_rows)
  params = _fit(config, policy, batches, steps)
  _write(policy, params, output)


def _encode(policy: _Policy, text: str) -> np.ndarray:
  """Ids of an expert's response, which is one that could be sampled."""
  ids = policy.chat.encode_response(text)
  limit = policy.config.rollout.max_response_tokens
  if len(ids) > limit:
    raise ConfigError(
      f'config.rollout.max_response_tokens={limit}: must hold the'
      f" expert's answers, here of {len(ids)} tokens"
    )
  return ids


def _name_ids(policy: _Policy) -> list[np.ndarray]:
  """The tokens of the world's names, of each set and each way to begin a word."""
  sets = []
  for words in policy.world.names:
    for before in ('', ' ', '\n'):
      spelled = [policy.chat.encode_text(before + word) for word in words]
      ids = [int(token[0]) for token in spelled if len(token) == 1]
      sets.append(np.asarray(sorted(set(ids)), np.int32))
  return sets


def _fit(config: ConfigDict, policy: _Policy, batches: Any, steps: int) -> Any:
  c = config.optimizer
  if config.sft.muon:
    tx = optimizer.make_muon(weight_decay=c.weight_decay, max_grad_norm=c.max_grad_norm)
  else:
    tx = optimizer.make_optimizer(
      b1=c.b1,
      b2=c.b2,
      eps=c.eps,
      weight_decay=c.weight_decay,
      max_grad_norm=c.max_grad_norm,
    )
  step = sft.make_step(
    policy.model,
    tx,
    peak=c.learning_rate,
    warmup_steps=c.warmup_steps,
    steps=steps,
    valid_vocab=policy.chat.len_vocab,
    dtype=jnp.dtype(config.model.dtype),
    remat=config.model.remat,
    chunk=config.model.logprob_chunk,
  )
  params, opt_state, recent = policy.params, tx.init(policy.params), []
  i = 0
  try:
    for i, batch in enumerate(batches):
      params, opt_state, metrics = step(params, opt_state, batch, np.int32(i))
      recent.append(metrics['nll'])
      if len(recent) == 200 or i + 1 == steps:
        nll = float(np.mean(jax.device_get(recent)))
        print(f'sft {i + 1}/{steps}: {nll:.4f} nats per response token', flush=True)
        recent = []
  except terminal.Stopped as stopped:
    stopped.lost = f'{i} of {steps} steps of imitation are lost; nothing was written'
    raise
  return params


def _write(policy: _Policy, params: Any, output: pathlib.Path) -> None:
  """Saves a policy; where that fails, saves it elsewhere."""
  with terminal.uninterrupted():
    try:
      _save(policy, params, output)
    except (OSError, ValueError) as error:
      what = f'--output={output}: {files.one_line(error)}'
      try:
        spare = pathlib.Path(tempfile.mkdtemp(prefix='sdar-')) / output.name
        _save(policy, params, spare)
      except (OSError, ValueError) as second:
        raise OutputError(f'{what}; nor elsewhere: {files.one_line(second)}') from error
      raise OutputError(f'{what}; the model is in {spare}') from error


def _required(output: pathlib.Path | None) -> pathlib.Path:
  if output is None:
    raise ConfigError('--output is missing: name the directory to write')
  export.prepare(output)
  return output


def _save(policy: _Policy, params: Any, output: pathlib.Path) -> None:
  c = policy.config
  written = export.Policy(
    source=c.model.path,
    tokenizer=c.model.tokenizer or c.model.path,
    load_chat=functools.partial(build.make_chat, c, policy.world),
    model=policy.model,
    params=params,
    dtype=c.export.dtype,
  )
  dtype = export.write(output, written)
  rest = '' if dtype == 'float32' else '; config.export.dtype=float32 keeps every bit'
  print(f'wrote {output} ({dtype}{rest})')


MODES: dict[str, Callable[..., None]] = {
  'sft': run_sft,
  'eval': run_eval,
  'play': run_play,
  'export': run_export,
}
