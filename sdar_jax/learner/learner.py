"""The jitted step: the one place where the model meets the loss.

Rows are sharded over the mesh axes data and fsdp, weights over fsdp and tensor; every
program here is a `sharding.Program`.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sdar_jax import numerics
from sdar_jax.batching import rows
from sdar_jax.learner import critic, distributions, optimizer, scoring
from sdar_jax.learner.optimizer import TrainState
from sdar_jax.losses import masked, policy
from sdar_jax.losses.objective import LossInputs, policy_objective
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm
from sdar_jax.models import decoder, lora, sharding

Sheet = dict[str, Any]  # See `batching.packing`.
Minibatch = list[Sheet]
_ROWS = ('data', 'fsdp')


@dataclasses.dataclass(frozen=True)
class LearnerConfig:
  """Settings of the learner; field meanings as in sdar_jax/config.py.

  Attributes:
    accumulation: microbatches of a full minibatch; 'microbatch' means divide by it.
    moments: where they are between updates, of `optimizer.PLACES`.
    scores_old: the student's tokens are scored before updates.
  """

  scoring: scoring.Scoring
  max_response_tokens: int
  learning_rate: float
  warmup_steps: int
  mean_over: str
  accumulation: int
  moments: str = 'device'
  scores_old: bool = True


class Learner:
  """Scores rows and updates the policy; holds no state.

  Attributes:
    model: architecture.
    state_shardings: where every part of a state is between updates.
    reads_distributions: updates read the teacher's sequences, not its scores alone.
    keeps_teacher: the state has a teacher of its own.
    takes_teacher: that teacher is given to `init_state`, and stays as it is.
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
    self.reads_distributions = algorithm.needs_divergence(hyper)
    self._divergence_of = distributions.Divergence(
      hyper.divergence, hyper.topk, hyper.jsd_weight, hyper.token_clip or math.inf
    )
    weights = hyper.teacher_weights if algorithm.needs_teacher(hyper) else 'policy'
    self._initial_teacher = weights == 'initial'
    # A teacher that changes between steps, or must not within one, is in the state.
    self.takes_teacher = weights == 'given'
    self.keeps_teacher = weights in ('ema', 'given') or (
      weights == 'policy' and self.reads_distributions
    )
    teacher = 'whole' if self.takes_teacher else 'trained'
    self.state_shardings, self._working_shardings = (
      optimizer.placement(
        model,
        mesh,
        tx,
        has_critic=algorithm.has_critic,
        teacher=teacher if self.keeps_teacher else None,
        memory=optimizer.PLACES[where],
      )
      for where in (config.moments, 'device')
    )
    program = functools.partial(
      sharding.Program,
      mesh=mesh,
      compiler_options=numerics.fast_products(mesh.devices.flat[0].platform),
    )
    self._score_student = program(self._student_scores)
    self._score_tokens = program(self._logprobs)
    self._kl = program(functools.partial(policy.kl_penalty, kind=hyper.kl_kind))
    # What a step gives is where it was taken from: else the next compiles anew.
    shared = self._replicated, self.state_shardings.params
    self._gradient = program(self._loss_and_gradient, out_shardings=shared)
    self._add = program(
      lambda total, part: jax.tree.map(jnp.add, total, part),
      donate_argnums=0,
      out_shardings=shared,
    )
    after = self.state_shardings, self._replicated
    self._apply = program(self._applied, donate_argnums=0, out_shardings=after)
    self._finish = program(
      self._finished, donate_argnums=0, out_shardings=self.state_shardings
    )

  @property
  def has_teacher(self) -> bool:
    """Whether rows are scored under privileged prompts, too."""
    return self._algorithm.needs_teacher(self._hyper)

  @property
  def scores_apart(self) -> bool:
    """Whether a teacher's scores can differ from the student's."""
    return self.has_teacher and not self._algorithm.scores_itself(self._hyper)

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
    at = sharding.param_shardings(self.model.param_specs(), self._mesh)
    return sharding.Program(copy, self._mesh, out_shardings=at)(params)

  def init_state(self, params: Any, seed: int = 0, given: Any = None) -> TrainState:
    """Makes a fresh state around `params`, taking them over.

    Args:
      params: the model.
      seed: draws adapters, which then are what trains beside it.
      given: a teacher's weights, where the method takes any.
    """
    if self.model.lora:
      params = lora.make(self.model.adapter_specs(), self._mesh, seed)
    zero = functools.partial(sharding.place, np.zeros((), np.int32), self._replicated)
    teacher = given if self.takes_teacher else ()
    if self.keeps_teacher and not self.takes_teacher:
      teacher = jax.tree.map(jnp.copy, params)
    if self._algorithm.has_critic:
      head = critic.init_value_head(self.model)
      params = {**params, 'value_head': sharding.place(head, self._replicated)}
    begin = sharding.Program(
      self._tx.init, self._mesh, out_shardings=self.state_shardings.opt_state
    )
    return TrainState(params, begin(params), teacher, zero(), zero(), zero())

  def to_device(
    self, minibatch: Minibatch, known: Mapping[str, np.ndarray]
  ) -> Minibatch:
    """Moves a packed minibatch to the device, sharded by lanes.

    Each sheet gets its `normaliser`: that of its whole minibatch, so that losses and
    gradients of sheets add up to the minibatch's, or, where `mean_over` says so, its
    own times the number of sheets in a full minibatch.

    Args:
      minibatch: sheets.
      known: scores and credit of the step's rows: scalars, [B] and [B, R].
    """
    masks = [sheet['response_mask'] for sheet in minibatch]
    whole, out = self._normaliser(np.concatenate(masks)), []
    read = {name: known[name] for name in _KNOWN if name in known}
    for sheet, mask in zip(minibatch, masks):
      normaliser = whole
      if self._config.mean_over == 'microbatch':
        own = float(self._normaliser(mask))  # Times a large count, beyond int32.
        normaliser = np.float32(own * self._config.accumulation)
      values = rows.scatter(sheet, read)
      out.append(self._placed({**sheet, **values, 'normaliser': normaliser}))
    return out

  def _normaliser(self, mask: np.ndarray) -> np.ndarray:
    value = masked.normaliser_of(
      mask, self._hyper.aggregation, length=self._config.max_response_tokens
    )
    return np.asarray(value, np.int32)

  def _placed(self, sheet: Sheet, names: Sequence[str] = ()) -> Sheet:
    return {
      name: sharding.place(value, self._rows if np.ndim(value) else self._replicated)
      for name, value in sheet.items()
      if name in (names or sheet) and name != 'row_index'  # For the host.
    }

  def score(
    self,
    state: TrainState,
    initial: Any | None,
    student: Sequence[Sheet],
    teacher: Sequence[Sheet] = (),
  ) -> tuple[list[Sheet], list[Sheet]]:
    """Scores sampled tokens under pre-update weights.

    Args:
      state: its policy is the one before this step's updates, and the teacher too
        unless the method keeps another.
      initial: the initial policy, or None where `needs_initial` is False.
      student: sheets of the rows as they were played.
      teacher: sheets of the same rows under privileged prompts.

    Returns:
      [M, R] f32 arrays on the host: for each of the student's sheets, where they are
      scored or read, `old_logprobs`, `ref_logprobs`, `old_entropy`, `old_kl` and
      `old_values`; for each of the teacher's `teacher_logprobs`, of any context.
    """
    params = self._joined(state.params, initial)
    own = [self._score(params, initial, self._placed(s, _SCORED)) for s in student]
    weights = self._teacher(state, initial) if teacher else None
    taught = [
      {'teacher_logprobs': self._score_tokens(weights, self._placed(sheet, _SCORED))}
      for sheet in teacher
    ]
    return sharding.fetch((own, taught))

  def _score(self, params: Any, initial: Any | None, sheet: Sheet) -> Sheet:
    out = self._score_student(params, sheet) if self._config.scores_old else {}
    if self._hyper.needs_reference:
      out['ref_logprobs'] = self._score_tokens(initial, sheet)
      if self._hyper.kl_in == 'reward':
        scores = out['old_logprobs'], out['ref_logprobs']
        out['old_kl'] = self._kl(*scores, sheet['response_mask'])
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

  def _student_scores(self, params: Any, sheet: Sheet) -> Sheet:
    """Scores sampled tokens before the step's updates."""
    states = self._states(params, sheet['tokens'], sheet['places'])
    logprobs, entropy = self._scores(params, states, sheet)
    out = {'old_logprobs': logprobs}
    if self._algorithm.needs_entropy(self._hyper):
      out['old_entropy'] = entropy
    if self._algorithm.has_critic:
      out['old_values'] = self._values(params, states, sheet)
    return out

  def train_step(
    self, state: TrainState, minibatch: Minibatch, initial: Any | None = None
  ) -> tuple[TrainState, dict[str, Any]]:
    """Updates the weights once; donates `state`. Metrics are (sum, count).

    Args:
      state: what changes.
      minibatch: scored sheets on the device, with their credit.
      initial: the initial policy, where it is the teacher and gives distributions, or
        has adapters.
    """
    total = None
    for sheet in minibatch:
      # A name for the part would keep its gradients while the next are computed.
      total = self._sum(total, self.gradient(state, sheet, initial))
    (loss, metrics), grads = total
    state, update_metrics = self._apply(state, grads, loss)
    return state, {**metrics, **update_metrics}

  def gradient(self, state: TrainState, sheet: Sheet, initial: Any | None) -> Any:
    """Computes a sheet's share of ((loss, metrics), gradient)."""
    base = initial if self.model.lora else ()
    teacher = self._teacher(state, initial) if self.reads_distributions else ()
    return self._gradient(state.params, base, teacher, sheet)

  def _applied(self, state: TrainState, grads: Any, loss: jax.Array) -> Any:
    """Updates the weights, with the moments here while it does."""
    c = self._config
    away = c.moments != 'device'
    if away:
      here = jax.device_put(state.opt_state, self._working_shardings.opt_state)
      state = state._replace(opt_state=here)
    state, metrics = optimizer.apply(
      self._tx, state, grads, loss, peak=c.learning_rate, warmup_steps=c.warmup_steps
    )
    if away:
      there = jax.device_put(state.opt_state, self.state_shardings.opt_state)
      state = state._replace(opt_state=there)
    return state, metrics

  def _sum(self, total: Any, part: Any) -> Any:
    return part if total is None else self._add(total, part)

  def finish_step(self, state: TrainState) -> TrainState:
    """Counts one pass of the loop; the teacher follows. Donates `state`."""
    return self._finish(state)

  def _finished(self, state: TrainState) -> TrainState:
    teacher, weights = state.teacher, self._hyper.teacher_weights
    if self.keeps_teacher and not self.takes_teacher:
      decay = self._hyper.ema_decay if weights == 'ema' else 0.0
      teacher = jax.tree.map(
        lambda t, p: decay * t + (1.0 - decay) * p, teacher, state.policy
      )
    return state._replace(step=state.step + 1, teacher=teacher)

  def _states(self, params: Any, tokens: jax.Array, places: jax.Array) -> jax.Array:
    how = self._config.scoring
    hidden = scoring.hidden_states(self.model, params, tokens, None, how)
    return scoring.states_at(hidden, places)

  def _scores(
    self, params: Any, states: jax.Array, sheet: Sheet
  ) -> tuple[jax.Array, jax.Array]:
    how, targets = self._config.scoring, sheet['targets']
    scores = scoring.scores_after(self.model, params, states, targets, how)
    return tuple(scoring.by_rows(value, sheet['response_mask']) for value in scores)

  def _values(self, params: Any, states: jax.Array, sheet: Sheet) -> jax.Array:
    values = critic.token_values(states, params['value_head'])
    return scoring.by_rows(values, sheet['response_mask'])

  def _logprobs(self, params: Any, sheet: Sheet) -> jax.Array:
    states = self._states(params, sheet['tokens'], sheet['places'])
    return self._scores(params, states, sheet)[0]

  def _divergence(
    self, params: Any, teacher: Any, states: jax.Array, sheet: Sheet
  ) -> jax.Array:
    """Computes [M, R] nats from the teacher's whole distributions."""
    teacher = jax.lax.stop_gradient(teacher)
    theirs = self._states(teacher, sheet['teacher_tokens'], sheet['teacher_places'])
    values = distributions.token_divergence(
      self.model,
      (params, teacher),
      (states, theirs),
      self._divergence_of,
      self._config.scoring,
    )
    return scoring.by_rows(values, sheet['response_mask'])

  def _loss_and_gradient(
    self, params: Any, base: Any, teacher: Any, sheet: Sheet
  ) -> Any:
    """Computes a sheet's share of ((loss, metrics), gradient)."""

    def loss_fn(params: Any) -> tuple[jax.Array, dict[str, Any]]:
      params = self._joined(params, base)
      states = self._states(params, sheet['tokens'], sheet['places'])
      logprobs, entropy = self._scores(params, states, sheet)
      values = divergence = None
      if self._algorithm.has_critic:
        values = self._values(params, states, sheet)
      if self.reads_distributions:
        divergence = self._divergence(params, teacher, states, sheet)
      known = {name: sheet.get(name) for name in LossInputs._fields}
      live = {
        'logprobs': logprobs,
        'entropy': entropy,
        'values': values,
        'divergence': divergence,
      }
      return policy_objective(self._algorithm, self._hyper, LossInputs(**known | live))

    return jax.value_and_grad(loss_fn, has_aux=True)(params)


# What scores read of a sheet, and what losses read of what the host knows.
_SCORED = ('tokens', 'places', 'targets', 'response_mask')
_KNOWN = [name for name in LossInputs._fields if name != 'response_mask']
