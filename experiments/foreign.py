"""A world of another package: Reasoning Gym's sums, with a model made for them.

  python -m experiments.foreign --output=runs/foreign/model
  sdar --config=experiments/foreign.py --workdir=runs/foreign/grpo
  sdar --config=experiments/foreign.py:algo=grpo+sdpo --workdir=runs/foreign/taught

Needs the package reasoning-gym (the extra `foreign`). The first command makes a
tokenizer and a decoder of 0.1 M parameters that imitates a careless pupil: it learns
the form of an answer, and hardly a sum. Training then teaches it sixteen sums, and the
evaluation is of those. Where its prompt shows how another episode solved the task, the
pupil gives that answer: what the teacher of a sibling-taught method knows. Arguments:
algo=METHOD, seed=N. There is no skill bank, so methods whose teacher sees skills do not
train here. docs/foreign_worlds.md says what came of it.
"""

import dataclasses
import json
import pathlib
import random
import tempfile
from collections.abc import Sequence

import ml_collections

from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.envs import base, worlds
from sdar_jax.methods import table
from sdar_jax.process import flags, terminal
from sdar_jax.rollout import recorded
from sdar_jax.rollout.recorded import RecordedTurn

MODEL = 'runs/foreign/model'
_PUPILS = 4000  # Questions that are imitated; a third of them with a solution.
_CARELESS = 0.6  # Of answers, those that are off by a little.
# Numbers are tokens, and so are the sentences around them: a prompt is short.
_PIECES = r'[ \n]?[0-9]+|[ \n,:.]{0,2}[A-Za-z][^\n0-9<>]{9,}|'


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """The configuration; `argument` is what follows the colon of --config."""
  said = dict(item.split('=', 1) for item in argument.split(',') if '=' in item)
  unknown = sorted({*said} - {'algo', 'seed'})
  if unknown or len(said) != len([*filter(None, argument.split(','))]):
    raise ValueError(f'{argument!r}: must be algo=METHOD,seed=N')
  c = config_lib.default('reasoning_gym')
  c.seed = int(said.get('seed', '0'))
  c.algorithm.name = said.get('algo', 'grpo')
  c.model.path = MODEL
  c.model.enable_thinking = True
  c.steps = 40
  c.world.env = 'chain_sum'
  c.world.arguments = json.dumps(
    {'min_terms': 2, 'max_terms': 2, 'min_digits': 1, 'max_digits': 1}
  )
  c.world.max_turns = 1
  c.world.train_tasks = 16
  c.skills.token_budget = 16  # What a sibling's solution may take.
  c.rollout.tasks_per_step = 32
  c.rollout.success_reward = 1.0
  c.rollout.slots = 64
  c.rollout.max_prompt_tokens = 72
  c.rollout.max_response_tokens = 10
  c.rollout.prefill_tokens = 512
  c.rollout.prefill_chunk = 16
  c.rollout.decode_chunk = 4
  c.train.minibatch_rows = 128
  c.train.microbatch_rows = 64
  c.train.length_buckets = (82,)
  c.train.teacher_buckets = (98,)
  c.optimizer.learning_rate = 1e-3
  c.eval.split = 'train'  # What it learns by heart: no claim about other sums.
  c.eval.tasks = 16
  c.eval.attempts = 10
  c.eval.every = 10
  c.eval.temperature = 1.0
  c.checkpoint.every = 20
  c.update_from_flattened_dict(table.find(c.algorithm.name).all_settings)
  if 'sdpo' in c.algorithm.name:
    c.algorithm.distill_coef = 0.05  # Of a model this small; not tuned.
  return c


def answer(world: base.World, index: int) -> RecordedTurn:
  """Answers a training question carelessly: what is imitated."""
  task, draw = world.tasks('train')[index], random.Random(index)
  env = world.make_env()
  text = world.render(task, (), env.reset(task))
  right = json.loads(env.game.hidden())
  said, block = right, ''
  if index % 3 == 0:
    block = f'this solved it:\n{right}\n\n'
  elif draw.random() < _CARELESS:
    said = str(int(right) + draw.choice((-3, -2, -1, 1, 2, 3)))
  return RecordedTurn(block + text, world.response('so', said))


def build(output: pathlib.Path) -> None:
  """Makes tokenizer and model, and lets it imitate."""
  import jax
  import jax.numpy as jnp

  from experiments.tiny import tokenizer
  from sdar_jax import build as build_lib
  from sdar_jax import sft
  from sdar_jax.models import export, hf, parameters

  export.prepare(output)
  with tempfile.TemporaryDirectory() as folder:
    start = pathlib.Path(folder)
    c = get_config()
    c.model.path = c.model.tokenizer = str(start)
    c.world.train_tasks = _PUPILS
    values = c.world.to_dict()
    world = worlds.make(values.pop('name'), values)
    turns = [answer(world, index) for index in range(_PUPILS)]
    lines = [recorded.line(world.name, str(i), [turn]) for i, turn in enumerate(turns)]
    (start / 'demonstrations.jsonl').write_text(''.join(lines))
    texts = [text for turn in turns for text in (turn.prompt, turn.response)]
    spelled = tokenizer.Spelling(tokenizer.ACTION, _PIECES, merges=64)
    tokenizer.save(tokenizer.train(texts, spelling=spelled), start)
    c.sft.demonstrations = str(start / 'demonstrations.jsonl')
    c.sft.rows = 5 * len(turns)
    c.sft.muon = True
    c.optimizer.learning_rate = 4e-3
    c.optimizer.warmup_steps = 30
    c.optimizer.weight_decay = 0.0
    c.train.minibatch_rows = c.train.microbatch_rows = 64
    model = _model(build_lib.make_chat(c, world).len_vocab)
    params = parameters.init_params(model, jax.random.key(0), jnp.float32)
    hf.save(start, model, params, jnp.float32)
    sft.run_sft(c, None, output)


def _model(vocab_size: int):
  from experiments.tiny import build

  return dataclasses.replace(
    build.model_config(vocab_size),
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    head_dim=16,
  )


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Builds the model into a directory that holds no weights yet."""
  parser = flags.Parser('python -m experiments.foreign', __doc__)
  parser.add_argument(
    '--output', metavar='DIR', default=MODEL, help='default: %(default)s'
  )
  build(files.local_path(parser.parse_all(argv).output, '--output'))
  return 0


if __name__ == '__main__':
  main()
