"""The host loop of episodes, given a sampler. No JAX.

Every environment that waits for an action has a request with the sampler; as soon as
completions arrive their environments are stepped and the next requests submitted. What
a trajectory contains does not depend on the order in which that happens, because a
request's randomness is a function of its identity.
"""

import collections
import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np

from sdar_jax.envs import base
from sdar_jax.envs.pool.pool import Pool
from sdar_jax.prompts import fitting
from sdar_jax.prompts.skills import SkillView
from sdar_jax.rollout import order
from sdar_jax.rollout.request import Completion, Request, SamplingParams
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

# A prompt's ids, and the skills in it, of a user message, a task and a group's member.
Prompt = Callable[[str, base.Task, int], tuple[np.ndarray, SkillView]]


class Interrupted(Exception):
  """The run was asked to stop while episodes were being played."""


class TokenSampler(Protocol):
  """Interface of a sampler as used here."""

  def submit(self, requests: Sequence[Request]) -> None:
    """Queues requests."""

  def poll(self) -> list[Completion]:
    """Some completions, at least one while requests are out."""


@dataclasses.dataclass(frozen=True)
class Agent:
  """How text becomes prompts and completions become text.

  Attributes:
    prompt: the policy's prompt for a user message.
    decode: ids to text, control tokens dropped.
    sampling: temperature, limits and stop tokens.
    max_prompt_tokens: longest prompt, skills not counted.
    opening: with what the chat template begins every response.
    follow: continues a conversation behind a response; None begins anew every turn.
    len_vocab: ids from here up name no token; 0 where nobody knows.
  """

  prompt: Prompt
  decode: Callable[[np.ndarray], str]
  sampling: SamplingParams
  max_prompt_tokens: int
  opening: str = ''
  follow: fitting.Follow | None = None
  len_vocab: int = 0


@dataclasses.dataclass
class _Episode:
  task: base.Task
  group_id: int
  member: int
  occurrence: int
  observation: base.Observation | None = None
  history: list[base.Exchange] = dataclasses.field(default_factory=list)
  turns: list[Turn] = dataclasses.field(default_factory=list)
  fitted: fitting.Fitted | None = None
  response: str = ''
  parsed: base.ParsedAction | None = None
  outcome: Outcome | None = None
  score: float | None = None

  def trajectory(self) -> Trajectory:
    """Makes the record of an episode at its end."""
    return Trajectory(
      task_id=self.task.task_id,
      task_type=self.task.task_type,
      group_id=self.group_id,
      member=self.member,
      turns=self.turns,
      outcome=self.outcome,
      score=self.score,
    )


def collect(
  pool: Pool,
  tasks: Sequence[base.Task],
  sampler: TokenSampler,
  agent: Agent,
  *,
  group_size: int,
  identity: tuple[int, ...],
  only: Collection[int] | None = None,
  success_reward: float = 1.0,
  should_stop: Callable[[], bool] = lambda: False,
  progress: Callable[[int, int], None] = lambda ended, wanted: None,
  played: collections.Counter[str] | None = None,
) -> list[Group]:
  """Plays every task `group_size` times.

  An episode whose next prompt cannot be made to fit (see `fitting`) ends there.

  Args:
    pool: environments of the world that the tasks belong to.
    tasks: [P] tasks; the index in this list is the group id.
    sampler: completes prompts.
    agent: prompts and decoding.
    group_size: G members per task, all from the same start.
    identity: leading part of every request's identity, e.g. (seed, step).
    only: ids of the groups that are played, the others stay empty; None is all.
    success_reward: factor on the world's reward.
    should_stop: asked between polls.
    progress: told between polls how many episodes have ended, of how many.
    played: how often each task id had its turn under this identity before; counted
      on, so that a task that comes again is played anew and not copied.

  Returns:
    [P] groups in task order, members in order.

  Raises:
    Interrupted: `should_stop` became true.
  """
  played = collections.Counter() if played is None else played
  live = _episodes(tasks, group_size, played, only)
  groups = [Group(i, task, []) for i, task in enumerate(tasks)]
  episodes = dict(live)
  try:
    _start(pool, live)
    fresh = list(live)
    while True:
      sampler.submit(_requests(pool, agent, live, fresh, identity))
      progress(len(episodes) - len(live), len(episodes))
      if not live:
        break
      if should_stop():
        raise Interrupted
      fresh = _turn(pool, live, sampler.poll(), agent, success_reward)
  finally:
    pool.release(live)
  for episode in episodes.values():
    groups[episode.group_id].trajectories.append(episode.trajectory())
  return groups


def _episodes(
  tasks: Sequence[base.Task],
  group_size: int,
  played: collections.Counter[str],
  only: Collection[int] | None,
) -> dict[tuple[int, int], _Episode]:
  """Makes the episodes of the groups played here; counts all tasks."""
  live = {}
  for group_id, task in enumerate(tasks):
    for member in range(group_size if only is None or group_id in only else 0):
      live[group_id, member] = _Episode(task, group_id, member, played[task.task_id])
    played[task.task_id] += 1
  return live


