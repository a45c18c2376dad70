"""The jitted step: the one place where the model meets the loss.

Rows are sharded over the mesh axes data and fsdp, weights over fsdp and tensor; every
program here is a `sharding.Program`.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdar_jax.learner import distributions, optimizer, scoring
from sdar_jax.learner.state import TrainState
from sdar_jax.losses import masked, policy
from sdar_jax.losses.inputs import LossInputs
from sdar_jax.losses.objective import policy_objective
from sdar_jax.methods import interface
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm
from sdar_jax.models import decoder, lora, sharding

Microbatch = dict[str, Any]
Minibatch = list[Microbatch]
_ROWS = ('data', 'fsdp')


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """Settings of the learner; field meanings as in sdar_jax/config.py.

  Attributes:
    accumulation: microbatches of a full minibatch; 'microbatch' means divide by it.
  """

  scoring: scoring.Scoring
  max_response_tokens: int
  learning_rate: float
  warmup_steps: int
  mean_over: str
  accumulation: int


class Learner:
  """Scores rows and updates the policy; holds no state.

  Attributes:
    model: architecture.
    keeps_teacher: the state has a teacher of its own.
  """

  def __init__(
    self,
    model: decoder.ModelConfig,
    config: LearnerConfig,
    algorithm: Algorithm,
    hyper: Hyperparameters,
    tx: optax.GradientTransformation,
    mesh: Mesh,
  ):
    self.model, self._config = model, config
    self._algorithm, self._hyper = algorithm, hyper
    self._tx, self._mesh = tx, mesh
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._rows = NamedSharding(mesh, PartitionSpec(_ROWS))
    self._base = sharding.param_shardings(model.param_specs(), mesh)
    self._params = self._base
    if model.lora:
      self._params = sharding.param_shardings(model.adapter_specs(), mesh)
    if algorithm.has_critic:
      head = dict.fromkeys(scoring.init_value_head(model), self._replicated)
      self._params = {**self._params, 'value_head': head}
    self._divergent = algorithm.needs_divergence(hyper)
    self._divergence_of = distributions.Divergence(
      hyper.divergence,
      hyper.topk,
      hyper.jsd_weight,
      hyper.token_clip or math.inf,
      config.max_response_tokens,
    )
    weights = hyper.teacher_weights if algorithm.needs_teacher(hyper) else 'policy'
    self._initial_teacher = weights == 'initial'
    # A teacher that changes between steps, or must not within one, is in the state.
    self.keeps_teacher = weights == 'ema' or (weights == 'policy' and self._divergent)
    program = functools.partial(sharding.Program, mesh=mesh)
    self._score_student = program(self._student_scores)
    self._score_tokens = program(self._logprobs)
    self._align = program(_align)
    self._kl = program(functools.partial(policy.kl_penalty, kind=hyper.kl_kind))
    self._gradient = program(
      self._loss_and_gradient, out_shardings=(self._replicated, self._params)
    )
    self._add = program(
      lambda total, part: jax.tree.map(jnp.add, total, part), donate_argnums=0
    )
    self._apply = program(
      functools.partial(
        optimizer.apply,
        tx,
        peak=config.learning_rate,
        warmup_steps=config.warmup_steps,
      ),
      donate_argnums=0,
    )
    self._finish = program(self._finished, donate_argnums=0)

  @property
  def needs_initial(self) -> bool:
    """Whether the KL or the teacher reads the initial policy."""
    needed = self._hyper.needs_reference or self._initial_teacher
    return needed or self.model.lora is not None

  def make_initial(self, params: Any) -> Any:
    """Copies the initial policy in the type that computes with it.

    What reads it casts it so in any case: the same numbers from half the memory where
    that type is bfloat16. Beside adapters it is the model itself, and no copy.
    """
    if self.model.lora:
      return params
    dtype = self._config.scoring.dtype
    copy = lambda params: decoder.compute_params(params, dtype)
    return sharding.Program(copy, self._mesh, out_shardings=self._base)(params)

  def init_state(self, params: Any, seed: int = 0) -> TrainState:
    """Makes a fresh state around `params`, taking them over.

    Args:
      params: the model.
      seed: draws adapters, which then are what trains beside it.
    """
    if self.model.lora:
      params = lora.make(self.model.adapter_specs(), self._mesh, seed)
    zero = functools.partial(sharding.place, np.zeros((), np.int32), self._replicated)
    teacher = jax.tree.map(jnp.copy, params) if self.keeps_teacher else ()
    if self._algorithm.has_critic:
      head = scoring.init_value_head(self.model)
      params = {**params, 'value_head': sharding.place(head, self._replicated)}
    # Moments take the sharding of the weights that they belong to.
    moments = self._moments(params)
    opt_state = sharding.Program(self._tx.init, self._mesh, out_shardings=moments)(
      params
    )
    return TrainState(params, opt_state, teacher, zero(), zero(), zero())

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
    """Moves packed minibatches to the device, sharded by rows.

    Each microbatch gets its `normaliser`: that of its whole minibatch, so that losses
    and gradients of microbatches add up to the minibatch's, or, where `mean_over` says
    so, its own times the number of microbatches in a full minibatch.
    """
    out = []
    for minibatch in batch:
      masks = [m['response_mask'] for m in minibatch]
      whole = self._normaliser(masks)
      parts = []
      for microbatch, mask in zip(minibatch, masks):
        arrays = {k: v for k, v in microbatch.items() if k in _ON_DEVICE}
        arrays = sharding.place(arrays, self._rows)
        normaliser = whole
        if self._config.mean_over == 'microbatch':
          own = float(self._normaliser([mask]))  # Times a large count, beyond int32.
          normaliser = np.float32(own * self._config.accumulation)
        arrays['normaliser'] = sharding.place(normaliser, self._replicated)
        parts.append(arrays)
      out.append(parts)
    return out

  def _normaliser(self, masks: list[np.ndarray]) -> np.ndarray:
    width = max(mask.shape[1] for mask in masks)
    padded = [np.pad(mask, ((0, 0), (0, width - mask.shape[1]))) for mask in masks]
    value = masked.normaliser_of(
      np.concatenate(padded),
      self._hyper.aggregation,
      length=self._config.max_response_tokens,
    )
    return np.asarray(value, np.int32)

  @staticmethod
  def to_host(
    batch: Sequence[Minibatch], packed: Sequence[Minibatch]
  ) -> list[Microbatch]:
    """Brings scores to the host, beside the packed arrays.

    Args:
      batch: scored device minibatches.
      packed: the same, as they were packed.

    Returns:
      The microbatches of all minibatches.
    """
    pairs = zip(itertools.chain(*batch), itertools.chain(*packed), strict=True)
    scores = lambda m: {name: m[name] for name in interface.SCORES if name in m}
    return [{**known, **sharding.fetch(scores(arrays))} for arrays, known in pairs]

  def extend(
    self, batch: Sequence[Minibatch], values: Sequence[Microbatch]
  ) -> list[Minibatch]:
    """Adds values of the host, a dict for each microbatch in turn."""
    given = iter(values)
    return [[{**m, **self._placed(next(given))} for m in part] for part in batch]

  def _placed(self, values: Microbatch) -> Microbatch:
    return {
      name: sharding.place(value, self._rows if value.ndim else self._replicated)
      for name, value in values.items()
    }

  def score(
    self, state: TrainState, initial: Any | None, batch: Sequence[Minibatch]
  ) -> list[Minibatch]:
    """Adds `old_`, `ref_` and `teacher_logprobs`, of pre-update weights.

    Where the method reads them also `old_entropy`, `old_kl` and `old_values`.

    Args:
      state: its policy is the one before this step's updates, and the teacher too
        unless the method keeps another.
      initial: the initial policy, or None where `needs_initial` is False.
      batch: device minibatches.
    """
    return [[self._score(state, initial, m) for m in part] for part in batch]

  def _score(
    self, state: TrainState, initial: Any | None, arrays: Microbatch
  ) -> Microbatch:
    params = self._joined(state.params, initial)
    out = {**arrays, **self._score_student(params, arrays['tokens'])}
    if self._hyper.needs_reference:
      out['ref_logprobs'] = self._score_tokens(initial, arrays['tokens'])
      if self._hyper.kl_in == 'reward':
        names = ('old_logprobs', 'ref_logprobs', 'response_mask')
        out['old_kl'] = self._kl(*(out[name] for name in names))
    if 'teacher_tokens' in arrays:
      teacher = self._teacher(state, initial)
      values = self._score_tokens(teacher, arrays['teacher_tokens'])
      out['teacher_logprobs'] = self._align(
        values, arrays['teacher_offset'], arrays['response_mask']
      )
    return out

  def _teacher(self, state: TrainState, initial: Any | None) -> Any:
    """Chooses the teacher's weights before the step's updates."""
    if self._initial_teacher:
      return initial
    kept = state.teacher if self.keeps_teacher else state.params
    return self._joined(kept, initial)

  def _joined(self, params: Any, initial: Any) -> Any:
    """Joins adapters with the model that they belong to, if there are any."""
    if self.model.lora is None:
      return params
    return lora.joined(initial, params, self.model.lora)

  def policy(self, state: TrainState, initial: Any | None) -> Any:
    """Gives the weights that sample, for `Sampler.update`."""
    return self._joined(state.policy, initial)

  def _student_scores(self, params: Any, tokens: jax.Array) -> Microbatch:
    """Scores sampled tokens before the step's updates."""
    hidden = self._hidden(params, tokens)
    logprobs, entropy = self._scores(params, hidden, tokens)
    out = {'old_logprobs': logprobs}
    if self._algorithm.needs_entropy(self._hyper):
      out['old_entropy'] = entropy
    if self._algorithm.has_critic:
      out['old_values'] = scoring.token_values(hidden, params['value_head'])
    return out

  def train_step(
    self, state: TrainState, minibatch: Minibatch, initial: Any | None = None
  ) -> tuple[TrainState, dict[str, Any]]:
    """Updates the weights once; donates `state`. Metrics are (sum, count).

    Args:
      state: what changes.
      minibatch: scored microbatches with their credit.
      initial: the initial policy, where it is the teacher and gives distributions, or
        has adapters.
    """
    base = initial if self.model.lora else ()
    teacher = self._teacher(state, initial) if self._divergent else ()
    total = None
    for microbatch in minibatch:
      arrays = self._read(microbatch)
      # A name for the part would keep its gradients while the next are computed.
      total = self._sum(total, self._gradient(state.params, base, teacher, arrays))
    (loss, metrics), grads = total
    state, update_metrics = self._apply(state, grads, loss)
    return state, {**metrics, **update_metrics}

  def _sum(self, total: Any, part: Any) -> Any:
    return part if total is None else self._add(total, part)

  def _read(self, microbatch: Microbatch) -> Microbatch:
    """Drops unread arrays: their shapes would compile a loss anew."""
    names = ('teacher_tokens', 'teacher_offset')
    return {k: v for k, v in microbatch.items() if self._divergent or k not in names}

  def finish_step(self, state: TrainState) -> TrainState:
    """Counts one pass of the loop; the teacher follows. Donates `state`."""
    return self._finish(state)

  def _finished(self, state: TrainState) -> TrainState:
    teacher, weights = state.teacher, self._hyper.teacher_weights
    if self.keeps_teacher:
      decay = self._hyper.ema_decay if weights == 'ema' else 0.0
      teacher = jax.tree.map(
        lambda t, p: decay * t + (1.0 - decay) * p, teacher, state.policy
      )
    return state._replace(step=state.step + 1, teacher=teacher)

  def _hidden(self, params: Any, tokens: jax.Array) -> jax.Array:
    return scoring.hidden_states(self.model, params, tokens, None, self._config.scoring)

  def _scores(
    self, params: Any, hidden: jax.Array, tokens: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    return scoring.scores_of(self.model, params, hidden, tokens, self._config.scoring)

  def _logprobs(self, params: Any, tokens: jax.Array) -> jax.Array:
    return self._scores(params, self._hidden(params, tokens), tokens)[0]

  def _divergence(
    self, params: Any, teacher: Any, hidden: jax.Array, arrays: Microbatch
  ) -> jax.Array:
    """Computes [B, T] nats from the teacher's whole distributions."""
    teacher = jax.lax.stop_gradient(teacher)
    return distributions.token_divergence(
      self.model,
      (params, teacher),
      (hidden, self._hidden(teacher, arrays['teacher_tokens'])),
      distributions.Places(*(arrays[name] for name in distributions.Places._fields)),
      self._divergence_of,
      self._config.scoring,
    )

  def _loss_and_gradient(
    self, params: Any, base: Any, teacher: Any, arrays: Microbatch
  ) -> Any:
    """Computes a microbatch's share of ((loss, metrics), gradient)."""

    def loss_fn(params: Any) -> tuple[jax.Array, dict[str, Any]]:
      params = self._joined(params, base)
      hidden = self._hidden(params, arrays['tokens'])
      logprobs, entropy = self._scores(params, hidden, arrays['tokens'])
      values = divergence = None
      if self._algorithm.has_critic:
        values = scoring.token_values(hidden, params['value_head'])
      if self._algorithm.needs_divergence(self._hyper):
        divergence = self._divergence(params, teacher, hidden, arrays)
      known = {name: arrays.get(name) for name in LossInputs._fields}
      live = {
        'logprobs': logprobs,
        'entropy': entropy,
        'values': values,
        'divergence': divergence,
      }
      return policy_objective(self._algorithm, self._hyper, LossInputs(**known | live))

    return jax.value_and_grad(loss_fn, has_aux=True)(params)


_ON_DEVICE = (
  'tokens',
  'response_mask',
  'prompt_lengths',
  'turn_ids',
  'teacher_tokens',
  'teacher_offset',
)


def _align(
  teacher_logprobs: jax.Array, offset: jax.Array, response_mask: jax.Array
) -> jax.Array:
  """Moves the teacher's [B, T'] log-probs to the student's columns."""
  places = jnp.arange(response_mask.shape[1])[None, :] + offset[:, None]
  places = jnp.clip(places, 0, teacher_logprobs.shape[1] - 1)
  moved = jnp.take_along_axis(teacher_logprobs, places, axis=1)
  return jnp.where(response_mask, moved, 0.0)
