"""The recorded checkpoints: tiny models with what transformers computed from them.

Those of Llama are written by record_llama.py.

`qwen2_untied_bf16` was recorded by a model that had been cast to bfloat16 as a whole
and back, so its rotary frequencies are rounded to bfloat16 besides its weights.
transformers itself, loading that directory in float32, is 4.3e-4 away from the record.
Loading such a checkpoint must not round the frequencies (at position 2,000 the angles
would be wrong by radians), so the tests round them instead, for that record only.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from sdar_jax.models import attention, hf

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'models'
NAMES = ('qwen2_tied', 'qwen2_untied_bf16', 'qwen3_tied', 'llama_tied', 'llama_untied')
ROUNDED = 'qwen2_untied_bf16'


def load(name):
  """Configuration, float32 parameters, and the record."""
  config, params = hf.load(str(FOLDER / name), None, jnp.float32)
  record = dict(np.load(FOLDER / name / 'expected.npz'))
  record['attention_mask'] = record['attention_mask'].astype(bool)
  record['tokens'] = record['tokens'].astype(np.int32)
  return config, params, record


def positions_of(tokens):
  return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def round_frequencies(monkeypatch):
  """Rounds the rotary frequencies to bfloat16, as in the ROUNDED record."""
  exact = attention.frequencies

  def rounded(width, theta):
    return jax.lax.reduce_precision(exact(width, theta), 8, 7)

  monkeypatch.setattr(attention, 'frequencies', rounded)
