"""Whole runs of a model of a few thousand weights, in this process, for tests."""

import collections
import contextlib
import functools
import hashlib
import json
import pathlib
import shutil
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick

from experiments import alfworld
from sdar_jax import build, train
from sdar_jax import config as config_lib
from sdar_jax.learner import learner, recovery
from sdar_jax.models import decoder, hf
from sdar_jax.rollout import order

SHIPPED = pathlib.Path(__file__).parents[1] / 'experiments/tiny/alfworld'
UPDATES = 4  # Of a pass: eight turns, two to a minibatch.
MODEL = decoder.ModelConfig(
  family='qwen3',
  vocab_size=893,
  hidden_size=32,
  intermediate_size=32,
  num_layers=1,
  num_heads=2,
  num_kv_heads=1,
  head_dim=16,
  rope_theta=1e4,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)


class Outcome(NamedTuple):
  """Everything that the seed decides, as left by one start or several.

  Attributes:
    error: of the last start, without the name of the place; '' where there was none.
    files: digests of metric lines, episodes and reports.
    saved: digests of all arrays, and the host's part, of the last pass that was saved.
  """

  error: str
  files: dict
  saved: tuple


@contextlib.contextmanager
def compiling():
  """Shares programs among runs, and compiles them fast instead of well."""
  make = build.make_learner
  keep = functools.lru_cache(maxsize=None)(lambda key: make(*key.arguments))
  build.make_learner = lambda *arguments: keep(_ByRooms(arguments))
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  try:
    with mock.patch.object(jax, 'jit', quick.jit):
      yield
  finally:
    jax.config.update('jax_disable_most_optimizations', before)
    build.make_learner = make


class _ByRooms:
  """A learner's arguments, equal where the rooms that it reads are."""

  def __init__(self, arguments):
    self.arguments = arguments
    rooms = ('model', 'algorithm', 'rollout', 'train', 'optimizer', 'mesh')
    values = config_lib.flatten(arguments[0])
    self._name = repr([v for k, v in values.items() if k.split('.')[0] in rooms])

  def __eq__(self, other):
    return self._name == other._name

  def __hash__(self):
    return hash(self._name)


def write_model(folder, scale=1 / 8):
  """A model directory: random weights, and the tokenizer of the small model.

  Those of a larger `scale` make it sure of what it says.
  """
  shutil.copytree(SHIPPED, folder)
  for name in ('config.json', 'model.safetensors'):
    (folder / name).unlink()
  random = np.random.default_rng(0)
  draw = lambda spec: (random.normal(size=spec.shape) * scale).astype(np.float32)
  params = jax.tree.map(draw, MODEL.param_specs())
  hf.save(folder, MODEL, params, jnp.float32)
  return folder


def config(model, method, steps, **changes):
  """A run of eight turns a pass; `changes` are keys, the first _ for the dot."""
  c = alfworld.get_config(f'model=tiny,algo={method}')
  c.model.path, c.steps = str(model), steps
  c.world.train_tasks, c.world.max_turns = 3, 2
  c.skills.token_budget = 24
  c.rollout.tasks_per_step = c.rollout.group_size = 2
  c.rollout.slots, c.rollout.max_response_tokens = 4, 8
  c.rollout.max_prompt_tokens, c.rollout.prefill_chunk = 64, 16
  c.train.minibatch_rows = c.train.microbatch_rows = 2
  c.train.length_buckets, c.train.teacher_buckets = (72,), (96,)
  c.optimizer.learning_rate = 3e-3
  c.eval.tasks, c.eval.every = 1, 1
  c.checkpoint.every, c.checkpoint.keep = 1, 9
  for name, value in changes.items():
    room, _, leaf = name.partition('_')
    c[room][leaf] = value
  config_lib.validate(c)
  return c


def start(c, path, poisoned=(), quarantined=None):
  """Trains until the end or an error.

  Args:
    c: the configuration.
    path: the work directory.
    poisoned: (passes before it, number) of updates with advantages that are no numbers.
    quarantined: place in the training order of a task that a fresh run does not play.

  Returns:
    The outcome.
  """
  saved = []
  with pytest.MonkeyPatch.context() as patch:
    _poison(patch, set(poisoned))
    if quarantined is not None:
      _quarantine(patch, quarantined)
    save = recovery.save

    def noted(store, step, state, host, workdir):
      saved.append((step, digests(state), host()))
      return save(store, step, state, host, workdir)

    patch.setattr(recovery, 'save', noted)
    error = ''
    try:
      train.train(c, path)
    except (ArithmeticError, OSError, RuntimeError, ValueError, SystemExit) as caught:
      error = f'{type(caught).__name__}: {caught}'.replace(str(path), 'PATH')
  return Outcome(error, files_of(path), saved[-1] if saved else ())


def _poison(patch, poisoned):
  original, seen = learner.Learner.train_step, collections.Counter()

  def train_step(self, state, minibatch, initial=None):
    step = int(state.step)
    seen[step] += 1
    if (step, seen[step] - 1) in poisoned:
      minibatch = [
        {**m, 'advantages': jnp.full_like(m['advantages'], jnp.nan)} for m in minibatch
      ]
    return original(self, state, minibatch, initial)

  patch.setattr(learner.Learner, 'train_step', train_step)


def _quarantine(patch, cursor):
  original = train.Run.collect

  def collect(run):
    if run.step == 0:
      (task,) = order.tasks_at(
        run.parts.tasks, seed=run.parts.config.seed, cursor=cursor, count=1
      )
      run.parts.pool.quarantine = [task.task_id]
    return original(run)

  patch.setattr(train.Run, 'collect', collect)


def digest(leaf):
  """Hashes an array, wherever it lies."""
  return hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()


def digests(state):
  """Hashes the arrays of a state, by name."""
  pairs = jax.tree_util.tree_leaves_with_path(state)
  return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in pairs}


def files_of(path):
  """Digests of what the seed decides of a work directory's files."""
  kept = [path / 'metrics.jsonl', path / 'teacher.jsonl']
  kept += sorted(path.glob('eval/*.json')) + sorted(path.glob('trajectories/*.jsonl'))
  return {
    str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
    for file in kept
    if file.exists()
  }


def record(path, step):
  """The host.json of a checkpoint."""
  return json.loads((path / 'checkpoints' / str(step) / 'host.json').read_text())
