"""The host loop that plays episodes. No JAX: it is handed a sampler.

Every environment that waits for an action has a request with the sampler; as soon as
completions arrive their environments are stepped and the next requests submitted. What
a trajectory contains does not depend on the order in which that happens, because a
request's randomness is a function of its identity.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from sdar_jax.envs import base
from sdar_jax.envs.pool import Pool
from sdar_jax.request import Completion, Request, SamplingParams
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

# A prompt is made from the user message, the task and the member of the group.
Prompt = Callable[[str, base.Task, int], np.ndarray]


class Interrupted(Exception):
  """The run was asked to stop while episodes were being played."""


class TokenSampler(Protocol):
  """What rollout needs of a sampler."""

  def submit(self, requests: Sequence[Request]) -> None:
    """Queues requests."""

  def poll(self) -> list[Completion]:
    """Some completions, at least one while requests are out."""


@dataclasses.dataclass(frozen=True)
class Agent:
  """How text becomes prompts and completions become text.

  Attributes:
    prompt: the policy's prompt ids for a user message.
    decode: ids to text, control tokens dropped.
    sampling: temperature, limits and stop tokens.
    max_prompt_tokens: longest prompt that the sampler takes.
  """

  prompt: Prompt
  decode: Callable[[np.ndarray], str]
  sampling: SamplingParams
  max_prompt_tokens: int


@dataclasses.dataclass
class _Episode:
  task: base.Task
  group_id: int
  member: int
  occurrence: int
  observation: base.Observation | None = None
  history: list[base.Exchange] = dataclasses.field(default_factory=list)
  turns: list[Turn] = dataclasses.field(default_factory=list)
  prompt_text: str = ''
  prompt_ids: Any = None
  response: str = ''
  parsed: base.ParsedAction | None = None
  outcome: Outcome | None = None
  score: float | None = None

  def trajectory(self) -> Trajectory:
    """The record of the episode, which has ended."""
    return Trajectory(
      task_id=self.task.task_id,
      task_type=self.task.task_type,
      group_id=self.group_id,
      member=self.member,
      turns=self.turns,
      outcome=self.outcome,
      score=self.score,
    )


def task_key(task_id: str, occurrence: int = 0) -> int:
  """A stable 63-bit integer for a task id and how often its step had it before."""
  salt = occurrence.to_bytes(16, 'big')  # All zero, which is none, the first time.
  raw = hashlib.blake2b(task_id.encode(), digest_size=8, salt=salt).digest()
  return int.from_bytes(raw, 'big') >> 1


def collect(
  pool: Pool,
  tasks: Sequence[base.Task],
  sampler: TokenSampler,
  agent: Agent,
  *,
  group_size: int,
  identity: tuple[int, ...],
  success_reward: float = 1.0,
  should_stop: Callable[[], bool] = lambda: False,
  played: collections.Counter[str] | None = None,
) -> list[Group]:
  """Plays every task `group_size` times.

  Args:
    pool: environments of the world that the tasks belong to.
    tasks: [P] tasks; the index in this list is the group id.
    sampler: completes prompts.
    agent: prompts and decoding.
    group_size: G members per task, all from the same start.
    identity: leading part of every request's identity, e.g. (seed, step).
    success_reward: factor on the world's reward.
    should_stop: asked between polls.
    played: how often each task id had its turn under this identity before; counted
      on, so that a task that comes again is played anew and not copied.

  Returns:
    [P] groups in task order, members in order.

  Raises:
    Interrupted: `should_stop` became true.
    ValueError: a prompt without history exceeds `agent.max_prompt_tokens`.
  """
  played = collections.Counter() if played is None else played
  live = {}
  for group_id, task in enumerate(tasks):
    for member in range(group_size):
      occurrence = played[task.task_id]
      live[group_id, member] = _Episode(task, group_id, member, occurrence)
    played[task.task_id] += 1
  groups = [Group(i, task, []) for i, task in enumerate(tasks)]
  episodes = dict(live)
  try:
    _start(pool, live)
    fresh = list(live)
    while live:
      sampler.submit([_request(pool.world, agent, live[k], identity) for k in fresh])
      if should_stop():
        raise Interrupted
      fresh = _turn(pool, live, sampler.poll(), agent, success_reward)
  finally:
    pool.release(live)
  for episode in episodes.values():
    groups[episode.group_id].trajectories.append(episode.trajectory())
  return groups


def with_refills(play: Callable[[], list[Group]], refills: int) -> list[Group]:
  """DAPO's dynamic sampling: groups without contrast give way to others.

  As many groups as one round of `play` has, so that shapes stay what they are: first
  those whose returns differ, in the order in which they were played, and where rounds
  ran out others after them.

  Args:
    play: plays new tasks at every call.
    refills: rounds after the first, at most; 0 keeps the first as it is.

  Source: DAPO (arXiv 2503.14476) eq. 11; the bound and what follows it as in
    ZJU-REAL/SDAR@8b85c23 (10 rounds, the last keeps everything).
  """
  groups = play()
  if not refills:
    return groups
  count, telling, flat = len(groups), [], []
  for round_ in range(1 + refills):
    groups = play() if round_ else groups
    for group in groups:
      faulty = any(trajectory.outcome.is_fault for trajectory in group.trajectories)
      (telling if group.varies and not faulty else flat).append(group)
    if len(telling) >= count:
      break
  return [_renumbered(g, i) for i, g in enumerate((telling + flat)[:count])]


def _renumbered(group: Group, group_id: int) -> Group:
  members = [dataclasses.replace(t, group_id=group_id) for t in group.trajectories]
  return Group(group_id, group.task, members)


def _start(pool: Pool, live: dict[tuple[int, int], _Episode]) -> None:
  """Resets the environments; drops the episodes that could not start."""
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
  """Plays the completions; drops the episodes that ended, returns those that go on."""
  actions = {}
  for completion in completions:
    episode = live[completion.request_id]
    episode.response = agent.decode(completion.token_ids)
    episode.parsed = pool.world.parse(episode.response, episode.observation)
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


def _request(
  world: base.World, agent: Agent, episode: _Episode, identity: tuple[int, ...]
) -> Request:
  """Renders the next prompt; drops the history if only so it fits."""
  for history in (episode.history, ()):
    text = world.render(episode.task, history, episode.observation)
    ids = agent.prompt(text, episode.task, episode.member)
    if len(ids) <= agent.max_prompt_tokens:
      break
  else:
    raise ValueError(
      f'task {episode.task.task_id}: a prompt of {len(ids)} tokens exceeds'
      f' config.rollout.max_prompt_tokens={agent.max_prompt_tokens}'
    )
  episode.prompt_text, episode.prompt_ids = text, ids
  task = task_key(episode.task.task_id, episode.occurrence)
  key = (task, episode.member, len(episode.turns))
  return Request(
    request_id=(episode.group_id, episode.member),
    prompt_ids=ids,
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
  parsed, observation = episode.parsed, episode.observation
  episode.turns.append(
    Turn(
      prompt_ids=np.asarray(episode.prompt_ids, np.int32),
      response_ids=completion.token_ids,
      sampler_logprobs=completion.logprobs,
      prompt_text=episode.prompt_text,
      observation=observation.text,
      response=episode.response,
      action=parsed.action,
      valid=parsed.valid,
      admissible=world.admits(parsed.action, observation),
      reward=0.0 if fault else success_reward * result.reward,
      stop_reason=completion.stop_reason,
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
