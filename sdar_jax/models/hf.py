"""Conversion between parameter trees and Hugging Face safetensors.

`load` checks the configuration and every file's header first: names, shapes and
dtypes. Only then is anything read, one tensor at a time, each device receiving only
its own part, so the peak is the model itself plus one tensor.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from safetensors.numpy import save_file

from sdar_jax import files, hub
from sdar_jax.models import decoder, hf_config, hf_tensors, sharding
from sdar_jax.models.hf_config import WeightError

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
DTYPES = {'F32': 'float32', 'BF16': 'bfloat16', 'F16': 'float16'}
MAX_FILE_BYTES = 5_000_000_000  # As transformers splits; a file is held on the host.
COMPARE_ROWS = 4096  # Rows of the two embeddings that are compared at a time.
_EMBEDDING = 'model.embed_tokens.weight'


def snapshot(path: str | pathlib.Path) -> pathlib.Path:
  """A model's local directory: `path` itself, or a hub repository's files.

  Args:
    path: a directory, or a hub id such as 'Qwen/Qwen2.5-3B-Instruct'.

  Raises:
    WeightError: neither exists, or the hub cannot be reached.
  """
  try:
    return hub.folder(path, hub.MODEL_FILES)
  except files.FileError as error:
    raise WeightError(f'{error}; see config.model.path') from None


def read_config(path: str | pathlib.Path) -> decoder.ModelConfig:
  """Reads the config.json of a directory or hub id; no weights.

  Raises:
    FileError: the file is missing or damaged.
    WeightError: it describes another architecture, or there is no such model.
  """
  return hf_config.read_config(snapshot(path))


def stored_dtype(path: str | pathlib.Path) -> np.dtype:
  """Reads the stored dtype of the embedding."""
  folder = snapshot(path)
  with contextlib.ExitStack() as stack:
    found = _open_all(folder, stack)
    _check_headers(hf_config.read_config(folder), folder, found)
    header = found[_EMBEDDING][1].get_slice(_EMBEDDING)
    return jnp.dtype(DTYPES[header.get_dtype()])


def digest(path: str | pathlib.Path) -> str:
  """Hashes a model's hyperparameters and weights, no more: hex SHA-256.

  Raises:
    FileError: a file of JSON is missing or damaged.
    WeightError: one of weights is missing, or the hub promised another content.
  """
  folder = snapshot(path)
  total = hashlib.sha256(repr(hf_config.read_config(folder).architecture).encode())
  shards = _read_index(folder) if not (folder / SINGLE).exists() else (SINGLE,)
  try:
    for name in sorted(shards):
      total.update(f'\0{name}\0{hub.digest(folder / name)}'.encode())
  except (files.FileError, OSError) as error:
    raise WeightError(files.one_line(error)) from None
  return total.hexdigest()


def read_context(path: str | pathlib.Path) -> int | None:
  """Reads the number of positions of a model; None if unsaid."""
  return hf_config.read_context(snapshot(path))


def _open(path: pathlib.Path, stack: contextlib.ExitStack) -> Any:
  """Opens a safetensors file, or names its true format."""
  if not path.is_file():
    raise WeightError(f'{path}: no such file')
  with path.open('rb') as file:
    head = file.read(64).lstrip().lower()
  size = path.stat().st_size
  if not size:
    raise WeightError(f'{path}: the file is empty, download it again')
  if head.startswith(b'version https://git-lfs'):
    raise WeightError(f'{path}: a git-lfs pointer, not weights: run git lfs pull')
  if head.startswith((b'<!doctype', b'<html', b'<?xml')):
    raise WeightError(f'{path}: an HTML page, not weights: download it again')
  try:
    return stack.enter_context(safetensors.safe_open(path, 'np'))
  except safetensors.SafetensorError as error:
    raise WeightError(
      f'{path}: truncated or not safetensors, {size} bytes ({error})'
    ) from error


def _read_index(folder):
  """Reads the index: file name -> tensor names."""
  path = folder / INDEX
  record = files.read_json(path)
  weight_map = record['weight_map'] if 'weight_map' in record else None
  if not isinstance(weight_map, dict) or not weight_map:
    raise WeightError(f'{path}: key "weight_map" is missing or empty')
  shards = {}
  for name, file in weight_map.items():
    if not isinstance(file, str) or pathlib.PurePath(file).name != file:
      raise WeightError(f'{path}: {name} is mapped to {file!r}, not to a file name')
    shards.setdefault(file, set()).add(name)
  return shards


def _open_all(folder, stack):
  """Tensor name -> (path, open file) over all weight files of `folder`."""
  if (folder / SINGLE).exists():
    shards = {SINGLE: None}
  elif (folder / INDEX).exists():
    shards = _read_index(folder)
  else:
    raise WeightError(
      f'{folder}: neither {SINGLE} nor {INDEX} (no other format is read)'
    )
  found = {}
  for file, promised in sorted(shards.items()):
    path = folder / file
    opened = _open(path, stack)
    names = set(opened.keys())
    if promised is not None and names != promised:
      name = min(names ^ promised)
      problem = 'missing, but the index names it' if name in promised else 'unindexed'
      raise WeightError(f'{path}: tensor {name} is {problem} ({INDEX})')
    found.update({name: (path, opened) for name in names})
  return found


def _check_headers(config, folder, found):
  """Names, shapes and dtypes against the configuration; reads no tensor."""
  unexpected = set(found)
  for stored in hf_tensors.stored_tensors(config):
    name, shape = stored.name, stored.shape
    if name not in found:
      raise WeightError(f'{folder}: tensor {name} is missing from the weight files')
    path, opened = found[name]
    header = opened.get_slice(name)
    if tuple(header.get_shape()) != shape:
      raise WeightError(
        f'{path}: tensor {name} has shape {header.get_shape()}, config.json wants '
        f'{list(shape)}'
      )
    if header.get_dtype() not in DTYPES:
      raise WeightError(
        f'{path}: tensor {name} is {header.get_dtype()}, only {", ".join(DTYPES)}'
      )
    unexpected.remove(name)
  if config.tie_word_embeddings:
    unexpected.discard('lm_head.weight')
  if unexpected:
    name = min(unexpected)
    raise WeightError(f'{found[name][0]}: tensor {name} is not part of the model')


def _check_tied_head(config, found):
  """Checks a tied model's lm_head, if stored, against the embedding."""
  if not config.tie_word_embeddings or 'lm_head.weight' not in found:
    return
  path, opened = found['lm_head.weight']
  head = opened.get_slice('lm_head.weight')
  embed = found[_EMBEDDING][1].get_slice(_EMBEDDING)
  equal = head.get_shape() == embed.get_shape()
  for start in range(0, config.vocab_size, COMPARE_ROWS):
    rows = slice(start, min(start + COMPARE_ROWS, config.vocab_size))
    if not equal or not np.array_equal(head[rows], embed[rows]):
      raise WeightError(
        f'{path}: tensor lm_head.weight differs from model.embed_tokens.weight, but '
        'config.json says tie_word_embeddings true'
      )


