"""What is true of a game: an expert who knows the state, and the ways to a goal."""

import itertools

from sdar_jax.envs.alfworld.belief import TREATMENTS, RoomBelief
from sdar_jax.envs.alfworld.expert import ObservingExpert


class OracleExpert(ObservingExpert):
  """Solves games by the true state of the environment it is given.

  Args:
    env: the environment that plays the episode.
  """

  def __init__(self, env):
    super().__init__('likely')
    self._env = env

  def plan(self, observation):
    """(what the action is for in a few words, the action)."""
    self.belief = true_belief(self._env)
    return super().plan(observation)

  def _take_in(self, observation):
    """Nothing to take in: `plan` reads the state."""


def true_belief(env):
  """The belief of one who knows the state of `env`."""
  problem, state = env.problem, env.state
  names = problem.names
  belief = RoomBelief(
    receptacles=[names[ident] for ident in problem.receptacles],
    holding=names[state.holding] if state.holding else '',
  )
  facing = problem.receptacles_at.get(state.location, ())
  belief.here = names[facing[0]] if facing else ''
  for ident in problem.receptacles:
    place, kind = names[ident], problem.kinds[ident]
    items = sorted(state.contents[ident])
    belief.contents[place] = [names[item] for item in items]
    if ident in problem.properties['openable'] and ident not in state.flags['opened']:
      belief.closed.add(place)
    fixed = [item for item in items if item not in problem.properties['pickupable']]
    belief.refused |= {(names[item], place) for item in fixed}
    if (
      state.holding and (kind, problem.kinds[state.holding]) not in problem.can_contain
    ):
      belief.refused.add((belief.holding, place))
  for _, result in TREATMENTS.values():
    for ident in state.flags[f'is{result}']:
      belief.states.setdefault(names[ident], set()).add(result)
  return belief


def alternatives(node):
  """The ways to reach a goal: each a tuple of literals that must hold together.

  A literal is an atom or ('not', node).
  """
  if isinstance(node, bool):
    yield from [()] if node else []
  elif node[0] == 'or':
    for part in node[1:]:
      yield from alternatives(part)
  elif node[0] == 'and':
    for choice in itertools.product(*(list(alternatives(p)) for p in node[1:])):
      yield tuple(literal for part in choice for literal in part)
  else:
    yield (node,)
