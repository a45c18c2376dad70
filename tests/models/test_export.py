"""An exported directory is whole: it loads, says the same and knows when to stop."""

import functools
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from experiments.tiny import tokenizer as tiny
from sdar_jax import hub as hub_lib
from sdar_jax.models import decoder, export, hf
from sdar_jax.prompts import chat

SHIPPED = pathlib.Path(__file__).parents[2] / 'experiments/tiny'
WORLDS = ('alfworld', 'webshop', 'search_qa')


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """A small model with its tokenizer, in bfloat16."""
  folder = tmp_path_factory.mktemp('original')
  tiny.save(tiny.train(['what a small tokenizer, a tokenizer']), folder)
  model = decoder.ModelConfig(
    family='qwen2',
    vocab_size=chat.Chat(folder).len_vocab + 3,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    rope_theta=1e4,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
  )
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda spec: random.normal(size=spec.shape).astype(np.float32), model.param_specs()
  )
  hf.save(folder, model, params, jnp.bfloat16)
  return folder


@pytest.fixture
def folder(original, tmp_path):
  return shutil.copytree(original, tmp_path / 'source')


def edit(folder, name, remove=(), **changes):
  path = folder / name
  record = json.loads(path.read_text()) if path.exists() else {}
  record = {k: v for k, v in (record | changes).items() if k not in remove}
  path.write_text(json.dumps(record))


def exported(source, output, dtype='', tokenizer=None, scale=1.0):
  model, params = hf.load(source, None, jnp.float32)
  params = jax.tree.map(lambda leaf: leaf * scale, params)
  tokenizer = tokenizer or source

  ours = chat.Chat(tokenizer, model=source)
  policy = export.ExportedPolicy(
    source=str(source),
    tokenizer=str(tokenizer),
    chat=ours,
    load_chat=lambda folder: chat.Chat(folder, model=folder),
    model=model,
    params=params,
    adapters=None,
    dtype=dtype,
  )
  return export.write(output, policy), params


def read(folder, name):
  return json.loads((folder / name).read_text())


# --- what is written ---------------------------------------------------------------


def test_the_source_survives(folder, tmp_path):
  """Weights in their dtype, context length, rope, tokens, sampling, every file."""
  edit(
    folder,
    'config.json',
    max_position_embeddings=4096,
    rope_parameters={'rope_type': 'default', 'rope_theta': 5e5},
    remove=['rope_theta'],
    some_key={'deep': [1]},
    auto_map={'AutoConfig': 'own.Config'},
  )
  end = chat.Chat(folder).stop_ids
  edit(
    folder, 'generation_config.json', top_k=20, eos_token_id=end[1], bos_token_id=end[1]
  )
  edit(folder, 'special_tokens_map.json', eos_token='<|im_end|>')
  template = read(folder, 'tokenizer_config.json')['chat_template']
  edit(
    folder, 'tokenizer_config.json', remove=['chat_template'], auto_map={'A': 'own.B'}
  )
  (folder / 'chat_template.jinja').write_text(template)
  (folder / 'additional_chat_templates').mkdir()
  (folder / 'additional_chat_templates/rag.jinja').write_text('{{ messages }}')
  (folder / 'own.py').write_text('')
  out = tmp_path / 'out'
  assert exported(folder, out)[0] == 'bfloat16'
  config = read(out, 'config.json')
  before = read(folder, 'config.json')
  for key in before.keys() - {
    'auto_map',
    'eos_token_id',
    'bos_token_id',
    'pad_token_id',
  }:
    assert config[key] == before[key], key
  assert config['eos_token_id'] == end[1] and 'auto_map' not in config
  assert read(out, 'generation_config.json') == {
    'top_k': 20,
    'eos_token_id': [end[1], end[0]],
    'bos_token_id': end[1],
    'pad_token_id': end[1],
  }
  names = {
    path.relative_to(out).as_posix() for path in out.rglob('*') if path.is_file()
  }
  wanted = {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}
  assert names == wanted - {'own.py'}
  assert 'auto_map' not in read(out, 'tokenizer_config.json')
  stored, kept = (load_file(f / 'model.safetensors') for f in (folder, out))
  for name, value in stored.items():
    assert kept[name].dtype == value.dtype and kept[name].tobytes() == value.tobytes()
  again = tmp_path / 'again'
  exported(out, again)
  for name in names:
    assert (again / name).read_bytes() == (out / name).read_bytes(), name


@pytest.mark.parametrize('dtype', ['', 'float32', 'float16'])
def test_weights_are_written_in_the_dtype_that_is_asked_for(folder, tmp_path, dtype):
  name, params = exported(folder, tmp_path / 'out', dtype, scale=1 / 3)
  assert name == (dtype or 'bfloat16')
  assert read(tmp_path / 'out', 'config.json')['torch_dtype'] == name
  stored = load_file(tmp_path / 'out/model.safetensors')['model.embed_tokens.weight']
  want = np.asarray(params['embed']['embedding'].astype(name))
  assert stored.dtype == want.dtype and stored.tobytes() == want.tobytes()


