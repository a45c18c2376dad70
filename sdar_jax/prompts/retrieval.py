"""Ranking of skills for a task's prompts. No JAX.

What a retrieval answers changes between steps at most, never inside one; the keyword
retrieval under scope 'prompt', the reference's, is the exception.
"""

import collections
import functools
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdar_jax.envs.base import Task
from sdar_jax.prompts.skills import BY_METADATA, Skill, SkillBank, SkillError

RETRIEVALS = (*BY_METADATA, 'keywords', 'similar', 'ucb', 'random')
KEYWORD_SCOPES = ('goal', 'prompt')

_KEYWORD = re.compile(r'[^\W\d_]{3,}')  # Letters; fewer than three match everywhere.
_WORD = re.compile(r'[^\W_]+')
_STATE = ('shown', 'step', 'successes')
_REMEMBERED = 1024  # Orders of tasks that are kept.


class Similarity:
  r"""Cosine similarity of a query with texts as TF-IDF bags of words.

  \[ \cos(q, d) = \frac{\sum_w q_w d_w}{\|q\|\,\|d\|}, \qquad
     x_w = n_x(w) \ln\frac{1 + N}{N(w)} \]

  n_x(w) counts the word w in x, N the texts, N(w) those that have w. Words that no text
  has count nowhere. Equal bags are equally similar, to the last bit.

  Source: Salton and Buckley, Term-weighting approaches in automatic text retrieval
    (1988); 1 + N keeps the words of a single text from weighing nothing.
  """

  def __init__(self, texts: Sequence[str]):
    bags = [_bag(text) for text in texts]
    having = collections.Counter(word for bag in bags for word in bag)
    self._rarity = {w: math.log((1 + len(bags)) / n) for w, n in having.items()}
    self._vectors = [self._vector(bag) for bag in bags]

  def of(self, query: str) -> list[float]:
    """The similarity of each text, in [0, 1]."""
    asked = self._vector(_bag(query))
    return [
      sum(weight * vector[word] for word, weight in asked.items() if word in vector)
      for vector in self._vectors
    ]

  def _vector(self, bag: Mapping[str, int]) -> dict[str, float]:
    """The weights of a bag's known words, of length 1."""
    weights = {w: n * self._rarity[w] for w, n in bag.items() if w in self._rarity}
    length = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
    return {word: weight / length for word, weight in weights.items()}