def _start(pool: Pool, live: dict[tuple[int, int], _Episode]) -> None:
  """Resets the environments; drops the failures."""
  for key, first in pool.reset({k: e.task for k, e in live.items()}).items():
    if isinstance(first, base.EnvironmentFault):
      live.pop(key).outcome = _outcome_of(first)
    else:
      live[key].observation = first


def _turn(
  pool: Pool,
  live: dict[tuple[int, int], _Episode],
  completions: Sequence[Completion],
  agent: Agent,
  success_reward: float,
) -> list[tuple[int, int]]:
  """Plays the completions; returns the episodes not at their end."""
  actions = {}
  for completion in completions:
    episode = live[completion.request_id]
    episode.response = agent.decode(completion.token_ids)
    episode.parsed = parse(
      pool.world, agent.opening, episode.response, episode.observation
    )
    actions[completion.request_id] = episode.parsed.action
  results = pool.step(actions)
  for completion in completions:
    key = completion.request_id
    _advance(pool.world, live[key], completion, results[key], success_reward)
    if live[key].outcome is not None:
      del live[key]
  pool.release(key for key in actions if key not in live)
  return [key for key in actions if key in live]


def _outcome_of(fault: base.EnvironmentFault) -> Outcome:
  late = isinstance(fault, base.EnvironmentTimeout)
  return Outcome.TIMEOUT if late else Outcome.ENV_ERROR


def parse(
  world: base.World, opening: str, response: str, observation: base.Observation
) -> base.ParsedAction:
  """Parses a response, alone or after the prompt's opening.

  What the template wrote decides about the format only: the action is the model's.
  """
  parsed = world.parse(response, observation)
  if parsed.valid or not opening:
    return parsed
  whole = world.parse(opening + response, observation)
  return dataclasses.replace(parsed, valid=whole.valid)


def _requests(
  pool: Pool,
  agent: Agent,
  live: dict[tuple[int, int], _Episode],
  fresh: Sequence[tuple[int, int]],
  identity: tuple[int, ...],
) -> list[Request]:
  """Makes the next requests; drops episodes without a fitting prompt."""
  requests = []
  for key in fresh:
    if _prompt(pool.world, agent, live[key]):
      requests.append(_request(agent, live[key], identity))
    else:
      live.pop(key).outcome = Outcome.PROMPT_TOO_LONG
  pool.release(key for key in fresh if key not in live)
  return requests


def _prompt(world: base.World, agent: Agent, episode: _Episode) -> bool:
  """Writes the episode's next prompt; returns whether one fits."""
  last = episode.fitted
  episode.fitted = fitting.next_prompt(
    world,
    lambda text: agent.prompt(text, episode.task, episode.member),
    episode.task,
    episode.history,
    episode.observation,
    max_tokens=agent.max_prompt_tokens,
    follow=agent.follow,
    last=last and fitting.Last(last, episode.turns[-1].response_ids),
  )
  return episode.fitted is not None


def _request(agent: Agent, episode: _Episode, identity: tuple[int, ...]) -> Request:
  task = order.task_key(episode.task.task_id, episode.occurrence)
  key = (task, episode.member, len(episode.turns))
  return Request(
    request_id=(episode.group_id, episode.member),
    prompt_ids=episode.fitted.ids,
    sampling=agent.sampling,
    identity=(*identity, *key),
  )


def _advance(
  world: base.World,
  episode: _Episode,
  completion: Completion,
  result: base.StepResult | base.EnvironmentFault,
  success_reward: float,
) -> None:
  """Records one turn; sets the outcome if it was the last."""
  fault = isinstance(result, base.EnvironmentFault)
  parsed, observation, fitted = episode.parsed, episode.observation, episode.fitted
  episode.turns.append(
    Turn(
      prompt_ids=np.asarray(fitted.ids, np.int32),
      response_ids=completion.token_ids,
      sampler_logprobs=completion.logprobs,
      prompt_text=fitted.text,
      observation=observation.text,
      response=episode.response,
      action=parsed.action,
      valid=parsed.valid,
      admissible=world.admits(parsed.action, observation),
      reward=0.0 if fault else success_reward * result.reward,
      stop_reason=completion.stop_reason,
      history_dropped=fitted.history_dropped,
      observation_cut=fitted.observation_cut,
      skills=fitted.view.skill_ids,
      skill_tokens=fitted.view.tokens,
      goes_on=fitted.goes_on,
    )
  )
  if fault:
    episode.outcome = _outcome_of(result)
    return
  episode.history.append(base.Exchange(observation.text, parsed.action))
  episode.observation, episode.score = result.observation, result.score
  if result.done:
    episode.outcome = Outcome.SUCCESS if result.success else Outcome.FAILURE
  elif len(episode.turns) >= world.max_turns:
    episode.outcome = Outcome.MAX_TURNS
