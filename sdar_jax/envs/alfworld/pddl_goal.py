"""Goals of PDDL problems, grounded once per problem, cheap to check.

A goal is a formula over `and`, `or`, `not`, `imply`, `exists`, `forall`, `=` and
atoms. Grounding replaces the quantifiers by the objects there are and every atom that
no action can change by its truth value, so that what is left speaks only of what an
agent can bring about. A grounded goal is True, False or a tuple:

  ('and', node, ...), ('or', node, ...), ('not', node) or an atom such as
  ('inreceptacle', 'mug_bar_1', 'desk_bar_2').
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Node = Any  # bool or tuple, see above
Atom = tuple[str, ...]

FLAGS = ('isclean', 'ishot', 'iscool', 'issliced', 'istoggled', 'ison', 'opened')
CHANGEABLE = frozenset(
  FLAGS + ('inreceptacle', 'holds', 'holdsany', 'atlocation', 'objectatlocation')
)
MAX_CASES = 50_000  # Visited while grounding; official goals need up to 1,400.
MAX_TRIALS = 100_000  # Objects times conditions tried on the way; official: 6,600.
UNTRACKED = frozenset({'checked'})
_OPERATORS = frozenset({'and', 'or', 'not', 'imply', 'exists', 'forall', '='})


class Grounder:
  """Grounds the goal of one problem.

  Args:
    objects: PDDL type -> ids of that type.
    facts: the initial facts, each (predicate, id, ...).
    rigid: says of an atom that no action can change it.
  """

  def __init__(
    self,
    objects: Mapping[str, Sequence[str]],
    facts: frozenset[Atom],
    rigid: Callable[[Atom], bool],
  ):
    self._objects = objects
    self._facts = facts
    self._rigid = rigid
    self._index: dict[str, dict[tuple, list[str]]] = {}
    self._cases = 0
    self._trials = 0
    self._needed: dict[int, list[list[str]]] = {}

  def ground(self, formula: list, binding: Mapping[str, str] | None = None) -> Node:
    """Grounds a parsed formula (nested lists of lower-cased words)."""
    binding = binding or {}
    self._cases += 1
    if self._cases > MAX_CASES:
      raise ValueError(f'the goal has more than {MAX_CASES} cases')
    if not isinstance(formula, list) or not formula or isinstance(formula[0], list):
      raise ValueError(f'goal: expected a formula, got {str(formula)[:80]!r}')
    head, *rest = formula
    if head == 'and':
      return conjunction(self.ground(part, binding) for part in rest)
    if head == 'or':
      return disjunction(self.ground(part, binding) for part in rest)
    if head in ('exists', 'forall') and len(rest) == 2:
      names = typed_names(rest[0])
      return self._quantify(head, names, rest[1], binding)
    if head == 'not' and len(rest) == 1:
      return negation(self.ground(rest[0], binding))
    if head == 'imply' and len(rest) == 2:
      premise = negation(self.ground(rest[0], binding))
      return disjunction([premise, self.ground(rest[1], binding)])
    words = [binding.get(word, word) for word in rest if isinstance(word, str)]
    if len(words) != len(rest) or any(word.startswith('?') for word in words):
      raise ValueError(f'goal: cannot read {str(formula)[:80]!r}')
    if head == '=' and len(words) == 2:
      return words[0] == words[1]
    if head in _OPERATORS or head in UNTRACKED:
      raise ValueError(f'goal: cannot decide {str(formula)[:80]!r}')
    atom = (head, *words)
    return atom in self._facts if self._rigid(atom) else atom

  def _quantify(self, head, names, body, binding) -> Node:
    """Expands one quantifier, variable by variable."""
    if not names:
      return self.ground(body, binding)
    (name, kind), *rest = names
    needed = self._conditions(body) if head == 'exists' else []
    needed = [[binding.get(word, word) for word in atom] for atom in needed]
    parts = (
      self._quantify(head, rest, body, {**binding, name: value})
      for value in self._candidates(name, kind, needed)
      if self._possible(needed, name, value)
    )
    return disjunction(parts) if head == 'exists' else conjunction(parts)

  def _conditions(self, body: list) -> list[list[str]]:
    """Finds the `_conjuncts` of a body, once."""
    if id(body) not in self._needed:
      self._needed[id(body)] = _conjuncts(body)
    return self._needed[id(body)]

  def _candidates(self, name: str, kind: str, needed: list) -> Sequence[str]:
    """Lists values of a variable: few, if a rigid atom names them."""
    for predicate, *words in needed:
      variables = [word for word in words if word.startswith('?')]
      if variables == [name] and predicate not in CHANGEABLE:
        place = words.index(name)
        key = (place, *words[:place], *words[place + 1 :])
        found = self._indexed(predicate).get(key, ())
        allowed = self._objects.get(kind, ())
        return sorted(v for v in found if kind == 'object' or v in allowed)
    if kind == 'object':  # the root of the type hierarchy
      return list(itertools.chain.from_iterable(self._objects.values()))
    return self._objects.get(kind, ())

  def _indexed(self, predicate: str) -> dict[tuple, list[str]]:
    """Indexes facts of a predicate: (place, other words) -> words there."""
    if predicate not in self._index:
      index = self._index[predicate] = {}
      for fact in self._facts:
        if fact[0] == predicate:
          for place, word in enumerate(fact[1:]):
            key = (place, *fact[1 : place + 1], *fact[place + 2 :])
            index.setdefault(key, []).append(word)
    return self._index[predicate]

  def _possible(self, needed: list, name: str, value: str) -> bool:
    """Tests the needed atoms made ground by a value; False if one fails."""
    self._trials += 1 + len(needed)
    if self._trials > MAX_TRIALS:
      raise ValueError(f'the goal tries more than {MAX_TRIALS} objects and conditions')
    for atom in needed:
      if name in atom:
        ground = tuple(value if word == name else word for word in atom)
        if not any(word.startswith('?') for word in ground):
          if self._rigid(ground) and ground not in self._facts:
            return False
    return True


def typed_names(words: list) -> list[tuple[str, str]]:
  """Reads a PDDL typed list (`a b - t c - u`) as [(name, type), ...]."""
  result, pending = [], []
  stream = iter(words)
  for word in stream:
    if word == '-':
      kind = next(stream, None)
      if kind is None or not pending:
        raise ValueError('a typed list has a dash without a name or a type')
      result += [(name, kind) for name in pending]
      pending = []
    else:
      pending.append(word)
  return result + [(name, 'object') for name in pending]


def _conjuncts(formula: list) -> list[list[str]]:
  """Lists the positive atoms implied by a formula."""
  if not isinstance(formula, list) or not formula:
    return []
  if formula[0] == 'and':
    return [atom for part in formula[1:] for atom in _conjuncts(part)]
  if formula[0] == 'exists' and len(formula) == 3:
    own = {name for name, _ in typed_names(formula[1])}
    return [atom for atom in _conjuncts(formula[2]) if own.isdisjoint(atom)]
  if formula[0] in _OPERATORS or not all(isinstance(word, str) for word in formula):
    return []
  return [formula]


def conjunction(parts) -> Node:
  """Simplifies the `and` of grounded nodes; stops at the first False."""
  kept = []
  for part in parts:
    if part is False:
      return False
    if part is not True:
      kept += part[1:] if part[0] == 'and' else [part]
  return kept[0] if len(kept) == 1 else ('and', *kept) if kept else True


def disjunction(parts) -> Node:
  """Simplifies the `or` of grounded nodes; stops at the first True."""
  kept = []
  for part in parts:
    if part is True:
      return True
    if part is not False:
      kept += part[1:] if part[0] == 'or' else [part]
  return kept[0] if len(kept) == 1 else ('or', *kept) if kept else False


def negation(node: Node) -> Node:
  """Simplifies the `not` of a grounded node."""
  if isinstance(node, bool):
    return not node
  return node[1] if node[0] == 'not' else ('not', node)


def satisfied(node: Node, holds: Callable[[Atom], bool]) -> bool:
  """Evaluates a grounded goal, given the truth of its atoms."""
  if isinstance(node, bool):
    return node
  head = node[0]
  if head == 'and':
    return all(satisfied(part, holds) for part in node[1:])
  if head == 'or':
    return any(satisfied(part, holds) for part in node[1:])
  if head == 'not':
    return not satisfied(node[1], holds)
  return holds(node)
