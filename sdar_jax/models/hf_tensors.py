"""Names, layouts and shapes of parameters in Hugging Face files."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from sdar_jax.models import decoder


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One stored tensor and the parameter it is.

  Attributes:
    name: the stored name, with {} for the layer where there is one.
    path: keys of our leaf.
    inputs: leading axes of our array (without the layer axis) that are contracted
      with the input. A matrix is stored transposed, [outputs, inputs]; 0 is a vector,
      stored flat; None is stored as it is.
  """

  name: str
  path: tuple[str, ...]
  inputs: int | None

  def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Computes the stored shape of a layer of `shape`."""
    if self.inputs is None:
      return shape
    outputs = (math.prod(shape[self.inputs :]),)
    return outputs + ((math.prod(shape[: self.inputs]),) if self.inputs else ())

  def stored_index(
    self, shape: tuple[int, ...], index: tuple[slice, ...]
  ) -> tuple[slice, ...]:
    """Maps our `index` of an array of `shape` to the stored tensor."""
    if self.inputs is None:
      return index
    outputs = (_flat(shape[self.inputs :], index[self.inputs :]),)
    if not self.inputs:
      return outputs
    return (*outputs, _flat(shape[: self.inputs], index[: self.inputs]))


def _flat(shape, index):
  """Merges index ranges of axes, of which the first may be split."""
  start, stop, _ = index[0].indices(shape[0])
  inner = math.prod(shape[1:])
  return slice(start * inner, stop * inner)


def tensor_table(config: decoder.ModelConfig) -> list[Tensor]:
  """Every kind of stored tensor; those of the layers have {} in the name."""
  layer = 'model.layers.{}.'
  attention = layer + 'self_attn.'
  tensors = [
    Tensor('model.embed_tokens.weight', ('embed', 'embedding'), None),
    Tensor('model.norm.weight', ('final_norm', 'scale'), 0),
    Tensor(layer + 'input_layernorm.weight', ('layers', 'attention_norm', 'scale'), 0),
    Tensor(
      layer + 'post_attention_layernorm.weight', ('layers', 'mlp_norm', 'scale'), 0
    ),
    Tensor(attention + 'o_proj.weight', ('layers', 'attention', 'out', 'kernel'), 2),
  ]
  for ours, theirs in (('query', 'q'), ('key', 'k'), ('value', 'v')):
    path = ('layers', 'attention', ours)
    stem = f'{attention}{theirs}_proj'
    tensors.append(Tensor(f'{stem}.weight', (*path, 'kernel'), 1))
    if config.family == 'qwen2':
      tensors.append(Tensor(f'{stem}.bias', (*path, 'bias'), 0))
  if config.family == 'qwen3':
    for ours, theirs in (('query_norm', 'q'), ('key_norm', 'k')):
      path = ('layers', 'attention', ours, 'scale')
      tensors.append(Tensor(f'{attention}{theirs}_norm.weight', path, 0))
  for part in ('gate', 'up', 'down'):
    path = ('layers', 'mlp', part, 'kernel')
    tensors.append(Tensor(f'{layer}mlp.{part}_proj.weight', path, 1))
  if not config.tie_word_embeddings:
    tensors.append(Tensor('lm_head.weight', ('lm_head', 'embedding'), None))
  return tensors


@dataclasses.dataclass(frozen=True)
class Stored:
  """A stored tensor: its kind, layer (or None), name and shape."""

  tensor: Tensor
  layer: int | None
  name: str
  shape: tuple[int, ...]


def leaf(tree: Any, path: tuple[str, ...]) -> Any:
  """The value at `path` of a nested dict."""
  for key in path:
    tree = tree[key]
  return tree


def set_leaf(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
  """Puts `value` at `path` of a nested dict, making the dicts on the way."""
  for key in path[:-1]:
    tree = tree.setdefault(key, {})
  tree[path[-1]] = value


def stored_tensors(config: decoder.ModelConfig) -> Iterator[Stored]:
  """Lists the tensors of the files, layer by layer within each kind."""
  specs = config.param_specs()
  for tensor in tensor_table(config):
    shape = leaf(specs, tensor.path).shape
    if tensor.path[0] != 'layers':
      yield Stored(tensor, None, tensor.name, tensor.stored_shape(shape))
      continue
    for layer in range(config.num_layers):
      name = tensor.name.format(layer)
      yield Stored(tensor, layer, name, tensor.stored_shape(shape[1:]))
