"""Records of episodes: Turn, Trajectory, Group. No JAX.

The only schema that this project writes about episodes (JSON lines, versioned).
"""

import dataclasses
import enum
from typing import Any

import numpy as np

SCHEMA_VERSION = 3  # 2: `score`. 3: `history_dropped`, `observation_cut`, `skills`.


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


def _plain(value: Any) -> Any:
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, enum.Enum):
    return value.value
  if isinstance(value, tuple):
    return list(value)
  return value


def turn_to_json(turn: Turn) -> dict[str, Any]:
  """A JSON object with every field of `turn`; arrays become lists."""
  fields = dataclasses.fields(turn)
  return {field.name: _plain(getattr(turn, field.name)) for field in fields}


def to_json(trajectory: Trajectory) -> dict[str, Any]:
  """Makes a JSON object, the inverse of `from_json`."""
  return {
    'schema': SCHEMA_VERSION,
    'task_id': trajectory.task_id,
    'task_type': trajectory.task_type,
    'group_id': trajectory.group_id,
    'member': trajectory.member,
    'outcome': trajectory.outcome.value,
    'return': trajectory.episode_return,
    'score': trajectory.score,
    'turns': [turn_to_json(turn) for turn in trajectory.turns],
  }


def from_json(record: dict[str, Any]) -> Trajectory:
  """The inverse of `to_json`.

  Raises:
    ValueError: the record's schema version is not the one this code writes.
  """
  if record['schema'] != SCHEMA_VERSION:
    raise ValueError(
      f'trajectory schema {record["schema"]}: this version reads {SCHEMA_VERSION}'
    )
  names = [field.name for field in dataclasses.fields(Turn)]
  turns = []
  for item in record['turns']:
    values = {name: item[name] for name in names}
    values['prompt_ids'] = np.asarray(item['prompt_ids'], np.int32)
    values['response_ids'] = np.asarray(item['response_ids'], np.int32)
    values['skills'] = tuple(item['skills'])
    values['sampler_logprobs'] = np.asarray(item['sampler_logprobs'], np.float32)
    turns.append(Turn(**values))
  return Trajectory(
    task_id=record['task_id'],
    task_type=record['task_type'],
    group_id=record['group_id'],
    member=record['member'],
    turns=turns,
    outcome=Outcome(record['outcome']),
    score=record['score'],
  )
