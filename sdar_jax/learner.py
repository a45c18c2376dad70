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

Microbatch = dict[str, Any]
Minibatch = list[Microbatch]
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
    self._rows = NamedSharding(mesh, PartitionSpec(_ROWS))
    self._params = sharding.param_shardings(model, mesh)
    self._score_tokens = jax.jit(
      lambda params, tokens: self._logprobs(params, tokens)[0]
    )
    self._align = jax.jit(_align)
    self._gradient = jax.jit(
      self._loss_and_gradient, out_shardings=(self._replicated, self._params)
    )
    self._add = jax.jit(
      lambda total, part: jax.tree.map(jnp.add, total, part), donate_argnums=0
    )
    self._apply = jax.jit(self._optimizer_update, donate_argnums=0)
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
    """Moves what the device needs of packed minibatches there, sharded by rows.

    Each microbatch gets the `normaliser` of its whole minibatch, so that losses and
    gradients of microbatches add up to the minibatch's.
    """
    out = []
    for minibatch in batch:
      normaliser = self._normaliser([m['response_mask'] for m in minibatch])
      parts = []
      for microbatch in minibatch:
        arrays = {k: v for k, v in microbatch.items() if k in _ON_DEVICE}
        arrays = jax.device_put(arrays, self._rows)
        arrays['normaliser'] = jax.device_put(normaliser, self._replicated)
        parts.append(arrays)
      out.append(parts)
    return out

  def _normaliser(self, masks: list[np.ndarray]) -> np.ndarray:
    width = max(mask.shape[1] for mask in masks)
    padded = [np.pad(mask, ((0, 0), (0, width - mask.shape[1]))) for mask in masks]
    value = masked.normaliser_of(
      np.concatenate(padded),
      self._loss.aggregation,
      length=self._config.max_response_tokens,
    )
    return np.asarray(value, np.int32)

  def score(
    self, params: Any, ref_params: Any | None, batch: Sequence[Minibatch]
  ) -> list[Minibatch]:
    """Adds `old_`, `ref_` and `teacher_logprobs`, under pre-update weights.

    Args:
      params: the policy before this step's updates; also the teacher.
      ref_params: the initial policy, or None when no loss term reads it.
      batch: device minibatches.
    """
    return [[self._score(params, ref_params, m) for m in part] for part in batch]

  def _score(
    self, params: Any, ref_params: Any | None, arrays: Microbatch
  ) -> Microbatch:
    out = {**arrays, 'old_logprobs': self._score_tokens(params, arrays['tokens'])}
    if ref_params is not None:
      out['ref_logprobs'] = self._score_tokens(ref_params, arrays['tokens'])
    if 'teacher_tokens' in arrays:
      values = self._score_tokens(params, arrays['teacher_tokens'])
      out['teacher_logprobs'] = self._align(values, arrays)
    return out

  def train_step(
    self, state: TrainState, minibatch: Minibatch
  ) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer update. Donates `state`. Metrics are (sum, count) pairs."""
    total = None
    for microbatch in minibatch:
      part = self._gradient(state.params, microbatch)
      total = part if total is None else self._add(total, part)
    (loss, metrics), grads = total
    state, update_metrics = self._apply(state, grads, loss)
    return state, {**metrics, **update_metrics}

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

  def _loss_and_gradient(self, params: Any, arrays: Microbatch) -> Any:
    """((loss, metrics), gradient) of a microbatch: its share of the minibatch's."""

    def loss_fn(params: Any) -> tuple[jax.Array, dict[str, Any]]:
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
        normaliser=arrays['normaliser'],
      )
      return algorithms.policy_objective(self._algorithm, self._loss, inputs)

    return jax.value_and_grad(loss_fn, has_aux=True)(params)

  def _optimizer_update(
    self, state: TrainState, grads: Any, loss: jax.Array
  ) -> tuple[TrainState, dict[str, Any]]:
    norm = optax.tree.norm(grads)
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


def _align(teacher_logprobs: jax.Array, arrays: Microbatch) -> jax.Array:
  """Moves the teacher's [B, T'] log-probs to the places of the student's tokens."""
  width = arrays['tokens'].shape[1]
  places = jnp.arange(width)[None, :] + arrays['teacher_offset'][:, None]
  places = jnp.clip(places, 0, teacher_logprobs.shape[1] - 1)
  moved = jnp.take_along_axis(teacher_logprobs, places, axis=1)
  return jnp.where(arrays['response_mask'], moved, 0.0)