class Retriever:
  """Ranks a bank's skills for a task.

  Attributes:
    bank: the skills.
    kind: one of `RETRIEVALS`.
  """

  def __init__(
    self,
    bank: SkillBank,
    kind: str,
    *,
    limit: int = 0,
    ucb_coef: float = 1.0,
    keyword_scope: str = 'goal',
    seed: int = 0,
  ):
    """Prepares retrieval.

    Args:
      bank: the skills.
      kind: 'task', 'task+object', 'all': by metadata, see `SkillBank.retrieve`.
        'keywords': of the task types and objects that the text names, then the general
        ones. 'similar': like the goal, the likest first. 'ucb': all, by what showing
        them was worth so far. 'random': all, in an order drawn for the step and task.
      limit: most skills for a task; 0 is as many as the token budget holds.
      ucb_coef: c >= 0, the weight of what has been shown little in 'ucb'.
      keyword_scope: where 'keywords' looks: in the 'goal', or in the whole 'prompt'.
      seed: of 'random'.

    Raises:
      SkillError: one line naming the config key.

    Source: SDAR (arXiv 2605.15155) compares 'keywords' (its KM, and in the reference
      the only one), 'ucb', 'all' (its Full) and 'random'; read from digests of it. UCB1
      is Auer et al., Finite-time analysis of the multiarmed bandit problem (2002).
    """
    _check_choice('retrieval', kind, RETRIEVALS)
    _check_choice('keyword_scope', keyword_scope, KEYWORD_SCOPES)
    _check_at_least_0('limit', limit)
    _check_at_least_0('ucb_coef', ucb_coef)
    self.bank, self.kind = bank, kind
    self._limit, self._ucb_coef = limit, ucb_coef
    self._keyword_scope, self._seed = keyword_scope, seed
    self._everything = bank.everything()
    self._categories = [(_keywords(n), found) for n, found in bank.task_types.items()]
    self._categories += [(_keywords(n), (one,)) for n, one in bank.objects.items()]
    self._similarity = Similarity([skill.text for skill in self._everything])
    self._similar = functools.lru_cache(maxsize=_REMEMBERED)(self._likest)
    self._random = functools.lru_cache(maxsize=_REMEMBERED)(self._shuffled)
    self._step = 0
    self._shown: collections.Counter[str] = collections.Counter()
    self._successes: collections.Counter[str] = collections.Counter()
    self._ranking = self._ranked()

  @property
  def by_metadata(self) -> bool:
    """Whether metadata alone decides: then some skills can never come first."""
    return self.kind in BY_METADATA

  def check(self, tasks: Iterable[Task]) -> None:
    """Checks every task type for skills to show.

    'keywords' under scope 'prompt' looks at what is not there yet: the first step finds
    out about it.

    Raises:
      SkillError: one line naming a task type without.
    """
    if self.kind == 'keywords' and self._keyword_scope == 'prompt':
      return
    bare: dict[str, Task] = {}
    shown = set()
    for task in tasks:
      if self.order(task, ''):  # Of every task, for metadata that it cannot use.
        shown.add(task.task_type)
      bare.setdefault(task.task_type, task)
    for task_type, task in bare.items():
      if task_type not in shown:
        raise SkillError(
          f'config.skills.retrieval={self.kind!r}: {self.bank.path} has nothing for'
          f' tasks of type {task_type!r}, as {task.goal!r}, and a teacher must see'
          ' something'
        )

  def order(self, task: Task, user_text: str) -> tuple[Skill, ...]:
    """The skills for a task, most wanted first.

    Args:
      task: whose skills.
      user_text: the user message; read by 'keywords' under scope 'prompt' only.

    Returns:
      At most `limit` skills; () where 'keywords' or 'similar' finds none.

    Raises:
      SkillError: metadata that retrieval by metadata cannot use.
    """
    if self.kind == 'keywords':
      found = self._named(user_text if self._keyword_scope == 'prompt' else task.goal)
    elif self.kind == 'similar':
      found = self._similar(' '.join([task.goal, *task.metadata.values()]))
    elif self.kind == 'ucb':
      found = self._ranking
    elif self.kind == 'random':
      found = self._random(self._step, task.task_id)
    else:
      found = self.bank.retrieve(task.metadata, self.kind)
    return found[: self._limit] if self._limit else found

  def begin_step(self, step: int) -> None:
    """Sets the step, from which 'random' draws."""
    self._step = step

  def learn(self, shown: Iterable[tuple[Sequence[str], bool]]) -> None:
    """Learns from a step's episodes; 'ucb' ranks by it from now on.

    Args:
      shown: for each episode the ids that it showed, each counted once, and whether it
        succeeded. Ids that are not the bank's (`contexts` has names of its own) are
        passed over.
    """
    known = {skill.id for skill in self._everything}
    for skill_ids, success in shown:
      for skill_id in known.intersection(skill_ids):
        self._shown[skill_id] += 1
        self._successes[skill_id] += bool(success)
    self._ranking = self._ranked()

  def state(self) -> dict[str, Any]:
    """Returns the changing state as plain JSON."""
    return {
      'step': self._step,
      'shown': dict(sorted(self._shown.items())),
      'successes': dict(sorted(self._successes.items())),
    }

  def restore(self, state: Mapping[str, Any]) -> None:
    """Restores the state of `state`.

    Raises:
      SkillError: the state is another program's, or of skills that the bank lacks.
    """
    if sorted(state) != list(_STATE):
      raise SkillError(f'retrieval state has {sorted(state)}: must have {list(_STATE)}')
    known = {skill.id for skill in self._everything}
    for skill_id in [*state['shown'], *state['successes']]:
      if skill_id not in known:
        raise SkillError(
          f'{self.bank.path}: no skill {skill_id!r}, which the run has shown: set '
          'config.skills.path to the bank that the run began with'
        )
    self._step = state['step']
    self._shown = collections.Counter(state['shown'])
    self._successes = collections.Counter(state['successes'])
    self._ranking = self._ranked()

  def _named(self, text: str) -> tuple[Skill, ...]:
    """Selects categories with a word in `text`, also inside other words."""
    text = text.lower()
    found = [
      skill
      for keywords, category in self._categories
      if any(keyword in text for keyword in keywords)
      for skill in category
    ]
    return (*found, *self.bank.general)

  def _likest(self, query: str) -> tuple[Skill, ...]:
    pairs = zip(self._similarity.of(query), self._everything)
    found = sorted((p for p in pairs if p[0] > 0), key=lambda pair: -pair[0])
    return tuple(skill for _, skill in found)

  def _ranked(self) -> tuple[Skill, ...]:
    r"""By UCB1, ties in the order of the bank.

    \[ \bar r(e) + c \sqrt{\ln N / n(e)}, \qquad N = \sum_e n(e) \]

    and before all others those with n(e) = 0.
    """
    total = sum(self._shown.values())

    def score(skill: Skill) -> float:
      count = self._shown[skill.id]
      if not count:
        return math.inf
      bonus = self._ucb_coef * math.sqrt(math.log(total) / count)
      return self._successes[skill.id] / count + bonus

    return tuple(sorted(self._everything, key=lambda skill: -score(skill)))

  def _shuffled(self, step: int, task_id: str) -> tuple[Skill, ...]:
    """Permutes the bank by seed, step and task alone."""
    start = hashlib.blake2b(json.dumps([self._seed, step, task_id]).encode())

    def draw(skill: Skill) -> bytes:
      drawn = start.copy()
      drawn.update(skill.id.encode())
      return drawn.digest()

    return tuple(sorted(self._everything, key=draw))


def _bag(text: str) -> collections.Counter:
  return collections.Counter(_WORD.findall(text.lower()))


def _keywords(name: str) -> tuple[str, ...]:
  return tuple(_KEYWORD.findall(name.lower()))


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise SkillError(f'config.skills.{key}={value!r}: must be one of {choices}')


def _check_at_least_0(key: str, value: float) -> None:
  if not (math.isfinite(value) and value >= 0):
    raise SkillError(f'config.skills.{key}={value}: must be a finite number >= 0')
