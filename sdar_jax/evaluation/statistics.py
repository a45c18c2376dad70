"""Intervals, tests and sample sizes for reported numbers. No JAX.

What is compared are tables of results, `values[s, k]`: seed s on task k, all seeds on
the same tasks. An interval here is for new seeds and new tasks of the same kind, unless
its function says otherwise.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

CONFIDENCE = 0.95  # Of intervals where no other is asked for.
Z_95 = 1.959963984540054  # Standard normal quantile of 0.975.
LEVEL = 0.05  # Of tests: the chance to find a difference where there is none.
POWER = 0.8  # Of a detectable difference: the chance that it is detected.
_DRAWS = 9_999  # Sign patterns: all of them, or so many drawn at random.
_NODES = 1_000  # Points of the seed variance's distribution in `power`.


def wilson_interval(rate: float, n: float, z: float = Z_95) -> tuple[float, float]:
  """Wilson score interval of a proportion.

  (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

  Args:
    rate: p, in [0, 1].
    n: number of independent trials that it is worth, which need not be whole (SciPy's
      `binomtest(...).proportion_ci('wilson')` takes counts only); positive.
    z: standard normal quantile, 1.96 for 95 %.

  Returns:
    (low, high), fractions in [0, 1].

  Raises:
    ValueError: the rate lies outside [0, 1], or there is no trial.

  Source: Wilson (1927), JASA 22, 209-212.
  """
  if not (0 <= rate <= 1 and n > 0):
    raise ValueError(f'rate {rate} of n={n} trials: must lie in [0, 1], of some')
  scale = 1 + z * z / n
  centre = (rate + z * z / (2 * n)) / scale
  half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / scale
  # The bounds at 0 and n are exact; rounding must not say otherwise.
  return (0.0 if rate == 0 else centre - half), (1.0 if rate == 1 else centre + half)


def rate_interval(won: Sequence[int], played: Sequence[int]) -> tuple[float, float]:
  r"""95 % interval of a success rate for new tasks drawn like these.

  Wilson's for so many independent trials as the attempts are worth,

  \[ n = \left(\frac{z}{t_{K-1}}\right)^2 \frac{p (1 - p)}{v}, \quad
     v = \frac{K}{K-1} \sum_k \frac{(w_k - p m_k)^2}{(\sum_k m_k)^2}, \quad
     p = \frac{\sum_k w_k}{\sum_k m_k} \]

  but no fewer than the K tasks and no more than the attempts. With one attempt at each
  task it is Wilson's of the count. Simulated coverage at 50 tasks x 8 attempts is 94 to
  97 %, from tasks that are all alike to tasks that are solved always or never, where
  Wilson's interval of the attempts covers 53 to 95 %; 92 % where 3 % are solved.

  Args:
    won: [K] successes at each task.
    played: [K] attempts at it, at least 1.

  Raises:
    ValueError: there is no task, or successes outside 0..attempts.

  Source: Korn and Graubard (1998), Survey Methodology 24, 193-201, with Wilson's
    interval for Clopper and Pearson's.
  """
  w, m = np.asarray(won, np.float64), np.asarray(played, np.float64)
  if w.size == 0 or m.min() < 1 or w.min() < 0 or np.any(w > m):
    raise ValueError('successes of a task must lie in 0..attempts, of 1 task or more')
  rate, tasks, n = float(w.sum() / m.sum()), w.size, float(m.sum())
  variance = float(((w - rate * m) ** 2).sum()) / n**2 * tasks / max(tasks - 1, 1)
  if variance == 0:  # All tasks came out alike.
    return wilson_interval(rate, tasks if rate in (0, 1) or tasks == 1 else n)
  shrunk = (Z_95 / special.stdtrit(tasks - 1, 0.975)) ** 2
  return wilson_interval(
    rate, min(max(shrunk * rate * (1 - rate) / variance, tasks), n)
  )


class Estimate(NamedTuple):
  """A mean over seeds and tasks; floats, or arrays with the batch's shape.

  Attributes:
    mean: over all seeds and tasks.
    low: lower end of the interval; NaN with one seed.
    high: upper end.
    seed_variance: of one seed's mean on these tasks, chance within episodes included.
    task_variance: of the mean, from which tasks the panel happens to have.
  """

  mean: float
  low: float
  high: float
  seed_variance: float
  task_variance: float


def two_way_interval(
  values: np.ndarray,
  bounds: tuple[float, float] = (0.0, 1.0),
  confidence: float = CONFIDENCE,
) -> Estimate:
  r"""Computes mean and interval for new seeds and tasks (95 % by default).

  \[ y_{sk} = \mu + a_s + b_k + e_{sk}, \quad
     V_a = \frac{\mathrm{var}_s(\bar y_{s\cdot})}{S}, \quad
     V_b = \frac{\max(MS_b - MS_e, 0)}{SK}, \quad
     \bar y \pm t_{(1+c)/2}(\nu) \sqrt{V_a + V_b} \]

  with c the confidence, \( 1/\nu = \rho/(S-1) + (1-\rho)/(K-1) \) and
  \( \rho = V_a/(V_a + V_b) \), the mean squares of the two-way table without
  replication. It reaches at least one standard error of what is not the seeds' doing,
  \( \sqrt{MS_e/(SK) + V_b} \), to each side, however well few seeds happen to agree.
  Where no value differs from another, it is Wilson's for K like trials:
  \( \pm z^2/(K + z^2) \).

  Simulated coverage (tests/evaluation/test_statistics.py) is 93 to 97 % with 3, 5 and
  10 seeds, wherever the variance comes from, while seeds are less than 15 points apart;
  further apart or at the edge of what is possible they are not normal, and 3 of them
  cover 86 to 94 %. Two seeds cover 89 % or more. The percentile bootstrap over seeds
  and tasks covers less than 80 % with 3 seeds, Satterthwaite's degrees of freedom (\(
  \rho^2 \) for \( \rho \)) 92 %. Of eight comparisons among equal methods with 3 seeds,
  95 % intervals find a difference in 30 % of studies, intervals of 1 - 0.05/8 in 7 %.

  Args:
    values: [..., S, K] float, result of seed s on task k.
    bounds: what a mean can be at least and at most; the interval is cut there.
    confidence: the chance that the interval covers the truth.

  Raises:
    ValueError: there are fewer than 2 tasks.

  Source: Searle, Casella, McCulloch, Variance Components (1992), ch. 4, for the mean
    squares; the degrees of freedom are ours.
  """
  values = np.asarray(values, np.float64)
  seeds, tasks = values.shape[-2:]
  if tasks < 2:
    raise ValueError(f'{tasks} task: an interval needs at least 2')
  mean = values.mean((-2, -1))
  if seeds < 2:
    nothing = np.full_like(mean, np.nan)
    return _estimate(mean, nothing, nothing, nothing, nothing)
  by_seed, by_task = values.mean(-1), values.mean(-2)
  seed_variance = by_seed.var(-1, ddof=1)
  rest = values - by_seed[..., None] - by_task[..., None, :] + mean[..., None, None]
  error = (rest**2).sum((-2, -1)) / ((seeds - 1) * (tasks - 1))
  chance = error / (seeds * tasks)
  task_variance = np.maximum(by_task.var(-1, ddof=1) / tasks - chance, 0.0)
  half = _half_width(seed_variance / seeds, task_variance, seeds, tasks, confidence)
  half = np.maximum(half, np.sqrt(chance + task_variance))
  # Rounding leaves 1e-34 where nothing varies.
  same = np.ptp(values, (-2, -1)) == 0
  z = special.ndtri((1 + confidence) / 2)
  half = np.where(same, z**2 / (tasks + z**2), half)
  low, high = np.maximum(mean - half, bounds[0]), np.minimum(mean + half, bounds[1])
  return _estimate(mean, low, high, seed_variance, task_variance)


def _estimate(*arrays: np.ndarray) -> Estimate:
  return Estimate(*(float(a) if a.ndim == 0 else a for a in arrays))


def _half_width(
  from_seeds: np.ndarray,
  from_tasks: np.ndarray,
  seeds: int,
  tasks: int,
  confidence: float = CONFIDENCE,
) -> np.ndarray:
  total = from_seeds + from_tasks
  share = np.divide(from_seeds, total, out=np.ones_like(total), where=total > 0)
  degrees = 1 / (share / (seeds - 1) + (1 - share) / (tasks - 1))
  return special.stdtrit(degrees, (1 + confidence) / 2) * np.sqrt(total)


def power(
  difference: float,
  *,
  seed_variance: float,
  task_variance: float,
  seeds: int,
  tasks: int,
) -> float:
  r"""Computes the power of `two_way_interval` at a true difference.

  \[ E_W P(|N(\delta, V_a + V_b)| > h(W V_a, V_b)), \quad W \sim \chi^2_{S-1}/(S-1) \]

  where h is the interval's half width without its lower bound. V_b counts as known:
  there are many tasks.

  Args:
    difference: the true one, in the unit of the values.
    seed_variance: of one seed's mean, as in `Estimate`.
    task_variance: of the mean, as in `Estimate`; it does not shrink with seeds.
    seeds: number of seeds, at least 2.
    tasks: number of tasks.
  """
  ranks = (np.arange(_NODES) + 0.5) / _NODES
  scale = special.gammaincinv((seeds - 1) / 2, ranks) * 2 / (seeds - 1)
  from_seeds, from_tasks = seed_variance / seeds, np.full(_NODES, task_variance)
  half = _half_width(scale * from_seeds, from_tasks, seeds, tasks)
  deviation = math.sqrt(from_seeds + task_variance)
  if deviation == 0:
    return float(difference != 0)
  above = special.ndtr((difference - half) / deviation)
  below = special.ndtr((-difference - half) / deviation)
  return float((above + below).mean())


def detectable_difference(
  *, seed_variance: float, task_variance: float, seeds: int, tasks: int
) -> float:
  """Finds the difference detected with `POWER` by so many seeds and tasks.

  Args:
    seed_variance: of the paired difference of one seed, as in `Estimate`.
    task_variance: likewise.
    seeds: number of seeds; one alone detects nothing: NaN.
    tasks: number of tasks.
  """
  if seeds < 2:
    return math.nan
  given = {'seed_variance': seed_variance, 'task_variance': task_variance}
  given |= {'seeds': seeds, 'tasks': tasks}
  low, high = 0.0, math.sqrt(seed_variance + task_variance)
  if high == 0:
    return 0.0
  while power(high, **given) < POWER:
    high *= 2
  for _ in range(40):
    middle = (low + high) / 2
    low, high = (middle, high) if power(middle, **given) < POWER else (low, middle)
  return high


def sign_flip_test(differences: np.ndarray) -> float:
  r"""Tests differences for symmetry about 0: two-sided p of sign flips.

  \[ p = P(|\sum_i \sigma_i d_i| \ge |\sum_i d_i|), \quad \sigma_i = \pm 1 \]

  exact up to 13 numbers that are not 0, over 9,999 drawn patterns beyond.

  Args:
    differences: [N] float, independent of each other; swapping the two sides of a pair
      flips its sign. N of them can give no p below 2 / 2^N.

  Source: Fisher (1935), The Design of Experiments, section 21.
  """
  from scipy import stats  # Slow to load, and most comparisons need few of these.

  differences = np.sort(np.round(np.ravel(differences), 12))
  differences = differences[differences != 0]  # Their signs change nothing.
  if differences.size < 2:
    return 1.0
  result = stats.permutation_test(
    (differences,),
    np.sum,
    permutation_type='samples',
    n_resamples=_DRAWS,
    vectorized=True,
    rng=0,  # The same numbers give the same p.
  )
  return min(float(result.pvalue), 1.0)


def settled(differences: np.ndarray, level: float = LEVEL) -> int:
  """Decides a paired comparison: 1, -1, or 0 for nothing settled.

  The interval of `two_way_interval` must leave out 0. Where few seeds happen to agree
  it is too narrow, so a second look must agree: `sign_flip_test` of the tasks' mean
  differences. That test is about the trained runs alone (it takes seeds for given) and
  can only withdraw what the interval says.

  Where nothing differs in the mean, it says otherwise in 1 to 4 % of simulated studies
  with 2, 3 and 5 seeds at the level of 5 %, whether tasks have favourites or seeds lie
  points apart; signs flipped for every single result do in 7 to 18 % of the same
  (tests/evaluation/test_statistics.py).

  Args:
    differences: [S, K] float in [-1, 1], a method minus another.
    level: the chance to find something where there is nothing.
  """
  if len(differences) < 2:
    return 0
  estimate = two_way_interval(differences, (-1.0, 1.0), 1 - level)
  sign = int(estimate.low > 0) - int(estimate.high < 0)
  return sign if sign and sign_flip_test(differences.mean(0)) < level else 0


def probability_of_improvement(
  ours: Sequence[float], theirs: Sequence[float]
) -> tuple[float, float, float]:
  r"""Estimates the chance of a new seed of ours to beat one of theirs.

  \[ \theta = P(X > Y) + P(X = Y)/2, \quad
     |\hat\theta - \theta| \le t_{.975}(m + n - 2) \sqrt{v(\theta)}, \quad
     v = \frac{\theta(1-\theta)}{mn}
     \left(1 + k \frac{1-\theta}{2-\theta} + k \frac{\theta}{1+\theta}\right) \]

  with \( k = (m+n)/2 - 1 \); the interval is every \( \theta \) that obeys it. Few
  seeds allow few estimates, so it cannot cover exactly 95 %: it covers that or more.

  Args:
    ours: results of m seeds.
    theirs: results of n seeds.

  Returns:
    The estimate and its 95 % interval, fractions; the interval is (0, 1) where both
    have one seed.

  Source: Mann and Whitney (1947); Newcombe (2006), Statistics in Medicine 25, 559-573,
    method 5, with Student's quantile for the normal one.
  """
  x, y = np.asarray(ours, np.float64)[:, None], np.asarray(theirs, np.float64)
  m, n = x.size, y.size
  estimate = float(np.mean((x > y) + 0.5 * (x == y)))
  if m + n < 3:
    return estimate, 0.0, 1.0
  k, quantile = (m + n) / 2 - 1, special.stdtrit(m + n - 2, 0.975)
  theta = np.linspace(0, 1, 10_001)
  spread = 1 + k * (1 - theta) / (2 - theta) + k * theta / (1 + theta)
  allowed = quantile**2 * theta * (1 - theta) * spread / (m * n)
  inside = theta[(estimate - theta) ** 2 <= allowed + 1e-12]
  return estimate, float(inside.min()), float(inside.max())


def curve_weights(steps: Sequence[int]) -> np.ndarray:
  r"""Computes trapezoid weights: their sum with a curve is its mean height.

  \[ A = \frac{1}{x_n - x_1} \sum_i \frac{y_i + y_{i+1}}{2} (x_{i+1} - x_i) \]

  Args:
    steps: [E] int, rising, where the curve was measured.

  Returns:
    [E] float that sums to 1: the area lies where the curve's values lie.

  Raises:
    ValueError: the steps do not rise.
  """
  x = np.asarray(steps, np.float64)
  if x.size == 0 or np.any(np.diff(x) <= 0):
    raise ValueError(f'steps {list(steps)}: must rise')
  if x.size == 1:
    return np.ones(1)
  widths = np.diff(x) / (x[-1] - x[0])
  return (np.append(widths, 0) + np.append(0, widths)) / 2
