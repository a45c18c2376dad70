"""Token credit of the follow-up papers: advantages that a teacher's gap reshapes.

Maps from advantages and gaps to [B, T] advantages, like `advantages.rlsd_credit`. They
read whole episodes or groups, so they run on the whole batch before it is cut into
minibatches, with gaps from `old_logprobs`; numpy or JAX in, the same out.
"""

import chex

from sdar_jax.advantages.baselines import EPS, LOG_WEIGHT_LIMIT, uniform_credit
from sdar_jax.advantages.segments import centre, recurrence, segment_sum, segments_of
from sdar_jax.losses.masked import Array, namespace

BELIEF_INCREMENTS = ('belief', 'logit')
BELIEF_FLOOR = 1e-6
PRIOR_FLOOR = 1e-4
GRSD_FLOOR = 0.1


def _turn_gaps(xp, gap, mask):
  """([B] sum of each row's gap, [B] its tokens)."""
  return xp.sum(xp.where(mask, gap, xp.zeros_like(gap)), axis=1), xp.sum(mask, axis=1)


def agent_opsd_credit(
  advantages: Array,
  gap: Array,
  trajectory_ids: Array,
  turn_ids: Array,
  prior: Array,
  response_mask: Array,
  *,
  mix: float,
  band: float,
  increments: str = 'belief',
  decay: float = 1.0,
) -> Array:
  r"""AgentOPSD: turns where the belief in success moved with the outcome count more.

  \[ d_k = \sum_t \Delta_{kt}, \quad
     \mathrm{logit} V_k = \mathrm{logit} V_0 + \sum_{j \le k} \gamma^{k-j} d_j, \quad
     q_k = V_k - V_{k-1}, \quad z_k = \frac{q_k - \bar q}{\mathrm{std}(q) + 10^{-6}} \]
  \[ m_k = \mathrm{clip}(1 + b\,\mathrm{sign}(A) z_k,\ 1 - b,\ 1 + b), \qquad
     A_k = A\,[(1-\lambda) + \lambda m_k] \]

  Mean and (biased) deviation run over the episode's turns; an episode of one turn, or
  one whose beliefs move equally, keeps its advantages. Long responses saturate V, and
  then only the first turns move it: `increments` 'logit' takes q_k = d_k instead.

  Args:
    advantages: [B] float, one per row.
    gap: [B, T] float, nats: teacher_logprobs - old_logprobs.
    trajectory_ids: [B] int, unique in the batch.
    turn_ids: [B] int, unique in a trajectory.
    prior: [B] float in [0, 1], equal within an episode: V_0, as the success rate.
    response_mask: [B, T] bool; a row without tokens is a padding row.
    mix: lambda in [0, 1]; 0 is `uniform_credit`.
    band: b in [0, 1).
    increments: one of `BELIEF_INCREMENTS`.
    decay: gamma in [0, 1] per turn; 1 in the paper.

  Returns:
    [B, T] advantages, 0 where masked.

  Raises:
    ValueError: unknown `increments`.

  Source: AgentOPSD (arXiv 2608.05987), read in its code (confidence C), turn
    granularity: lambda 0.5 and b 0.2 in the ALFWorld script; 'logit' is its ablation.
  """
  if increments not in BELIEF_INCREMENTS:
    raise ValueError(f'increments={increments!r}: expected one of {BELIEF_INCREMENTS}')
  chex.assert_rank([advantages, gap, prior, response_mask], [1, 2, 1, 2])
  xp = namespace(advantages, gap, trajectory_ids, turn_ids, prior, response_mask)
  moves, tokens = _turn_gaps(xp, gap, response_mask)
  segments, first = segments_of(xp, tokens == 0, trajectory_ids)
  if increments == 'belief':
    moves = _belief_increments(xp, moves, segments, turn_ids, prior, decay)
  centred, _, count = centre(xp, moves, xp.ones_like(moves), segments, first)
  std = xp.sqrt(segment_sum(xp, segments, centred**2) / count)
  scores = xp.sign(advantages) * centred / (std + EPS)
  weights = xp.clip(1.0 + band * scores, 1.0 - band, 1.0 + band)
  shaped = advantages * ((1.0 - mix) + mix * weights)
  return uniform_credit(shaped.astype(advantages.dtype), response_mask)


def _belief_increments(xp, moves, segments, turn_ids, prior, decay):
  """V_k - V_{k-1} of every row, the rows of an episode taken by turn."""
  order = xp.lexsort((turn_ids, segments))
  ordered = segments[order]
  same = xp.concatenate([xp.zeros(1, bool), ordered[1:] == ordered[:-1]])
  evidence = recurrence(xp, moves[order], decay * same.astype(moves.dtype))
  prior = xp.clip(prior[order], PRIOR_FLOOR, 1.0 - PRIOR_FLOOR)
  logits = xp.log(prior / (1.0 - prior)) + evidence
  beliefs = 0.5 * (1.0 + xp.tanh(0.5 * logits))  # The sigmoid, which cannot overflow.
  beliefs = xp.clip(beliefs, BELIEF_FLOOR, 1.0 - BELIEF_FLOOR)
  before = xp.where(same, xp.concatenate([beliefs[:1], beliefs[:-1]]), prior)
  return (beliefs - before)[xp.argsort(order)]


