"""Reasoning Gym's tasks: a question, one answer, a score. No JAX."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from sdar_jax.envs.adapters import foreign


class _Question:
  """A game of one turn.

  Args:
    make: makes a data set of one question from its seed.
  """

  def __init__(self, make: Callable[[int], Any]):
    self._make = make

  def reset(self, start: int) -> str:
    self._data = self._make(start)
    self._entry = self._data[0]
    return self._entry['question']

  def step(self, action: str) -> tuple[str, float, bool]:
    score = self._data.score_answer(answer=action, entry=self._entry)
    return f'the answer scores {score:g}', float(score), True

  def hidden(self) -> str:
    """Says what the right answer is."""
    return json.dumps(self._entry['answer'])


@dataclasses.dataclass(frozen=True)
class ReasoningGymWorld(foreign.ForeignWorld):
  """Questions of one kind, such as env='chain_sum'."""

  name = 'reasoning_gym'
  package = 'reasoning-gym'
  maker: str = 'reasoning_gym:create_dataset'
  prompt: str = 'answer the question'

  def open(self) -> foreign.ForeignGame:
    """Makes a game."""
    make, arguments = self.find('maker'), self.read_object('arguments')
    return _Question(lambda seed: make(self.env, seed=seed, size=1, **arguments))
