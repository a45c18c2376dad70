"""An episode that can be taken back turn by turn."""

import dataclasses
from collections.abc import Callable

import numpy as np

from sdar_jax import parts as parts_lib
from sdar_jax.envs import base
from sdar_jax.prompts import fitting
from sdar_jax.rollout import episodes, order
from sdar_jax.rollout.recorded import RecordedTurn
from sdar_jax.rollout.request import Request

_KEY = 0  # Of the one episode in the pool.


class PlayError(ValueError):
  """What cannot be done in an episode as it stands: one line."""


@dataclasses.dataclass(frozen=True)
class PlayedTurn:
  """A turn of the session.

  Attributes:
    fitted: its prompt.
    response: the text, as said.
    ids: [R] int32, the same.
    parsed: the action in it.
    before: what it answers.
    result: what came of it.
  """

  fitted: fitting.Fitted
  response: str
  ids: np.ndarray
  parsed: base.ParsedAction
  before: base.Observation
  result: base.StepResult


class Session:
  """One task, played from its start.

  Args:
    player: world, prompts, policy.
    task: to play.

  Attributes:
    turns: what was played and not taken back.
    alive: the environment is where the turns have led.
  """

  def __init__(self, player: parts_lib.Player, task: base.Task):
    self.player, self.task = player, task
    self.turns: list[PlayedTurn] = []
    self.alive = True
    self._first = self._reset()

  @property
  def observation(self) -> base.Observation:
    """What is to be answered."""
    return self.turns[-1].result.observation if self.turns else self._first

  @property
  def over(self) -> str:
    """Says how the episode ended; '' while it goes on."""
    if self.turns and self.turns[-1].result.done:
      return 'solved' if self.turns[-1].result.success else 'over, not solved'
    return 'out of turns' * (len(self.turns) >= self.player.world.max_turns)

  def fitted(self) -> fitting.Fitted:
    """Writes the prompt of the next turn, as in training.

    Raises:
      PlayError: the episode is over, or none fits.
    """
    if self.over:
      raise PlayError(f'the episode is {self.over}: /undo takes a turn back')
    agent, last = self.player.plan.agent, None
    if self.turns:
      last = fitting.Last(self.turns[-1].fitted, self.turns[-1].ids)
    out = fitting.next_prompt(
      self.player.world,
      lambda text: agent.prompt(text, self.task, 0),
      self.task,
      [base.Exchange(t.before.text, t.parsed.action) for t in self.turns],
      self.observation,
      max_tokens=agent.max_prompt_tokens,
      follow=agent.follow,
      last=last,
    )
    if out is None:
      raise PlayError('no prompt fits: raise config.rollout.max_prompt_tokens')
    return out

  def sample(self) -> np.ndarray:
    """Lets the policy answer: the ids of its response."""
    agent, number = self.player.plan.agent, len(self.turns)
    key = order.task_key(self.task.task_id)
    request = Request(
      request_id=(0, 0),
      prompt_ids=self.fitted().ids,
      sampling=agent.sampling,
      identity=(self.player.config.seed, 0, key, 0, number),
    )
    self.player.sampler.submit([request])
    return self.player.sampler.poll()[0].token_ids

  def expert(self) -> str:
    """Asks the world's expert: a response.

    Raises:
      PlayError: it has none.
    """
    world = self.player.world
    if not world.demonstrators[0]:
      raise PlayError(f'world {world.name} has no expert')
    expert = world.expert(world.demonstrators[0], seed=0)
    expert.reset(self.task, self._first)
    for turn in self.turns:
      expert.observe(turn.parsed.action, turn.result.observation)
    return world.response(*expert.plan(self.observation))

  def say(self, response: str, ids: np.ndarray) -> PlayedTurn:
    """Plays a response.

    Raises:
      PlayError: the episode is over, or its environment failed.
    """
    fitted, before = self.fitted(), self.observation
    if not self.alive:
      self._replay(self.turns)
    opening = self.player.plan.agent.opening
    parsed = episodes.parse(self.player.world, opening, response, before)
    result = self._known(self.player.pool.step, parsed.action)
    self.turns.append(PlayedTurn(fitted, response, ids, parsed, before, result))
    return self.turns[-1]

  def undo(self) -> None:
    """Takes the last turn back: plays all others again from the start.

    Raises:
      PlayError: there is none, or the world does not answer as before.
    """
    if not self.turns:
      raise PlayError('there is no turn to take back')
    self._replay(self.turns[:-1])
    self.turns = self.turns[:-1]

  def _replay(self, kept: list[PlayedTurn]) -> None:
    """Plays turns again in a fresh environment."""
    again = [self._reset()]
    again += [self._known(self.player.pool.step, t.parsed.action) for t in kept]
    if again != [self._first, *(turn.result for turn in kept)]:
      self.alive = False
      raise PlayError('the world does not answer as before: start anew')

  def recorded(self) -> list[RecordedTurn]:
    """Makes a demonstration of what was played."""
    return [
      RecordedTurn(turn.fitted.text, turn.response, turn.fitted.goes_on)
      for turn in self.turns
    ]

  def _reset(self) -> base.Observation:
    return self._known(self.player.pool.reset, self.task)

  def _known(self, act: Callable, value: base.Task | str):
    answer = act({_KEY: value})[_KEY]
    self.alive = not isinstance(answer, base.EnvironmentFault)
    if not self.alive:
      raise PlayError(f'the environment failed: {answer}')
    return answer
