import numpy as np
import pytest

from sdar_jax.advantages import credit, grpo

EPS = 1e-6


def test_rlsd_redistributes_within_the_clip():
  gap = np.array([[0.1, 1.0, -1.0, 1e4, -1e4, np.nan]])
  mask = np.array([[1, 1, 1, 1, 1, 0]], bool)
  up, down = np.exp(0.1), np.exp(-0.1)
  for advantage, weights in (
    (2.0, [up, 1.2, 0.8, 1.2, 0.8]),
    (-2.0, [down, 0.8, 1.2, 0.8, 1.2]),
    (0.0, [1, 1, 1, 1, 1]),
  ):
    got = credit.rlsd_credit(
      np.array([advantage]), gap, mask, rlsd_lambda=0.25, rlsd_clip=0.2
    )
    want = advantage * (0.75 + 0.25 * np.array(weights))
    np.testing.assert_allclose(got[0, :5], want, rtol=1e-12)
    assert got[0, 5] == 0


def make_rows(seed, spread=0.5):
  """Four groups of three episodes, turns shuffled, one padding row of poison."""
  rng = np.random.default_rng(seed)
  trajectories = np.concatenate([np.repeat(np.arange(11), 3), [11, 12]])
  turns = np.concatenate([np.tile([0, 2, 5], 11), [0, 0]])
  order = rng.permutation(35)
  trajectories, turns = trajectories[order], turns[order]
  mask = rng.random((35, 6)) < 0.7
  mask[:, 2] = True
  mask[trajectories == 12] = False
  return {
    'advantages': rng.standard_normal(35),
    'gap': np.where(mask, spread * rng.standard_normal((35, 6)), np.nan),
    'trajectory_ids': trajectories,
    'turn_ids': turns,
    'group_ids': trajectories // 3,
    'prior': np.array([0.0, 0.3, 0.5, 0.9, 1.0])[trajectories // 3],
    'mask': mask,
  }


def agent_opsd(rows, mix=0.5, band=0.2):
  names = ('advantages', 'gap', 'trajectory_ids', 'turn_ids', 'prior', 'mask')
  return credit.agent_opsd_credit(*(rows[name] for name in names), mix=mix, band=band)


def reordered(rows, order):
  return {name: value[order] for name, value in rows.items()}


def loop_agent_opsd(rows, mix, band):
  out = np.zeros(rows['mask'].shape)
  moves = np.nansum(np.where(rows['mask'], rows['gap'], 0), axis=1)
  for episode in set(rows['trajectory_ids']):
    index = [
      i
      for i in np.argsort(rows['turn_ids'], kind='stable')
      if rows['trajectory_ids'][i] == episode and rows['mask'][i].any()
    ]
    if not index:
      continue
    believed, evidence, q = min(max(rows['prior'][index[0]], 1e-4), 1 - 1e-4), 0.0, []
    start = np.log(believed / (1 - believed))
    for i in index:
      evidence += moves[i]
      belief = min(max(1 / (1 + np.exp(-start - evidence)), EPS), 1 - EPS)
      q.append(belief - believed)
      believed = belief
    z = (np.array(q) - np.mean(q)) / (np.std(q) + EPS)
    for i, score in zip(index, z):
      a = rows['advantages'][i]
      m = min(max(1 + band * np.sign(a) * score, 1 - band), 1 + band)
      out[i] = a * ((1 - mix) + mix * m) * rows['mask'][i]
  return out


def test_agent_opsd_equals_a_loop():
  rows = make_rows(0)
  want = loop_agent_opsd(rows, mix=0.5, band=0.2)
  got = agent_opsd(rows)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
  ratio = (want / rows['advantages'][:, None])[rows['mask']]
  assert ratio.min() == pytest.approx(0.9) and ratio.max() == pytest.approx(1.1)


def test_agent_opsd_knows_no_order_of_rows():
  rows = make_rows(1)
  order = np.random.default_rng(2).permutation(35)
  got, want = agent_opsd(reordered(rows, order)), agent_opsd(rows)
  np.testing.assert_allclose(got, want[order], rtol=1e-9, atol=1e-12)


def test_agent_opsd_leaves_single_turns_and_silent_teachers_alone():
  rows = make_rows(3)
  plain = grpo.uniform_credit(rows['advantages'], rows['mask'])
  alone = rows | {'trajectory_ids': np.arange(35)}
  silent = rows | {'gap': 0 * rows['gap']}
  for got in (agent_opsd(alone), agent_opsd(silent), agent_opsd(rows, mix=0.0)):
    np.testing.assert_allclose(got, plain, rtol=1e-9)


@pytest.mark.parametrize('prior', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('scale', [1e4, -1e4])
def test_agent_opsd_is_finite_and_bounded_under_wild_gaps(prior, scale):
  rows = make_rows(4, spread=scale)
  rows = {
    name: value.astype(np.float32) if value.dtype == float else value
    for name, value in (rows | {'prior': np.full(35, prior)}).items()
  }
  got = agent_opsd(rows, mix=1.0)
  assert got.dtype == np.float32 and np.isfinite(got).all()
  bound = 1.2001 * np.abs(rows['advantages'])[:, None]
  assert (np.abs(got) <= bound).all()


def test_agent_opsd_rewards_the_turn_that_moved_belief():
  """The second of three turns convinces: it gains where the episode succeeded."""
  gap = np.array([[0.0], [4.0], [0.0]])
  ids, mask = np.zeros(3, int), np.ones((3, 1), bool)
  for sign in (1.0, -1.0):
    arrays = (np.full(3, sign), gap, ids, np.arange(3), np.full(3, 0.5), mask)
    got = credit.agent_opsd_credit(*arrays, mix=1.0, band=0.2)[:, 0] * sign
    assert np.argmax(sign * got) == 1 and got[0] == pytest.approx(got[2])


def loop_grsd(rows, prior, mix, clip):
  out, signal, scale = np.zeros(rows['mask'].shape), {}, {}
  for i in range(35):
    if rows['mask'][i].any():
      q = np.sign(rows['advantages'][i]) * rows['gap'][i][rows['mask'][i]].mean()
      signal[i] = np.exp(min(max(q, -20), 20)) - 1
  for group in set(rows['group_ids']):
    scale[group] = [
      abs(signal[i]) for i in signal if prior[i] and rows['group_ids'][i] == group
    ]
  for i, e in signal.items():
    weight = 1.0
    if prior[i]:
      e = e / (np.mean(scale[rows['group_ids'][i]]) + EPS)
      weight = max(0.1, 1 + mix * min(max(e, -clip), clip))
    out[i] = rows['advantages'][i] * weight * rows['mask'][i]
  return out


def test_grsd_equals_a_loop():
  rows = make_rows(6)
  prior = rows['group_ids'] != 1
  settings = {'mix': 0.5, 'signal_clip': 1.5}
  want = loop_grsd(rows, prior, 0.5, 1.5)
  arrays = (rows['advantages'], rows['gap'], rows['group_ids'], prior, rows['mask'])
  got = credit.grsd_credit(*arrays, **settings)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
  plain = grpo.uniform_credit(rows['advantages'], rows['mask'])
  np.testing.assert_array_equal(got[~prior], plain[~prior])
  order = np.random.default_rng(7).permutation(35)
  got = credit.grsd_credit(*(array[order] for array in arrays), **settings)
  np.testing.assert_allclose(got, want[order], rtol=1e-9, atol=1e-12)


def test_grsd_never_turns_an_advantage_and_stays_finite():
  rows = make_rows(8, spread=1e4)
  arrays = [rows['advantages'], rows['gap'], rows['group_ids']]
  arrays += [np.ones(35, bool), rows['mask']]
  arrays[:2] = [array.astype(np.float32) for array in arrays[:2]]
  got = credit.grsd_credit(*arrays, mix=0.5, signal_clip=3.0)
  assert np.isfinite(got).all()
  weights = (got / arrays[0][:, None])[rows['mask']]
  assert weights.min() >= 0.0999 and weights.max() <= 2.5001
  silent = credit.grsd_credit(
    arrays[0], 0 * arrays[1], *arrays[2:], mix=0.5, signal_clip=3.0
  )
  plain = grpo.uniform_credit(arrays[0], rows['mask'])
  np.testing.assert_array_equal(silent, plain)


@pytest.mark.parametrize('clip', [None, 0.7])
def test_opid_equals_a_loop(clip):
  rows, rng = make_rows(9), np.random.default_rng(10)
  skilled, token_credit = rng.random(35) < 0.5, rng.standard_normal((35, 6))
  want = np.zeros((35, 6))
  for i, t in zip(*np.nonzero(rows['mask'])):
    gap = rows['gap'][i, t] if skilled[i] else 0.0
    if clip is not None:
      gap = min(max(gap, -clip), clip)
    want[i, t] = token_credit[i, t] + 0.1 * gap
  arrays = (token_credit, rows['gap'], rows['mask'], skilled)
  settings = {'weight': 0.1, 'gap_clip': clip}
  got = credit.opid_credit(*arrays, **settings)
  np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_opid_without_skills_changes_nothing():
  rows = make_rows(11)
  plain = grpo.uniform_credit(rows['advantages'], rows['mask'])
  nobody = np.zeros(35, bool)
  got = credit.opid_credit(plain, rows['gap'], rows['mask'], nobody, weight=1.0)
  np.testing.assert_array_equal(got, plain)


def test_opid_adds_both_kinds_of_skill():
  mask, zero = np.ones((2, 2), bool), np.zeros((2, 2))
  got = credit.opid_credit(zero, zero + 1, mask, np.array([True, False]), weight=0.25)
  got = credit.opid_credit(got, zero + 2, mask, np.array([False, True]), weight=0.5)
  np.testing.assert_array_equal(got, [[0.25, 0.25], [1, 1]])
