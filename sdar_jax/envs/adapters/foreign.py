"""Games of other packages behind one adapter. No JAX.

A game is what has `reset(start) -> text` and `step(text) -> (text, reward, done)`; a
world's `open` makes one for each episode. What success is, how many turns there are and
what the prompt says is for the user to tell: settings of the world.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.metadata
import logging
import math
import numbers
import pathlib
import platform
import random
import re
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sdar_jax import files
from sdar_jax.envs import action_parser, base, imports
from sdar_jax.envs.adapters import agreement
from sdar_jax.envs.base import setting

_log = logging.getLogger(__name__)
_MOST_TASKS = 10**6  # Of a split; the seeds of splits lie so far apart.
_SEEDS = {'train': 0, 'valid_seen': _MOST_TASKS, 'valid_unseen': 2 * _MOST_TASKS}
_CUT = ' [...] '
_ROUNDING = 1e-9  # Of a sum of rewards.


class ForeignGame(Protocol):
  """A game of text; whatever else it may be, the shim hides it.

  One with hidden state may have `hidden() -> str` besides, which says it in text: two
  resets of a task are compared by it. One that holds something may have `close()`,
  which is called once, when it is over or left.
  """

  def reset(self, start: Any) -> str:
    """Starts a game, which the task's payload decides; the first text."""

  def step(self, action: str) -> tuple[str, float, bool]:
    """Plays an action: what is said, what is paid, whether it is over."""


class OwnRandom:
  """The process-wide generators, as one game alone sees them.

  Packages that draw from `random` or `numpy.random` would else draw on from where the
  last game in this process left them. Use it as a context manager around each call.
  """

  def __init__(self, seed: int):
    self._own = random.Random(seed).getstate(), np.random.RandomState(seed).get_state()
    self._outer: Any = None

  def __enter__(self) -> None:
    self._outer = random.getstate(), np.random.get_state()
    self._set(self._own)

  def __exit__(self, *exc_info: object) -> None:
    self._own = random.getstate(), np.random.get_state()
    self._set(self._outer)

  def _set(self, states: Any) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])


class GameEnv:
  """One game; implements `envs.base.TextEnv`.

  Args:
    world: makes games, and knows what success is.
  """

  def __init__(self, world: 'ForeignWorld'):
    self._world = world
    self.game: ForeignGame | None = None

  def reset(self, task: base.Task) -> base.Observation:
    """Starts the task's game."""
    self.close()
    self._rewards: list[float] = []
    self._random = OwnRandom(zlib.crc32(task.task_id.encode()))
    with self._random:
      self.game = self._world.open()
      text = self.game.reset(task.payload)
    return base.Observation(self._checked(text, 'reset'))

  def step(self, action: str) -> base.StepResult:
    """Plays an action; one of another form is a wasted turn."""
    if not self._world.admits(action, base.Observation('')):
      said = f'that was no action: it must match {self._world.action_pattern}'
      return base.StepResult(base.Observation(said), 0.0, done=False, success=False)
    with self._random:
      text, reward, done = self.game.step(action)
    if not _is_finite(reward):
      raise base.EnvironmentFault('garbage', f'a reward of {reward!r:.60}')
    if not isinstance(done, numbers.Real | np.bool_):
      said = f'done={done!r:.60}: must be true or false'
      raise base.EnvironmentFault('garbage', said)
    self._rewards.append(float(reward))
    seen = base.Observation(self._checked(text, 'step'))
    success = bool(done) and self._world.succeeded(self._rewards, seen.text)
    paid = float(reward if self._world.pays == 'game' else success)
    if done:
      self.close()
    return base.StepResult(seen, paid, done=bool(done), success=success)

  def close(self) -> None:
    """Closes the game; what that raises is said, and costs no episode."""
    game, self.game = self.game, None
    if hasattr(game, 'close'):
      try:
        with self._random:
          game.close()
      except (Exception, SystemExit) as error:
        said = f'{type(error).__name__}: {files.one_line(error)}'
        _log.warning('%s: a game did not close: %s', self._world.name, said)

  def __del__(self):
    # A game may wait for a thread, which an interpreter at its end has no more.
    if not sys.is_finalizing():
      self.close()

  def _checked(self, text: Any, what: str) -> str:
    if type(text) is not str:
      raise base.EnvironmentFault(
        'garbage', f'its {what} gave a {type(text).__name__}: only texts can be read'
      )
    return text


