"""Hyperparameters of published models, from their config.json.

Source: huggingface.co/Qwen, repositories Qwen2.5-{0.5B,1.5B,3B,7B}-Instruct and
Qwen3-{0.6B,1.7B,4B,8B}. The vocabulary is padded: ids from the tokenizer's length up
have rows but no token.
"""

from sdar_jax.models.qwen import ModelConfig


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
}
