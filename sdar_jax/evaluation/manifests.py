"""Panels that others evaluate on, by their manifests. No JAX.

A manifest is JSON Lines, one task a line: `metadata.gamefile` names an ALFWorld game,
`metadata.goal_idx` and `text` a WebShop goal. That is the form of `fairness/*.jsonl` of
the data sets zhangdw/alfworld and zhangdw/webshop, as their reader in zhangdw156/SDAR
(agent_system/environments/fairness.py at 6afa89a) takes them.
"""

import collections
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from sdar_jax import files
from sdar_jax.envs import base
from sdar_jax.evaluation import panels
from sdar_jax.process import shipped


def panel_of(world: base.World, settings: Any) -> panels.Panel:
  """The panel of `config.eval`: a manifest's, or a split's."""
  if settings.panel:
    return make_panel(world, settings.panel)
  return panels.make_panel(world, settings.split, settings.tasks)


def read(path: str) -> tuple[list[Mapping[str, Any]], str]:
  """Reads a manifest: its rows, and the hex SHA-256 of the file.

  Raises:
    ValueError: one line naming the line that is not an object of JSON, or that there
      is none.
  """
  try:
    data = pathlib.Path(shipped.find(path)).read_bytes()
  except OSError as error:
    raise ValueError(f'config.eval.panel={path!r}: {error.strerror}') from None
  rows = []
  for number, line in enumerate(data.split(b'\n'), 1):
    if not line.strip():
      continue
    try:
      row = files.parse_json(line, path)
    except files.FileError:
      row = {'metadata': None}
    if not isinstance(row.get('metadata', {}), dict):
      raise ValueError(f'config.eval.panel={path!r}: line {number} is no task in JSON')
    rows.append(row)
  if not rows:
    raise ValueError(f'config.eval.panel={path!r}: there is no task in it')
  return rows, hashlib.sha256(data).hexdigest()


def make_panel(world: base.World, path: str) -> panels.Panel:
  """The panel of a manifest: its tasks, in its order.

  Its name holds the first digits of the file's SHA-256, so that every report has it
  beside the panel's own digest.

  Raises:
    ValueError: a row names no task of the world, or two name one.
  """
  rows, theirs = read(path)
  try:
    tasks = tuple(world.published(rows))
  except ValueError as error:
    raise ValueError(f'config.eval.panel={path!r}: {error}') from None
  counts = collections.Counter(task.task_id for task in tasks)
  twice = [task_id for task_id, count in counts.items() if count > 1]
  if twice:
    raise ValueError(f'config.eval.panel={path!r}: {twice[0]} is in it twice')
  truth = [panels.PANEL_VERSION, theirs, [(task.task_id, task.goal) for task in tasks]]
  digest = hashlib.sha256(json.dumps(truth).encode()).hexdigest()
  name = f'{world.name}/{pathlib.Path(path).stem}/{len(tasks)}, file {theirs[:12]}'
  kinds = collections.Counter(task.task_type for task in tasks)
  return panels.Panel(name, tasks, dict(sorted(kinds.items())), digest)
