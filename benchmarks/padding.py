"""Prints which share of the tokens that training computes are real.

  python -m benchmarks.padding --tokenizer=DIR [--turns=2500] [--answer=110] \\
    [--own=768,1280,2560 --teacher=1280,2304,3584]

Turns of scripted experts, of which some are bad ones, in the generated worlds: the
lengths of their prompts in a tokenizer of one's own, packed as a step packs them, into
the config's sizes of rows or those that are given.
"""

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from experiments.sources import WORLDS
from sdar_jax import build
from sdar_jax.process import flags, terminal
from sdar_jax.prompts import chat
from sdar_jax.prompts.skills import NOTHING
from sdar_jax.rollout import demonstrations

_MISTAKES = 0.3  # Of the experts' turns: a policy that learns is no expert.


def lengths(name: str, tokenizer: pathlib.Path, turns: int, answer: int) -> np.ndarray:
  """Measures [turns, 2] tokens of students' and teachers' rows."""
  config = WORLDS[name].get_config('model=qwen2.5-3b')
  talk, world = chat.Chat(tokenizer), build.make_world(config)
  teacher, found = build.make_teacher(config, world, talk), []

  def plain(text, task):
    ids = talk.render(text)
    found.append((len(ids), len(teacher.prompt(text, task)[0])))
    return ids, NOTHING

  played = demonstrations.play(
    world,
    world.tasks('train'),
    plain=plain,
    skilled=teacher.prompt,
    encode=lambda text: np.zeros(answer, np.int32),
    lessons=demonstrations.Lessons(
      skilled_fraction=0.0,
      informed_fraction=0.5,
      mistake_rate=_MISTAKES,
      seed=0,
      max_prompt_tokens=config.rollout.max_prompt_tokens,
      follow=None,
    ),
  )
  for _ in itertools.islice(played, turns):
    pass
  return np.asarray(found[:turns]) + answer


def share(rows: np.ndarray, sizes: Sequence[int], together: int) -> float:
  """Computes the real share of [B] lengths, sorted into microbatches."""
  longest = np.sort(rows)[together - 1 :: together]
  padded = [min(size for size in sizes if size >= one) for one in longest]
  full = np.sort(rows)[: len(longest) * together]
  return float(full.sum() / (together * np.sum(padded)))


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints a line for each world."""
  parser = flags.Parser('python -m benchmarks.padding', __doc__)
  parser.add_argument('--tokenizer', type=pathlib.Path, required=True)
  parser.add_argument('--turns', type=int, default=2500)
  parser.add_argument('--answer', type=int, default=110, help='tokens of an answer')
  parser.add_argument('--own', help="sizes of students' rows, comma-separated")
  parser.add_argument('--teacher', help="of teachers' rows")
  options = parser.parse_all(argv)
  for name, module in WORLDS.items():
    train = module.get_config('model=qwen2.5-3b').train
    found = lengths(name, options.tokenizer, options.turns, options.answer)
    said = []
    for column, given, shipped in (
      ('own', options.own, train.length_buckets),
      ('teacher', options.teacher, train.teacher_buckets),
    ):
      rows = found[:, int(column == 'teacher')]
      sizes = [*map(int, given.split(','))] if given else shipped
      said.append(
        f'{column} {100 * share(rows, sizes, train.microbatch_rows):.0f} % real'
        f' (median {np.median(rows):.0f}, longest {rows.max()})'
      )
    print(f'{name}: {", ".join(said)}')
  return 0


if __name__ == '__main__':
  main()
