"""Prompts cut to fit: oldest exchanges first, then observations. No JAX.

The task, the newest observation and the true number of the turn stay. What is shown of
an episode is a function of the episode alone, so a resumed run shows the same.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from sdar_jax.envs import base
from sdar_jax.prompts.skills import SkillView

# A user message to the prompt's ids, and the skills that it shows.
Prompt = Callable[[str], tuple[np.ndarray, SkillView]]
# A response and the user message after it, to the ids that follow the response.
Follow = Callable[[np.ndarray, str], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fitted:
  """A prompt within its limit.

  Attributes:
    text: the world's user message.
    ids: [L] int32, the prompt.
    view: the skills in it.
    history_dropped: exchanges are missing that the message would have shown.
    seen: the observation as it is shown.
    observation_cut: it is shortened.
    goes_on: the prompt begins with the one before and its response.
  """

  text: str
  ids: np.ndarray
  view: SkillView
  seen: base.Observation
  history_dropped: bool = False
  observation_cut: bool = False
  goes_on: bool = False


@dataclasses.dataclass(frozen=True)
class Last:
  """The turn before: its prompt, and its response [R] as sampled."""

  fitted: Fitted
  response_ids: np.ndarray


def next_prompt(
  world: base.World,
  prompt: Prompt,
  task: base.Task,
  past: Sequence[base.Exchange],
  observation: base.Observation,
  *,
  max_tokens: int,
  follow: Follow | None = None,
  last: Last | None = None,
) -> Fitted | None:
  """The next turn's prompt: what was and what is new, or anew.

  Args:
    world, prompt, task, past, observation, max_tokens: as `fit` reads them.
    follow: continues a conversation; None begins every prompt anew.
    last: the turn before; None at the first.

  Returns:
    Where a conversation has no room to go on, one that begins anew as `fit` does, with
    half of the room left for what follows if it can be. None if nothing fits.
  """
  start = lambda limit: fit(world, prompt, task, past, observation, max_tokens=limit)
  if follow is None or last is None:
    return start(max_tokens)
  text = world.follow_up(task, base.History(past), last.fitted.seen, observation)
  before, view = (last.fitted.ids, last.response_ids), last.fitted.view
  ids = np.concatenate([*before, follow(last.response_ids, text)]).astype(np.int32)
  if len(ids) - view.tokens <= max_tokens:
    return Fitted(text, ids, view, observation, goes_on=True)
  return start(max_tokens // 2) or start(max_tokens)


def fit(
  world: base.World,
  prompt: Prompt,
  task: base.Task,
  past: Sequence[base.Exchange],
  observation: base.Observation,
  *,
  max_tokens: int,
) -> Fitted | None:
  """The next turn's prompt with as much of the past as there is room for.

  Args:
    world: writes the message.
    prompt: places it in the chat template.
    task: of the episode.
    past: all its turns so far.
    observation: the newest.
    max_tokens: longest prompt, skills not counted: what an episode is shown does not
      depend on whether skills are.

  Returns:
    The prompt with the whole past, else with the longest end of it that a bisection
    finds to fit; with none of it, the longest part of the observation, if the world has
    a rule for shortening it. None if not even that fits.
  """

  def attempt(shown: int, seen: base.Observation) -> Fitted | None:
    text = world.render(task, base.History(past, shown), seen)
    ids, view = prompt(text)
    if len(ids) - view.tokens > max_tokens:
      return None
    cut = seen.text != observation.text
    return Fitted(text, ids, view, seen, shown < len(past), cut)

  fitted = attempt(len(past), observation)
  if fitted is None and past:
    fitted = _most(len(past), lambda count: attempt(count, observation))
  if fitted is None and isinstance(world, base.ShorteningWorld):
    fitted = _most(
      len(observation.text),
      lambda count: attempt(0, world.shorten(observation, count)),
    )
  return fitted


def _most(end: int, attempt: Callable[[int], Fitted | None]) -> Fitted | None:
  """Finds the largest feasible number below `end` and its result.

  Found by bisection, so exact if whatever fits also fits with less.
  """
  best, low = attempt(0), 1
  while best is not None and low < end:
    middle = (low + end) // 2
    fitted = attempt(middle)
    if fitted is None:
      end = middle
    else:
      best, low = fitted, middle + 1
  return best
