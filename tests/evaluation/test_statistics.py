"""Intervals and tests against published values, scipy and simulation."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from sdar_jax.evaluation import statistics


@pytest.mark.parametrize('n', [1, 2, 7, 140, 500, 10_000])
def test_wilson_interval_equals_scipy(n):
  for successes in {0, 1, n // 3, n // 2, n - 1, n}:
    expected = stats.binomtest(successes, n).proportion_ci(method='wilson')
    got = statistics.wilson_interval(successes / n, n)
    assert got == pytest.approx(tuple(expected), abs=1e-12)
    once = statistics.rate_interval([1] * successes + [0] * (n - successes), [1] * n)
    assert once == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_interval_at_the_ends_is_exact():
  assert statistics.wilson_interval(0.0, 13)[0] == 0.0
  assert statistics.wilson_interval(1.0, 13)[1] == 1.0


@pytest.mark.parametrize('rate, n', [(-0.1, 3), (1.1, 3), (0.5, 0), (math.nan, 3)])
def test_wilson_interval_refuses_what_is_no_rate(rate, n):
  with pytest.raises(ValueError, match='must lie in'):
    statistics.wilson_interval(rate, n)


ALIKE = [0.1, 0.5, 0.9]  # Tasks of one rate; or of rates drawn from a beta.
UNLIKE = [(0.05, 0.05), (0.2, 0.2), (1, 1), (0.5, 2), (3, 7), (20, 20)]


@pytest.mark.parametrize('number, rates', list(enumerate([*ALIKE, *UNLIKE])))
def test_rate_interval_covers_where_tasks_are_played_several_times(number, rates):
  tasks, attempts = 50, 8
  random = np.random.default_rng(number)
  drawn = random.beta(*rates, (1500, tasks)) if isinstance(rates, tuple) else rates
  truth = rates[0] / sum(rates) if isinstance(rates, tuple) else rates
  won = random.binomial(attempts, drawn, (1500, tasks))
  played, hits = np.full(tasks, attempts), {'ours': 0, 'attempts': 0}
  for row in won:
    low, high = statistics.rate_interval(row, played)
    hits['ours'] += low <= truth <= high
    low, high = statistics.wilson_interval(row.mean() / attempts, tasks * attempts)
    hits['attempts'] += low <= truth <= high
  assert hits['ours'] / 1500 >= 0.93, hits
  if rates in ((0.05, 0.05), (0.2, 0.2)):  # Solved always or never, nearly.
    assert hits['attempts'] / 1500 < 0.8, hits


def test_rate_interval_of_equal_attempts_is_that_of_one():
  """As at temperature 0; tasks with a fault have fewer attempts."""
  one = statistics.rate_interval([1] * 5 + [0] * 5, [1] * 10)
  assert statistics.rate_interval([8] * 5 + [0] * 5, [8] * 10) == one
  assert statistics.rate_interval([8] * 10, [8] * 10) == (
    statistics.wilson_interval(1.0, 10)
  )
  assert statistics.rate_interval([4], [8]) == statistics.wilson_interval(0.5, 1)
  alike = statistics.rate_interval([4] * 10, [8] * 10)
  assert alike == statistics.wilson_interval(0.5, 80)


def test_rate_interval_equals_the_formula_by_loops():
  won, played = [3, 0, 2, 4, 1], [4, 3, 4, 4, 2]
  n, tasks = sum(played), len(played)
  p = sum(won) / n
  squares = sum((w - p * m) ** 2 for w, m in zip(won, played, strict=True))
  variance = tasks / (tasks - 1) * squares / n**2
  worth = p * (1 - p) / variance * (1.959964 / stats.t.ppf(0.975, tasks - 1)) ** 2
  expected = statistics.wilson_interval(p, min(max(worth, tasks), n))
  assert statistics.rate_interval(won, played) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('won, played', [([], []), ([2], [1]), ([-1], [1]), ([0], [0])])
def test_rate_interval_refuses_impossible_counts(won, played):
  with pytest.raises(ValueError, match=r'0\.\.attempts'):
    statistics.rate_interval(won, played)


def _tables(draws, seeds, tasks, *, seed_sd, task_sd, mean, random):
  """[draws, S, K] zeros and ones, and their expectation over new seeds and tasks."""
  a = random.normal(0, seed_sd, (draws, seeds, 1))
  b = random.normal(0, task_sd, (draws, 1, tasks))
  values = mean + a + b + random.standard_normal((draws, seeds, tasks)) > 0
  return values.astype(float), stats.norm.cdf(
    mean / np.hypot(1, np.hypot(seed_sd, task_sd))
  )


def _coverage(estimate, truth):
  return float(np.mean((estimate.low <= truth) & (truth <= estimate.high)))


SPREADS = [  # Standard deviations of seeds and tasks, in units of the episodes' chance.
  (0.0, 0.0),
  (0.0, 1.5),
  (0.1, 0.7),
  (0.3, 0.7),
  (0.1, 1.5),
  (0.3, 1.5),
  (0.4, 0.2),  # Seeds that are 13 points apart.
]


@pytest.mark.parametrize('seeds, least', [(2, 0.89), (3, 0.93), (5, 0.93), (10, 0.93)])
def test_interval_covers_93_to_97_percent(seeds, least):
  for number, (seed_sd, task_sd) in enumerate(SPREADS):
    values, truth = _tables(
      3000,
      seeds,
      140,
      seed_sd=seed_sd,
      task_sd=task_sd,
      mean=0.6,
      random=np.random.default_rng([seeds, number]),
    )
    coverage = _coverage(statistics.two_way_interval(values), truth)
    assert least <= coverage <= 0.97, (seed_sd, task_sd, coverage)


@pytest.mark.parametrize('seeds', [3, 5, 10])
def test_interval_of_a_paired_difference_covers_93_to_97_percent(seeds):
  """Two methods meet the same tasks; each has its own seeds and its own favourites."""
  random = np.random.default_rng(seeds)
  for seed_sd, own_sd in ((0.0, 0.0), (0.1, 0.3), (0.3, 0.3), (0.1, 1.0)):
    shape, shared = (2500, seeds, 140), random.normal(0, 1, (2500, 1, 140))
    sides, truths = [], []
    for mean in (0.2, 0.5):
      latent = mean + shared + random.normal(0, own_sd, (2500, 1, 140))
      latent = latent + random.normal(0, seed_sd, (2500, seeds, 1))
      sides.append((latent + random.standard_normal(shape) > 0).astype(float))
      truths.append(stats.norm.cdf(mean / math.sqrt(2 + own_sd**2 + seed_sd**2)))
    estimate = statistics.two_way_interval(sides[1] - sides[0], (-1.0, 1.0))
    coverage = _coverage(estimate, truths[1] - truths[0])
    assert 0.93 <= coverage <= 0.97, (seed_sd, own_sd, coverage)


@pytest.mark.parametrize('seeds', [3, 5])
def test_corrected_intervals_rarely_err_in_any_of_eight_comparisons(seeds):
  """Nine methods that are the same: how often a study finds a difference."""
  random = np.random.default_rng(seeds)
  studies, tasks, others = 1500, 140, 8
  latent = 0.4 + random.normal(0, 0.7, (studies, 1, tasks))

  def method():
    seed = random.normal(0, 0.15, (studies, seeds, 1))
    chance = random.standard_normal((studies, seeds, tasks))
    return (latent + seed + chance > 0).astype(float)

  baseline, wrong = method(), np.zeros((2, studies), bool)
  for _ in range(others):
    difference = method() - baseline
    for i, confidence in enumerate((0.95, 1 - 0.05 / others)):
      got = statistics.two_way_interval(difference, (-1.0, 1.0), confidence)
      wrong[i] |= (got.low > 0) | (got.high < 0)
  alone, corrected = wrong.mean(1)
  assert alone > 0.2 and 0.01 < corrected < 0.08, (alone, corrected)


def test_usual_intervals_fail_for_three_seeds():
  """Why the interval is not one of them: what its docstring says of each."""
  random = np.random.default_rng(0)
  values, truth = _tables(
    1500, 3, 140, seed_sd=0.6, task_sd=0.2, mean=0.6, random=random
  )
  # Ours loses some here too: seeds this far apart (18 points) are not normal.
  assert _coverage(statistics.two_way_interval(values), truth) > 0.91
  means = []
  for _ in range(300):
    chosen = values[:, random.integers(3, size=3)].mean(1)
    means.append(chosen @ random.multinomial(140, np.full(140, 1 / 140)) / 140)
  low, high = np.percentile(means, [2.5, 97.5], axis=0)
  assert np.mean((low <= truth) & (truth <= high)) < 0.8
  # Satterthwaite, with the two variances themselves: 9 parts of the seeds, 1 of tasks.
  from_seeds = 0.9 * random.chisquare(2, 40_000) / 2
  total = from_seeds + 0.1
  half = stats.t.ppf(0.975, 2 * (total / from_seeds) ** 2) * np.sqrt(total)
  assert np.mean(np.abs(random.standard_normal(40_000)) <= half) < 0.925


def test_interval_equals_an_analysis_of_variance_by_loops():
  values = np.random.default_rng(1).normal(0.5, 0.1, (4, 6))
  S, K = values.shape
  grand = sum(values[s, k] for s in range(S) for k in range(K)) / (S * K)
  rows = [sum(values[s]) / K for s in range(S)]
  columns = [sum(values[:, k]) / S for k in range(K)]
  ms_a = K * sum((r - grand) ** 2 for r in rows) / (S - 1)
  ms_b = S * sum((c - grand) ** 2 for c in columns) / (K - 1)
  ms_e = sum(
    (values[s, k] - rows[s] - columns[k] + grand) ** 2
    for s in range(S)
    for k in range(K)
  ) / ((S - 1) * (K - 1))
  v_a, v_b = ms_a / (S * K), max(ms_b - ms_e, 0) / (S * K)
  rho = v_a / (v_a + v_b)
  nu = 1 / (rho / (S - 1) + (1 - rho) / (K - 1))
  half = stats.t.ppf(0.975, nu) * math.sqrt(v_a + v_b)
  assert half > math.sqrt(ms_e / (S * K) + v_b)
  got = statistics.two_way_interval(values, (-math.inf, math.inf))
  expected = (grand, grand - half, grand + half, ms_a / K, v_b)
  assert v_b > 0 and got == pytest.approx(expected, rel=1e-9)


def test_interval_with_seeds_alone_is_students():
  """Where tasks do not differ, a t interval over the seeds' means."""
  by_seed = np.repeat([[0.5], [0.6], [0.7]], 9, axis=1)
  got = statistics.two_way_interval(by_seed)
  expected = stats.t.interval(0.95, 2, loc=0.6, scale=stats.sem([0.5, 0.6, 0.7]))
  assert (got.low, got.high) == pytest.approx(expected)


