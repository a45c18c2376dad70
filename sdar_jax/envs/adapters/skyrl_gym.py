"""SkyRL-Gym's text environments, over the rows of a data set. No JAX."""

import dataclasses
import functools
import hashlib
import json
import pathlib

from sdar_jax import files
from sdar_jax.envs import base
from sdar_jax.envs.adapters import foreign

_OURS = ('prompt', 'env_class')  # What else a row has is the environment's.


class _SkyrlGym:
  """A game of messages: a first prompt, then answers to actions.

  Args:
    world: makes the environment once its row is known.
  """

  def __init__(self, world: 'SkyrlGymWorld'):
    self._world = world

  def reset(self, start: str) -> str:
    row = json.loads(start)
    prompt = row['prompt']
    if isinstance(prompt, str):
      prompt = [{'role': 'user', 'content': prompt}]
    extras = {key: value for key, value in row.items() if key not in _OURS}
    arguments = {'env_config': {}, **self._world.read_object('arguments')}
    self._env = self._world.find('maker')(self._world.env, extras=extras, **arguments)
    messages, _ = self._env.init(prompt)
    return foreign.joined(messages)

  def step(self, action: str) -> tuple[str, float, bool]:
    answer = self._env.step(action)
    return foreign.joined(answer['observations']), answer['reward'], answer['done']


@dataclasses.dataclass(frozen=True)
class SkyrlGymWorld(foreign.ForeignWorld):
  """An environment such as env='gsm8k', with the rows of a data set.

  Args:
    data_dir: a folder with train.jsonl, valid_seen.jsonl, ...: a row a line, with
      `prompt` (messages or a text) and what else the environment asks for.
  """

  name = 'skyrl_gym'
  package = 'skyrl-gym'
  maker: str = 'skyrl_gym:make'
  prompt: str = 'answer the question'
  data_dir: str = ''

  def open(self) -> foreign.ForeignGame:
    """Makes a game."""
    return _SkyrlGym(self)

  def rows(self, split: str) -> list[str]:
    """Reads the lines of a split's file."""
    return self._files[split]

  @functools.cached_property
  def _files(self) -> dict[str, list[str]]:
    folder = pathlib.Path(self.data_dir)
    out = {path.stem: _lines(path) for path in sorted(folder.glob('*.jsonl'))}
    if not self.data_dir or 'train' not in out:
      raise ValueError(f'config.world.data_dir={self.data_dir!r}: has no train.jsonl')
    return out

  def read_tasks(self, split: str) -> base.Tasks:
    """Makes the tasks of a split: the rows of its file."""
    base.check_split(split, self._files)
    content = hashlib.sha256('\n'.join(self.rows(split)).encode()).hexdigest()
    found = super().read_tasks('train').digest
    make = functools.partial(self.task, split)
    return base.Tasks(split, len(self.rows(split)), make, [found, split, content])

  def task(self, split: str, index: int) -> base.Task:
    """Makes a task of a row."""
    rows = self.rows(split)
    task_id = f'{self.name}/{self.env}/{split}/{index:06d}'
    return base.Task(task_id, self.env, self.prompt, {}, rows[index % len(rows)])


def _lines(path: pathlib.Path) -> list[str]:
  """Reads a file of rows; checks them all."""
  try:
    lines = path.read_text(encoding='utf-8-sig').rstrip('\n').split('\n')
  except (OSError, ValueError) as error:
    raise ValueError(f'{path}: {files.one_line(error)}') from None
  for number, line in enumerate(lines, 1):
    said = files.parse_json(line, f'{path}, line {number}').get('prompt')
    messages = said if isinstance(said, list) else [{'content': said}]
    texts = [m.get('content') if isinstance(m, dict) else None for m in messages]
    if not texts or not all(isinstance(text, str) for text in texts):
      raise ValueError(
        f'{path}, line {number}: its prompt is {said!r:.60}: must be a text, or'
        ' messages with a content'
      )
  return lines
