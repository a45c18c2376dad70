"""Demonstrations in a file: an episode a line, as words. No JAX.

A line holds what was shown and answered, not ids: `--mode=sft` tokenizes it for the
model that learns it. `sdar play --out=FILE` writes such files, and so may anyone:

  {"schema": 1, "world": "alfworld", "task_id": "...", "turns": [
    {"prompt": "Your task: ...", "response": "<think>...", "goes_on": false}]}
"""

import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdar_jax import files
from sdar_jax.prompts import fitting
from sdar_jax.rollout.demonstrations import Demonstration, Encode

SCHEMA = 1
_LIMIT = 2**30  # Bytes of a file that is read.


class DemonstrationError(ValueError):
  """A file that is none of demonstrations: one line naming the place."""


class RecordedTurn(NamedTuple):
  """One turn of a demonstration.

  Attributes:
    prompt: the user message, whole.
    response: what is to be said.
    goes_on: the prompt follows the turn before and its response, in a conversation.
  """

  prompt: str
  response: str
  goes_on: bool = False


def line(world: str, task_id: str, turns: Sequence[RecordedTurn]) -> str:
  """Formats an episode as a line of a file."""
  shown = [turn._asdict() for turn in turns]
  record = {'schema': SCHEMA, 'world': world, 'task_id': task_id, 'turns': shown}
  return json.dumps(record) + '\n'


def read(path: pathlib.Path, world: str) -> list[list[RecordedTurn]]:
  """Reads a file: the turns of each episode.

  Args:
    path: of the file.
    world: that all episodes must be of.

  Raises:
    DemonstrationError: it is not there, or a line is not what it must be.
  """
  out = []
  try:
    if path.stat().st_size > _LIMIT:
      raise DemonstrationError(f'{path}: more than {_LIMIT} bytes: split the file')
    lines = path.read_bytes().decode().rstrip('\n').split('\n')
  except (OSError, UnicodeDecodeError) as error:
    raise DemonstrationError(f'{path}: {files.one_line(error)}') from error
  for number, text in enumerate(lines, 1):
    try:
      out.append(_episode(json.loads(text), world))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      missing = 'there is no ' * isinstance(error, KeyError)
      what = f'{missing}{files.one_line(error, 200)}'
      raise DemonstrationError(f'{path}, line {number}: {what}') from None
  return out


def _episode(record: Any, world: str) -> list[RecordedTurn]:
  if type(record) is not dict:
    raise ValueError(f'a {type(record).__name__}: must be an object')
  if record['schema'] != SCHEMA:
    raise ValueError(f'schema {record["schema"]!r}: this version reads {SCHEMA}')
  if record['world'] != world:
    raise ValueError(f'of world {record["world"]!r}: config.world.name is {world!r}')
  turns = [_turn(turn) for turn in record['turns']]
  if not turns or turns[0].goes_on:
    raise ValueError('must have turns, the first of which goes on from no other')
  return turns


def _turn(record: Any) -> RecordedTurn:
  turn = RecordedTurn(**record)
  if not (type(turn.prompt) is type(turn.response) is str and turn.response):
    raise ValueError('prompt and response must be texts, the response not empty')
  if type(turn.goes_on) is not bool:
    raise ValueError(f'goes_on={turn.goes_on!r}: must be true or false')
  return turn


def imitate(
  episodes: Sequence[Sequence[RecordedTurn]],
  *,
  render: Callable[[str], np.ndarray],
  follow: fitting.Follow | None,
  encode: Encode,
  most: int,
  seed: int,
) -> Iterator[Demonstration]:
  """Gives the turns of recorded episodes, for ever.

  Each pass has an order of its own.

  Args:
    episodes: as `read` gives them.
    render: the prompt of a user message.
    follow: continues a conversation; None begins anew every turn.
    encode: response text to ids.
    most: tokens of a prompt.
    seed: of the orders.

  Raises:
    DemonstrationError: a prompt is longer, or goes on where nothing does.
  """
  for passed in itertools.count():
    random = np.random.default_rng([seed, passed])
    for index in random.permutation(len(episodes)):
      ids = answer = np.zeros(0, np.int32)
      for number, turn in enumerate(episodes[index], 1):
        where = f'config.sft.demonstrations, line {index + 1}, turn {number}'
        if turn.goes_on and follow is None:
          raise DemonstrationError(
            f'{where} goes on with a conversation: set config.rollout.layout to'
            " 'conversation'"
          )
        said = follow(answer, turn.prompt) if turn.goes_on else render(turn.prompt)
        ids = np.concatenate([*([ids, answer] if turn.goes_on else []), said])
        if len(ids) > most:
          raise DemonstrationError(
            f'{where}: a prompt of {len(ids)} tokens, where {most} are the most: raise'
            ' config.rollout.max_prompt_tokens'
          )
        answer = encode(turn.response)
        yield Demonstration(ids.astype(np.int32), answer)
