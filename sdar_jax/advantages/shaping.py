"""ADRS: the teacher's log-probability as a reward, where it has proved useful.

Token rewards for estimators that read time (`returns.gae`); whole batch, before it is
cut into minibatches; numpy or JAX in, the same out. With a baseline per row and a gate
per row the rewards of a row sum to exactly nothing, so an estimator that adds up a
row's rewards (GRPO's score) does not see them: take 'batch' or the PAS gate there.
"""

import chex

from sdar_jax.advantages.segments import paid, segment_sum, segments_of
from sdar_jax.losses.masked import Array, namespace

EPS = 1e-8
BASELINES = ('row', 'batch')
SCALES = ('batch', 'row', 'none')
MEANS_OVER = ('tokens', 'rows')


def _keep(xp, mask, values):
  return xp.where(mask, values, xp.zeros_like(values))


def _batch_std(xp, values, mask):
  """Unbiased deviation over unmasked tokens; 1 where fewer than two are."""
  count = xp.sum(mask)
  mean = xp.sum(_keep(xp, mask, values)) / xp.maximum(count, 1)
  squares = xp.sum(_keep(xp, mask, (values - mean) ** 2))
  std = xp.sqrt(squares / xp.maximum(count - 1, 1))
  return xp.where(count > 1, std + EPS, 1.0)


