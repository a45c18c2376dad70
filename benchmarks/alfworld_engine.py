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

from sdar_jax.envs.alfworld.engine import AlfworldEnv
from sdar_jax.envs.alfworld.generated import GeneratedGames
from sdar_jax.envs.alfworld.official import OfficialGames
from sdar_jax.process import flags, terminal

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


def arguments(argv):
  """Reads the flags."""
  parser = flags.Parser('python benchmarks/alfworld_engine.py', __doc__)
  parser.add_argument('--data_dir', help='official games (default: generated ones)')
  parser.add_argument('--split', default='valid_seen', help='which split to play')
  parser.add_argument('--games', type=int, default=4, help='spread over the split')
  parser.add_argument('--steps', type=int, default=50, help='steps per game')
  parser.add_argument('--seed', type=int, default=0, help='of the walks')
  parser.add_argument('--transcripts', help='recorded episodes to replay')
  return parser.parse_all(argv)


@terminal.program
def main(argv):
  """Prints the comparison."""
  options = arguments(argv)
  if options.data_dir:
    tasks = OfficialGames(options.data_dir, options.split)
  else:
    tasks = GeneratedGames(options.split, 'full')
  if options.transcripts:
    counts = replay(Path(options.transcripts), tasks)
    print('transcripts: {} games, {} episodes, {} steps, {} mismatches'.format(*counts))
  number = min(options.games, len(tasks))
  chosen = [tasks[i * len(tasks) // number] for i in range(number)]
  walks = [walk(AlfworldEnv(), task, options.seed, options.steps) for task in chosen]
  commands, answers = zip(*walks)
  ours, reset = speed(chosen, commands)
  print(f'ours: {ours:.0f} steps/s, reset {reset:.3f} ms')
  if not textworld_backend.available():
    print("TextWorld: not installed (pip install 'sdar-jax[textworld]')")
    return 0
  mismatches, theirs = compare(chosen, commands, answers)
  print(f'TextWorld: {theirs:.1f} steps/s; ours is {ours / theirs:.0f} times as fast')
  print(
    f'parity: {number} games, {number * options.steps} steps, {mismatches} mismatches'
  )
  return 0


if __name__ == '__main__':
  main()
