"""Plays the same ALFWorld games in our engine and in TextWorld, and compares.

  python benchmarks/alfworld_engine.py                          # generated games
  python benchmarks/alfworld_engine.py --data_dir=$ALFWORLD_DATA --split=valid_seen

Prints the number of mismatches in text, sorted admissible commands, reward and end, and
steps per second of either on the same walks in one run. Without the extra `textworld`
it measures our engine only. `--transcripts` names a file or folder of recorded episodes
(JSON lines, .xz: {id, episodes: [{intro, admissible, steps: [[command, observation,
admissible, reward, done], ...]}]}) to replay as well, for games of `--data_dir`.
"""

import json
import lzma
import random
import time
from pathlib import Path

import textworld_backend
from absl import app, flags

from sdar_jax.envs.alfworld.engine import AlfworldEnv
from sdar_jax.envs.alfworld.generated import GeneratedGames
from sdar_jax.envs.alfworld.official import OfficialGames

DATA_DIR = flags.DEFINE_string('data_dir', '', 'official games; empty: generated ones')
SPLIT = flags.DEFINE_string('split', 'valid_seen', 'which split to play')
GAMES = flags.DEFINE_integer('games', 4, 'how many games, spread over the split')
STEPS = flags.DEFINE_integer('steps', 50, 'steps per game')
SEED = flags.DEFINE_integer('seed', 0, 'of the walks')
TRANSCRIPTS = flags.DEFINE_string('transcripts', '', 'recorded episodes to replay')
NONSENSE = ('', 'dance', 'go to shelf 99', 'LOOK', ' look ')


def walk(env, task, seed, steps):
  """Plays a seeded walk that prefers handling things; returns (commands, answers)."""
  rng = random.Random(f'{seed}/{task.task_id}')
  answers = [env.reset(task)]
  commands, admissible = [], answers[0].admissible
  for _ in range(steps):
    handling = [c for c in admissible if not c.startswith(('go to', 'examine', 'help'))]
    draw = rng.random()
    pool = NONSENSE if draw < 0.04 else admissible if draw < 0.4 else handling
    commands.append(rng.choice(pool))
    result = env.step(commands[-1])
    answers.append(result)
    admissible = result.observation.admissible
  return commands, answers


def speed(tasks, commands):
  """Steps and resets per second of our engine on given walks."""
  env, resets, steps, count = AlfworldEnv(), 0.0, 0.0, 0
  for task, walked in zip(tasks, commands):
    task.payload.problem  # noqa: B018 - parsed once per group, not per episode
    for _ in range(10):
      start = time.perf_counter()
      env.reset(task)
      resets += time.perf_counter() - start
      start = time.perf_counter()
      for command in walked:
        env.step(command)
      steps += time.perf_counter() - start
      count += len(walked)
  return count / steps, 1000 * resets / (10 * len(tasks))


def compare(tasks, commands, answers):
  """Plays the walks in TextWorld; returns (mismatches, steps per second)."""
  env, mismatches, seconds, count = textworld_backend.TextWorldEnv(), 0, 0.0, 0
  for task, walked, expected in zip(tasks, commands, answers):
    mismatches += env.reset(task) != expected[0]
    start = time.perf_counter()
    for command, answer in zip(walked, expected[1:]):
      mismatches += env.step(command) != answer
    seconds += time.perf_counter() - start
    count += len(walked)
  env.close()
  return mismatches, count / seconds


def replay(path, tasks):
  """Replays recorded episodes; returns (games, episodes, steps, mismatches)."""
  by_id = {task.task_id.removeprefix('official/'): task for task in tasks}
  games = episodes = steps = mismatches = 0
  env = AlfworldEnv()
  for file in sorted(path.glob('*.xz')) if path.is_dir() else [path]:
    with lzma.open(file, 'rt', encoding='utf-8') as lines:
      records = [json.loads(line) for line in lines]
    for record in (r for r in records if r['id'] in by_id):
      games += 1
      for episode in record['episodes']:
        episodes += 1
        first = env.reset(by_id[record['id']])
        expected = (episode['intro'], tuple(episode['admissible']))
        mismatches += (first.text, first.admissible) != expected
        for command, text, admissible, reward, done in episode['steps']:
          got, steps = env.step(command), steps + 1
          seen = (got.observation.text, got.observation.admissible)
          same = seen == (text, tuple(admissible)) and got.reward == reward
          mismatches += not same or got.done != done or got.success != done
  return games, episodes, steps, mismatches


def main(_):
  """Prints the comparison."""
  if DATA_DIR.value:
    tasks = OfficialGames(DATA_DIR.value, SPLIT.value)
  else:
    tasks = GeneratedGames(SPLIT.value, 'full')
  if TRANSCRIPTS.value:
    counts = replay(Path(TRANSCRIPTS.value), tasks)
    print('transcripts: {} games, {} episodes, {} steps, {} mismatches'.format(*counts))
  number = min(GAMES.value, len(tasks))
  chosen = [tasks[i * len(tasks) // number] for i in range(number)]
  walks = [walk(AlfworldEnv(), task, SEED.value, STEPS.value) for task in chosen]
  commands, answers = zip(*walks)
  ours, reset = speed(chosen, commands)
  print(f'ours: {ours:.0f} steps/s, reset {reset:.3f} ms')
  if not textworld_backend.available():
    print("TextWorld: not installed (pip install 'sdar-jax[textworld]')")
    return
  mismatches, theirs = compare(chosen, commands, answers)
  print(f'TextWorld: {theirs:.1f} steps/s; ours is {ours / theirs:.0f} times as fast')
  print(
    f'parity: {number} games, {number * STEPS.value} steps, {mismatches} mismatches'
  )


if __name__ == '__main__':
  app.run(main)