def test_interval_reaches_a_standard_error_of_chance_however_seeds_agree():
  values = np.zeros((3, 60))
  for seed in range(3):
    values[seed, 2 * seed : 2 * seed + 2] = 1  # Two wins each, on tasks of their own.
  got = statistics.two_way_interval(values)
  error = 6 / 180 * (1 - 6 / 180) / 180  # Of 180 trials; a little more is left.
  assert got.seed_variance == pytest.approx(0)
  assert got.high - got.mean == pytest.approx(math.sqrt(error), rel=0.05)


def test_interval_where_nothing_varies_is_wilsons():
  for value in (0.0, 1.0):
    got = statistics.two_way_interval(np.full((3, 140), value))
    assert got[1:3] == pytest.approx(statistics.wilson_interval(value, 140))
  low, high = statistics.two_way_interval(np.zeros((3, 140)), (-1.0, 1.0))[1:3]
  assert low == -high < 0


def test_interval_with_one_seed_and_with_one_task():
  got = statistics.two_way_interval(np.array([[0.0, 1.0]]))
  assert got.mean == 0.5 and all(map(math.isnan, got[1:]))
  with pytest.raises(ValueError, match='1 task'):
    statistics.two_way_interval(np.zeros((3, 1)))


@pytest.mark.parametrize('seeds', [3, 5, 10])
@pytest.mark.parametrize('task_sd', [0.0, 0.4])
def test_detectable_difference_has_the_stated_power(seeds, task_sd):
  """Tables of known variances whose true mean is the stated difference."""
  tasks, seed_sd, draws = 200, 0.05, 4000
  spread = {
    'seed_variance': seed_sd**2 + 1 / tasks,  # A seed's own, and chance in episodes.
    'task_variance': task_sd**2 / tasks,
    'tasks': tasks,
  }
  difference = statistics.detectable_difference(seeds=seeds, **spread)
  random = np.random.default_rng([seeds, int(10 * task_sd)])
  found = {}
  for true in (0.0, difference):
    a = random.normal(true, seed_sd, (draws, seeds, 1))
    b = random.normal(0, task_sd, (draws, 1, tasks))
    values = a + b + random.standard_normal((draws, seeds, tasks))
    got = statistics.two_way_interval(values, (-math.inf, math.inf))
    found[true] = float(np.mean((got.low > 0) | (got.high < 0)))
    assert statistics.power(true, seeds=seeds, **spread) == pytest.approx(
      found[true], abs=0.03
    )
  assert found[difference] == pytest.approx(0.8, abs=0.03)
  assert found[0.0] == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize('seeds', [2, 3, 10])
