"""Intervals for reported numbers. Plain Python."""

import math

Z_95 = 1.959963984540054  # Standard normal quantile of 0.975.


def wilson_interval(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
  """Wilson score interval of a proportion.

  With p = successes/n: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)

  Args:
    successes: count in 0..n.
    n: number of trials; 0 says nothing, so the interval is (0, 1).
    z: standard normal quantile, 1.96 for 95 %.

  Returns:
    (low, high), fractions in [0, 1].

  Raises:
    ValueError: successes lie outside 0..n.

  Source: Wilson (1927), JASA 22, 209-212.
  """
  if not 0 <= successes <= n:
    raise ValueError(f'successes={successes}: must lie in 0..n={n}')
  if n == 0:
    return 0.0, 1.0
  p = successes / n
  scale = 1 + z * z / n
  centre = (p + z * z / (2 * n)) / scale
  half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
  # The bounds at 0 and n are exact; rounding must not say otherwise.
  low = 0.0 if successes == 0 else centre - half
  high = 1.0 if successes == n else centre + half
  return low, high
