"""Records of episodes: Turn, Trajectory, Group. No JAX.

`logs.trajectories` writes them to disk.
"""

import dataclasses
import enum
from typing import Any

import numpy as np


class Outcome(enum.StrEnum):
  """How an episode ended. An infrastructure fault is never a zero reward."""

  SUCCESS = 'success'
  FAILURE = 'failure'  # The world ended the episode without success.
  MAX_TURNS = 'max_turns'  # The turn limit was reached first.
  # What had to be shown next has no room in a prompt: played, and not solved.
  PROMPT_TOO_LONG = 'prompt_too_long'
  ENV_ERROR = 'env_error'  # The environment raised; excluded from training.
  TIMEOUT = 'timeout'  # The environment missed its deadline; excluded likewise.

  @property
  def is_fault(self) -> bool:
    """Whether infrastructure, not the policy, ended the episode."""
    return self in (Outcome.ENV_ERROR, Outcome.TIMEOUT)


@dataclasses.dataclass
class Turn:
  """One observation-response exchange.

  Attributes:
    prompt_text: the world's user message, before template and skills: what a teacher's
      prompt is built from. Never encoded again for the policy: `prompt_ids` is.
    prompt_ids: [L] int32, the prompt exactly as it was given to the sampler.
    response_ids: [R] int32, exactly the ids that were sampled, stop token included.
    sampler_logprobs: [R] float32, nats, of `response_ids` as decoded.
    observation: environment text that this turn answers, whole.
    response: the decoded response, for people and environments only.
    action: what was handed to the environment.
    valid: the response obeyed the action format.
    admissible: the action could do something where it was played.
    reward: what the environment paid for this turn.
    stop_reason: 'stop' or 'length'.
    history_dropped: the prompt had no room for all that it would have shown of the
      past: the oldest exchanges are not in it.
    observation_cut: nor for the observation, which it shows shortened.
    skills: ids of the skills that the prompt showed, in order.
    skill_tokens: by which it is longer for them.
    goes_on: the prompt is that of the turn before, its response and what is new.
  """

  prompt_text: str
  prompt_ids: np.ndarray
  response_ids: np.ndarray
  sampler_logprobs: np.ndarray
  observation: str
  response: str
  action: str
  valid: bool
  admissible: bool
  reward: float
  stop_reason: str
  history_dropped: bool = False
  observation_cut: bool = False
  skills: tuple[str, ...] = ()
  skill_tokens: int = 0
  goes_on: bool = False


@dataclasses.dataclass
class Trajectory:
  """One run of one task by one member of a group.

  Attributes:
    score: the world's graded result in [0, 1]; None where success says it all.
  """

  task_id: str
  task_type: str
  group_id: int
  member: int
  turns: list[Turn]
  outcome: Outcome
  score: float | None = None

  @property
  def episode_return(self) -> float:
    """Undiscounted sum of rewards."""
    return float(sum(turn.reward for turn in self.turns))

  @property
  def success(self) -> bool:
    """Whether the world counts the task as solved."""
    return self.outcome is Outcome.SUCCESS


@dataclasses.dataclass
class Group:
  """The G trajectories of one task."""

  group_id: int
  task: Any  # envs.base.Task
  trajectories: list[Trajectory]

  @property
  def varies(self) -> bool:
    """Whether the group's returns differ (DAPO, eq. 11)."""
    return len({trajectory.episode_return for trajectory in self.trajectories}) > 1
