"""A model of a few thousand weights and minibatches for it, shared by tests."""

import dataclasses
import functools
from types import SimpleNamespace
from unittest import mock

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import quick

from sdar_jax.batching import packing
from sdar_jax.batching import rows as rows_lib
from sdar_jax.learner import optimizer
from sdar_jax.learner.learner import Learner, LearnerConfig
from sdar_jax.learner.scoring import Scoring
from sdar_jax.methods import table
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.models import decoder, sharding

VOCAB, VALID = 64, 61
RESPONSE = 8  # Tokens, at most.
_NUMBERS = ('advantages', 'turn_ids')
EPS = 1e-3
MODEL = decoder.ModelConfig(
  family='qwen3',
  vocab_size=VOCAB,
  hidden_size=32,
  intermediate_size=64,
  num_layers=1,  # Few are unrolled: a second would double what is compiled.
  num_heads=4,
  num_kv_heads=2,
  head_dim=8,
  rope_theta=10_000.0,
  rms_norm_eps=1e-6,
  tie_word_embeddings=True,
)


@functools.cache  # Equal learners share their compiled programs: they hold no state.
def learner(
  mesh=None,
  *,
  rate=1e-2,
  algorithm='sdar',
  dtype='float32',
  mean_over='minibatch',
  optimized=False,
  model=MODEL,
  accumulation=2,
  moments='device',
  **loss,
):
  """A learner of `model` with AdamW; its programs `optimized` as those of a run.

  Its eps is large: Adam's first step with a small one is the sign of the gradient,
  which amplifies the rounding of tiny gradients without bound.
  """
  config = LearnerConfig(
    scoring=Scoring(1.0, VALID, jnp.dtype(dtype), remat='none', chunk=64),
    max_response_tokens=RESPONSE,
    learning_rate=rate,
    warmup_steps=0,
    mean_over=mean_over,
    accumulation=accumulation,
    moments=moments,
  )
  tx = optimizer.make_optimizer(
    b1=0.9, b2=0.999, eps=EPS, weight_decay=0.01, max_grad_norm=1.0
  )
  row = table.find(algorithm)
  mesh = mesh or sharding.make_mesh(1, 1, 1)
  with mock.patch.object(jax, 'jit', jax.jit if optimized else quick.jit):
    out = Learner(model, config, row, Hyperparameters(**loss), tx, mesh)
  out.init_state = functools.partial(_fast, out.init_state)  # It makes a program, too.
  return out


def _fast(function, *args, **kwargs):
  with mock.patch.object(jax, 'jit', quick.jit):
    return function(*args, **kwargs)


def params(seed=0, model=MODEL):
  """New weights, placed as a run's are: others are compiled for once more."""
  shardings = sharding.param_shardings(model.param_specs(), sharding.make_mesh(1, 1, 1))
  return sharding.place(drawn.weights(model, seed), shardings)


@dataclasses.dataclass
class Rows:
  """Random rows; those at the end may be missing, which is padding.

  Attributes:
    prompts, teacher_prompts, responses: ids of each row.
    advantages, turn_ids: [B] numbers of each row.
    width, teacher_width: padded lengths.
    count: rows with the padding.
  """

  prompts: list
  teacher_prompts: list
  responses: list
  advantages: np.ndarray
  turn_ids: np.ndarray
  width: int
  teacher_width: int
  count: int

  @property
  def response_mask(self):
    """[count, R] bool."""
    sizes = np.array([*map(len, self.responses), *[0] * self.count])[: self.count]
    return np.arange(RESPONSE) < sizes[:, None]


def minibatch(seed=0, rows=16, width=28, teacher_width=28, padding=2):
  """Random rows with prompts of different lengths; the last `padding` are empty.

  Student and teacher are of one width, which one program scores, unless told otherwise.
  """
  random = np.random.default_rng(seed)
  advantages = random.normal(size=rows).astype(np.float32)
  turn_ids = random.integers(0, 5, rows).astype(np.int32)
  out = Rows([], [], [], advantages, turn_ids, width, teacher_width, rows)
  draw = lambda count: random.integers(0, VALID, count).astype(np.int32)
  for _ in range(rows - padding):
    start, size = random.integers(2, 12), random.integers(1, 8)
    begin = start + int(random.integers(-1, 8))
    out.responses.append(draw(size))
    out.prompts.append(draw(start))
    out.teacher_prompts.append(draw(begin))
  return out


def split(rows, size=8, lanes=1):
  """A minibatch as its sheets of `size` rows, with each row's numbers."""
  how = packing.Packing(
    'in order', rows.count, size, (rows.width,), (rows.teacher_width,), RESPONSE, lanes
  )
  turns = [SimpleNamespace(response_ids=ids) for ids in rows.responses]
  made = [SimpleNamespace(turn=turn, trajectory_id=0) for turn in turns]
  student, teacher = (
    rows_lib.make_sequences(made, prompts, 'turns')
    for prompts in (rows.prompts, rows.teacher_prompts)
  )
  (sheets,) = packing.minibatches(made, student, np.arange(len(made)), how, teacher)
  numbers = {'advantages': rows.advantages, 'turn_ids': rows.turn_ids}
  return [{**sheet, **rows_lib.scatter(sheet, numbers)} for sheet in sheets]


def privileged(sheet):
  """The teacher's half of a sheet, as a sheet to be scored."""
  names = ('row_index', 'targets', 'response_mask')
  theirs = {'tokens': sheet['teacher_tokens'], 'places': sheet['teacher_places']}
  return {**theirs, **{name: sheet[name] for name in names}}


def student(sheet):
  """The student's half of a sheet."""
  names = ('tokens', 'places', 'targets', 'row_index', 'response_mask')
  return {name: sheet[name] for name in names}


def scored(learner, state, ref, minibatches):
  """Minibatches on the device with scores, and each row's advantage on its tokens."""
  return [_scored(learner, state, ref, sheets) for sheets in minibatches]


def _scored(learner, state, ref, sheets):
  taught = [privileged(sheet) for sheet in sheets if 'teacher_tokens' in sheet]
  own, known = [student(sheet) for sheet in sheets], {}
  found = learner.score(state, ref, own, taught)
  for packed, scores in zip((own, taught), found):
    known |= rows_lib.gather(packed, scores, _count(sheets), RESPONSE)
  return credited(learner, sheets, known)


def _count(sheets):
  return 1 + max(int(sheet['row_index'].max()) for sheet in sheets)


def credited(learner, sheets, scores):
  """A minibatch on the device with [B, R] scores and its rows' advantages."""
  count = _count(sheets)
  mask = np.zeros((count, RESPONSE), bool)
  known = {name: np.zeros(count, sheets[0][name].dtype) for name in _NUMBERS}
  for sheet in sheets:
    there = sheet['row_index'] >= 0
    for name, values in {**known, 'response_mask': mask}.items():
      values[sheet['row_index'][there]] = sheet[name][there]
  known['advantages'] = np.where(mask, known['advantages'][:, None], np.float32(0))
  known |= {
    'teaching': np.ones(count, np.float32),
    'gate_mean': np.float32(0.5),
    'distill_scale': np.float32(1),
    'value_targets': np.where(mask, np.float32(1), np.float32(0)),
  }
  kept = sheets if learner.reads_distributions else [student(s) for s in sheets]
  return learner.to_device(kept, known | scores)


def joined(minibatch, name):
  """`name` of all rows of a minibatch, on the host."""
  return np.concatenate([np.asarray(m[name]) for m in minibatch])
