"""How much of episodes had no room in their prompts. No JAX."""

from collections.abc import Iterable, Sequence

from sdar_jax.trajectory import Outcome, Trajectory


def shares(trajectories: Sequence[Trajectory]) -> dict[str, float]:
  """Computes shares of turns with cut prompts, and of episodes ended so."""
  turns = [turn for trajectory in trajectories for turn in trajectory.turns]
  ended = [t.outcome is Outcome.PROMPT_TOO_LONG for t in trajectories]
  return {
    'history_dropped': sum(t.history_dropped for t in turns) / max(len(turns), 1),
    'observations_cut': sum(t.observation_cut for t in turns) / max(len(turns), 1),
    'prompt_too_long': float(sum(ended)),
  }


def notice(trajectories: Iterable[Trajectory]) -> str:
  """Puts `shares` into one line; '' where everything fitted."""
  found = shares(list(trajectories))
  if not any(found.values()):
    return ''
  return (
    'prompts had no room for the oldest exchanges in'
    f' {found["history_dropped"]:.1%} of turns, nor for the whole observation in'
    f' {found["observations_cut"]:.1%}, and ended {found["prompt_too_long"]:.0f}'
    ' episodes: raise config.rollout.max_prompt_tokens'
  )
