"""The jitted step: the one place where the model meets the loss.

Everything here is `jax.jit` over NamedSharding, which is what pjit means today: rows
are sharded over the mesh axes data and fsdp, weights over fsdp and tensor.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdar_jax import algorithms, optimizer, scoring
from sdar_jax.losses import masked
from sdar_jax.models import qwen, sharding

Minibatch = dict[str, Any]
_ROWS = ('data', 'fsdp')


class TrainState(NamedTuple):
  """Everything that training changes, on the device.

  Attributes:
    params: the policy, float32.
    opt_state: moments.
    step: [] i32, completed passes of the loop.
    skipped: [] i32, updates skipped because they were not finite.
    skipped_in_a_row: [] i32, of those, the ones since the last good update.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  skipped: jax.Array
  skipped_in_a_row: jax.Array


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """What the learner needs to know; field meanings as in sdar_jax/config.py."""

  microbatch_rows: int
  max_response_tokens: int
  temperature: float
  valid_vocab: int
  dtype: str
  remat: bool
  logprob_chunk: int
  learning_rate: float
  warmup_steps: int


class Learner:
  """Scores rows and updates the policy. Holds compiled functions, not state."""

  def __init__(
    self,
    model: qwen.ModelConfig,
    config: LearnerConfig,
    algorithm: algorithms.Algorithm,
    loss: algorithms.LossConfig,
    tx: optax.GradientTransformation,
    mesh: Mesh,
  ):
    self._model, self._config = model, config
    self._algorithm, self._loss = algorithm, loss
    self._tx, self._mesh = tx, mesh
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._rows = NamedSharding(mesh, PartitionSpec(None, _ROWS))
    self._params = sharding.param_shardings(model, mesh)
    self._score_step = jax.jit(self._score_microbatches)
    self._train_step = jax.jit(self._update, donate_argnums=0)
    self._finish = jax.jit(lambda s: s._replace(step=s.step + 1), donate_argnums=0)

  def init_state(self, params: Any) -> TrainState:
    """A fresh state around `params`, which it takes over; moments are zero."""
    zero = functools.partial(jax.device_put, np.zeros((), np.int32), self._replicated)
    # Moments take the sharding of the weights that they belong to.
    opt_state = jax.jit(self._tx.init, out_shardings=self._moments(params))(params)
    return TrainState(params, opt_state, zero(), zero(), zero())

  def _moments(self, params: Any) -> Any:
    shapes = jax.eval_shape(self._tx.init, params)
    return optax.tree.map_params(
      self._tx,
      lambda _, spec: spec,
      shapes,
      self._params,
      transform_non_params=lambda _: self._replicated,
    )

  def to_device(self, batch: Sequence[Minibatch]) -> list[Minibatch]:
    """Moves minibatches [M, ...] to the device as [M / microbatch, microbatch, ...]."""
    size = self._config.microbatch_rows
    out = []
    for minibatch in batch:
      arrays = {k: v for k, v in minibatch.items() if k in _ON_DEVICE}
      arrays = {k: v.reshape(-1, size, *v.shape[1:]) for k, v in arrays.items()}
      out.append(jax.device_put(arrays, self._rows))
    return out

  def score(
    self, params: Any, ref_params: Any | None, batch: Sequence[Minibatch]
  ) -> list[Minibatch]:
    """Adds `old_`, `ref_` and `teacher_logprobs`, under pre-update weights.

    Args:
      params: the policy before this step's updates; also the teacher.
      ref_params: the initial policy, or None when no loss term reads it.
      batch: device minibatches.
    """
    return [{**m, **self._score_step(params, ref_params, m)} for m in batch]

  def train_step(
    self, state: TrainState, minibatch: Minibatch
  ) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer update. Donates `state`. Metrics are (sum, count) pairs."""
    return self._train_step(state, minibatch)

  def finish_step(self, state: TrainState) -> TrainState:
    """Counts one pass of the loop. Donates `state`."""
    return self._finish(state)

  def _logprobs(self, params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return scoring.token_logprobs(
      self._model,
      params,
      tokens,
      positions,
      temperature=self._config.temperature,
      valid_vocab=self._config.valid_vocab,
      dtype=jnp.dtype(self._config.dtype),
      remat=self._config.remat,
      chunk=self._config.logprob_chunk,
    )

  def _score_microbatches(
    self, params: Any, ref_params: Any | None, minibatch: Minibatch
  ) -> Minibatch:
    def score(arrays: Minibatch) -> Minibatch:
      out = {'old_logprobs': self._logprobs(params, arrays['tokens'])[0]}
      if ref_params is not None:
        out['ref_logprobs'] = self._logprobs(ref_params, arrays['tokens'])[0]
      if 'teacher_tokens' in arrays:
        values = self._logprobs(params, arrays['teacher_tokens'])[0]
        out['teacher_logprobs'] = _align(values, arrays)
      return out

    return jax.lax.map(score, minibatch)

  def _update(
    self, state: TrainState, minibatch: Minibatch
  ) -> tuple[TrainState, dict[str, Any]]:
    mask = minibatch['response_mask']
    normaliser = masked.normaliser_of(
      mask.reshape(-1, mask.shape[-1]),
      self._loss.aggregation,
      length=self._config.max_response_tokens,
    )

    def loss_fn(params: Any, arrays: Minibatch) -> tuple[jax.Array, dict[str, Any]]:
      logprobs, entropy = self._logprobs(params, arrays['tokens'])
      inputs = algorithms.LossInputs(
        logprobs=logprobs,
        entropy=entropy,
        old_logprobs=arrays['old_logprobs'],
        ref_logprobs=arrays.get('ref_logprobs'),
        teacher_logprobs=arrays.get('teacher_logprobs'),
        advantages=arrays['advantages'],
        response_mask=arrays['response_mask'],
        turn_ids=arrays['turn_ids'],
        normaliser=normaliser,
      )
      return algorithms.policy_objective(self._algorithm, self._loss, inputs)

    def accumulate(total: Any, arrays: Minibatch) -> tuple[Any, None]:
      value = jax.value_and_grad(loss_fn, has_aux=True)(state.params, arrays)
      return jax.tree.map(jnp.add, total, value), None

    first = jax.tree.map(lambda x: x[0], minibatch)
    shapes = jax.eval_shape(
      jax.value_and_grad(loss_fn, has_aux=True), state.params, first
    )
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((loss, metrics), grads), _ = jax.lax.scan(accumulate, zeros, minibatch)
    state, update_metrics = self._apply(state, loss, grads)
    return state, {**metrics, **update_metrics}

  def _apply(
    self, state: TrainState, loss: jax.Array, grads: Any
  ) -> tuple[TrainState, dict[str, Any]]:
    norm = optax.global_norm(grads)
    good = jnp.isfinite(norm) & jnp.isfinite(loss)
    rate = optimizer.learning_rate(
      state.step,
      peak=self._config.learning_rate,
      warmup_steps=self._config.warmup_steps,
    )
    updates, opt_state = self._tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
    keep = functools.partial(jnp.where, good)
    state = state._replace(
      params=jax.tree.map(keep, params, state.params),
      opt_state=jax.tree.map(keep, opt_state, state.opt_state),
      skipped=state.skipped + ~good,
      skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
    )
    one = jnp.ones(())
    return state, {
      'loss': (loss, one),
      'grad_norm': (norm, one),
      'learning_rate': (rate, one),
      'updates_skipped': (1.0 - good, one),
    }


_ON_DEVICE = (
  'tokens',
  'response_mask',
  'advantages',
  'turn_ids',
  'teacher_tokens',
  'teacher_offset',
)


def _align(teacher_logprobs: jax.Array, arrays: Minibatch) -> jax.Array:
  """Moves the teacher's [B, T'] log-probs to the places of the student's tokens."""
  width = arrays['tokens'].shape[1]
  places = jnp.arange(width)[None, :] + arrays['teacher_offset'][:, None]
  places = jnp.clip(places, 0, teacher_logprobs.shape[1] - 1)
  moved = jnp.take_along_axis(teacher_logprobs, places, axis=1)
  return jnp.where(arrays['response_mask'], moved, 0.0)
