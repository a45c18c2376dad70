"""Adapters against peft itself, both ways; where torch and peft are installed.

pip install torch peft && python -m pytest tests/models/test_peft.py
"""

import dataclasses

import drawn
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest

from sdar_jax.models import adapter_files, decoder, hf, lora

torch = pytest.importorskip('torch', reason='the oracle is peft, on torch')
peft = pytest.importorskip('peft', reason='the oracle is peft')
transformers = pytest.importorskip('transformers')

SETTINGS = lora.Lora(rank=3, alpha=7.0)
TOKENS = np.random.default_rng(3).integers(0, micro.VALID, (2, 17))


@pytest.fixture(scope='module', params=['qwen2', 'qwen3', 'llama'])
def model(request):
  return dataclasses.replace(micro.MODEL, num_layers=2, family=request.param)


@pytest.fixture
def folder(model, tmp_path):
  hf.save(tmp_path, model, drawn.weights(model, noise=0.1), jnp.float32)
  return tmp_path


def theirs(folder):
  return transformers.AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation='eager'
  )


def logits(made):
  with torch.no_grad():
    return made(torch.tensor(TOKENS)).logits.numpy()


def ours(model, folder, adapter):
  _, params = hf.load(str(folder), None, jnp.float32)
  params = adapter_files.merge_into(params, model, str(adapter))
  positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
  hidden, _ = decoder.forward(model, params, jnp.asarray(TOKENS), positions)
  return np.asarray(decoder.logits(model, params, hidden))


def test_peft_reads_ours(model, folder):
  random = np.random.default_rng(0)
  draw = lambda spec: jnp.array(random.normal(0, 0.2, spec.shape).astype(np.float32))
  with_lora = dataclasses.replace(model, lora=SETTINGS)
  adapter = folder / 'adapter'
  adapter.mkdir()
  adapters = jax.tree.map(draw, with_lora.adapter_specs())
  adapter_files.save(adapter, with_lora, adapters, str(folder))
  base = theirs(folder)
  plain = logits(base)
  want = logits(peft.PeftModel.from_pretrained(base, adapter))
  assert np.abs(want - plain).max() > 0.1
  np.testing.assert_allclose(ours(model, folder, adapter), want, atol=2e-4)


def test_ours_reads_peft(model, folder):
  config = peft.LoraConfig(
    r=4, lora_alpha=6, target_modules=['q_proj', 'down_proj'], task_type='CAUSAL_LM'
  )
  base = theirs(folder)
  plain = logits(base)
  made = peft.get_peft_model(base, config)
  torch.manual_seed(0)
  for name, value in made.named_parameters():
    if 'lora_' in name:
      torch.nn.init.normal_(value, std=0.2)
  want = logits(made)
  assert np.abs(want - plain).max() > 0.1
  made.save_pretrained(folder / 'adapter')
  got = ours(model, folder, folder / 'adapter')
  np.testing.assert_allclose(got, want, atol=2e-4)
