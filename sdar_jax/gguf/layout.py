"""Numbers and tensors of a GGUF file in Hugging Face's names. No JAX.

Llama's query and key rows are stored for rotary pairs that lie side by side, (2i,
2i + 1); Hugging Face's, and ours, for halves, (i, i + H/2). Qwen's are stored as they
are.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from sdar_jax import files
from sdar_jax.gguf.reader import Reader

ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}
_SCALES = 'rope_freqs.weight'  # What each rotary frequency is divided by.
_LLAMA3 = dict(low_freq_factor=1.0, high_freq_factor=4.0)  # Of every published model.
_CONTEXT = 8192  # Of its training before the context was extended.
# Settings with which a model computes something else.
_UNSUPPORTED = ('expert_count', 'attention.sliding_window', 'rope.scale_linear')
_NORMS = {'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm'}
_HEAD_NORMS = {'attn_q_norm': 'self_attn.q_norm', 'attn_k_norm': 'self_attn.k_norm'}


@dataclasses.dataclass(frozen=True)
class GgufTensor:
  """A tensor of the file and of the directory.

  Attributes:
    name: in the file.
    target: in the directory.
    shape: in both, rows first.
    heads: of rotary pairs side by side that are to be set apart; 0 is none.
  """

  name: str
  target: str
  shape: tuple[int, ...]
  heads: int = 0

  def read(self, reader: Reader) -> np.ndarray:
    """Reads the tensor as the directory has it, float32."""
    values = reader.read(self.name)
    if not self.heads:
      return values
    rows = values.reshape(self.heads, -1, 2, *self.shape[1:])
    return rows.swapaxes(1, 2).reshape(self.shape)


class _Numbers:
  """Metadata of one architecture, checked as they are read."""

  def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any], family: str):
    self._path, self._metadata, self._family = path, metadata, family

  def get(self, key: str, kind: type = int, default: Any = None) -> Any:
    """A positive number; `default` where the file has none."""
    name = f'{self._family}.{key}'
    value = self._metadata[name] if name in self._metadata else default
    if value is None:
      raise files.FileError(f'{self._path}: key {name} is missing')
    allowed = (int,) if kind is int else (int, float)
    if type(value) not in allowed or not 0 < value < math.inf:
      raise files.FileError(
        f'{self._path}: {name} is {str(value)[:40]}, a positive {kind.__name__} wanted'
      )
    # Stored in 32 bits: 1e-05 and not 9.999999747378752e-06.
    return kind(value) if kind is int else float(str(np.float32(value)))

  def refuse(self) -> None:
    """Refuses what the decoder does not compute."""
    for name, value in self._metadata.items():
      key = name.removeprefix(f'{self._family}.')
      scaled = key == 'rope.scaling.type' and value != 'none'
      if scaled or (key != name and key in _UNSUPPORTED and value):
        raise files.FileError(f'{self._path}: {name} {value!r} is not supported')


def config_record(reader: Reader) -> dict[str, Any]:
  """Makes the config.json of a file's model; its weights are float32.

  Raises:
    files.FileError: the architecture is another, or a number is missing or wrong.
  """
  path, metadata = reader.path, reader.metadata
  key = 'general.architecture'
  family = metadata[key] if key in metadata else None
  if family not in ARCHITECTURES:
    raise files.FileError(
      f'{path}: architecture {str(family)[:40]!r} is not supported, only'
      f' {", ".join(ARCHITECTURES)}'
    )
  numbers = _Numbers(path, metadata, family)
  numbers.refuse()
  hidden = numbers.get('embedding_length')
  heads = numbers.get('attention.head_count')
  width = numbers.get('attention.key_length', default=hidden // heads)
  for name in ('attention.value_length', 'rope.dimension_count'):
    if numbers.get(name, default=width) != width:
      raise files.FileError(f"{path}: {family}.{name} is not the heads' width {width}")
  theta = numbers.get('rope.freq_base', float, 10_000.0)
  return {
    'architectures': [ARCHITECTURES[family]],
    'attention_bias': family == 'qwen2',
    'attention_dropout': 0.0,
    'head_dim': width,
    'hidden_act': 'silu',
    'hidden_size': hidden,
    'initializer_range': 0.02,
    'intermediate_size': numbers.get('feed_forward_length'),
    'max_position_embeddings': numbers.get('context_length'),
    'model_type': family,
    'num_attention_heads': heads,
    'num_hidden_layers': numbers.get('block_count'),
    'num_key_value_heads': numbers.get('attention.head_count_kv', default=heads),
    'rms_norm_eps': numbers.get('attention.layer_norm_rms_epsilon', float),
    'rope_scaling': _scaling(reader, theta, width),
    'rope_theta': theta,
    'tie_word_embeddings': 'output.weight' not in reader.shapes,
    'torch_dtype': 'float32',
    'use_cache': True,
    'vocab_size': reader.shapes.get('token_embd.weight', (0,))[0],
  } | ({'mlp_bias': False} if family == 'llama' else {})


def _scaling(reader: Reader, theta: float, width: int) -> dict[str, Any] | None:
  """Finds the rope scaling whose result the file holds.

  Only the divisors of the frequencies are stored, not the numbers that gave them.
  """
  if _SCALES not in reader.shapes:
    return None
  divisors = reader.read(_SCALES).astype(np.float64)
  factor = float(divisors.max(initial=0.0))
  low, high = _LLAMA3['low_freq_factor'], _LLAMA3['high_freq_factor']
  turns = theta ** (-np.arange(width // 2) / (width // 2)) * _CONTEXT / (2 * np.pi)
  kept = np.clip((turns - low) / (high - low), 0, 1)
  same = divisors.shape == kept.shape and factor >= 1
  if not same or not np.allclose(1 / divisors, kept + (1 - kept) / factor, rtol=1e-4):
    raise files.FileError(
      f'{reader.path}: {_SCALES} is not the scaling of Llama 3.1 or 3.2: not supported'
    )
  return {
    'rope_type': 'llama3',
    'factor': factor,
    **_LLAMA3,
    'original_max_position_embeddings': _CONTEXT,
  }


def tensors(reader: Reader, config: Mapping[str, Any]) -> list[GgufTensor]:
  """Lists the tensors of a model, in the order of the forward pass.

  Args:
    reader: the file.
    config: its `config_record`.

  Raises:
    files.FileError: one is missing, of another shape, or not part of the model.
  """
  hidden, vocab = config['hidden_size'], config['vocab_size']
  listed = [
    GgufTensor('token_embd.weight', 'model.embed_tokens.weight', (vocab, hidden))
  ]
  # No more layers than tensors: a wrong count must not make a list of billions.
  for layer in range(min(config['num_hidden_layers'], len(reader.shapes))):
    listed += _layer(config, f'blk.{layer}.', f'model.layers.{layer}.')
  listed.append(GgufTensor('output_norm.weight', 'model.norm.weight', (hidden,)))
  if not config['tie_word_embeddings']:
    listed.append(GgufTensor('output.weight', 'lm_head.weight', (vocab, hidden)))
  rest = set(reader.shapes) - {_SCALES}
  missing = [tensor.name for tensor in listed if tensor.name not in rest]
  if missing:
    raise files.FileError(f'{reader.path}: tensor {missing[0]} is missing')
  for tensor in listed:
    rest.remove(tensor.name)
    if reader.shapes[tensor.name] != tensor.shape:
      raise files.FileError(
        f'{reader.path}: tensor {tensor.name} has shape'
        f' {list(reader.shapes[tensor.name])}, its metadata want {list(tensor.shape)}'
      )
  if rest:
    raise files.FileError(f'{reader.path}: tensor {min(rest)} is not part of the model')
  return listed


def _layer(config: Mapping[str, Any], ours: str, theirs: str) -> list[GgufTensor]:
  """Lists the tensors of one layer."""
  hidden, width = config['hidden_size'], config['head_dim']
  heads, kv_heads = config['num_attention_heads'], config['num_key_value_heads']
  family, inner = config['model_type'], config['intermediate_size']
  listed = [
    GgufTensor(f'{ours}{name}.weight', f'{theirs}{target}.weight', (hidden,))
    for name, target in _NORMS.items()
  ]
  for letter, count in (('q', heads), ('k', kv_heads), ('v', kv_heads)):
    name, target = f'{ours}attn_{letter}', f'{theirs}self_attn.{letter}_proj'
    paired = count if family == 'llama' and letter != 'v' else 0
    rows = count * width
    listed.append(
      GgufTensor(f'{name}.weight', f'{target}.weight', (rows, hidden), paired)
    )
    if family == 'qwen2':
      listed.append(GgufTensor(f'{name}.bias', f'{target}.bias', (rows,)))
  if family == 'qwen3':
    for name, target in _HEAD_NORMS.items():
      listed.append(
        GgufTensor(f'{ours}{name}.weight', f'{theirs}{target}.weight', (width,))
      )
  matrices = {
    'attn_output': ('self_attn.o_proj', (hidden, heads * width)),
    'ffn_gate': ('mlp.gate_proj', (inner, hidden)),
    'ffn_up': ('mlp.up_proj', (inner, hidden)),
    'ffn_down': ('mlp.down_proj', (hidden, inner)),
  }
  for name, (target, shape) in matrices.items():
    listed.append(GgufTensor(f'{ours}{name}.weight', f'{theirs}{target}.weight', shape))
  return listed
