"""What follows the colon of --config, and the models that it may name."""

import pathlib

import ml_collections

from sdar_jax import algorithms
from sdar_jax.models.presets import PRESETS

HUB = {
  'qwen2.5-0.5b': 'Qwen/Qwen2.5-0.5B-Instruct',
  'qwen2.5-1.5b': 'Qwen/Qwen2.5-1.5B-Instruct',
  'qwen2.5-3b': 'Qwen/Qwen2.5-3B-Instruct',
  'qwen2.5-7b': 'Qwen/Qwen2.5-7B-Instruct',
  'qwen3-0.6b': 'Qwen/Qwen3-0.6B',
  'qwen3-1.7b': 'Qwen/Qwen3-1.7B',
  'qwen3-4b': 'Qwen/Qwen3-4B',
  'qwen3-8b': 'Qwen/Qwen3-8B',
}
assert set(HUB) == set(PRESETS)
# Teachers' weights of at most a hundredth are meant for learning rates of 1e-6 and
# models a thousand times as large as ours. SDAR's was chosen for the small model on
# seed 0 (0.01 -> 0.5); those of other methods are scaled alike and were not tuned.
_HUNDREDTHS = 0.01
_TINY_SCALE = 50
# What official data can be evaluated on.
_OFFICIAL_SPLITS = {
  'alfworld': ('valid_seen', 'valid_unseen'),
  'webshop': ('valid', 'test'),
  'search_qa': ('test',),
}
_CHOICES = {
  'model': ('tiny', *HUB),
  'world': ('generated', 'official'),
  'preset': ('ours', 'paper'),
}


def parse(text: str) -> dict[str, str]:
  """{'model': 'tiny', 'algo': 'sdar', ..., 'seed': '1'} from 'model=tiny,seed=1'.

  Raises:
    ValueError: one line naming the argument and what it may be.
  """
  out = {name: choices[0] for name, choices in _CHOICES.items()}
  out |= {'algo': 'sdar', 'seed': '0'}
  given = set()
  for item in filter(None, text.split(',')):
    key, _, value = item.partition('=')
    if key not in out:
      raise ValueError(f'argument {key!r}: must be one of {tuple(out)}')
    if key in given:
      raise ValueError(f'argument {key!r}: is given twice')
    given.add(key)
    if key in _CHOICES and value not in _CHOICES[key]:
      raise ValueError(f'{key}={value!r}: must be one of {_CHOICES[key]}')
    out[key] = value
  try:
    algorithms.find(out['algo'])
  except KeyError as error:
    raise ValueError(f'algo={error.args[0]}') from None
  if not (out['seed'].isascii() and out['seed'].isdecimal()):
    raise ValueError(f'seed={out["seed"]!r}: must be a whole number')
  return out


def shipped(path: str) -> str:
  """The path of a file of this repository, from wherever the program was started.

  Relative where it was started in the repository, so that a run's config names no
  machine.
  """
  root = pathlib.Path(__file__).resolve().parents[1]
  return path if pathlib.Path.cwd() == root else str(root / path)


def apply(c: ml_collections.ConfigDict, choice: dict[str, str]) -> None:
  """Sets what every experiment's arguments mean; `tiny` is the experiment's own.

  Called last: where a method wants other numbers than the experiment has, its row of
  the table says so.
  """
  c.seed = int(choice['seed'])
  c.algorithm.name = choice['algo']
  if choice['preset'] == 'paper':
    _paper(c)
  for key, value in algorithms.find(choice['algo']).all_settings.items():
    room, name = key.split('.')
    c[room][name] = value
  if choice['model'] == 'tiny' and c.algorithm.distill_coef <= _HUNDREDTHS:
    c.algorithm.distill_coef *= _TINY_SCALE
  c.world.source = choice['world']
  if choice['world'] == 'official':
    splits = _OFFICIAL_SPLITS[c.world.name]
    if c.eval.split not in splits:
      c.eval.split = splits[-1]
    if choice['model'] == 'tiny':
      c.eval.tasks = 0  # All: how many there are depends on the files.
  if choice['model'] != 'tiny':
    c.model.path = HUB[choice['model']]
    c.model.dtype = 'bfloat16'
    c.model.remat = True


def _paper(c: ml_collections.ConfigDict) -> None:
  """What the paper's released code does and we hold to be defects or accidents.

  All of ZJU-REAL/SDAR at 8b85c23; each is a config value and off in our defaults,
  except the first two, which are on there and here.
  """
  c.algorithm.statistics_over = 'rows'  # Long episodes weigh more.
  c.algorithm.entropy_coef = 0.001  # On in every script, absent from the paper.
  c.algorithm.mean_over = 'microbatch'  # The result depends on its size...
  c.train.packing = 'in order'  # ...and on which rows are in one.
  c.train.shuffle_rows = False
  c.skills.placement = 'reference'  # Before the chat template's first token.
  if c.world.name == 'webshop':  # Metadata decide in the other two worlds.
    c.skills.retrieval = 'keywords'
    c.skills.keyword_scope = 'prompt'  # So skills change from page to page.
  else:
    c.skills.retrieval = 'task'
