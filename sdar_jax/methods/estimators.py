"""Advantage estimators of other methods than GRPO. No JAX.

They take a step's rows and numbers, (data, hyper), and return [B] or [B, R] advantages;
the formulas are in `advantages/`.
"""

import numpy as np

from sdar_jax.advantages import baselines, outcome, returns
from sdar_jax.methods.hyperparameters import Hyperparameters, reads
from sdar_jax.methods.interface import StepData


def _ids(data: StepData) -> tuple[np.ndarray, ...]:
  return data.group_ids, data.trajectory_ids


@reads('statistics_over')
def leave_one_out(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Takes deviations from the mean of a group's others, as in RLOO."""
  return baselines.rloo(
    data.scores,
    *_ids(data),
    data.row_mask,
    statistics_over=hyper.statistics_over,
  )


@reads('statistics_over', 'divide_by_std')
def pass_at_k(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Takes the lead of the best of a group, for pass@k."""
  return baselines.pass_at_k(
    data.scores,
    *_ids(data),
    data.row_mask,
    statistics_over=hyper.statistics_over,
    divide_by_std=hyper.divide_by_std,
  )


@reads(
  *('statistics_over', 'divide_by_std'), 'gamma', 'step_weight', 'anchor_similarity'
)
def anchored(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Adds deviations among episodes and among equal states, as in GiGPO."""
  return baselines.gigpo(
    data.scores,
    data.discounted(hyper.gamma) - data.penalties,
    *_ids(data),
    data.anchor_ids(hyper.anchor_similarity),
    data.row_mask,
    step_weight=hyper.step_weight,
    statistics_over=hyper.statistics_over,
    divide_by_std=hyper.divide_by_std,
  )


@reads('gamma')
def whitened(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Whitens returns of tokens over the step, as in REINFORCE++."""
  return returns.reinforce_plus_plus(
    data.scores,
    data.response_mask,
    data.row_mask,
    gamma=hyper.gamma,
    token_rewards=data.token_rewards,
  )


@reads('statistics_over')
def whitened_baseline(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Whitens deviations from a group's mean over the step."""
  return returns.reinforce_plus_plus_baseline(
    data.scores,
    *_ids(data),
    data.response_mask,
    data.row_mask,
    statistics_over=hyper.statistics_over,
  )


@reads('unlikely_share', 'unlikely_advantage')
def self_adapted(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Pushes unlikely tokens down, whatever came of them, as in OPSA."""
  return outcome.opsa(
    data.old_logprobs,
    data.old_entropy,
    data.response_mask,
    share=hyper.unlikely_share,
    amount=hyper.unlikely_advantage,
  )


def _gae(data: StepData, hyper: Hyperparameters) -> tuple[np.ndarray, np.ndarray]:
  more = data.token_rewards
  rewards = returns.token_rewards(
    data.scores,
    np.zeros_like(data.old_logprobs) if more is None else more,
    data.response_mask,
    data.row_mask,
  )
  return returns.gae(
    rewards,
    data.old_values,
    data.response_mask,
    gamma=hyper.gamma,
    gae_lambda=hyper.gae_lambda,
  )


@reads('gamma', 'gae_lambda')
def actor_critic(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Whitens advantages of a critic (GAE), as in PPO."""
  return returns.whiten(_gae(data, hyper)[0], data.response_mask)


@reads('gamma', 'gae_lambda')
def value_targets(data: StepData, hyper: Hyperparameters) -> np.ndarray:
  """Computes targets of the critic (GAE)."""
  return _gae(data, hyper)[1]