def _read(found, name, tensor, shape, placement, dtype):
  """Reads a stored tensor onto its sharding, each device its part."""
  path, opened = found[name]

  def part(index):
    block = opened.get_slice(name)[tensor.stored_index(shape, index)]
    lengths = [len(range(*one.indices(size))) for one, size in zip(index, shape)]
    block = np.ascontiguousarray(block.T if tensor.inputs else block, dtype)
    _check_finite(path, name, block)
    return block.reshape(lengths)

  return jax.make_array_from_callback(shape, placement, part)


def _check_finite(path, name, array):
  """Refuses weights with NaN or infinity."""
  for start in range(0, len(array), COMPARE_ROWS):
    if not np.isfinite(array[start : start + COMPARE_ROWS]).all():
      raise WeightError(
        f'{path}: tensor {name} has values that are not finite in {array.dtype}'
      )


@functools.lru_cache
def _insert(placement):
  """Makes a jitted function to put a layer into a stack, in place."""
  return jax.jit(
    lambda stacked, one, layer: stacked.at[layer].set(one),
    donate_argnums=0,
    out_shardings=placement,
  )


def _read_stacked(config, found, tensor, shape, placement, dtype):
  """The layers of one parameter, put one by one into the stacked array."""
  layer_placement = placement
  if isinstance(placement, NamedSharding):
    layer_spec = PartitionSpec(*placement.spec[1:])
    layer_placement = NamedSharding(placement.mesh, layer_spec)
  stacked = jnp.zeros(shape, dtype, device=placement)
  for layer in range(config.num_layers):
    name = tensor.name.format(layer)
    one = _read(found, name, tensor, shape[1:], layer_placement, dtype)
    stacked = _insert(placement)(stacked, one, layer)
  return stacked


def load(
  path: str, mesh: Mesh | None, dtype: Any
) -> tuple[decoder.ModelConfig, decoder.Params]:
  """Loads a Hugging Face directory or hub id onto its sharding.

  Args:
    path: a directory, or a hub id.
    mesh: where to put them (see `sharding.param_shardings`); None is one device.
    dtype: dtype of the parameters; stored ones are converted.

  Returns:
    The configuration and the nested dict of parameters.

  Raises:
    FileError: a file of JSON is missing or damaged.
    WeightError: one of weights is, or does not fit config.json.
    ValueError: the model does not divide by the mesh.
  """
  folder = snapshot(path)
  config = hf_config.read_config(folder)
  specs = config.param_specs()
  placements = None if mesh is None else sharding.param_shardings(specs, mesh)
  device = SingleDeviceSharding(jax.devices()[0])
  params: decoder.Params = {}
  with contextlib.ExitStack() as stack:
    found = _open_all(folder, stack)
    _check_headers(config, folder, found)
    _check_tied_head(config, found)
    for tensor in hf_tensors.tensor_table(config):
      shape = hf_tensors.leaf(specs, tensor.path).shape
      placement = device if mesh is None else hf_tensors.leaf(placements, tensor.path)
      if tensor.path[0] == 'layers':
        value = _read_stacked(config, found, tensor, shape, placement, dtype)
      else:
        value = _read(found, tensor.name, tensor, shape, placement, dtype)
      hf_tensors.set_leaf(params, tensor.path, value)
  return config, params


