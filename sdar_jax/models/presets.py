"""Hyperparameters of published models, from their config.json.

Source: huggingface.co, repositories Qwen/Qwen2.5-{0.5B,1.5B,3B,7B}-Instruct,
Qwen/Qwen3-{0.6B,1.7B,4B,8B}, meta-llama/Llama-3.2-{1B,3B}-Instruct and
HuggingFaceTB/SmolLM2-135M-Instruct. Qwen's vocabulary is padded: ids from the
tokenizer's length up have rows but no token.
"""

from sdar_jax.models import rope
from sdar_jax.models.decoder import ModelConfig


def _qwen2(hidden_size, intermediate_size, num_layers, num_heads, num_kv_heads, **rest):
  return ModelConfig(
    family='qwen2',
    hidden_size=hidden_size,
    intermediate_size=intermediate_size,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_dim=hidden_size // num_heads,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    **rest,
  )


def _qwen3(hidden_size, intermediate_size, num_layers, num_heads, tied):
  return ModelConfig(
    family='qwen3',
    vocab_size=151936,
    hidden_size=hidden_size,
    intermediate_size=intermediate_size,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=8,
    head_dim=128,
    rope_theta=1e6,
    rms_norm_eps=1e-6,
    tie_word_embeddings=tied,
  )


def _llama32(hidden_size, num_layers, num_heads, head_dim):
  return ModelConfig(
    family='llama',
    vocab_size=128256,
    hidden_size=hidden_size,
    intermediate_size=8192,
    num_layers=num_layers,
    num_heads=num_heads,
    num_kv_heads=8,
    head_dim=head_dim,
    rope_theta=5e5,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
    rope_scaling=rope.Scaling(32.0, 1.0, 4.0, 8192),
  )


_TIED = dict(vocab_size=151936, tie_word_embeddings=True)

PRESETS = {
  'qwen2.5-0.5b': _qwen2(896, 4864, 24, 14, 2, **_TIED),
  'qwen2.5-1.5b': _qwen2(1536, 8960, 28, 12, 2, **_TIED),
  'qwen2.5-3b': _qwen2(2048, 11008, 36, 16, 2, **_TIED),
  'qwen2.5-7b': _qwen2(
    3584, 18944, 28, 28, 4, vocab_size=152064, tie_word_embeddings=False
  ),
  'qwen3-0.6b': _qwen3(1024, 3072, 28, 16, tied=True),
  'qwen3-1.7b': _qwen3(2048, 6144, 28, 16, tied=True),
  'qwen3-4b': _qwen3(2560, 9728, 36, 32, tied=True),
  'qwen3-8b': _qwen3(4096, 12288, 36, 32, tied=False),
  'llama-3.2-1b': _llama32(2048, 16, 32, 64),
  'llama-3.2-3b': _llama32(3072, 28, 24, 128),
  'smollm2-135m': ModelConfig(
    family='llama',
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rope_theta=1e5,
    rms_norm_eps=1e-5,
    tie_word_embeddings=True,
  ),
}
