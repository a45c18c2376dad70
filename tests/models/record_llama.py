"""Records what transformers computes from two tiny random Llama models.

  python tests/models/record_llama.py

Needs torch; writes tests/golden/models/llama_tied (scaled rotary frequencies, as in
Llama 3.2) and llama_untied (none, as in SmolLM2). The config.json files are laid out as
those models' are published, which transformers itself no longer writes.
"""

import copy
import json
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'models'
VOCAB, ROWS, LENGTH, PROMPT = 96, (40, 23), 40, 16
SHAPE = dict(
  vocab_size=VOCAB,
  hidden_size=16,
  intermediate_size=24,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  rms_norm_eps=1e-5,
  max_position_embeddings=128,
  attention_bias=False,
  mlp_bias=False,
  pretraining_tp=1,
  bos_token_id=None,
  eos_token_id=None,
)
# Of the eight frequencies some are kept, some between and some divided.
SCALING = {
  'factor': 8.0,
  'high_freq_factor': 4.0,
  'low_freq_factor': 1.0,
  'original_max_position_embeddings': 32,
  'rope_type': 'llama3',
}
MODELS = {
  'llama_tied': dict(
    head_dim=16, rope_theta=5e2, rope_scaling=SCALING, tie_word_embeddings=True
  ),
  'llama_untied': dict(rope_theta=1e3, rope_scaling=None, tie_word_embeddings=False),
}
PUBLISHED = {'llama_untied': {'is_llama_config': True, 'rope_interleaved': False}}


def record(name, settings):
  config = transformers.LlamaConfig(**SHAPE, **copy.deepcopy(settings))
  torch.manual_seed(0)
  model = transformers.LlamaForCausalLM(config).eval()
  with torch.no_grad():  # Far from the initial ones, so that norms and angles matter.
    for parameter in model.parameters():
      parameter += 0.25 * torch.randn_like(parameter)
  folder = FOLDER / name
  model.save_pretrained(folder)
  written = json.loads((folder / 'config.json').read_text())
  for key in ('rope_parameters', 'dtype', 'torch_dtype', 'transformers_version'):
    written.pop(key, None)
  written |= settings | PUBLISHED.get(name, {}) | {'torch_dtype': 'float32'}
  if 'head_dim' not in settings:
    written.pop('head_dim', None)
  (folder / 'config.json').write_text(json.dumps(written, indent=2) + '\n')
  (folder / 'generation_config.json').unlink(missing_ok=True)
  (folder / 'model.safetensors').chmod(0o644)
  model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
  tokens = torch.tensor(np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH)))
  mask = torch.tensor([[i < row for i in range(LENGTH)] for row in ROWS]).long()
  with torch.no_grad():
    logits = model(tokens, mask).logits
    greedy = tokens[:1, :PROMPT]
    for _ in range(LENGTH - PROMPT):  # Whole rows: no cache of transformers' own.
      best = model(greedy).logits[:, -1].argmax(-1, keepdim=True)
      greedy = torch.cat([greedy, best], 1)
  np.savez_compressed(
    folder / 'expected.npz',
    tokens=tokens.numpy(),
    attention_mask=mask.numpy(),
    logits=logits.numpy(),
    greedy=greedy.numpy(),
    inverse_frequencies=model.model.rotary_emb.inv_freq.numpy(),
  )


if __name__ == '__main__':
  for name, settings in MODELS.items():
    record(name, settings)
