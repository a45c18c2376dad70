"""Credit as the papers write it: loops over rows and tokens, in float64."""

import math

import numpy as np
from algorithm_cases import sigmoid


def peers(data, i, over='rows'):
  """Row i's group: all its rows, or the first of each of its trajectories."""
  found, seen = [], set()
  for j in range(len(data.scores)):
    again = over == 'trajectories' and data.trajectory_ids[j] in seen
    if data.group_ids[j] == data.group_ids[i] and not again:
      found.append(j)
      seen.add(data.trajectory_ids[j])
  return found


def loop_grpo(data, over='rows', divide=True, scores=None):
  scores = data.scores if scores is None else scores
  out = np.zeros(len(scores))
  for i in range(len(scores)):
    counted = scores[peers(data, i, over)]
    mean, std = (counted.mean(), counted.std(ddof=1)) if len(counted) > 1 else (0, 1)
    out[i] = scores[i] - mean
    if divide:  # Where those that count are equal, nobody is better.
      out[i] = out[i] / (std + 1e-6) if std > 0 else 0
  return out


def loop_rloo(data, over='rows'):
  out = np.zeros(len(data.scores))
  for i, score in enumerate(data.scores):
    counted = peers(data, i, over)
    if i in counted:
      others = [data.scores[j] for j in counted if j != i]
      out[i] = score - np.mean(others) if others else score
    else:
      scale = len(counted) / (len(counted) - 1)
      out[i] = scale * (score - data.scores[counted].mean())
  return out


def spread(rows, mask):
  return np.where(mask, np.asarray(rows)[:, None], 0)


def loop_whiten(values, mask):
  chosen = [values[i, t] for i, t in zip(*np.nonzero(mask))]
  return np.where(
    mask, (values - np.mean(chosen)) / np.sqrt(np.var(chosen, ddof=1) + 1e-8), 0
  )


def loop_discounted(data, gamma):
  """Rewards from each turn of a trajectory on."""
  out = np.zeros(len(data.rewards))
  for i in range(len(out)):
    for j in range(len(out)):
      later = data.turn_ids[j] - data.turn_ids[i]
      if data.trajectory_ids[i] == data.trajectory_ids[j] and later >= 0:
        out[i] += gamma**later * data.rewards[j]
  return out


def loop_gigpo(data, states, gamma=0.95, weight=1.0, divide=True):
  returns = loop_discounted(data, gamma) - data.penalties
  out = loop_grpo(data, divide=divide)
  for i in range(len(out)):
    same = [j for j in peers(data, i) if states[j] == states[i]]
    if len(same) > 1:
      lead = returns[i] - returns[same].mean()
      std = returns[same].std(ddof=1) if divide else 1 - 1e-6
      out[i] += weight * lead / (std + 1e-6)
  return out


def loop_gae(rewards, data, gamma, lam):
  """[B, R] advantages: sums of discounted temporal differences, term by term."""
  out = np.zeros(rewards.shape)
  for i, length in enumerate(data.response_mask.sum(1)):
    values = [*data.old_values[i, :length], 0.0]
    for t in range(length):
      for u in range(t, length):
        delta = rewards[i, u] + gamma * values[u + 1] - values[u]
        out[i, t] += (gamma * lam) ** (u - t) * delta
  return out


def gap_of(data, i):
  """Gaps of a row's tokens; 0 where the teacher saw nothing."""
  length = data.response_mask[i].sum()
  gaps = data.teacher_logprobs[i, :length] - data.old_logprobs[i, :length]
  return gaps if data.taught[i] else np.zeros(length)


def loop_rlsd(data, advantages, lam, clip=0.2):
  """[B, R] from [B] advantages."""
  out = np.zeros(data.response_mask.shape)
  for i, advantage in enumerate(advantages):
    for t, gap in enumerate(gap_of(data, i)):
      weight = min(max(math.exp(np.sign(advantage) * gap), 1 - clip), 1 + clip)
      out[i, t] = advantage * ((1 - lam) + lam * weight)
  return out


def success_rate(data, i):
  outcomes = {data.trajectory_ids[j]: data.successes[j] for j in peers(data, i)}
  return sum(outcomes.values()) / len(outcomes)


def loop_agent_opsd(data, advantages, lam, band=0.2):
  out = np.zeros(len(advantages))
  for trajectory in set(data.trajectory_ids):
    rows = np.flatnonzero(data.trajectory_ids == trajectory)
    rows = sorted(rows, key=lambda i: data.turn_ids[i])
    prior = min(max(success_rate(data, rows[0]), 1e-4), 1 - 1e-4)
    logit, moves = math.log(prior / (1 - prior)), []
    for i in rows:
      before = sigmoid(logit)
      logit += sum(gap_of(data, i))
      moves.append(sigmoid(logit) - before)
    for i, move in zip(rows, moves):
      z = (move - np.mean(moves)) / (np.std(moves) + 1e-6)
      weight = np.clip(1 + band * np.sign(advantages[i]) * z, 1 - band, 1 + band)
      out[i] = advantages[i] * ((1 - lam) + lam * weight)
  return out


def loop_grsd(data, advantages, lam, clip=3.0):
  signal = np.zeros(len(advantages))
  for i in range(len(advantages)):
    signal[i] = math.exp(np.sign(advantages[i]) * np.mean(gap_of(data, i))) - 1
  out = np.array(advantages)
  for i in np.flatnonzero(data.taught):
    mean = np.mean([abs(signal[j]) for j in peers(data, i) if data.taught[j]])
    weight = 1 + lam * np.clip(signal[i] / (mean + 1e-6), -clip, clip)
    out[i] = advantages[i] * max(weight, 0.1)
  return out


