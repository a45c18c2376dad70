"""The skill bank, and which of its skills metadata selects. No JAX.

Retrieval by metadata never looks at words in a prompt, so what a teacher knows does not
change from turn to turn; `retrieval` has the other kinds.
"""

import dataclasses
from collections.abc import Mapping, Sequence

BY_METADATA = ('task', 'task+object', 'all')  # Kinds of `SkillBank.retrieve`.


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