@dataclasses.dataclass(frozen=True)
class ForeignWorld(base.World):
  """Base of the worlds of other packages.

  Args:
    maker: 'package.module:function' that makes a game from its name and arguments.
    env: the game's name, as its package has it.
    arguments: of the maker, a JSON object.
    prompt: the task in words; every prompt begins with it.
    action_tag: the element that holds the action, such as <action>; '' is the whole
      response, and then nothing is said of a form.
    action_pattern: a regular expression that an action must match as a whole; what does
      not is a wasted turn and never reaches the game. '' is any.
    success: 'return' or 'reward' (the last) that reaches `threshold` by the end, or
      'package.module:function' that is called with all rewards and the last text.
    threshold: of success.
    pays: what an action is paid: what the 'game' says, or 1 for 'success' alone.
    probe: actions that two resets of a task are compared by, beside what they show.
    train_tasks: how many tasks there are to train on.
    valid_tasks: likewise in each of the other splits.
  """

  package = ''  # That pip knows; '' where none has to be there.
  maker: str = ''
  env: str = ''
  arguments: str = '{}'
  prompt: str = 'play the game by its rules'
  action_tag: str = 'action'
  action_pattern: str = ''
  success: str = 'return'
  threshold: float = 1.0
  pays: str = setting('game', choices=('game', 'success'))
  probe: tuple = ()
  train_tasks: int = setting(10_000, least=1, most=_MOST_TASKS)
  valid_tasks: int = setting(500, least=1, most=_MOST_TASKS)

  def __post_init__(self):
    """Checks all settings, without the package."""
    super().__post_init__()
    self.read_object('arguments')
    try:
      re.compile(self.action_pattern)
    except (re.error, OverflowError, RecursionError) as error:
      said = f'config.world.action_pattern={self.action_pattern!r}: {error}'
      raise ValueError(said) from None
    if not re.fullmatch(r'\w*', self.action_tag):
      raise ValueError(f'config.world.action_tag={self.action_tag!r}: must be a word')
    if self.success not in ('return', 'reward') and ':' not in self.success:
      raise ValueError(
        f"config.world.success={self.success!r}: must be 'return', 'reward' or"
        " 'package.module:function'"
      )

  def open(self) -> ForeignGame:
    """Makes a game, for one episode."""
    raise NotImplementedError

  @property
  def instruction(self) -> str:
    """The words that end every user message."""
    if not self.action_tag:
      return ''
    return base.INSTRUCTION.replace('action>', f'{self.action_tag}>')

  def read_object(self, key: str) -> dict[str, Any]:
    """Reads a setting that is a JSON object."""
    try:
      return files.parse_json(getattr(self, key), f'config.world.{key}')
    except files.FileError as error:
      raise ValueError(f'{error}; it is a JSON object, such as {{"a": 1}}') from None

  def make_game(self) -> Any:
    """Calls the maker; a game of its package's own kind."""
    return self.find('maker')(
      *filter(None, [self.env]), **self.read_object('arguments')
    )

  def find(self, key: str) -> Callable[..., Any]:
    """Imports what a setting names.

    Raises:
      ValueError: one line naming the setting or the package that is missing.
    """
    try:
      return imports.named(getattr(self, key))
    except imports.NamedError as error:
      hint = ''
      top = type(self).maker.partition(':')[0].partition('.')[0]
      if self.package and error.missing.partition('.')[0] == top:
        hint = f": pip install '{self.package}', or the extra 'foreign' of sdar-jax"
      said = f'config.world.{key}={getattr(self, key)!r}: {error}{hint}'
      raise ValueError(said) from None

  def succeeded(self, rewards: Sequence[float], text: str) -> bool:
    """Tells whether a game that is over was solved."""
    if self.success == 'return':
      return sum(rewards) >= self.threshold - _ROUNDING
    if self.success == 'reward':
      return rewards[-1] >= self.threshold - _ROUNDING
    return bool(self.find('success')(list(rewards), text))

  @functools.cached_property
  def _found(self) -> str:
    """Identifies the games and tries two resets."""
    identity = self.identify()
    if ':' in self.success:
      self.find('success')
    agreement.check(self, [self.task('train', i) for i in range(agreement.TASKS)])
    return identity

  def identify(self) -> str:
    """Names what the games are made by, for the tasks' digest.

    Raises:
      ValueError: it is not there; one line.
    """
    self.find('maker')
    return version_of(self.maker)

  def read_tasks(self, split: str) -> base.Tasks:
    """Makes the tasks of a split, once the games were found to be sound.

    Raises:
      ValueError: the package is missing, the game cannot be made, or two resets of one
        task differ; one line.
    """
    base.check_split(split, _SEEDS)
    truth = [self.name, self.version, self._found, self.settings, split]
    make = functools.partial(self.task, split)
    return base.Tasks(split, self.size(split), make, truth)

  def size(self, split: str) -> int:
    """Counts the tasks of a split."""
    return self.train_tasks if split == 'train' else self.valid_tasks

  def task(self, split: str, index: int) -> base.Task:
    """Makes a task: its payload is a seed that no other task has."""
    task_id = f'{self.name}/{self.env}/{split}/{index:06d}'
    kind = self.env or self.name
    return base.Task(task_id, kind, self.prompt, {}, _SEEDS[split] + index)

  def make_env(self) -> GameEnv:
    """Makes a fresh environment."""
    return GameEnv(self)

  def parse(self, response: str, observation: base.Observation) -> base.ParsedAction:
    """Cuts out the action, or takes the whole response for it."""
    admits = lambda action: self.admits(action, observation)
    if self.action_tag:
      return action_parser.parse_strict(response, admits, self.action_tag)
    action = action_parser.encodable(response.strip())
    return base.ParsedAction(action, bool(action) and admits(action))

  def admits(self, action: str, observation: base.Observation) -> bool:
    """Tests an action by its pattern."""
    del observation
    return not self.action_pattern or bool(re.fullmatch(self.action_pattern, action))

  def response(self, thought: str, action: str) -> str:
    """Writes a response: the inverse of `parse`."""
    if not self.action_tag:
      return action
    return f'<think>{thought}</think><{self.action_tag}>{action}</{self.action_tag}>'

  def shorten(self, observation: base.Observation, characters: int) -> base.Observation:
    """Keeps an observation's beginning and end."""
    text, half = observation.text, max(characters - len(_CUT), 0) // 2
    if len(text) <= max(characters, len(_CUT)):
      return observation
    return base.Observation(f'{text[:half]}{_CUT}{text[len(text) - half :]}')


@dataclasses.dataclass(frozen=True)
class GameWorld(ForeignWorld):
  """Games of a class of one's own: see `ForeignGame`."""

  name = 'game'

  def open(self) -> ForeignGame:
    """Makes a game of the user's own class."""
    return self.make_game()


def _is_finite(value: Any) -> bool:
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return real and math.isfinite(value)


def version_of(maker: str) -> str:
  """Names what makes games: package and version, or a file's hash."""
  module = maker.partition(':')[0]
  names = importlib.metadata.packages_distributions()
  found = sorted({*names.get(module.partition('.')[0], [])})
  if found:
    return ' '.join(f'{name}=={importlib.metadata.version(name)}' for name in found)
  # A compiled module is its own source; one that is built in is Python's.
  path = getattr(importlib.import_module(module), '__file__', None)
  if path is None:
    return f'python {platform.python_version()}'
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def joined(parts: Sequence[Any]) -> str:
  """Joins texts, or messages with a 'content'."""
  texts = [part['content'] if isinstance(part, Mapping) else part for part in parts]
  return '\n'.join(str(text).strip() for text in texts if text)
