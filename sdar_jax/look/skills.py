"""Finds the skills that a run's teachers may have seen. No JAX."""

from collections.abc import Mapping
from typing import Any

from sdar_jax.envs import worlds
from sdar_jax.prompts import bank_file
from sdar_jax.prompts.skills import SkillBank


def of(config: Mapping[str, Any]) -> SkillBank:
  """Loads the skill bank of a run; an empty one where that fails.

  Args:
    config: flattened.
  """
  world = str(config.get('world.name', ''))
  try:
    path = config.get('skills.path') or _usual(config, world)
    return bank_file.load(path) if path else SkillBank.empty(world)
  except (ValueError, OSError, TypeError):  # Of another version, or gone.
    return SkillBank.empty(world)


def _usual(config: Mapping[str, Any], world: str) -> Any:
  settings = {
    key.removeprefix('world.'): value
    for key, value in config.items()
    if key.startswith('world.') and key != 'world.name'
  }
  return worlds.make(world, settings).skills_path if world else None