def test_a_hub_id_and_a_tokenizer_of_its_own_are_exported_whole(
  folder, tmp_path, monkeypatch
):
  own = tmp_path / 'tokenizer'
  own.mkdir()
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (folder / name).rename(own / name)
  places = {'owner/model': folder, 'owner/tokenizer': own}

  def download(name, revision, allow_patterns):
    return str(places[name])

  monkeypatch.setattr('huggingface_hub.snapshot_download', download)
  monkeypatch.setattr(hub_lib, '_commits', {})
  exported('owner/model', tmp_path / 'out', tokenizer='owner/tokenizer')
  want = chat.Chat(own).render('hi').tolist()
  assert chat.Chat(tmp_path / 'out').render('hi').tolist() == want


def test_a_model_without_names_for_its_end_stops_where_the_run_did(folder, tmp_path):
  edit(folder, 'tokenizer_config.json', remove=['eos_token', 'pad_token'])
  exported(folder, tmp_path / 'out')
  record = read(tmp_path / 'out', 'generation_config.json')
  assert record == {'eos_token_id': list(chat.Chat(folder).stop_ids)}


# --- what is refused ---------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path):
  (tmp_path / 'file').write_text('')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/notes.txt').write_text('mine')
  for name, words in (
    ('file', 'cannot be written'),
    ('file/below', 'cannot be written'),
    ('full', 'holds notes.txt'),
  ):
    with pytest.raises(export.ExportError, match=words) as caught:
      export.prepare(tmp_path / name)
    assert '\n' not in str(caught.value) and '--output=' in str(caught.value)
  export.prepare(tmp_path / 'a/b')
  assert not (tmp_path / 'a/b').exists()
  assert (tmp_path / 'full/notes.txt').read_text() == 'mine'


@pytest.mark.parametrize('part', ['weights', 'tokenizer', 'end', 'full'])
def test_what_loads_as_something_else_is_no_export(folder, tmp_path, monkeypatch, part):
  """Whatever breaks between writing and reading: an error, and nothing loadable."""
  convert_save, copy = hf.save, export._copy_tokenizer

  def save(path, model, params, *args):
    convert_save(path, model, params, *args)
    if part == 'weights':
      tensors = load_file(path / 'model.safetensors')
      tensors['model.norm.weight'] = -tensors['model.norm.weight']
      save_file(tensors, path / 'model.safetensors')
    if part == 'full':
      raise OSError(28, 'No space left on device')

  def copy_tokenizer(source, path):
    copy(source, path)
    if part == 'tokenizer':
      edit(path, 'tokenizer.json', normalizer=None)
    if part == 'end':
      edit(path, 'generation_config.json', eos_token_id=256)

  monkeypatch.setattr(hf, 'save', save)
  monkeypatch.setattr(export, '_copy_tokenizer', copy_tokenizer)
  with pytest.raises(ValueError) as caught:
    exported(folder, tmp_path / 'out')
  assert '\n' not in str(caught.value) and str(tmp_path / 'out') in str(caught.value)
  assert not list((tmp_path / 'out').iterdir())


def test_weights_that_overflow_are_refused(folder, tmp_path):
  with pytest.raises(hf.WeightError, match='not finite in float16'):
    exported(folder, tmp_path / 'out', 'float16', scale=1e9)


# --- the shipped models ------------------------------------------------------------


@pytest.mark.parametrize('world', WORLDS)
def test_shipped_models_say_how_they_end(world):
  ours = chat.Chat(SHIPPED / world)
  end, pad = ours.stop_ids
  config = read(SHIPPED / world, 'config.json')
  assert (config['eos_token_id'], config['pad_token_id']) == (end, pad)
  generation = read(SHIPPED / world, 'generation_config.json')
  assert generation == {'pad_token_id': pad, 'eos_token_id': [end, pad]}
  assert ours.encode_response('x')[-1] == end


@functools.cache
def _torch():
  if not importlib.util.find_spec('torch'):
    pytest.skip('torch is not installed: transformers cannot generate')
  import torch
  import transformers

  return torch, transformers


@pytest.mark.parametrize('world', WORLDS)
def test_transformers_stops_where_the_model_does(world, tmp_path):
  torch, transformers = _torch()
  exported(SHIPPED / world, tmp_path / 'out', 'bfloat16')
  for folder in (SHIPPED / world, tmp_path / 'out'):
    hub = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    prompt = hub.apply_chat_template(
      [{'role': 'user', 'content': 'Put a mug on the desk.'}],
      add_generation_prompt=True,
      return_tensors='pt',
    )['input_ids']
    ours = chat.Chat(folder, enable_thinking=True)
    assert ours.render('Put a mug on the desk.').tolist() == prompt[0].tolist()
    torch.manual_seed(0)
    with torch.no_grad():
      said = model.generate(prompt, max_new_tokens=200, do_sample=False)
    assert said.shape[1] < prompt.shape[1] + 200
    assert int(said[0, -1]) in ours.stop_ids