def grsd_credit(
  advantages: Array,
  gap: Array,
  group_ids: Array,
  prior_mask: Array,
  response_mask: Array,
  *,
  mix: float,
  signal_clip: float,
  dead_zone: float = 0.0,
) -> Array:
  r"""GRSD: turns that the group's reflection agrees with count more, others less.

  \[ q = \mathrm{sign}(A)\,\tfrac1n\sum_t\Delta_t, \quad
     e = e^{\mathrm{clip}(q, -20, 20)} - 1, \quad
     \hat e = \frac{e}{\overline{|e|}_g + 10^{-6}}, \quad
     A' = A \max(0.1,\ 1 + \lambda\,\mathrm{clip}(\hat e, -c, c)) \]

  |e-hat| <= eta counts as 0. The mean runs over the group's rows with a prior; rows
  without one keep A. The amplified side has no bound but c: at c = 3 and lambda = 1/2
  an advantage grows up to 2.5 times.

  Args:
    advantages: [B] float, one per row.
    gap: [B, T] float, nats: teacher_logprobs - old_logprobs under the group's prior.
    group_ids: [B] int.
    prior_mask: [B] bool: the row's group had both outcomes, so that a contrastive prior
      exists.
    response_mask: [B, T] bool; a row without tokens is a padding row.
    mix: lambda >= 0; 0 is `uniform_credit`.
    signal_clip: c > 0.
    dead_zone: eta >= 0.

  Returns:
    [B, T] advantages, 0 where masked.

  Source: GRSD (arXiv 2607.28076), read in its code (confidence C): lambda 0.5, c 3,
    eta 0.
  """
  chex.assert_rank([advantages, gap, prior_mask, response_mask], [1, 2, 1, 2])
  xp = namespace(advantages, gap, group_ids, prior_mask, response_mask)
  total, tokens = _turn_gaps(xp, gap, response_mask)
  signed = xp.sign(advantages) * total / xp.maximum(tokens, 1)
  signal = xp.expm1(xp.clip(signed, -LOG_WEIGHT_LIMIT, LOG_WEIGHT_LIMIT))
  active = prior_mask & (tokens > 0)
  signal = xp.where(active, signal, xp.zeros_like(signal))
  segments, _ = segments_of(xp, ~active, group_ids)
  count = segment_sum(xp, segments, active.astype(signal.dtype))
  scale = segment_sum(xp, segments, xp.abs(signal)) / xp.maximum(count, 1.0)
  signal = signal / (scale + EPS)
  signal = xp.where(xp.abs(signal) > dead_zone, signal, xp.zeros_like(signal))
  weights = 1.0 + mix * xp.clip(signal, -signal_clip, signal_clip)
  shaped = advantages * xp.maximum(weights, GRSD_FLOOR)
  return uniform_credit(shaped.astype(advantages.dtype), response_mask)


def opid_credit(
  credit: Array,
  gap: Array,
  response_mask: Array,
  skill_mask: Array,
  *,
  weight: float,
  normalise: bool = False,
  gap_clip: float | None = None,
) -> Array:
  r"""OPID: the gap under a hindsight skill is added to the advantage.

  \[ \hat A_t = A_t + w\,\Delta_t, \qquad \Delta \leftarrow
     \mathrm{clip}\Big(\frac{\Delta - \bar\Delta}{\mathrm{std}(\Delta) + 10^{-6}},
     -c, c\Big) \text{ where asked} \]

  Called once per kind of skill, episode skills first and then step skills, each with
  its rows and weight; a row that has both kinds uses the step skill in the paper.

  Args:
    credit: [B, T] float: A.
    gap: [B, T] float, nats: teacher_logprobs - old_logprobs under the skill.
    response_mask: [B, T] bool.
    skill_mask: [B] bool, rows that have a skill of this kind.
    weight: w, advantage units per nat (or per deviation if normalised).
    normalise: standardise the gap over the batch's tokens with a skill (biased
      deviation; only centred where that is <= 1e-6).
    gap_clip: c > 0, or None; after `normalise`.

  Returns:
    [B, T] advantages, 0 where masked.

  Source: OPID (arXiv 2606.26790), read in its code (confidence C): w 0.001 for both
    kinds, neither normalised nor clipped.
  """
  chex.assert_rank([credit, gap, response_mask, skill_mask], [2, 2, 2, 1])
  xp = namespace(credit, gap, response_mask, skill_mask)
  spoken = response_mask & skill_mask[:, None]
  gap = xp.where(spoken, gap, xp.zeros_like(gap))
  if normalise:
    count = xp.maximum(xp.sum(spoken), 1)
    centred = xp.where(spoken, gap - xp.sum(gap) / count, 0.0)
    std = xp.sqrt(xp.sum(centred**2) / count)
    gap = centred / xp.where(std > EPS, std + EPS, 1.0)
  if gap_clip is not None:
    gap = xp.clip(gap, -gap_clip, gap_clip)
  added = xp.where(response_mask, credit + weight * gap, xp.zeros_like(credit))
  return added.astype(credit.dtype)
