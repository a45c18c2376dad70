"""Records what TextWorld says about the rooms of `problems.py`.

  PYTHONPATH=. python tests/envs/alfworld/record_rooms.py

Needs the extra `textworld`; writes tests/golden/alfworld_rooms.jsonl.xz, one line a
room: {name, goal, pddl_problem, intro, admissible, steps: [[command, observation,
admissible, reward, done], ...]}.
"""

import json
import lzma
import random
from pathlib import Path

import problems

from benchmarks.textworld_backend import TextWorldEnv
from sdar_jax.envs.alfworld.engine import Game
from sdar_jax.envs.base import Task

TARGET = Path(__file__).parents[2] / 'golden/alfworld_rooms.jsonl.xz'
WALK = 80  # random steps after the script


def record(name, problem, script):
  """Plays a script and then a walk that prefers to handle things."""
  goal = f'play with room {name}.'
  env, rng = TextWorldEnv(), random.Random(name)
  first = env.reset(Task(name, '', goal, {}, Game(problem, goal)))
  steps, admissible = [], first.admissible
  for number in range(len(script) + WALK):
    if number < len(script):
      command = script[number]
    else:
      handling = [c for c in admissible if not c.startswith(('go to', 'help'))]
      command = rng.choice(handling if rng.random() < 0.7 else admissible)
    result = env.step(command)
    seen = result.observation
    admissible = seen.admissible
    steps.append([command, seen.text, seen.admissible, result.reward, result.done])
  env.close()
  return {
    'name': name,
    'goal': goal,
    'pddl_problem': problem,
    'intro': first.text,
    'admissible': first.admissible,
    'steps': steps,
  }


def main():
  """Writes the records of all rooms."""
  lines = [json.dumps(record(*room)) for room in problems.rooms()]
  TARGET.write_bytes(lzma.compress(('\n'.join(lines) + '\n').encode()))


if __name__ == '__main__':
  main()
