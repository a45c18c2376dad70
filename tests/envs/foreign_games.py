"""Games as other packages might have them, good and bad, for the tests of adapters."""

import os
import random
import sys
import time
from typing import ClassVar

import numpy as np


class Honest:
  """Hides a number that its seed decides; pays the square of what was reached."""

  def __init__(self, name='', most=9):
    self.most = most

  def reset(self, seed):
    self.number = random.Random(seed).randint(1, self.most)
    return f'a number up to {self.most}'

  def step(self, text):
    won = text == str(self.number)
    return ('yes' if won else 'no'), 1.0 if won else 0.1, won or text == 'stop'


class Dice(Honest):
  """Draws from the process-wide generator, at its reset and at every step."""

  def reset(self, seed):
    return f'{random.random()}'

  def step(self, text):
    return f'{random.random()}', random.random(), False


class Liar(Honest):
  """Takes a seed and drops it; only what it answers shows that."""

  def reset(self, seed):
    self.number = int.from_bytes(os.urandom(8), 'big')  # No two are alike by chance.
    return 'a number'

  def step(self, text):
    return str(self.number), 0.0, False


class Open(Liar):
  """The same, and says so itself."""

  def hidden(self):
    return f'the number {self.number}{os.urandom(2).hex()}'


class Closing(Honest):
  """Notes in `closed` when it is; from the second on it cannot be."""

  closed: ClassVar[list] = []

  def close(self):
    self.closed.append(self.number)
    if len(self.closed) > 1:
      raise OSError('still\nin use')


class Numbers(Honest):
  def reset(self, seed):
    return [1, 2]


class Crash(Honest):
  def reset(self, seed):
    raise RuntimeError('no\nway')


class Dies(Honest):
  def reset(self, seed):
    os._exit(3)


class Hangs(Honest):
  def reset(self, seed):
    time.sleep(600)


class Wild(Honest):
  """Answers a step with what its text names."""

  def step(self, text):
    if text == 'raise':
      raise KeyError('x')
    bad = {'number': (1, 0.0, False), 'reward': ('a', 'much', False)}
    bad |= {'nan': ('a', float('nan'), False), 'short': ('a', 0.0)}
    bad |= {'lost': ('a', float('nan'), True), 'endless': ('a', float('inf'), True)}
    bad |= {'flag': ('a', np.True_, True), 'bytes': ('a', b'1', True)}
    bad |= {'word': ('a', 0.0, 'False'), 'nothing': ('a', 0.0, None)}
    if text == 'exit':
      sys.exit(0)
    return bad[text]


def twice(rewards, text):
  """A rule of success of the user's own."""
  return len(rewards) == 2 and text == 'yes'
