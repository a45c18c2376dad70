"""Loads the Python file of --config and sets keys. No JAX."""

import importlib.util
import inspect
import os
import pathlib
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.process import shipped
from sdar_jax.process.flags import FLAG, OVERRIDE, UsageError, similar
from sdar_jax.storage import recorded


def read(text: str, words: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Reads and checks FILE.py or FILE.py:ARGUMENT, its keys set anew.

  Args:
    text: the value of --config.
    words: such as --config.steps=40, which set a key each.

  Raises:
    ValueError: one line saying what is wrong, of the file, its `get_config` or a key.
  """
  return checked(_load(text), words)


def chosen(
  text: str | None, run: pathlib.Path | None, words: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Reads what --config names, or where it is None what a run recorded."""
  return of_run(run, words) if text is None else read(text, words)


def of_run(run: pathlib.Path, words: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Reads and checks the configuration that a run recorded, keys set anew.

  Raises:
    ValueError: one line saying what is wrong, of the run's config.json or a key.
  """
  return checked(recorded.read(run), words)


def checked(
  config: ml_collections.ConfigDict, words: Sequence[str] = ()
) -> ml_collections.ConfigDict:
  """Sets the keys that words such as --config.steps=40 name; checks all."""
  _override(config, words)
  config_lib.validate(config)
  config_lib.resolve_paths(config)
  return config


def _load(text: str) -> ml_collections.ConfigDict:
  name, colon, argument = text.partition(':')
  path = files.local_path(text if '://' in text else name, '--config')
  arguments = [argument] if colon else []
  return call_file(path, f'--config={text}', *arguments).lock()


def call_file(
  path: pathlib.Path, said: str, *arguments: str
) -> ml_collections.ConfigDict:
  """Calls `get_config` of a Python file of the user's.

  Args:
    path: of the file.
    said: flag and value that name it, for errors.
    arguments: of `get_config`.

  Raises:
    UsageError: the file or the function is missing or fails, in one line.
  """
  path = shipped.find(path)
  function = getattr(_load_module(path, said), 'get_config', None)
  if not callable(function):
    raise UsageError(f'{said}: has no function get_config')
  try:
    inspect.signature(function).bind(*arguments)
  except TypeError:
    what = 'takes no argument: remove what follows the colon'
    if not arguments:
      what = f'needs an argument: {said}:ARGUMENT'
    raise UsageError(f'{said}: get_config {what}') from None
  config = _guarded(path, said, function, *arguments)
  if not isinstance(config, ml_collections.ConfigDict):
    kind = type(config).__name__
    raise UsageError(f'{said}: get_config() returns {kind}: must be a ConfigDict')
  return config


def _load_module(path: pathlib.Path, said: str) -> Any:
  """Runs a Python file of the user's.

  Args:
    path: of the file.
    said: flag and value that name it, for errors.

  Raises:
    UsageError: it is not there, no Python, or fails, in one line.
  """
  if not os.path.isfile(path):
    what = 'is a directory' if os.path.isdir(path) else 'no such file'
    raise UsageError(f'{said}: {what}; give a Python file with get_config()')
  if path.suffix != '.py':
    raise UsageError(f'{said}: must be a Python file, named .py')
  shipped.make_importable(path.absolute().parent.parent)  # A checkout finds its own.
  spec = importlib.util.spec_from_file_location(f'config_{path.stem}', path)
  module = importlib.util.module_from_spec(spec)
  _guarded(path, said, spec.loader.exec_module, module)
  return module


def _guarded(path: pathlib.Path, said: str, function: Any, *arguments: Any) -> Any:
  """Calls into a file of the user's, where anything may go wrong."""
  try:
    return function(*arguments)
  except SyntaxError as error:
    here = error.filename in (None, str(path))
    where = ('' if here else f'{error.filename} ') + f'line {error.lineno or 1}'
    raise UsageError(f'{said}: {where}: SyntaxError: {error.msg}') from error
  except (Exception, SystemExit) as error:
    lines = [
      frame.lineno
      for frame in traceback.extract_tb(error.__traceback__)
      if frame.filename == str(path)
    ]
    where = ''
    if not isinstance(error, ValueError):  # That is how a file says what it wants.
      where = f'line {lines[-1]}: ' if lines else ''
      where += f'{type(error).__name__}: '
    raise UsageError(f'{said}: {where}{files.one_line(error, 500)}') from error


def _override(config: ml_collections.ConfigDict, words: Sequence[str]) -> None:
  """Sets the keys that words such as --config.steps=40 name."""
  keys = config_lib.flatten(config)
  known = [f'--config.{key}' for key in keys]
  for word in words:
    match = OVERRIDE.match(word)
    if match and match[2] not in keys:
      inside = [key for key in keys if key.startswith(f'{match[2]}.')]
      hint = f': no such key{similar(word, known)}'
      if inside:
        hint = f': is a section; name a key of it, such as --config.{inside[0]}'
      raise UsageError(f'--config.{match[2]}{hint}')
    if FLAG.match(word) and not match:
      raise UsageError(f'{word}: no such flag{similar(word, known)}')
  if not words:
    return
  from absl import flags  # Slow to import, as is what reads a value of each type.
  from ml_collections import config_flags

  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=['main', *words]
    )
    rest = values(['main', *words])[1:]
  except (flags.Error, ValueError, TypeError) as error:
    raise UsageError(_cleaned(error, keys)) from error
  loose = [word for word in rest if not OVERRIDE.match(word)]
  if loose:
    spelled = [_spelled(word, keys) for word in loose]
    known_words = ' '.join(word for word in spelled if word)
    hint = f': write {known_words}' if known_words else ''
    raise UsageError(f'{" ".join(loose)}: no flags, which begin with --{hint}')


def _spelled(word: str, keys: Mapping[str, Any]) -> str:
  """Spells seed=7 or config.seed=7 as a flag; '' for other words."""
  name, equals, value = word.lstrip('+').partition('=')
  key = name.removeprefix('config.')
  if equals and key in keys:
    return f'--config.{key}={value}'
  return f'--config={word}' if '.py' in word else ''


def _cleaned(error: Exception, keys: Mapping[str, Any]) -> str:
  """Says what is wrong with the value of an override."""
  text = re.sub(r'^flag (--\S)', r'\1', files.one_line(error, 300))
  match = re.match(r'--config\.([^=]*)=(.*?): ', text)
  if not match or match[1] not in keys:
    return text
  wanted = "a tuple such as '(64, 128)'"
  if not isinstance(keys[match[1]], list):
    wanted = {'int': 'a whole number', 'float': 'a number', 'bool': 'true or false'}[
      type(keys[match[1]]).__name__
    ]
  return f'--config.{match[1]}={match[2]}: must be {wanted}'
