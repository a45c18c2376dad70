"""Small GGUF files, laid out as llama.cpp lays them out, by loops and its own names."""

import json
import math

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from sdar_jax.models import decoder, hf, rope

TEMPLATE = (
  '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
  '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)
MERGES = ['h e', 'l l', 'he ll', 'hell o', 'Ġ w', 'o r', 'Ġw or', 'l d', 'Ġwor ld']
CONTROL = ['<|endoftext|>', '<|im_start|>', '<|im_end|>']


def alphabet():
  """The letters that stand for bytes, as GPT-2 chose them."""
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [byte for byte in range(256) if byte not in shown]
  return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(rest))]


def tokens(first=True):
  """Tokens and kinds; control tokens first, as SmolLM has them, or last."""
  plain = alphabet() + [merge.replace(' ', '') for merge in MERGES]
  both = [(CONTROL, 3), (plain, 1)] if first else [(plain, 1), (CONTROL, 3)]
  pairs = [(token, kind) for names, kind in both for token in names]
  pairs += [('<think>', 4)]
  pairs += [(f'[PAD{i}]', 5) for i in range(len(pairs), 288)]
  return [token for token, _ in pairs], [kind for _, kind in pairs]


def model(family, **changes):
  """A model of 288 tokens and its parameters, in numpy."""
  shape = dict(
    family=family,
    vocab_size=288,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=5e5,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
  )
  config = decoder.ModelConfig(**shape | changes)
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda spec: random.normal(0, 0.2, spec.shape).astype(np.float32),
    config.param_specs(),
  )
  return config, params


def paired(rows, heads):
  """Rows of rotary halves, one by one, to rows of pairs side by side."""
  out, width = np.empty_like(rows), len(rows) // heads
  for head in range(heads):
    for i in range(width // 2):
      out[head * width + 2 * i] = rows[head * width + i]
      out[head * width + 2 * i + 1] = rows[head * width + width // 2 + i]
  return out


def divisors(config):
  """What each frequency is divided by, by cases of its wavelength."""
  scaling, out = config.rope_scaling, []
  for i in range(0, config.head_dim, 2):
    length = 2 * math.pi * config.rope_theta ** (i / config.head_dim)
    share = scaling.original_max_position_embeddings / length
    if share > scaling.high_freq_factor:
      out.append(1.0)
    elif share < scaling.low_freq_factor:
      out.append(scaling.factor)
    else:
      low, high = scaling.low_freq_factor, scaling.high_freq_factor
      smooth = (share - low) / (high - low)
      out.append(1 / ((1 - smooth) / scaling.factor + smooth))
  return np.array(out, np.float32)


def write_metadata(writer, config, pre, template):
  """Hyperparameters and tokenizer."""
  writer.add_block_count(config.num_layers)
  writer.add_context_length(512)
  writer.add_embedding_length(config.hidden_size)
  writer.add_feed_forward_length(config.intermediate_size)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.head_dim)
  writer.add_value_length(config.head_dim)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.rms_norm_eps)
  names, kinds = tokens(first=pre == 'smollm')
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  writer.add_token_list(names)
  writer.add_token_types(kinds)
  writer.add_token_merges(MERGES)
  writer.add_bos_token_id(names.index('<|endoftext|>'))
  writer.add_eos_token_id(names.index('<|im_end|>'))
  if template:
    writer.add_chat_template(template)


def write(path, config, params, *, pre='smollm', kind=None, edit=None, metadata=None):
  """Writes a model.

  Args:
    path: of the file; a folder beside it holds the same in Hugging Face's layout.
    config: of the model.
    params: its parameters.
    pre: how text is cut.
    kind: of matrices, a GGMLQuantizationType; None is float32.
    edit: changes the tensors, a dict by GGUF names.
    metadata: changes what is said, given the writer.

  Returns:
    The Hugging Face folder.
  """
  folder = path.with_suffix('.hf')
  hf.save(folder, config, jax.tree.map(jnp.asarray, params), jnp.float32)
  writer = gguf.GGUFWriter(path, config.family)
  write_metadata(writer, config, pre, TEMPLATE)
  if metadata is not None:
    metadata(writer)
  architecture = {'llama': gguf.MODEL_ARCH.LLAMA, 'qwen2': gguf.MODEL_ARCH.QWEN2}
  architecture['qwen3'] = gguf.MODEL_ARCH.QWEN3
  names = gguf.get_tensor_name_map(architecture[config.family], config.num_layers)
  stored = {}
  for name, value in load_file(folder / 'model.safetensors').items():
    for letter, heads in (('q', config.num_heads), ('k', config.num_kv_heads)):
      if config.family == 'llama' and f'{letter}_proj' in name:
        value = paired(value, heads)
    stored[names.get_name(name, ('.weight', '.bias'))] = value
  if config.rope_scaling is not None:
    stored['rope_freqs.weight'] = divisors(config)
  if edit is not None:
    edit(stored)
  for name, value in stored.items():
    if kind is not None and value.ndim == 2:
      writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    else:
      writer.add_tensor(name, np.ascontiguousarray(value))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return folder


SCALED = rope.Scaling(32.0, 1.0, 4.0, 8192)


def tokenizer_of(folder):
  """The content of a folder's tokenizer.json."""
  return json.loads((folder / 'tokenizer.json').read_text())
