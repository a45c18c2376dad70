"""The host loop that plays episodes. No JAX: it is handed a sampler.

Every environment that waits for an action has a request with the sampler; as soon as a
completion arrives its environment is stepped and the next request submitted. What a
trajectory contains does not depend on the order in which that happens, because a
request's randomness is a function of its identity.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from sdar_jax.envs import base
from sdar_jax.request import Completion, Request, SamplingParams
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

# A prompt is made from the user message and the task.
Prompt = Callable[[str, base.Task], np.ndarray]


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
  env: base.TextEnv
  observation: base.Observation
  history: list[base.Exchange]
  turns: list[Turn]
  prompt_text: str = ''
  prompt_ids: Any = None

  def ended(self, outcome: Outcome) -> Trajectory:
    """The record of the episode."""
    return Trajectory(
      task_id=self.task.task_id,
      task_type=self.task.task_type,
      group_id=self.group_id,
      member=self.member,
      turns=self.turns,
      outcome=outcome,
    )


def task_key(task_id: str) -> int:
  """A stable 63-bit integer for a task id."""
  raw = hashlib.blake2b(task_id.encode(), digest_size=8).digest()
  return int.from_bytes(raw, 'big') >> 1


def collect(
  world: base.World,
  tasks: Sequence[base.Task],
  sampler: TokenSampler,
  agent: Agent,
  *,
  group_size: int,
  identity: tuple[int, ...],
  success_reward: float = 1.0,
  should_stop: Callable[[], bool] = lambda: False,
) -> list[Group]:
  """Plays every task `group_size` times.

  Args:
    world: the world that the tasks belong to.
    tasks: [P] tasks; the index in this list is the group id.
    sampler: completes prompts.
    agent: prompts and decoding.
    group_size: G members per task, all from the same start.
    identity: leading part of every request's identity, e.g. (seed, step).
    success_reward: factor on the world's reward.
    should_stop: asked between polls.

  Returns:
    [P] groups in task order, members in order.

  Raises:
    Interrupted: `should_stop` became true.
    ValueError: a prompt without history exceeds `agent.max_prompt_tokens`.
  """
  live: dict[tuple[int, int], _Episode] = {}
  played: dict[tuple[int, int], Trajectory] = {}
  requests = []
  for group_id, task in enumerate(tasks):
    for member in range(group_size):
      env = world.make_env()
      episode = _Episode(task, group_id, member, env, env.reset(task), [], [])
      live[group_id, member] = episode
      requests.append(_request(world, agent, episode, identity))
  sampler.submit(requests)
  while live:
    if should_stop():
      raise Interrupted
    requests = []
    for completion in sampler.poll():
      key = completion.request_id
      outcome = _advance(world, agent, live[key], completion, success_reward)
      if outcome is None:
        requests.append(_request(world, agent, live[key], identity))
      else:
        played[key] = live.pop(key).ended(outcome)
    sampler.submit(requests)
  return [
    Group(i, task, [played[i, member] for member in range(group_size)])
    for i, task in enumerate(tasks)
  ]


def _request(
  world: base.World, agent: Agent, episode: _Episode, identity: tuple[int, ...]
) -> Request:
  """Renders the next prompt; drops the history if only so it fits."""
  for history in (episode.history, ()):
    text = world.render(episode.task, history, episode.observation)
    ids = agent.prompt(text, episode.task)
    if len(ids) <= agent.max_prompt_tokens:
      break
  else:
    raise ValueError(
      f'task {episode.task.task_id}: a prompt of {len(ids)} tokens exceeds'
      f' config.rollout.max_prompt_tokens={agent.max_prompt_tokens}'
    )
  episode.prompt_text, episode.prompt_ids = text, ids
  key = (task_key(episode.task.task_id), episode.member, len(episode.turns))
  return Request(
    request_id=(episode.group_id, episode.member),
    prompt_ids=ids,
    sampling=agent.sampling,
    identity=(*identity, *key),
  )


def _advance(
  world: base.World,
  agent: Agent,
  episode: _Episode,
  completion: Completion,
  success_reward: float,
) -> Outcome | None:
  """Plays one completion; the outcome if the episode ended."""
  response = agent.decode(completion.token_ids)
  parsed = world.parse(response, episode.observation)
  fault = None
  try:
    result = episode.env.step(parsed.action)
  except Exception:
    fault = Outcome.ENV_ERROR
    result = base.StepResult(episode.observation, 0.0, True, False)
  episode.turns.append(
    Turn(
      prompt_ids=np.asarray(episode.prompt_ids, np.int32),
      response_ids=completion.token_ids,
      sampler_logprobs=completion.logprobs,
      prompt_text=episode.prompt_text,
      observation=episode.observation.text,
      response=response,
      action=parsed.action,
      valid=parsed.valid,
      admissible=parsed.action in episode.observation.admissible,
      reward=success_reward * result.reward,
      stop_reason=completion.stop_reason,
    )
  )
  if fault is not None:
    return fault
  episode.history.append(base.Exchange(episode.observation.text, parsed.action))
  episode.observation = result.observation
  if result.done:
    return Outcome.SUCCESS if result.success else Outcome.FAILURE
  if len(episode.turns) >= world.max_turns:
    return Outcome.MAX_TURNS
  return None