def test_power_with_seed_variance_alone_is_the_t_tests(seeds):
  for difference in (0.0, 0.01, 0.03, 0.06):
    got = statistics.power(
      difference, seed_variance=4e-4, task_variance=0.0, seeds=seeds, tasks=100
    )
    shift = difference / math.sqrt(4e-4 / seeds)
    critical = stats.t.ppf(0.975, seeds - 1)
    t = stats.nct(seeds - 1, shift)
    assert got == pytest.approx(t.sf(critical) + t.cdf(-critical), abs=2e-3)


def test_detectable_difference_at_the_edges():
  assert math.isnan(
    statistics.detectable_difference(
      seed_variance=1e-4, task_variance=0.0, seeds=1, tasks=10
    )
  )
  assert not statistics.detectable_difference(
    seed_variance=0.0, task_variance=0.0, seeds=3, tasks=10
  )


def _flipped(values):
  """The test by enumeration, in whole tenths."""
  tenths = [round(10 * value) for value in values]
  sums = [
    abs(sum(s * t for s, t in zip(signs, tenths, strict=True)))
    for signs in itertools.product((1, -1), repeat=len(tenths))
  ]
  return np.mean([s >= abs(sum(tenths)) for s in sums])


@pytest.mark.parametrize('size', [1, 2, 3, 6, 10])
def test_sign_flips_count_every_pattern_and_ties(size):
  for seed in range(4):
    values = np.random.default_rng([size, seed]).integers(-2, 5, size) / 10
    assert statistics.sign_flip_test(values) == pytest.approx(_flipped(values))
  assert statistics.sign_flip_test([0.1, 0.2, -0.3, 0.3, 0.1, 0.2, 0.3]) == (
    pytest.approx(_flipped([0.1, 0.2, -0.3, 0.3, 0.1, 0.2, 0.3]))
  )