def loop_adrs(data, eta, tau=2.0):
  """([B, R] rewards of tokens, [B] gates): of what the teacher liked in the step."""
  rows = np.flatnonzero(data.taught)
  said = {i: data.teacher_logprobs[i][data.response_mask[i]] for i in rows}
  every = np.concatenate(list(said.values()))
  overall = np.mean([said[i].mean() for i in rows])
  out, gates = np.zeros(data.response_mask.shape), np.zeros(len(data.scores))
  for i in rows:
    same = [j for j in peers(data, i) if data.taught[j]]
    alike = np.array([sigmoid(said[j].mean() - overall) for j in same])
    returns = data.scores[same]
    value = (alike @ returns) / alike.sum() - (1 - alike) @ returns / (1 - alike).sum()
    gates[i] = sigmoid(tau * value)
    for t, logprob in enumerate(said[i]):
      out[i, t] = eta * gates[i] * (logprob - every.mean()) / every.std(ddof=1)
  return out, gates


def contrast_of(data, i):
  """What one context says of a row's tokens more than the other."""
  length = data.response_mask[i].sum()
  pair = data.teacher_logprobs[i, :length] - data.contrast_logprobs[i, :length]
  return pair if data.taught[i] else np.zeros(length)


def episodes(data):
  """The rows of each episode."""
  found = {}
  for i, name in enumerate(data.trajectory_ids):
    found.setdefault(name, []).append(i)
  return list(found.values())


def loop_ahead(data, advantages, lam, clip=0.2):
  out = loop_rlsd(data, advantages, lam, clip)
  for i in np.flatnonzero(data.successes):
    out[i, : data.response_mask[i].sum()] = advantages[i]
  return out


def loop_ocsd(data, advantages, beta, rho=0.2):
  out = spread(advantages, data.response_mask).astype(float)
  for rows in episodes(data):
    doubt = {i: -np.mean(data.old_logprobs[i][data.response_mask[i]]) for i in rows}
    rows = sorted(rows, key=lambda i: -doubt[i])
    for i in rows[: math.ceil(rho * len(rows))]:
      for t, e in enumerate(contrast_of(data, i)):
        weight = 1 + beta * np.sign(advantages[i]) * math.tanh(e / 2)
        out[i, t] = advantages[i] * weight
  return out


def loop_taspo(data, advantages, _, tau=0.1, kappa=0.0, band=0.2):
  out = np.array(advantages, float)
  for rows in episodes(data):
    rows, support = [i for i in rows if data.taught[i]], {}
    for i in rows:
      gaps = gap_of(data, i)
      acted = [g for t, g in enumerate(gaps) if data.action_mask[i, t]]
      kept = [g if abs(g) >= kappa else 0.0 for g in acted]
      support[i] = np.mean(kept) if acted else 0.0
    q = {}
    for i in rows:
      relative = support[i] - np.mean([*support.values()])
      q[i] = math.tanh(np.sign(advantages[i]) * relative / tau)
    for i in rows:
      out[i] = advantages[i] * (1 + band / 2 * (q[i] - np.mean([*q.values()])))
  return out


def loop_rlcsd(data, advantages, coef=0.5, tau=0.02, delta=0.02):
  """[B, R] from [B] advantages: two means of the loss, told as one."""
  moved, kept = {}, {}
  for i, advantage in enumerate(advantages):
    for t, e in enumerate(contrast_of(data, i)):
      added = coef * math.tanh(e / tau)
      if abs(added) <= delta:
        kept[i, t] = advantage
      elif advantage == 0:
        moved[i, t] = 0.0
      else:
        low, high = (0, np.inf) if advantage > 0 else (-np.inf, 0)
        moved[i, t] = min(max(advantage + added, low), high)
  out, total = np.zeros(data.response_mask.shape), len(moved) + len(kept)
  for part in (moved, kept):
    for place, value in part.items():
      out[place] = value * total / len(part)
  return out


def loop_sipo(data, advantages, kappa=0.5, clip=0.2):
  out = np.zeros(data.response_mask.shape)
  for i, advantage in enumerate(advantages):
    for t, e in enumerate(contrast_of(data, i)):
      value = advantage + kappa * min(max(e, -clip), clip)
      if advantage * value < 0:
        value = 0.0
      out[i, t] = value
  return out


def loop_agreed(data, signs, advantages, coef=1.0, clip=np.inf):
  """[B, R]: OPDVR with the outcomes for signs, GRPD with the advantages."""
  out = spread(advantages, data.response_mask).astype(float)
  for i in np.flatnonzero(data.taught):
    for t, gap in enumerate(gap_of(data, i)):
      agreed = np.sign(signs[i]) * min(max(gap, -clip), clip)
      out[i, t] = signs[i] * coef * max(0.0, agreed)
  return out


def loop_unlikely(data, share, mask):
  """The places of the least likely tokens."""
  places = sorted(zip(*np.nonzero(mask)), key=lambda place: data.old_logprobs[place])
  return places[: max(1, math.floor(share * len(places)))]


LOOPS = {'rlsd': loop_rlsd, 'agent-opsd': loop_agent_opsd, 'grsd': loop_grsd}
LOOPS |= {'ahead': loop_ahead, 'ocsd': loop_ocsd, 'taspo': loop_taspo}
