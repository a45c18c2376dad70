"""Reads and writes config.json in the Hugging Face layout."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from sdar_jax import files
from sdar_jax.models import attention, decoder, parameters, rope

MAX_NUMBER = 2**31 - 1
# Where a model lay, what wrote it, and code of its own: untrue of what is written here.
_FOREIGN = ('_name_or_path', 'transformers_version', 'auto_map')
ARCHITECTURES = {
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
  'llama': 'LlamaForCausalLM',
}
_SCALING = 'llama3'  # The kind of rope scaling that is supported.
# Settings that change what a model computes, where they are true.
_UNSUPPORTED = ('mlp_bias', 'rope_interleaved')


class WeightError(files.FileError):
  """A model directory not to be read or written, in one line."""


def _number(record, key, path, kind=int):
  """A positive number under `key`."""
  if key not in record:
    raise WeightError(f'{path}: key {key!r} is missing')
  value = record[key]
  allowed = (int,) if kind is int else (int, float)
  numeric = isinstance(value, allowed) and not isinstance(value, bool)
  if not numeric or not 0 < value <= MAX_NUMBER:
    raise WeightError(
      f'{path}: {key} is {str(value)[:40]!r}, a positive {kind.__name__} up to '
      f'{MAX_NUMBER} wanted'
    )
  return kind(value)


def _present(record, key):
  """Whether `key` is there and not null."""
  return key in record and record[key] is not None


def _scaling(record, key, path):
  """Reads one description of the scaling of rotary frequencies, or None."""
  scaling = record[key]
  if not isinstance(scaling, dict):
    raise WeightError(f'{path}: {key} is {scaling!r}, an object or null wanted')
  kinds = {str(scaling[name]) for name in ('rope_type', 'type') if name in scaling}
  if 'partial_rotary_factor' in scaling:
    kinds.add('partial_rotary_factor')
  if kinds == {_SCALING}:
    numbers = {
      field.name: _number(scaling, field.name, path, field.type)
      for field in dataclasses.fields(rope.Scaling)
    }
    return rope.Scaling(**numbers)
  if kinds - {'default'} or 'factor' in scaling:
    said = files.one_line(ValueError(sorted(kinds)), 80)
    raise WeightError(
      f'{path}: {key} {said} is not supported, only default and {_SCALING}'
    )
  return None


def _rope_scaling(record, path):
  """The scaling of `rope_scaling` (older) or `rope_parameters`."""
  keys = [key for key in ('rope_scaling', 'rope_parameters') if _present(record, key)]
  found = [_scaling(record, key, path) for key in keys]
  scalings = {scaling for scaling in found if scaling is not None}
  if len(scalings) > 1:
    raise WeightError(f'{path}: rope_scaling and rope_parameters differ: remove one')
  return scalings.pop() if scalings else None


def _rope_theta(record, path):
  """The rotary base from `rope_parameters` (newer) or `rope_theta`."""
  newer = record['rope_parameters'] if _present(record, 'rope_parameters') else {}
  if not isinstance(newer, dict):
    raise WeightError(f'{path}: rope_parameters is {newer!r:.40}, an object wanted')
  if 'rope_theta' in newer:
    return _number(newer, 'rope_theta', path, float)
  return _number(record, 'rope_theta', path, float)


def _slides(record, path):
  """Whether any layer attends over a sliding window."""
  if _present(record, 'layer_types'):
    kinds = record['layer_types']
    if not isinstance(kinds, list):
      raise WeightError(f'{path}: layer_types is {kinds!r:.40}, a list wanted')
    return any(kind != 'full_attention' for kind in kinds)
  if not (_present(record, 'use_sliding_window') and record['use_sliding_window']):
    return False
  layers = _number(record, 'num_hidden_layers', path)
  if not _present(record, 'sliding_window'):
    return False
  return _number(record, 'max_window_layers', path) < layers


def _check_supported(record, path):
  """Refuses settings beyond `decoder.forward`."""
  kind = record['model_type'] if 'model_type' in record else None
  if kind not in parameters.FAMILIES:
    raise WeightError(
      f'{path}: model_type {kind!r} is not supported, only '
      f'{", ".join(parameters.FAMILIES)} (dense)'
    )
  if _present(record, 'hidden_act') and record['hidden_act'] != 'silu':
    raise WeightError(f'{path}: hidden_act {record["hidden_act"]!r}, only silu')
  if _slides(record, path):
    raise WeightError(f'{path}: sliding-window attention is not supported')
  if _present(record, 'quantization_config'):
    raise WeightError(f'{path}: quantized weights are not supported')
  refused = _UNSUPPORTED if kind == 'qwen2' else (*_UNSUPPORTED, 'attention_bias')
  for key in refused:
    if _present(record, key) and record[key]:
      raise WeightError(f'{path}: {key} true is not supported for {kind}')


def _tied(record, path):
  """Reads the tie flag; absent means false, as in transformers."""
  tied = 'tie_word_embeddings' in record and record['tie_word_embeddings']
  if not isinstance(tied, bool):
    raise WeightError(f'{path}: tie_word_embeddings is {tied!r}, true or false wanted')
  return tied


def read_config(folder: str | pathlib.Path) -> decoder.ModelConfig:
  """The model described by `folder`/config.json.

  Args:
    folder: a directory in the Hugging Face layout.

  Returns:
    The hyperparameters. `head_dim` is derived from hidden_size where it is absent.

  Raises:
    FileError: the file is missing or damaged.
    WeightError: it describes another architecture.
  """
  path = pathlib.Path(folder) / 'config.json'
  record = files.read_json(path)
  _check_supported(record, path)
  hidden = _number(record, 'hidden_size', path)
  heads = _number(record, 'num_attention_heads', path)
  if not _present(record, 'head_dim') and hidden % heads:
    raise WeightError(
      f'{path}: head_dim is missing and hidden_size {hidden} does not divide by '
      f'num_attention_heads {heads}'
    )
  explicit = _present(record, 'head_dim')
  try:
    return decoder.ModelConfig(
      family=record['model_type'],
      vocab_size=_number(record, 'vocab_size', path),
      hidden_size=hidden,
      intermediate_size=_number(record, 'intermediate_size', path),
      num_layers=_number(record, 'num_hidden_layers', path),
      num_heads=heads,
      num_kv_heads=_number(record, 'num_key_value_heads', path),
      head_dim=_number(record, 'head_dim', path) if explicit else hidden // heads,
      rope_theta=_rope_theta(record, path),
      rms_norm_eps=_number(record, 'rms_norm_eps', path, float),
      tie_word_embeddings=_tied(record, path),
      rope_scaling=_rope_scaling(record, path),
    )
  except ValueError as error:
    if isinstance(error, WeightError):
      raise
    raise WeightError(f'{path}: {error}') from error


def read_context(folder: str | pathlib.Path) -> int | None:
  """Reads the number of positions of a model; None if unsaid."""
  path = pathlib.Path(folder) / 'config.json'
  record, key = files.read_json(path), 'max_position_embeddings'
  return _number(record, key, path) if _present(record, key) else None


def config_record(
  config: decoder.ModelConfig, dtype_name: str, source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Makes a config.json for transformers 4 and 5.

  Args:
    config: the model.
    dtype_name: 'float32', 'bfloat16' or 'float16', the dtype of the stored weights.
    source: the config.json that the model was loaded with; what it says of context
      length, tokens and all else is kept. None is a new model.

  Returns:
    A JSON object; `read_config` gives back `config`.
  """
  if source is not None:
    kept = {key: value for key, value in source.items() if key not in _FOREIGN}
    kept['architectures'] = [ARCHITECTURES[config.family]]
    names = {'dtype', 'torch_dtype'} & set(kept) or {'torch_dtype'}
    return kept | dict.fromkeys(names, dtype_name)
  scaling = {'rope_type': 'default'}
  if config.rope_scaling is not None:
    scaling = {'rope_type': _SCALING, **dataclasses.asdict(config.rope_scaling)}
  record = {
    'architectures': [ARCHITECTURES[config.family]],
    'attention_bias': config.family == 'qwen2',
    'attention_dropout': 0.0,
    'bos_token_id': None,
    'eos_token_id': None,
    'head_dim': config.head_dim,
    'hidden_act': 'silu',
    'hidden_size': config.hidden_size,
    'initializer_range': attention.INIT_STDDEV,
    'intermediate_size': config.intermediate_size,
    'max_position_embeddings': 32768,
    'model_type': config.family,
    'num_attention_heads': config.num_heads,
    'num_hidden_layers': config.num_layers,
    'num_key_value_heads': config.num_kv_heads,
    'rms_norm_eps': config.rms_norm_eps,
    'rope_parameters': {**scaling, 'rope_theta': config.rope_theta},
    'rope_theta': config.rope_theta,
    'sliding_window': None,
    'tie_word_embeddings': config.tie_word_embeddings,
    'torch_dtype': dtype_name,
    'use_cache': True,
    'use_sliding_window': False,
    'vocab_size': config.vocab_size,
  }
  if config.family == 'llama':
    for key in ('sliding_window', 'use_sliding_window'):
      del record[key]
    record |= {'mlp_bias': False, 'pretraining_tp': 1}
  if config.rope_scaling is not None:
    record['rope_scaling'] = scaling  # Where transformers 4 looks for it.
  return record
