"""The instruction of a game, as words and as parts."""

import dataclasses
import re

PICK = 'pick_and_place_simple'
LOOK = 'look_at_obj_in_light'
CLEAN = 'pick_clean_then_place_in_recep'
HEAT = 'pick_heat_then_place_in_recep'
COOL = 'pick_cool_then_place_in_recep'
TWO = 'pick_two_obj_and_place'
TASK_TYPES = (PICK, LOOK, CLEAN, HEAT, COOL, TWO)

_WORDS = {
  PICK: ('put a {object} in {target}.', 'put some {object} on {target}.'),
  LOOK: ('look at {object} under the {tool}.', 'examine the {object} with the {tool}.'),
  CLEAN: (
    'put a clean {object} in {target}.',
    'clean some {object} and put it in {target}.',
  ),
  HEAT: (
    'put a hot {object} in {target}.',
    'heat some {object} and put it in {target}.',
  ),
  COOL: (
    'put a cool {object} in {target}.',
    'cool some {object} and put it in {target}.',
  ),
  TWO: ('put two {object} in {target}.', 'find two {object} and put them in {target}.'),
}
_TOOLS = {CLEAN: 'SinkBasin', HEAT: 'Microwave', COOL: 'Fridge', LOOK: 'DeskLamp'}


@dataclasses.dataclass(frozen=True)
class GameInstruction:
  """A game's instruction in class names ('Mug' in PDDL, 'mug' in text).

  Attributes:
    task_type: one of TASK_TYPES.
    object: the class of the object to handle.
    target: the receptacle class it belongs in; empty if it is only looked at.
    tool: what it is to be handled with; empty for plain moves.
  """

  task_type: str
  object: str
  target: str
  tool: str

  @property
  def metadata(self) -> dict[str, str]:
    """Metadata for skill retrieval: nothing beyond the goal's words."""
    return {
      'task_type': self.task_type,
      'object': self.object.lower(),
      'target': self.target.lower(),
      'tool': self.tool.lower(),
    }


def tool_of(task_type: str) -> str:
  """Gives the tool class of a task type; empty for none."""
  return _TOOLS[task_type] if task_type in _TOOLS else ''


def write(asked: GameInstruction, variant: int) -> str:
  """Writes an instruction in the official words; `variant` is 0 or 1."""
  return _WORDS[asked.task_type][variant].format(
    object=asked.object.lower(), target=asked.target.lower(), tool=asked.tool.lower()
  )


def _patterns() -> list[tuple[str, re.Pattern[str]]]:
  """Lists (task type, pattern) by wording; 'a clean x' before 'a x'."""
  rows = []
  for task_type in (*_TOOLS, TWO, PICK):
    for words in _WORDS[task_type]:
      pattern = re.escape(words)
      for name in ('object', 'target', 'tool'):
        pattern = pattern.replace(rf'\{{{name}\}}', rf'(?P<{name}>[a-z]+)')
      rows.append((task_type, re.compile(pattern)))
  return rows


_PATTERNS = _patterns()


def read(goal: str) -> GameInstruction:
  """Reads an instruction; class names are lower-case.

  Raises:
    ValueError: the instruction is in none of the known wordings.
  """
  text = goal.strip().lower()
  for task_type, pattern in _PATTERNS:
    if found := pattern.fullmatch(text):
      parts = {'target': '', 'tool': tool_of(task_type).lower(), **found.groupdict()}
      return GameInstruction(task_type, **parts)
  raise ValueError(
    f'goal {goal[:80]!r}: none of the known wordings of an ALFWorld task'
  )
