"""How long the phases of a step take. No JAX."""

import time
from collections.abc import Sequence

from sdar_jax.batching import Row
from sdar_jax.trajectory import Group


class Clock:
  """Seconds per phase of one step: `with clock('rollout'): ...`."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._phase, self._start = '', 0.0

  def __call__(self, phase: str) -> 'Clock':
    self._phase = phase
    return self

  def __enter__(self) -> None:
    self._start = time.perf_counter()

  def __exit__(self, *exc_info: object) -> None:
    spent = time.perf_counter() - self._start
    self.seconds[self._phase] = self.seconds.get(self._phase, 0.0) + spent

  def timings(
    self,
    played: Sequence[Group],
    rows: Sequence[Row],
    *,
    env_faults: int,
    failed_saves: int,
  ) -> dict[str, float]:
    """The step's `perf/` metrics; resets the clock.

    Args:
      played: all groups that were played, for the speed of sampling.
      rows: those that were trained on, for the speed of learning.
      env_faults: of environments.
      failed_saves: of the checkpoints.
    """
    turns = [turn for g in played for t in g.trajectories for turn in t.turns]
    sampled = sum(len(turn.response_ids) for turn in turns)
    trained = sum(len(r.turn.prompt_ids) + len(r.turn.response_ids) for r in rows)
    seconds, self.seconds = self.seconds, {}
    out = {f'perf/{phase}_seconds': spent for phase, spent in seconds.items()}
    out['perf/step_seconds'] = sum(seconds.values())
    out['perf/decode_tokens_per_second'] = sampled / seconds['rollout']
    learning = seconds['score'] + seconds['update']
    out['perf/train_tokens_per_second'] = trained / learning
    out['perf/env_faults'] = float(env_faults)
    out['perf/failed_saves'] = float(failed_saves)
    return out