def test_three_seeds_can_say_no_more_than_a_quarter():
  assert statistics.sign_flip_test(np.array([0.3, 0.2, 0.4])) == 0.25


def test_sign_flips_of_wins_and_losses_are_mcnemars():
  for wins, losses, ties in ((9, 2, 30), (40, 22, 300), (7, 7, 30), (0, 0, 50)):
    values = np.repeat([1.0, -1.0, 0.0], (wins, losses, ties))
    expected = stats.binomtest(wins, wins + losses).pvalue if wins else 1.0
    got = statistics.sign_flip_test(values)
    assert got == pytest.approx(expected, abs=1e-12 if wins < 10 else 0.015)
    assert got == statistics.sign_flip_test(values[::-1])  # Drawn, but reproducible.


def test_p_over_seeds_is_uniform_where_nothing_differs():
  random = np.random.default_rng(3)
  p = [statistics.sign_flip_test(random.normal(0, 1, 8)) for _ in range(300)]
  for level in (0.05, 0.2, 0.5):
    assert abs(np.mean(np.array(p) <= level) - level) < 3 * math.sqrt(level / 300)


@pytest.mark.parametrize('seeds', [2, 3, 5])
@pytest.mark.parametrize('own_sd, seed_sd', [(1, 0), (0, 0.15), (0.5, 0.15)])
def test_nothing_is_settled_where_nothing_differs(seeds, own_sd, seed_sd):
  """Favourite tasks, seeds points apart: 5 % of studies at most, chance of this count.

  Signs flipped for every (seed, task) result take them all for independent.
  """
  studies, tasks = 400, 100
  random = np.random.default_rng([seeds, int(10 * own_sd), int(100 * seed_sd)])
  shape, shared = (studies, seeds, tasks), random.normal(0, 0.5, (studies, 1, tasks))
  sides = [
    shared
    + random.normal(0, own_sd, (studies, 1, tasks))
    + random.normal(0, seed_sd, (studies, seeds, 1))
    + random.standard_normal(shape)
    > 0
    for _ in range(2)
  ]
  tables = sides[0].astype(float) - sides[1]
  found = sum(statistics.settled(table) != 0 for table in tables) / studies
  assert found <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / studies), found
  if seeds == 5:
    signs = random.choice([-1, 1], (199, seeds * tasks))
    flat = tables.reshape(studies, -1)
    drawn, observed = np.abs(signs @ flat.T), np.abs(flat.sum(1))
    pooled = np.mean((1 + np.sum(drawn >= observed, 0)) / 200 <= 0.05)
    assert pooled > 0.15, pooled


def test_a_difference_that_is_there_is_settled_either_way():
  random = np.random.default_rng(1)
  table = random.random((3, 200)) < 0.75
  other = random.random((3, 200)) < 0.4
  assert statistics.settled(table.astype(float) - other) == 1
  assert statistics.settled(other.astype(float) - table) == -1
  assert statistics.settled(np.ones((1, 200))) == 0  # One seed says nothing of others.


