"""How long the phases of a step take. No JAX."""

import time

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

  def timings(self, groups: list[Group]) -> dict[str, float]:
    """The step's `perf/` metrics; resets the clock."""
    turns = [turn for g in groups for t in g.trajectories for turn in t.turns]
    sampled = sum(len(turn.response_ids) for turn in turns)
    trained = sampled + sum(len(turn.prompt_ids) for turn in turns)
    seconds, self.seconds = self.seconds, {}
    out = {f'perf/{phase}_seconds': spent for phase, spent in seconds.items()}
    out['perf/step_seconds'] = sum(seconds.values())
    out['perf/decode_tokens_per_second'] = sampled / seconds['rollout']
    learning = seconds['score'] + seconds['update']
    out['perf/train_tokens_per_second'] = trained / learning
    return out
