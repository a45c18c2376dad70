"""Reads flags: spelled out, each once, none ignored. No JAX."""

import argparse
import collections
import difflib
import os
import re
from collections.abc import Sequence
from typing import NoReturn

import sdar_jax
from sdar_jax import files

FLAG = re.compile(r'--?[A-Za-z]')
OVERRIDE = re.compile(r'--?(no)?config\.([^=]*)')


class UsageError(ValueError):
  """A wrong command line: one line."""


class Parser(argparse.ArgumentParser):
  """Flags of a program: spelled out, each at most once and none empty."""

  def __init__(self, prog: str, description: str, epilog: str = ''):
    super().__init__(
      prog=prog,
      description=description,
      epilog=epilog,
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f'sdar-jax {sdar_jax.__version__}'
    self.add_argument('--version', action='version', version=version)

  def error(self, message: str) -> NoReturn:
    """Raises UsageError instead of printing the usage."""
    raise UsageError(f'{files.one_line(ValueError(message), 500)}; see --help')

  def parse(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads the flags of this program, and the words of others.

    Raises:
      UsageError: one line naming the word that is wrong.
    """
    _refuse_repeats(argv)
    options, rest = self.parse_known_args(argv)
    for name, value in vars(options).items():
      if value == '' or (isinstance(value, list) and '' in value):
        raise UsageError(f'--{name} is empty: give it a value or leave it out')
    known = [action.dest for action in self._actions]
    for word in argv:
      name = word.partition('=')[0]
      if '=' in word and name in known and not os.path.exists(word):
        raise UsageError(f'{word} is no flag: write --{word}')
    return options, rest

  def parse_all(self, argv: Sequence[str]) -> argparse.Namespace:
    """Reads the flags of a program without other words.

    Raises:
      UsageError: one line naming the word that is wrong.
    """
    options, rest = self.parse(argv)
    if rest:
      known = [f'--{action.dest}' for action in self._actions]
      raise UsageError(f'{" ".join(rest)}: no such flag{similar(rest[0], known)}')
    return options


def _name(word: str) -> str:
  override = OVERRIDE.match(word)
  if override:
    return f'config.{override[2]}'
  return word.lstrip('-').partition('=')[0]


def similar(name: str, known: Sequence[str]) -> str:
  """Suggests '; did you mean ...?' for a misspelt name, or ''."""
  flag = '--' + name.lstrip('-').partition('=')[0]
  ends = [key for key in known if key.endswith('.' + flag.removeprefix('--'))]
  close = ends or difflib.get_close_matches(flag, known, 1, 0.7)
  return f'; did you mean {close[0]}?' if close else ''


def _refuse_repeats(words: Sequence[str]) -> None:
  names = [_name(word) for word in words if FLAG.match(word)]
  for name, count in collections.Counter(names).items():
    if count > 1:
      raise UsageError(f'--{name} is given {count} times: give it once')