@pytest.mark.parametrize('seed', range(5))
def test_probability_of_improvement_is_mann_whitneys(seed):
  random = np.random.default_rng(seed)
  x, y = random.integers(0, 6, 4 + seed) / 10, random.integers(0, 6, 5) / 10  # Ties.
  estimate, low, high = statistics.probability_of_improvement(x, y)
  expected = stats.mannwhitneyu(x, y).statistic / (x.size * y.size)
  assert estimate == pytest.approx(expected)
  assert 0 <= low <= estimate <= high <= 1
  turned = statistics.probability_of_improvement(y, x)
  assert turned == pytest.approx((1 - estimate, 1 - high, 1 - low), abs=2e-4)


@pytest.mark.parametrize('m, n', [(3, 3), (3, 5), (10, 10)])
def test_probability_of_improvement_solves_newcombes_equation(m, n):
  x, y = np.arange(m) + 1.5, np.arange(n)
  estimate, low, high = statistics.probability_of_improvement(x, y)

  def excess(theta):
    q1, q2 = theta / (2 - theta), 2 * theta**2 / (1 + theta)  # Hanley and McNeil's.
    pairs = (m + n) / 2 - 1
    variance = theta * (1 - theta) + pairs * (q1 + q2 - 2 * theta**2)
    critical = stats.t.ppf(0.975, m + n - 2)
    return (estimate - theta) ** 2 - critical**2 * variance / (m * n)

  assert low == pytest.approx(optimize.brentq(excess, 1e-9, estimate), abs=1e-3)
  assert high == pytest.approx(optimize.brentq(excess, estimate, 1 - 1e-9), abs=1e-3)


def test_probability_of_improvement_with_few_seeds_stays_modest():
  estimate, low, high = statistics.probability_of_improvement([3, 4, 5], [0, 1, 2])
  assert (estimate, high) == (1.0, 1.0) and 0.2 < low < 0.5
  assert statistics.probability_of_improvement([1], [0]) == (1.0, 0.0, 1.0)
  assert statistics.probability_of_improvement([2, 2], [2, 2])[0] == 0.5


@pytest.mark.parametrize('seeds', [3, 5, 10])
def test_probability_of_improvement_covers_95_percent_or_more(seeds):
  random, intervals = np.random.default_rng(seeds), {}
  for shift in (0.0, 0.8, 2.0):
    truth = stats.norm.cdf(shift / math.sqrt(2))
    hits = 0
    for _ in range(1000):
      x, y = random.normal(shift, 1, seeds), random.normal(0, 1, seeds)
      wins = int(np.sum(x[:, None] > y))
      if wins not in intervals:  # They depend on the count alone.
        intervals[wins] = statistics.probability_of_improvement(x, y)[1:]
      hits += intervals[wins][0] <= truth <= intervals[wins][1]
    assert hits / 1000 >= 0.94


def test_curve_weights_are_the_trapezoid_rules():
  random = np.random.default_rng(4)
  for steps in ([0, 10], [0, 10, 20], [0, 1, 5, 50], [7, 9, 10]):
    curve = random.random(len(steps))
    area = np.trapezoid(curve, steps) / (steps[-1] - steps[0])
    assert statistics.curve_weights(steps) @ curve == pytest.approx(area)
    assert statistics.curve_weights(steps).sum() == pytest.approx(1)
  assert statistics.curve_weights([0, 10, 20]).tolist() == [0.25, 0.5, 0.25]
  assert statistics.curve_weights([5]).tolist() == [1.0]


@pytest.mark.parametrize('steps', [[], [0, 0], [5, 3]])
def test_curve_weights_refuse_steps_that_do_not_rise(steps):
  with pytest.raises(ValueError, match='must rise'):
    statistics.curve_weights(steps)


def test_one_run_each_on_128_games_tells_14_points_apart():
  """As ALFWorld is evaluated in ZJU-REAL/SDAR@8b85c23: other games every time."""
  rng, games, runs = np.random.default_rng(0), 128, 20_000

  def found(p, q):
    wins = rng.binomial(games, p, runs), rng.binomial(games, q, runs)
    a, b = (w / games for w in wins)
    pooled = (a + b) / 2
    error = np.sqrt(np.maximum(2 * pooled * (1 - pooled) / games, 1e-12))
    return np.mean(np.abs(a - b) > 1.96 * error)

  assert found(0.75, 0.75) < 0.06
  assert 0.77 < found(0.75, 0.89) < 0.85  # 14 points.
  assert found(0.75, 0.844) < 0.5  # What separates GRPO and SDAR at 3B.
