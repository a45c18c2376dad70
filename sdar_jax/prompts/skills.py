"""The skill bank, and prompts with skills in them. No JAX.

Retrieval by metadata never looks at words in a prompt, so what a teacher knows does not
change from turn to turn; `retrieval` has the other kinds. Skills are shown whole or not
at all, inside a reserved budget of tokens, and a budget that holds none of those that
were found is an error.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from sdar_jax.envs.base import Task

BY_METADATA = ('task', 'task+object', 'all')  # Kinds of `SkillBank.retrieve`.
PLACEMENTS = ('user', 'system', 'reference')
# Heads the skills where placement is 'reference': raw text before the first token of
# the chat template, where ZJU-REAL/SDAR at 8b85c23 puts them (the words are ours).
REFERENCE_HEADER = '[What experience teaches about this task]'

_PROBE = 'x'
# Tokens of the budget that are kept back before a text that begins with white space,
# which joins the block's: with the block or without, a prompt may have one more.
_JOIN = 2
_REMEMBERED = 1024  # Choices of skills, and costs of blocks, that are kept.


class SkillError(ValueError):
  """A skill bank, retrieval or budget without skills for a teacher."""


@dataclasses.dataclass(frozen=True)
class Skill:
  """One piece of advice: a `principle` and `when` ('' if always)."""

  id: str
  title: str
  principle: str
  when: str

  @property
  def text(self) -> str:
    """The skill on one line."""
    when = f' ({self.when})' if self.when else ''
    return f'{self.title}{when}: {self.principle}'


@dataclasses.dataclass(frozen=True)
class SkillBank:
  """A versioned set of skills of one world.

  Attributes:
    version: of the contents, e.g. '1.0'.
    world: whose tasks the skills are about.
    heading: a line above the skills; '' for none.
    bullet: what each skill's line starts with.
    general: skills for every task.
    task_types: skills of each task type.
    objects: one skill for each object class.
    digest: hex SHA-256 of the file.
    path: where it came from, for messages.
  """

  version: str
  world: str
  heading: str
  bullet: str
  general: tuple[Skill, ...]
  task_types: Mapping[str, tuple[Skill, ...]]
  objects: Mapping[str, Skill]
  digest: str
  path: str

  @classmethod
  def empty(cls, world: str) -> 'SkillBank':
    """Makes the bank of a world without skills."""
    return cls('', world, '', '', (), {}, {}, '', f'{world} (no config.skills.path)')

  def everything(self) -> tuple[Skill, ...]:
    """All skills: general, task types and objects in the order of the file."""
    typed = [skill for skills in self.task_types.values() for skill in skills]
    return (*self.general, *typed, *self.objects.values())

  def retrieve(
    self, metadata: Mapping[str, str], retrieval: str = 'task+object'
  ) -> tuple[Skill, ...]:
    """The skills of a task, most specific first.

    Args:
      metadata: a task's metadata; `task_type` and, where objects count, `object`.
      retrieval: 'task': the task type's skills, then the general ones;
        'task+object': the object's skill (if the bank has one) between them;
        'all': the same, then all the rest of the bank.

    Raises:
      SkillError: unknown retrieval or task type, or metadata that lacks a key.
    """
    if retrieval not in BY_METADATA:
      raise SkillError(f'retrieval {retrieval!r}: must be one of {BY_METADATA}')
    task_type = _required(metadata, 'task_type')
    if task_type not in self.task_types:
      raise SkillError(
        f'{self.path}: no skills for task type {task_type!r}; it has '
        f'{sorted(self.task_types)}'
      )
    chosen = list(self.task_types[task_type])
    if retrieval != 'task':
      name = _required(metadata, 'object')
      chosen += [self.objects[name]] if name in self.objects else []
    chosen += self.general
    if retrieval == 'all':
      ids = {skill.id for skill in chosen}
      chosen += [skill for skill in self.everything() if skill.id not in ids]
    return tuple(chosen)

  def block(self, skills: Sequence[Skill]) -> str:
    """Writes `skills`, one on a line."""
    lines = [self.heading] if self.heading else []
    return '\n'.join(lines + [self.bullet + skill.text for skill in skills])


def _required(metadata: Mapping[str, str], key: str) -> str:
  if key not in metadata:
    raise SkillError(
      f'task metadata lacks {key!r}, which skill retrieval needs; it has '
      f'{sorted(metadata)}'
    )
  return metadata[key]


class Renderer(Protocol):
  """Interface of `chat.Chat` as used here."""

  system: str

  def render(self, user_text: str, system: str | None = None) -> np.ndarray:
    """Ids of a prompt."""

  def encode_text(self, text: str) -> np.ndarray:
    """Ids of plain text."""


@dataclasses.dataclass(frozen=True)
class SkillView:
  """The skills of one prompt.

  Attributes:
    skill_ids: the skills shown, in order, or what else of `contexts`; () for nothing.
    left_out: retrieved skills that the budget had no room for.
    tokens: how many tokens longer the prompt is for showing them.
  """

  skill_ids: tuple[str, ...]
  left_out: tuple[str, ...]
  tokens: int


NOTHING = SkillView((), (), 0)


class Ranking(Protocol):
  """Interface of `retrieval.Retriever` as used here."""

  bank: SkillBank
  kind: str
  by_metadata: bool

  def order(self, task: Task, user_text: str) -> tuple[Skill, ...]:
    """The skills for a task, most wanted first."""

  def check(self, tasks: Sequence[Task]) -> None:
    """Raises SkillError where a type of task has none."""


class TeacherContext:
  """Prompts with skills: the teacher's, and those of skilled students.

  Attributes:
    retriever: which skills are shown.
  """

  def __init__(
    self,
    retriever: Ranking,
    chat: Renderer,
    placement: str = 'user',
    *,
    token_budget: int,
  ):
    """Prepares prompts.

    Args:
      retriever: the skills, and which of them a task gets.
      chat: the policy's own template and tokenizer.
      placement: 'user': at the start of the user message; 'system': at the end of
        the system message; 'reference': as raw text before the template's first
        token.
      token_budget: tokens by which a prompt may grow. Skills are taken in the order
        of retrieval until the next one does not fit.

    Raises:
      SkillError: unknown placement, or a budget too small for a skill that could be
        the first of some task's. Where metadata decides which those are, `prompt`
        finds out.
    """
    if placement not in PLACEMENTS:
      raise SkillError(
        f'config.skills.placement={placement!r}: must be one of {PLACEMENTS}'
      )
    self.retriever = retriever
    self._chat = chat
    self._placement = placement
    self._token_budget = token_budget
    self._bare_length = len(chat.render(_PROBE))
    self._skills = {skill.id: skill for skill in retriever.bank.everything()}
    self._cost = functools.lru_cache(maxsize=_REMEMBERED)(self._measure)
    self._chosen = functools.lru_cache(maxsize=_REMEMBERED)(self._choose)
    if not retriever.by_metadata:
      for skill_id in self._skills:
        self._choose((skill_id,), token_budget)

  def check(self, tasks: Sequence[Task]) -> None:
    """Checks tasks for skills to show, and for room for one of them.

    Raises:
      SkillError: one line naming a task type without, or the budget.
    """
    self.retriever.check(tasks)
    if self.retriever.by_metadata:  # Else each was measured when this was made.
      for task in tasks:
        self.block('', task)

  def prompt(self, user_text: str, task: Task) -> tuple[np.ndarray, SkillView]:
    """The prompt of `user_text` with the task's skills in it.

    The prompt is longer than `chat.render(user_text)` by the view's `tokens` (off by
    at most one where the user text starts with white space that joins the block's).
    Where retrieval finds nothing it is that prompt, and the view is `NOTHING`.

    Raises:
      SkillError: skills were found and the budget holds none.
    """
    block, view = self.block(user_text, task)
    return self.place(user_text, block) if block else self.plain(user_text), view

  def block(self, user_text: str, task: Task) -> tuple[str, SkillView]:
    """Gives the text of a task's skills; '' and `NOTHING` without.

    Raises:
      SkillError: as `prompt`.
    """
    found = self.retriever.order(task, user_text)
    if not found:
      return '', NOTHING
    return self._chosen(tuple(skill.id for skill in found), self._room(user_text))

  @property
  def cause(self) -> str:
    """Names the keys behind prompts without skills, for an error."""
    return (
      f'config.skills.retrieval={self.retriever.kind!r} finds nothing for them in'
      f' {self.retriever.bank.path}, or config.skills.placement={self._placement!r}'
      ' has no effect in this chat template'
    )

  def plain(self, user_text: str) -> np.ndarray:
    """The prompt of `user_text` with nothing added."""
    return self._chat.render(user_text)

  def with_block(self, user_text: str, block: str) -> tuple[np.ndarray, int] | None:
    """Places any text as skills are placed; returns ids and tokens taken.

    Returns:
      Ids and tokens as `prompt` counts them; None if the budget has no room for it.
    """
    tokens = self._cost(block)
    if tokens > self._room(user_text):
      return None
    return self.place(user_text, block), tokens

  def size(self, block: str) -> int:
    """Counts the tokens by which a block lengthens a prompt."""
    return self._cost(block)

  def _room(self, user_text: str) -> int:
    """Counts the tokens left for a block before this text."""
    return self._token_budget - _JOIN * user_text[:1].isspace()

  def _choose(self, ids: tuple[str, ...], room: int) -> tuple[str, SkillView]:
    """Finds the longest fitting head of the skills."""
    skills, bank = [self._skills[skill_id] for skill_id in ids], self.retriever.bank
    chosen = ('', NOTHING)
    for count in range(1, len(skills) + 1):
      block = bank.block(skills[:count])
      tokens = self._measure(block)
      if tokens > (room if count > 1 else self._token_budget):
        break
      chosen = (block, SkillView(ids[:count], ids[count:], tokens))
    if not chosen[1].skill_ids:
      raise SkillError(
        f'config.skills.token_budget={self._token_budget}: skill {ids[0]} of '
        f'{bank.path} needs {tokens} tokens and a teacher must see at least one'
      )
    return chosen

  def _measure(self, block: str) -> int:
    return len(self.place(_PROBE, block)) - self._bare_length

  def place(self, user_text: str, block: str) -> np.ndarray:
    """The prompt of `user_text` with a block, whatever its size."""
    if self._placement == 'user':
      return self._chat.render(f'{block}\n\n{user_text}')
    if self._placement == 'system':
      system = f'{self._chat.system}\n\n{block}' if self._chat.system else block
      return self._chat.render(user_text, system=system)
    raw = self._chat.encode_text(f'{REFERENCE_HEADER}\n{block}\n\n')
    return np.concatenate([raw, self._chat.render(user_text)])
