"""Builds a small model: tokenizer, random weights, imitation.

  python -m experiments.tiny.build --world=alfworld|webshop|search_qa \\
    [--output=runs/tiny/alfworld] [--rows=N]

A Qwen3 decoder with a vocabulary of its own learns from scripted experts in generated
training tasks. Prompts with skills are answered by an informed expert, prompts without
by one that does not know what the skills say; so the same weights are a student and,
when they are shown skills, a better informed teacher. README.md beside this file tells
what the builds that ship took and gave.
"""

import argparse
import pathlib
import tempfile
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from experiments.sources import WORLDS
from experiments.tiny import tokenizer
from sdar_jax import build, files, sft
from sdar_jax.models import decoder, export, hf, parameters
from sdar_jax.process import flags, terminal
from sdar_jax.prompts import bank_file, chat

# What is special about each world's lessons. WebShop's products may be known by heart,
# the people of unseen questions may not. A shopper that knows what to search for must
# know what to choose, too, where somebody else has searched (many mistakes), and one
# that does not must be able to find out (some of the informed expert's answers).
LESSONS = {
  'alfworld': {'rows': 96_000},
  'webshop': {
    'rows': 80_000,
    'copy_rows': 20_000,
    'mistake_rate': 0.3,
    'informed_fraction': 0.3,
  },
  'search_qa': {'rows': 64_000, 'copy_rows': 20_000, 'new_names': True},
}


def model_config(vocab_size: int) -> decoder.ModelConfig:
  """The architecture: Qwen3 at 128 wide and 3 deep, 0.7 M parameters."""
  return decoder.ModelConfig(
    family='qwen3',
    vocab_size=vocab_size,
    hidden_size=128,
    intermediate_size=384,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  )


def training_config(options: argparse.Namespace, path: pathlib.Path):
  """Makes the experiment's `model=tiny` with the settings of imitation."""
  c = WORLDS[options.world].get_config('model=tiny')
  c.model.path = str(path)
  c.model.tokenizer = str(path)
  c.seed = options.seed
  c.sft.update(LESSONS[options.world])
  c.sft.rows = options.rows or c.sft.rows
  c.sft.muon = True
  c.sft.prompt_weight = 0.1
  c.optimizer.learning_rate = 4e-3
  c.optimizer.warmup_steps = 100
  c.optimizer.weight_decay = 0.0
  c.train.microbatch_rows = 32
  c.train.minibatch_rows = 32
  return c


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
  parser = flags.Parser('python -m experiments.tiny.build', __doc__)
  parser.add_argument(
    '--world', choices=WORLDS, default='alfworld', help='default: %(default)s'
  )
  parser.add_argument(
    '--output', metavar='DIR', help='directory (default: runs/tiny/WORLD)'
  )
  parser.add_argument(
    '--rows', type=int, help="turns to imitate (default: the world's)"
  )
  parser.add_argument(
    '--seed', type=int, default=0, help='of weights, games and mistakes'
  )
  return parser.parse_all(argv)


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Builds into a directory that holds no weights yet."""
  options = _arguments(argv)
  named = options.output or f'runs/tiny/{options.world}'
  output = files.local_path(named, '--output')
  export.prepare(output)
  with tempfile.TemporaryDirectory() as folder:
    start = pathlib.Path(folder)  # The random weights that imitation begins with.
    c = training_config(options, start)
    bank = bank_file.load(c.skills.path)
    tokenizer.build(build.make_world(c), bank, start)
    model = model_config(chat.Chat(start, enable_thinking=True).len_vocab)
    params = parameters.init_params(model, jax.random.key(options.seed), jnp.float32)
    hf.save(start, model, params, jnp.float32)
    sft.run_sft(c, None, output)
  return 0


if __name__ == '__main__':
  main()
