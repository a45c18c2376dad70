"""Adapters in peft's files: a configuration and its tensors.

Stored are A [rank, inputs] and B [outputs, rank] of each matrix, by the names of the
model's own tensors.
"""

import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import load_file, save_file

from sdar_jax import files
from sdar_jax.models import decoder, hf_tensors, lora, sharding
from sdar_jax.models.hf_config import WeightError
from sdar_jax.process import shipped

CONFIG, WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PREFIX = 'base_model.model.'
# Beginnings of adapters that peft takes out of the model's matrices when it makes them.
_CHANGE_THE_BASE = ('pissa', 'olora', 'corda', 'loftq')
_SUFFIXES = {lora.A: 'lora_A.weight', lora.B: 'lora_B.weight'}


def _kernels(model: decoder.ModelConfig, targets: str) -> list[hf_tensors.Tensor]:
  """Lists the stored matrices that adapters belong to."""
  return [
    tensor
    for tensor in hf_tensors.tensor_table(model)
    if tensor.path[-1] == 'kernel' and tensor.path[-2] in lora.TARGETS[targets]
  ]


def _name(tensor: hf_tensors.Tensor, layer: int, leaf: str) -> str:
  stem = tensor.name.format(layer).removesuffix('weight')
  return f'{_PREFIX}{stem}{_SUFFIXES[leaf]}'


def save(
  folder: pathlib.Path, model: decoder.ModelConfig, adapters: Any, source: str
) -> None:
  """Writes adapters, float32.

  Args:
    folder: exists.
    model: with `lora`.
    adapters: stacked, on any devices.
    source: the model that they belong to, as peft's `base_model_name_or_path`.
  """
  tensors = {}
  for tensor in _kernels(model, model.lora.targets):
    pair = hf_tensors.leaf(adapters, tensor.path[:-1])
    a, b = (np.asarray(jax.device_get(pair[leaf]), np.float32) for leaf in _SUFFIXES)
    a, b = a.reshape(len(a), -1, model.lora.rank), b.reshape(*b.shape[:2], -1)
    for layer in range(model.num_layers):
      tensors[_name(tensor, layer, lora.A)] = np.ascontiguousarray(a[layer].T)
      tensors[_name(tensor, layer, lora.B)] = np.ascontiguousarray(b[layer].T)
  save_file(tensors, folder / WEIGHTS, {'format': 'pt'})
  names = {t.name.rsplit('.', 2)[-2] for t in _kernels(model, model.lora.targets)}
  record = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': source,
    'r': model.lora.rank,
    'lora_alpha': model.lora.alpha,
    'lora_dropout': 0.0,
    'bias': 'none',
    'use_rslora': False,
    'use_dora': False,
    'target_modules': sorted(names),
    'inference_mode': True,
  }
  text = json.dumps(record, indent=2) + '\n'
  (folder / CONFIG).write_text(text, 'utf-8')


def digest(path: str) -> str:
  """Hashes an adapter's two files: hex SHA-256."""
  folder = _folder(path)
  total = hashlib.sha256()
  try:
    for name in (CONFIG, WEIGHTS):
      total.update(files.digest(folder / name).encode())
  except (files.FileError, OSError) as error:
    raise WeightError(files.one_line(error)) from None
  return total.hexdigest()


def digest_with(model: str, path: str) -> str:
  """Hashes a model's digest and the adapter merged into it; '' is none."""
  if not path:
    return model
  return hashlib.sha256((model + digest(path)).encode()).hexdigest()


def merge_into(params: Any, model: decoder.ModelConfig, path: str) -> Any:
  """Adds the adapter of a folder to a model's kernels.

  Args:
    params: stacked, on their sharding, float32.
    model: architecture.
    path: of the folder.

  Raises:
    WeightError: one line naming the file, and what of it is not as it must be.
  """
  folder = _folder(path)
  record = _checked(files.read_json(folder / CONFIG), folder / CONFIG)
  scale = record['lora_alpha'] / record['r']
  stored = _tensors(folder / WEIGHTS)
  out = jax.tree.map(lambda leaf: leaf, params)
  for tensor in _kernels(model, 'all'):
    names = [
      [_name(tensor, layer, leaf) for leaf in _SUFFIXES]
      for layer in range(model.num_layers)
    ]
    if names[0][0] not in stored:
      continue
    kernel = hf_tensors.leaf(params, tensor.path)
    inputs, outputs = _sizes(kernel.shape[1:], tensor.inputs)
    rank = record['r']
    change = np.zeros((model.num_layers, inputs, outputs), np.float32)
    for layer, (a, b) in enumerate(names):
      first = _taken(stored, a, (rank, inputs), folder)
      second = _taken(stored, b, (outputs, rank), folder)
      change[layer] = scale * (second @ first).T
    change = sharding.place(change.reshape(kernel.shape), kernel.sharding)
    changed = jnp.add(kernel, change.astype(kernel.dtype))
    hf_tensors.set_leaf(out, tensor.path, changed)
  if stored:
    raise WeightError(
      f'{folder / WEIGHTS}: {min(stored)} belongs to no matrix of this model'
    )
  return out


def _sizes(shape: tuple[int, ...], inputs: int) -> tuple[int, int]:
  return int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))


def _folder(path: str) -> pathlib.Path:
  try:
    return shipped.find(files.local_path(path, 'config.model.adapter'))
  except files.FileError as error:
    raise WeightError(str(error)) from None


def _checked(record: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
  """Refuses adapters of kinds that are not `lora`'s."""
  wanted = {'peft_type': 'LORA', 'bias': 'none', 'use_dora': False, 'use_rslora': False}
  wanted |= {'lora_bias': False, 'rank_pattern': {}, 'alpha_pattern': {}}
  for key, value in wanted.items():
    if key in record and record[key] not in (value, None):
      raise WeightError(f'{path}: {key} is {record[key]!r}, only {value!r} is read')
  begun = str(record.get('init_lora_weights'))
  if begun.startswith(_CHANGE_THE_BASE):
    raise WeightError(
      f'{path}: init_lora_weights is {begun!r}, which belongs to other weights than'
      " the model's: convert it to a plain LoRA with peft"
    )
  for key in ('r', 'lora_alpha'):
    value = record[key] if key in record else None
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
      raise WeightError(f'{path}: {key} is {value!r}, must be a positive number')
  return record


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    return load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise WeightError(f'{path}: {files.one_line(error)}') from None


def _taken(
  stored: dict[str, np.ndarray], name: str, shape: tuple[int, int], folder: pathlib.Path
) -> np.ndarray:
  """Takes a tensor out; checks that it is there and of its shape."""
  if name not in stored:
    raise WeightError(f'{folder / WEIGHTS}: {name} is missing')
  value = stored.pop(name)
  if value.shape != shape:
    raise WeightError(
      f'{folder / WEIGHTS}: {name} is {list(value.shape)}, this model and rank want'
      f' {list(shape)}'
    )
  if not jnp.issubdtype(value.dtype, jnp.floating):
    raise WeightError(f'{folder / WEIGHTS}: {name} is {value.dtype}, must be of floats')
  value = value.astype(np.float32)
  if not np.isfinite(value).all():
    raise WeightError(f'{folder / WEIGHTS}: {name} has values that are not finite')
  return value
