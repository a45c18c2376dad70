"""A model of a few thousand weights and minibatches for it, shared by tests."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import quick

from sdar_jax.learner import optimizer
from sdar_jax.learner.learner import Learner, LearnerConfig
from sdar_jax.learner.scoring import Scoring
from sdar_jax.methods import table
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.models import decoder, sharding

VOCAB, VALID = 64, 61
EPS = 1e-3
MODEL = decoder.ModelConfig(
  family='qwen3',
  vocab_size=VOCAB,
  hidden_size=32,
  intermediate_size=64,
  num_layers=2,
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
  **loss,
):
  """A learner of `model` with AdamW; its programs `optimized` as those of a run.

  Its eps is large: Adam's first step with a small one is the sign of the gradient,
  which amplifies the rounding of tiny gradients without bound.
  """
  config = LearnerConfig(
    scoring=Scoring(1.0, VALID, jnp.dtype(dtype), remat=False, chunk=64),
    max_response_tokens=8,
    learning_rate=rate,
    warmup_steps=0,
    mean_over=mean_over,
    accumulation=accumulation,
  )
  tx = optimizer.make_optimizer(
    b1=0.9, b2=0.999, eps=EPS, weight_decay=0.01, max_grad_norm=1.0
  )
  row = table.find(algorithm)
  mesh = mesh or sharding.make_mesh(1, 1, 1)
  with mock.patch.object(jax, 'jit', jax.jit if optimized else quick.jit):
    return Learner(model, config, row, Hyperparameters(**loss), tx, mesh)


def minibatch(seed=0, rows=16, width=28, teacher_width=28, padding=2):
  """Random rows with prompts of different lengths; the last `padding` are empty.

  Student and teacher are of one width, which one program scores, unless told otherwise.
  """
  random = np.random.default_rng(seed)
  out = {
    'row_index': np.arange(rows, dtype=np.int32),
    'tokens': np.zeros((rows, width), np.int32),
    'response_mask': np.zeros((rows, width), bool),
    'advantages': random.normal(size=rows).astype(np.float32),
    'prompt_lengths': np.zeros(rows, np.int32),
    'turn_ids': random.integers(0, 5, rows).astype(np.int32),
    'sampler_logprobs': np.zeros((rows, width), np.float32),
    'teacher_tokens': np.zeros((rows, teacher_width), np.int32),
    'teacher_offset': np.zeros(rows, np.int32),
  }
  for i in range(rows - padding):
    start, size = random.integers(2, 12), random.integers(1, 8)
    offset = int(random.integers(-1, 8))
    response = random.integers(0, VALID, size)
    out['prompt_lengths'][i] = start
    out['tokens'][i, :start] = random.integers(0, VALID, start)
    out['tokens'][i, start : start + size] = response
    out['response_mask'][i, start : start + size] = True
    begin = start + offset
    out['teacher_tokens'][i, :begin] = random.integers(0, VALID, begin)
    out['teacher_tokens'][i, begin : begin + size] = response
    out['teacher_offset'][i] = offset
  return out


def split(arrays, size=8):
  """A minibatch as its microbatches of `size` rows."""
  rows = len(arrays['tokens'])
  return [{k: v[i : i + size] for k, v in arrays.items()} for i in range(0, rows, size)]


def scored(learner, state, ref, minibatches):
  """Minibatches on the device with scores, and each row's advantage on its tokens."""
  batch = learner.score(state, ref, learner.to_device(minibatches))
  return learner.extend(batch, [_credit(m) for part in minibatches for m in part])


def _credit(arrays):
  mask, size = arrays['response_mask'], len(arrays['tokens'])
  return {
    'advantages': np.where(mask, arrays['advantages'][:, None], np.float32(0)),
    'teaching': np.ones(size, np.float32),
    'gate_mean': np.float32(0.5),
    'distill_scale': np.float32(1),
    'value_targets': np.where(mask, np.float32(1), np.float32(0)),
  }


def joined(minibatch, name):
  """`name` of all rows of a minibatch, on the host."""
  return np.concatenate([np.asarray(m[name]) for m in minibatch])