def _host_array(params, tensor, layer, dtype):
  """One stored tensor on the host, in the stored layout."""
  array = hf_tensors.leaf(params, tensor.path)
  array = np.asarray(array if layer is None else array[layer])
  shape = tensor.stored_shape(array.shape)
  array = array.reshape(shape[::-1]).T if tensor.inputs else array.reshape(shape)
  with np.errstate(over='ignore'):  # `_check_finite` says it.
    return np.ascontiguousarray(array, dtype)


def _plan_files(config, itemsize):
  """The stored tensors, split into lists of at most MAX_FILE_BYTES."""
  shards, room = [[]], MAX_FILE_BYTES
  for stored in hf_tensors.stored_tensors(config):
    size = math.prod(stored.shape) * itemsize
    if size > room and shards[-1]:
      shards.append([])
      room = MAX_FILE_BYTES
    room -= size
    shards[-1].append(stored)
  return shards


def _publish(path: pathlib.Path, write) -> None:
  """Writes a file whole or not at all, by a rename."""
  partial = path.with_name(path.name + '.partial')
  try:
    write(partial)
    partial.chmod(0o644)  # safetensors makes its files private.
    os.replace(partial, path)
  except (OSError, safetensors.SafetensorError) as error:
    partial.unlink(missing_ok=True)
    raise WeightError(f'{path}: could not be written ({error})') from error


def _check_params(config, params):
  """The parameters must be the stacked tree of `config`."""
  specs = jax.tree.map(lambda spec: spec.shape, config.param_specs())
  if jax.tree.map(lambda array: array.shape, params) != specs:
    raise WeightError('the parameters to save are not the stacked tree of their config')


def save(
  path: str | pathlib.Path,
  config: decoder.ModelConfig,
  params: decoder.Params,
  dtype: Any,
  source: Mapping[str, Any] | None = None,
) -> None:
  """Writes a directory for transformers; config.json comes last.

  Args:
    path: the directory; made where it is absent. It may hold other files (a
      tokenizer), but no model.
    config: the model.
    params: stacked parameters, on any sharding that this process can address.
    dtype: dtype of the stored tensors.
    source: see `hf_config.config_record`.

  Raises:
    WeightError: there is a model already, the parameters are not of `config` or not
      finite in `dtype`, or a file could not be written.
  """
  folder = pathlib.Path(path)
  _check_params(config, params)
  folder.mkdir(parents=True, exist_ok=True)
  present = sorted(folder.glob('*.safetensors*')) + sorted(folder.glob('config.json'))
  if present:
    raise WeightError(f'{present[0]}: exists already, choose another directory')
  dtype = jnp.dtype(dtype)
  shards = _plan_files(config, dtype.itemsize)
  count = len(shards)
  weight_map, total = {}, 0
  for number, stored in enumerate(shards, 1):
    file = SINGLE if count == 1 else f'model-{number:05d}-of-{count:05d}.safetensors'
    arrays = {
      one.name: _host_array(params, one.tensor, one.layer, dtype) for one in stored
    }
    for name, array in arrays.items():
      _check_finite(folder / file, name, array)
    write = functools.partial(save_file, arrays, metadata={'format': 'pt'})
    _publish(folder / file, write)
    weight_map.update(dict.fromkeys(arrays, file))
    total += sum(array.nbytes for array in arrays.values())
  records = {'config.json': hf_config.config_record(config, dtype.name, source)}
  if count > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    records = {INDEX: index, **records}
  for file, record in records.items():
    text = json.dumps(record, indent=2, sort_keys=True) + '\n'
    _publish(folder / file, lambda partial, text=text: partial.write_text(text))


def check_saved(
  path: str | pathlib.Path,
  config: decoder.ModelConfig,
  params: decoder.Params,
  dtype: Any,
) -> None:
  """Compares a written directory with the parameters, by tensor.

  Raises:
    WeightError: it is no model directory, or of another model, or one bit differs.
  """
  folder = pathlib.Path(path)
  if hf_config.read_config(folder).architecture != config.architecture:
    raise WeightError(f'{folder / "config.json"}: describes another model')
  with contextlib.ExitStack() as stack:
    found = _open_all(folder, stack)
    _check_headers(config, folder, found)
    for stored in hf_tensors.stored_tensors(config):
      file, opened = found[stored.name]
      want = _host_array(params, stored.tensor, stored.layer, dtype)
      got = opened.get_tensor(stored.name)
      if got.dtype != want.dtype or got.tobytes() != want.tobytes():
        raise WeightError(f'{file}: tensor {stored.name} is not what was written')