def teacher_rewards(
  teacher_logprobs: Array,
  mask: Array,
  *,
  baseline: str = 'row',
  scale: str = 'batch',
) -> Array:
  r"""The teacher's log-probabilities, centred and scaled.

  \[ r_t = (\log\pi_T(y_t) - \overline{\log\pi_T}) / (\mathrm{std} + 10^{-8}) \]

  Args:
    teacher_logprobs: [B, T] float, nats.
    mask: [B, T] bool.
    baseline: the mean subtracted: over the 'row' (the paper's step) or the 'batch'.
    scale: the deviation: over the 'batch' (unbiased), the 'row' (biased), or 'none'.

  Returns:
    [B, T] deviations (or nats), 0 where masked.

  Raises:
    ValueError: unknown `baseline` or `scale`.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  if baseline not in BASELINES:
    raise ValueError(f'baseline={baseline!r}: expected one of {BASELINES}')
  if scale not in SCALES:
    raise ValueError(f'scale={scale!r}: expected one of {SCALES}')
  chex.assert_rank([teacher_logprobs, mask], 2)
  xp = namespace(teacher_logprobs, mask)
  values = _keep(xp, mask, teacher_logprobs)
  axis = 1 if baseline == 'row' else None
  count = xp.maximum(xp.sum(mask, axis=axis, keepdims=True), 1)
  values = _keep(xp, mask, values - xp.sum(values, axis=axis, keepdims=True) / count)
  if scale == 'batch':
    values = values / _batch_std(xp, values, mask)
  elif scale == 'row':
    tokens = xp.maximum(xp.sum(mask, axis=1, keepdims=True), 1)
    mean = xp.sum(values, axis=1, keepdims=True) / tokens
    squares = _keep(xp, mask, (values - mean) ** 2)
    values = values / (xp.sqrt(xp.sum(squares, axis=1, keepdims=True) / tokens) + EPS)
  return values.astype(teacher_logprobs.dtype)


def teacher_value(
  teacher_logprobs: Array,
  mask: Array,
  returns: Array,
  group_ids: Array,
  *,
  temperature: float,
  mean_over: str = 'tokens',
) -> Array:
  r"""TVA: how much better the responses did that the teacher would have given.

  \[ \alpha_i = \sigma\Big(\frac{\overline{\log\pi_T}_i - \overline{\log\pi_T}}
     {\text{temperature}}\Big), \qquad
     TVA_g = \frac{\sum_{i \in g} \alpha_i R_i}{\sum_{i \in g} \alpha_i}
     - \frac{\sum_{i \in g} (1 - \alpha_i) R_i}{\sum_{i \in g} (1 - \alpha_i)} \]

  A group of one row has 0.

  Args:
    teacher_logprobs: [B, T] float, nats.
    mask: [B, T] bool; a row without tokens is a padding row.
    returns: [B] float, return units: discounted returns of the step with anchor groups,
      the episode's score with task groups.
    group_ids: [B] int: anchors or tasks.
    temperature: nats, > 0.
    mean_over: what the overall mean counts: 'tokens' (the paper's step level) or 'rows'
      (its completion level).

  Returns:
    [B] return units, 0 for padding rows.

  Raises:
    ValueError: unknown `mean_over`; on the host, a return that is not finite.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  if mean_over not in MEANS_OVER:
    raise ValueError(f'mean_over={mean_over!r}: expected one of {MEANS_OVER}')
  chex.assert_rank([teacher_logprobs, mask, returns, group_ids], [2, 2, 1, 1])
  xp = namespace(teacher_logprobs, mask, returns, group_ids)
  tokens = xp.sum(mask, axis=1)
  real = tokens > 0
  sums = xp.sum(_keep(xp, mask, teacher_logprobs), axis=1)
  means = sums / xp.maximum(tokens, 1)
  if mean_over == 'tokens':
    overall = xp.sum(sums) / xp.maximum(xp.sum(tokens), 1)
  else:
    overall = xp.sum(means) / xp.maximum(xp.sum(real), 1)
  aligned = 0.5 * (1.0 + xp.tanh(0.5 * (means - overall) / temperature))
  returns = paid(xp, returns, real)
  segments, first = segments_of(xp, ~real, group_ids)
  shifted = returns - returns[first]  # Equal returns, or a single one, give exactly 0.
  share = lambda weights: (
    segment_sum(xp, segments, weights * shifted)
    / (segment_sum(xp, segments, weights) + EPS)
  )
  return (share(aligned) - share(1.0 - aligned)).astype(returns.dtype)


def value_gate(value: Array, mask: Array, *, gate_scale: float) -> Array:
  r"""The gate of a row whose teacher has been useful.

  \[ g = \sigma(\tau\,TVA) \]

  Args:
    value: [B] float, return units, of `teacher_value`.
    mask: [B, T] bool.
    gate_scale: tau, per return unit (2 in the paper).

  Returns:
    [B, T] in [0, 1], constant in a row, 0 where masked.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  chex.assert_rank([value, mask], [1, 2])
  xp = namespace(value, mask)
  gate = 0.5 * (1.0 + xp.tanh(0.5 * gate_scale * value))
  return xp.where(mask, gate[:, None], xp.zeros_like(gate[:1]))


def privilege_gate(
  teacher_logprobs: Array, ref_logprobs: Array, mask: Array, *, gate_scale: float
) -> Array:
  r"""PAS: the gate of a token that the teacher likes better than the initial policy.

  \[ g_t = \sigma\Big(\tau\,\frac{\log\pi_T - \log\pi_{ref}}{\mathrm{std} + 10^{-8}}
     \Big) \]

  The (unbiased) deviation runs over the batch's tokens; nothing is centred.

  Args:
    teacher_logprobs: [B, T] float, nats.
    ref_logprobs: [B, T] float, nats.
    mask: [B, T] bool.
    gate_scale: tau, per deviation (2 in the paper).

  Returns:
    [B, T] in [0, 1], 0 where masked.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  chex.assert_rank([teacher_logprobs, ref_logprobs, mask], 2)
  xp = namespace(teacher_logprobs, ref_logprobs, mask)
  signal = _keep(xp, mask, teacher_logprobs) - _keep(xp, mask, ref_logprobs)
  signal = signal / _batch_std(xp, signal, mask)
  gate = 0.5 * (1.0 + xp.tanh(0.5 * gate_scale * signal))
  return _keep(xp, mask, gate).astype(teacher_logprobs.dtype)


def shaped_rewards(
  rewards: Array, teacher_reward: Array, gate: Array, *, shaping_coef: float
) -> Array:
  r"""Token rewards with the gated teacher's added.

  \[ r'_t = r_t + \eta\,g_t\,r^T_t \]

  Args:
    rewards: [B, T] float, return units, as `returns.token_rewards` places them.
    teacher_reward: [B, T] float, of `teacher_rewards`.
    gate: [B, T] in [0, 1], of `value_gate` or `privilege_gate`; 1 for no gate.
    shaping_coef: eta, return units (0.02 to 0.1 in the paper).

  Returns:
    [B, T] return units.

  Source: ADRS (arXiv 2608.03223), read in its code (confidence C).
  """
  chex.assert_equal_shape([rewards, teacher_reward, gate])
  return rewards + shaping_coef * gate * teacher_reward
