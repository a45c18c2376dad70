"""Scripted experts for the generated library, guided by its texts.

Both take a question apart hop by hop and know a fact when they read it. What they
differ in is what skills teach: the word that finds the passage. The informed expert
knows it; the blind one tries the words of the library one after the other, in an order
that its seed and the task decide. Both say what to do next from wherever an episode
stands, also after turns that they did not choose.
"""

import random

from sdar_jax.envs.base import Observation, Task
from sdar_jax.envs.search_qa import relations
from sdar_jax.envs.search_qa.engine import (
  ANSWER,
  MAX_TURNS,
  SEARCH,
  read_action,
  sentences,
  write_action,
)
from sdar_jax.envs.search_qa.relations import CHAINS, RELATIONS, Relation

KINDS = ('informed', 'blind')


class ScriptedExpert:
  """Answers generated questions from the documents shown to it.

  Args:
    kind: 'informed' or 'blind'.
    seed: of the order in which words are tried.
    max_turns: turns per episode; the last one is for an answer.
  """

  def __init__(self, kind: str, seed: int = 0, max_turns: int = MAX_TURNS):
    self.kind = kind
    self.seed = seed
    self._max_turns = max_turns

  def reset(self, task: Task, observation: Observation) -> None:
    """Starts a question.

    Raises:
      ValueError: it is not about the generated library.
    """
    asked = relations.read(observation.text)
    if asked is None:
      raise ValueError(
        f'task {task.task_id}: experts answer questions of the generated library only'
        " (config.world.source='generated')"
      )
    task_type, self._subject = asked
    self._chain = CHAINS[task_type]
    self._salt = f'{self.seed}/{task.task_id}'
    self._turns = 0
    self._searched: set[str] = set()
    self._read: list[str] = []

  def observe(self, action: str, observation: Observation) -> None:
    """Takes in the outcome of an action, its own or another's."""
    self._turns += 1
    kind, text = read_action(action)
    if kind == SEARCH:
      self._searched.add(text.lower())
    self._read += sentences(observation.text)

  def plan(self, observation: Observation) -> tuple[str, str]:
    """Gives the known and the needed in a few words, and the action."""
    del observation  # `observe` has seen it.
    found, hop = self._follow()
    known = f'found {found}' if hop else ''
    if hop == len(self._chain):
      return known, write_action(ANSWER, found)
    if self._turns + 1 >= self._max_turns:
      guess = self._guess(found)
      return f'guess {guess}', write_action(ANSWER, guess)
    key = self._key(found, self._chain[hop])
    return f'{known} need {key}'.strip(), write_action(SEARCH, f'{found} {key}')

  def _follow(self) -> tuple[str, int]:
    """Follows the chain through the read facts: entity and hops."""
    entity = self._subject
    for hop, relation in enumerate(self._chain):
      value = self._value(entity, relation)
      if not value:
        return entity, hop
      entity = value
    return entity, len(self._chain)

  def _value(self, entity: str, relation: Relation) -> str:
    """Finds a fact about an entity in the read texts, or ''."""
    head = f'{entity} {relation.tells} '
    told = [text.removeprefix(head) for text in self._read if text.startswith(head)]
    return told[0] if told else ''

  def _key(self, entity: str, relation: Relation) -> str:
    """Chooses an untried word to search for together with an entity."""
    keys = [other.key for other in relations.of_kind(relation.subject)]
    random.Random(f'{self._salt}/{entity}').shuffle(keys)
    if self.kind == 'informed':
      keys.insert(0, relation.key)
    fresh = [key for key in keys if f'{entity} {key}' not in self._searched]
    return (fresh or keys)[0]

  def _guess(self, entity: str) -> str:
    """Guesses a value of the right kind from the texts; else the entity."""
    wanted = self._chain[-1].object
    guesses = [
      self._value(entity, relation)
      for relation in RELATIONS.values()
      if relation.object == wanted
    ]
    told = [guess for guess in guesses if guess]
    return told[0] if told else entity
