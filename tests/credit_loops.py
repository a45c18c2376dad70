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


LOOPS = {'rlsd': loop_rlsd, 'agent-opsd': loop_agent_opsd, 'grsd': loop_grsd}
