"""A world of another package: TextArena's GuessTheNumber, with a model made for it.

  python -m experiments.foreign --output=runs/foreign/model
  sdar --config=experiments/foreign.py --workdir=runs/foreign/grpo
  sdar --config=experiments/foreign.py:algo=grpo+sdpo --workdir=runs/foreign/taught

Needs the package textarena (the extra `foreign`). The first command makes a tokenizer
and a decoder of 0.1 M parameters that imitates a careless player; training then teaches
it to ask better. Where its prompt shows how another episode solved the task, the player
repeats the number: what the teacher of a sibling-taught method knows. Arguments:
algo=METHOD, seed=N. There is no skill bank, so methods whose teacher sees skills do not
train here. docs/foreign_worlds.md says what came of it.
"""

import json
import pathlib
import random
import tempfile
from collections.abc import Iterator, Sequence

import ml_collections

from sdar_jax import config as config_lib
from sdar_jax.envs import base, worlds
from sdar_jax.methods import table
from sdar_jax.process import flags, terminal
from sdar_jax.rollout import recorded
from sdar_jax.rollout.recorded import RecordedTurn

MODEL = 'runs/foreign/model'
# Numbers are tokens, and so are the sentences of the rules: a prompt is short.
_PIECES = r' ?[0-9]+|[ \n,:.]{0,2}[A-Za-z][^\n0-9\[\]<>]{9,}|'
_GAMES = 1500  # That are imitated; half of them with a solution in the prompt.
_LARGEST = 20
_CARELESS = 0.5  # Of guesses, those that forget what was said.


def get_config(argument: str = '') -> ml_collections.ConfigDict:
  """The configuration; `argument` is what follows the colon of --config."""
  said = dict(item.split('=', 1) for item in argument.split(',') if '=' in item)
  unknown = sorted({*said} - {'algo', 'seed'})
  if unknown or len(said) != len([*filter(None, argument.split(','))]):
    raise ValueError(f'{argument!r}: must be algo=METHOD,seed=N')
  c = config_lib.default('textarena')
  c.seed = int(said.get('seed', '0'))
  c.algorithm.name = said.get('algo', 'grpo')
  c.model.path = MODEL
  c.model.enable_thinking = True
  c.steps = 6
  c.world.env = 'GuessTheNumber-v0-raw'
  c.world.arguments = json.dumps({'max_number': _LARGEST, 'max_turns': 9})
  c.world.action_pattern = r'\[[0-9]{1,3}\]'
  c.world.probe = ('[10]', '[5]', '[15]')
  c.world.max_turns = 4
  c.world.pays = 'success'  # The game also pays a guess that is wrong, but near.
  c.skills.token_budget = 32  # What a sibling's solution may take.
  c.rollout.tasks_per_step = 16
  c.rollout.success_reward = 1.0
  c.rollout.slots = 64
  c.rollout.max_prompt_tokens = 132
  c.rollout.max_response_tokens = 12
  c.rollout.prefill_tokens = 1024
  c.rollout.prefill_chunk = 32
  c.rollout.decode_chunk = 6
  c.train.minibatch_rows = 256
  c.train.microbatch_rows = 32
  c.train.length_buckets = (72, 96, 144)
  c.train.teacher_buckets = (72, 96, 176)
  c.optimizer.learning_rate = 1e-3
  c.eval.split = 'valid_unseen'
  c.eval.tasks = 200
  c.eval.every = 3
  c.eval.temperature = 1.0
  c.checkpoint.every = 3
  c.update_from_flattened_dict(table.find(c.algorithm.name).all_settings)
  if 'sdpo' in c.algorithm.name:
    c.algorithm.distill_coef = 0.05  # Of a model this small; not tuned.
  return c


def play(world: base.World, index: int) -> Iterator[RecordedTurn]:
  """Plays a training task carelessly: what is imitated."""
  task, draw = world.tasks('train')[index], random.Random(index)
  env = world.make_env()
  observation = env.reset(task)
  hidden = env.game.hidden().partition("'game_number': ")[2]
  number = int(hidden.partition(',')[0])
  guesses = draw.sample(range(1, _LARGEST + 1), draw.randrange(3))
  solution = '\n'.join(f'[{guess}]' for guess in (*guesses, number))
  block = f'this solved it:\n{solution}\n\n' if index % 2 else ''
  history: list[base.Exchange] = []
  low, high = 1, _LARGEST
  for _ in range(world.max_turns):
    careless = draw.random() < _CARELESS
    fresh = {*range(1, _LARGEST + 1)} - {int(e.action[1:-1]) for e in history}
    choices = sorted(fresh if careless else fresh & {*range(low, high + 1)})
    guess = draw.choice(choices)
    said = number if block else guess  # What another plays may still go wrong.
    text = world.render(task, history, observation)
    yield RecordedTurn(block + text, world.response(str(said), f'[{said}]'))
    result = env.step(f'[{guess}]')
    history.append(base.Exchange(observation.text, f'[{guess}]'))
    observation = result.observation
    if 'higher' in observation.text:
      low = max(low, guess + 1)
    if 'lower' in observation.text:
      high = min(high, guess - 1)
    if result.done:
      return


def build(output: pathlib.Path) -> None:
  """Makes tokenizer and model, and lets it imitate."""
  import jax
  import jax.numpy as jnp

  from experiments.tiny import tokenizer
  from sdar_jax import build as build_lib
  from sdar_jax import sft
  from sdar_jax.models import decoder, export, hf

  export.prepare(output)
  with tempfile.TemporaryDirectory() as folder:
    start = pathlib.Path(folder)
    c = get_config()
    c.model.path = c.model.tokenizer = str(start)
    values = c.world.to_dict()
    world = worlds.make(values.pop('name'), values)
    games = [[*play(world, index)] for index in range(_GAMES)]
    lines = [recorded.line(world.name, str(i), turns) for i, turns in enumerate(games)]
    (start / 'demonstrations.jsonl').write_text(''.join(lines))
    turns = [turn for game in games for turn in game]
    texts = [text for turn in turns for text in (turn.prompt, turn.response)]
    spelled = tokenizer.Spelling(tokenizer.ACTION, _PIECES, merges=64)
    tokenizer.save(tokenizer.train(texts, spelling=spelled), start)
    c.sft.demonstrations = str(start / 'demonstrations.jsonl')
    c.sft.rows = 2 * len(turns)
    c.sft.muon = True
    c.optimizer.learning_rate = 4e-3
    c.optimizer.warmup_steps = 30
    c.optimizer.weight_decay = 0.0
    c.train.minibatch_rows = c.train.microbatch_rows = 32
    model = _model(build_lib.make_chat(c, world).len_vocab)
    params = decoder.init_params(model, jax.random.key(0), jnp.float32)
    hf.save(start, model, params, jnp.float32)
    sft.run_sft(c, None, output)


def _model(vocab_size: int):
  from sdar_jax.models import decoder

  return decoder.ModelConfig(
    family='qwen3',
    vocab_size=vocab_size,
    hidden_size=64,
    intermediate_size=192,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    tie_word_embeddings=True,
  )


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Builds the model into a directory that holds no weights yet."""
  parser = flags.Parser('python -m experiments.foreign', __doc__)
  parser.add_argument(
    '--output', metavar='DIR', default=MODEL, help='default: %(default)s'
  )
  build(pathlib.Path(parser.parse_all(argv).output))
  return 0


if __name__ == '__main__':
  main()
