"""Tokens that a step computes in either layout; counted, nothing is run.

Episodes are played once for each layout by a scripted expert that errs in half of its
turns, with the prompts of real models; filling stands before its answers, as many
tokens as a model would think. What is counted:

  prefill   prompt tokens that the sampler computes: from the last whole chunk on that
            the episode's turn before has in common
  old       tokens of the learner's sequences, read without gradient
  teacher   the same with skills at the head
  update    the same as old, with gradient
"""

import argparse
from collections.abc import Sequence

import numpy as np

from sdar_jax import build
from sdar_jax import config as config_lib
from sdar_jax.batching import rows as rows_lib
from sdar_jax.batching.rows import Row
from sdar_jax.process import flags, terminal
from sdar_jax.prompts import chat
from sdar_jax.prompts.skills import NOTHING
from sdar_jax.rollout import demonstrations
from sdar_jax.trajectory import Turn


def _row(prompt: np.ndarray, response: np.ndarray, episode: int, turn_id: int) -> Row:
  """Makes a row of what layouts look at."""
  none = np.zeros(0, np.float32)
  turn = Turn('', prompt, response, none, '', '', '', True, True, 0.0, 'stop')
  return Row(turn, None, None, 0, episode, turn_id, 0.0, turn)


def played(given: argparse.Namespace, layout: str) -> tuple[list[Row], list[int]]:
  """Plays the episodes; gives their rows, and the skills' tokens of each."""
  config = config_lib.default(given.world)
  config.world.max_turns = given.turns
  world = build.make_world(config)
  tokenizer = chat.Chat(given.tokenizer, instruction=world.instruction)
  teacher = build.make_teacher(config, world, tokenizer)
  random = np.random.default_rng(0)

  def encode(text: str) -> np.ndarray:
    filling = ' so' * int(random.integers(given.least, given.most + 1))
    return tokenizer.encode_response(filling + text)

  lessons = demonstrations.Lessons(
    skilled_fraction=0.0,
    informed_fraction=0.0,
    mistake_rate=0.5,
    seed=0,
    max_prompt_tokens=given.prompt,
    follow=tokenizer.follow if layout == 'conversation' else None,
  )
  rows, skills = [], []
  for index in range(given.episodes):
    task = world.tasks('train')[index]
    expert = world.expert(world.demonstrators[1], seed=index)
    draws = np.random.default_rng(index)
    plain = lambda text, task: (tokenizer.render(text), NOTHING)
    skills.append(teacher.prompt('x', task)[1].tokens)
    turns = demonstrations.episode(world, task, expert, plain, encode, lessons, draws)
    rows += [_row(t.prompt_ids, t.response_ids, index, i) for i, t in enumerate(turns)]
  return rows, skills


def computed(rows: Sequence[Row], skills: Sequence[int], layout: str, chunk: int):
  """Counts the tokens of each part of a step."""
  whole = kept = 0
  for before, row in zip([None, *rows], rows):
    prompt = row.turn.prompt_ids[:-1]
    whole += len(prompt)
    if before is not None and before.trajectory_id == row.trajectory_id:
      size = min(len(prompt), len(before.turn.prompt_ids) - 1)
      differs = prompt[:size] != before.turn.prompt_ids[:size]
      same = int(np.argmax(differs)) if differs.any() else size
      kept += same // chunk * chunk
  read = rows_lib.make_sequences(rows, [row.turn.prompt_ids for row in rows], layout)
  tokens = sum(len(s.ids) for s in read)
  taught = tokens + sum(skills[rows[s.rows[0]].trajectory_id] for s in read)
  parts = {'prefill': whole - kept, 'old': tokens, 'teacher': taught, 'update': tokens}
  return parts, kept / whole, len(read)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints both layouts side by side."""
  parser = flags.Parser('python -m benchmarks.layouts', __doc__)
  parser.add_argument('--tokenizer', required=True, help='directory of a real one')
  parser.add_argument('--world', default='alfworld', help='of config.world')
  parser.add_argument('--episodes', type=int, default=16, help='to play')
  parser.add_argument('--turns', type=int, default=30, help='of an episode, at most')
  parser.add_argument('--least', type=int, default=30, help='tokens of filling')
  parser.add_argument('--most', type=int, default=120, help='tokens of filling')
  parser.add_argument('--prompt', type=int, default=8192, help='tokens, at most')
  given, _ = parser.parse(argv)
  chunk, found = config_lib.KEYS['rollout.prefill_chunk'].default, {}
  for layout in rows_lib.LAYOUTS:
    rows, skills = played(given, layout)
    found[layout], kept, count = computed(rows, skills, layout, chunk)
    prompts = [len(row.turn.prompt_ids) for row in rows]
    print(
      f'{layout}: {len(rows)} turns in {count} sequences, prompts of'
      f' {np.mean(prompts):.0f} tokens, {max(prompts)} at most, {kept:.0%} of them from'
      ' the cache'
    )
  plain, joined = (found[layout] for layout in rows_lib.LAYOUTS)
  for part in (*plain, 'all'):
    a, b = (
      sum(parts.values()) if part == 'all' else parts[part] for parts in (plain, joined)
    )
    print(f'{part:8} {a:10,} {b:10,}  {a / b:.1f} times fewer')
  return 0


if __name__ == '__main__':
  main()
