"""Rebuilds a small model from nothing: tokenizer, random weights, imitation.

  python -m experiments.tiny.build --world=alfworld|webshop|search_qa \
    [--output=runs/tiny/alfworld] [--rows=N]

A Qwen3 decoder with a vocabulary of its own learns from scripted experts in generated
training tasks. Prompts with skills are answered by an informed expert, prompts without
by one that does not know what the skills say; so the same weights are a student and,
when they are shown skills, a better informed teacher. README.md beside this file tells
what the builds that ship took and gave.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.cells import WORLDS
from experiments.tiny import tokenizer
from sdar_jax import build, sft
from sdar_jax.models import export, hf, qwen
from sdar_jax.process.flags import parse_absl
from sdar_jax.prompts import chat, skills

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

_WORLD = flags.DEFINE_enum('world', 'alfworld', list(WORLDS), 'Where it acts.')
_OUTPUT = flags.DEFINE_string('output', '', "Directory; '' means runs/tiny/WORLD.")
_ROWS = flags.DEFINE_integer('rows', None, "Turns to imitate; none means the world's.")
_SEED = flags.DEFINE_integer('seed', 0, 'Of weights, games and mistakes.')


def model_config(vocab_size: int) -> qwen.ModelConfig:
  """The architecture: Qwen3 at 128 wide and 3 deep, 0.7 M parameters."""
  return qwen.ModelConfig(
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


def training_config(path: pathlib.Path):
  """The experiment's `model=tiny` with the settings of imitation."""
  c = WORLDS[_WORLD.value].get_config('model=tiny')
  c.model.path = str(path)
  c.model.tokenizer = str(path)
  c.seed = _SEED.value
  c.sft.update(LESSONS[_WORLD.value])
  c.sft.rows = _ROWS.value or c.sft.rows
  c.sft.muon = True
  c.sft.prompt_weight = 0.1
  c.optimizer.learning_rate = 4e-3
  c.optimizer.warmup_steps = 100
  c.optimizer.weight_decay = 0.0
  c.train.microbatch_rows = 32
  c.train.minibatch_rows = 32
  return c


def main(argv: list[str]) -> None:
  """Builds into a directory that holds no weights yet."""
  del argv
  output = pathlib.Path(_OUTPUT.value or f'runs/tiny/{_WORLD.value}')
  export.prepare(output)
  with tempfile.TemporaryDirectory() as folder:
    start = pathlib.Path(folder)  # The random weights that imitation begins with.
    c = training_config(start)
    bank = skills.SkillBank.load(c.skills.path)
    tokenizer.build(build.make_world(c), bank, start)
    model = model_config(chat.Chat(start, enable_thinking=True).len_vocab)
    params = qwen.init_params(model, jax.random.key(_SEED.value), jnp.float32)
    hf.save(start, model, params, jnp.float32)
    sft.run_sft(c, None, output)


if __name__ == '__main__':
  app.run(main, flags_parser=parse_absl)
