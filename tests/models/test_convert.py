"""Hugging Face directories: read, written, and in every way that they can be wrong."""

import dataclasses
import hashlib
import importlib.util
import json
import shutil

import golden_models
import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sdar_jax import files, hub
from sdar_jax.models import decoder, hf, rope

WEIGHTS = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
LLAMA3 = {
  'rope_type': 'llama3',
  'factor': 32.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8192,
}


@pytest.fixture
def model(tmp_path):
  """A copy of a recorded model that a test may damage."""

  def copy(name):
    folder = tmp_path / 'model'
    folder.mkdir()
    for file in ('config.json', WEIGHTS):
      shutil.copyfile(golden_models.FOLDER / name / file, folder / file)
    return folder

  return copy


def edit_config(folder, remove=(), **changes):
  path = folder / 'config.json'
  record = json.loads(path.read_text())
  record.update(changes)
  path.write_text(json.dumps({k: v for k, v in record.items() if k not in remove}))


def edit_tensors(folder, edit):
  tensors = load_file(folder / WEIGHTS)
  edit(tensors)
  save_file(tensors, folder / WEIGHTS)


def split(folder, parts=3):
  """Cuts the weights into several files with an index."""
  tensors = load_file(folder / WEIGHTS)
  (folder / WEIGHTS).unlink()
  weight_map = {}
  for part in range(parts):
    names = sorted(tensors)[part::parts]
    file = f'model-{part + 1:05d}-of-{parts:05d}.safetensors'
    save_file({name: tensors[name] for name in names}, folder / file)
    weight_map |= dict.fromkeys(names, file)
  (folder / INDEX).write_text(json.dumps({'weight_map': weight_map}))
  return weight_map


def assert_same(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def refused(folder, *words, error=hf.WeightError):
  """Loading fails in one line that has all the words, before anything is placed."""
  with pytest.MonkeyPatch.context() as patch:

    def never(*args, **kwargs):
      raise AssertionError('a tensor was read before the files were checked')

    patch.setattr(hf, '_read', never)
    patch.setattr(hf, '_read_stacked', never)
    with pytest.raises(error) as caught:
      hf.load(str(folder), None, jnp.float32)
  message = str(caught.value)
  assert '\n' not in message
  for word in words:
    assert word in message, message


# --- what is read ------------------------------------------------------------------


def test_layers_are_stacked_in_their_order():
  config, params, _ = golden_models.load('qwen3_tied')
  stored = load_file(golden_models.FOLDER / 'qwen3_tied' / WEIGHTS)
  for layer in range(config.num_layers):
    stem = f'model.layers.{layer}.'
    query = stored[stem + 'self_attn.q_proj.weight']  # [4 heads x 32, 64]
    ours = params['layers']['attention']['query']['kernel'][layer]
    for head in range(4):
      np.testing.assert_array_equal(ours[:, head], query[head * 32 : head * 32 + 32].T)
    np.testing.assert_array_equal(
      params['layers']['mlp_norm']['scale'][layer],
      stored[stem + 'post_attention_layernorm.weight'],
    )


def test_several_files_give_the_same_parameters(model):
  folder = model('qwen3_tied')
  config, want = hf.load(str(folder), None, jnp.float32)
  split(folder)
  config_split, got = hf.load(str(folder), None, jnp.float32)
  assert config == config_split
  assert_same(want, got)


def test_half_precision_is_read_exactly_and_kept_when_asked():
  path = str(golden_models.FOLDER / 'qwen2_untied_bf16')
  _, exact = hf.load(path, None, jnp.float32)
  _, half = hf.load(path, None, jnp.bfloat16)
  assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
  assert {leaf.dtype for leaf in jax.tree.leaves(exact)} == {jnp.dtype(jnp.float32)}
  assert_same(exact, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half))
  stored = load_file(golden_models.FOLDER / 'qwen2_untied_bf16' / WEIGHTS)
  np.testing.assert_array_equal(half['lm_head']['embedding'], stored['lm_head.weight'])


def test_newer_rope_parameters_and_a_derived_head_dim(model):
  folder = model('qwen2_tied')
  assert 'head_dim' not in json.loads((folder / 'config.json').read_text())
  assert hf.read_config(str(folder)).head_dim == 16
  rope = {'rope_type': 'default', 'rope_theta': 5e6}
  edit_config(folder, remove=['rope_theta'], rope_parameters=rope, head_dim=16)
  config = hf.read_config(str(folder))
  assert (config.head_dim, config.rope_theta) == (16, 5e6)
  edit_config(folder, remove=['tie_word_embeddings'])
  assert not hf.read_config(str(folder)).tie_word_embeddings


@pytest.mark.parametrize('key', ['rope_scaling', 'rope_parameters'])
def test_scaled_frequencies_are_read_in_either_layout(model, key):
  folder = model('llama_tied')
  want = rope.Scaling(32.0, 1.0, 4.0, 8192)
  edit_config(folder, rope_scaling=None)
  edit_config(folder, **{key: LLAMA3})
  assert hf.read_config(folder).rope_scaling == want
  edit_config(folder, rope_scaling=LLAMA3 | {'type': 'llama3'}, rope_parameters=LLAMA3)
  assert hf.read_config(folder).rope_scaling == want
  scaled = hf.digest(folder)
  edit_config(folder, remove=['rope_scaling', 'rope_parameters'])
  assert hf.read_config(folder).rope_scaling is None
  assert hf.digest(folder) != scaled


def test_the_digest_of_an_unscaled_model_is_the_recorded_one():
  """Runs are known by it: a new hyperparameter must not rename old models."""
  digest = hf.digest(golden_models.FOLDER / 'qwen3_tied')
  assert digest == '1bf32e57cad2ed01b3c2e4ecdc3312b0d53ae97ba94e7bb1ae9a71317e0d4596'


def test_a_tied_model_may_repeat_its_embedding(model):
  folder = model('qwen3_tied')
  _, want = hf.load(str(folder), None, jnp.float32)

  def repeat(tensors):
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()

  edit_tensors(folder, repeat)
  assert_same(want, hf.load(str(folder), None, jnp.float32)[1])

  def differ(tensors):
    tensors['lm_head.weight'][511, 63] += 1e-3

  edit_tensors(folder, differ)
  refused(folder, WEIGHTS, 'lm_head.weight', 'tie_word_embeddings')


def test_a_window_that_no_layer_uses_is_accepted(model):
  folder = model('qwen2_tied')
  want = hf.read_config(str(folder))
  edit_config(folder, use_sliding_window=True, max_window_layers=3)
  assert hf.read_config(str(folder)) == want
  edit_config(folder, use_sliding_window=True, sliding_window=None)
  assert hf.read_config(str(folder)) == want


def test_a_hub_id_is_fetched_once_as_data_only(monkeypatch):
  asked = []

  def download(name, revision, allow_patterns):
    asked.append((name, revision, allow_patterns))
    return str(golden_models.FOLDER / 'qwen2_tied')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  monkeypatch.setattr(hub, '_commits', {})
  config, _ = hf.load('Qwen/Qwen2-tiny', None, jnp.float32)
  assert hf.read_config('Qwen/Qwen2-tiny') == config
  assert [(name, revision) for name, revision, _ in asked] == [
    ('Qwen/Qwen2-tiny', None),
    ('Qwen/Qwen2-tiny', 'qwen2_tied'),  # The commit that the first call found.
  ]
  ends = {pattern.rpartition('.')[2] for pattern in asked[0][2]}
  assert ends == {'safetensors', 'json'}


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch):
  def download(name, **kwargs):
    raise huggingface_hub.errors.LocalEntryNotFoundError('no\nnetwork')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  refused('Qwen/Qwen3-0.6B', 'Qwen/Qwen3-0.6B', 'hub')


def test_a_digest_is_of_hyperparameters_and_weights_alone(model, monkeypatch):
  folder = model('qwen2_tied')
  want = hf.digest(folder)
  for name in ('.DS_Store', 'README.md', 'generation_config.json', 'tokenizer.json'):
    (folder / name).write_text('{}')
  edit_config(folder, eos_token_id=3, transformers_version='9')
  assert hf.digest(folder) == want
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', lambda *a, **k: str(folder))
  assert hf.digest('owner/moved') == want
  edit_config(folder, rope_theta=7.0)
  other = hf.digest(folder)
  edit_tensors(folder, lambda tensors: tensors['model.norm.weight'].__imul__(2))
  assert len({want, other, hf.digest(folder), hf.digest('owner/moved')}) == 3


def test_what_the_hub_did_not_give_is_refused(model, tmp_path):
  """A cache keeps each file under the digest that the hub names."""
  folder = model('qwen2_tied')
  data = (folder / WEIGHTS).read_bytes()
  blob = tmp_path / 'blobs' / hashlib.sha256(data).hexdigest()
  blob.parent.mkdir()
  blob.write_bytes(data)
  (folder / WEIGHTS).unlink()
  (folder / WEIGHTS).symlink_to(blob)
  assert hf.digest(folder)
  blob.write_bytes(data[:-9] + b'\x40' + data[-8:])
  with pytest.raises(hf.WeightError, match='not what the hub gave'):
    hf.digest(folder)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
  'name', ['model.norm.weight', 'model.layers.2.mlp.up_proj.weight']
)
def test_weights_that_are_not_finite_are_refused(model, name, value):
  folder = model('qwen2_tied')
  edit_tensors(folder, lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
  with pytest.raises(hf.WeightError, match='not finite') as caught:
    hf.load(str(folder), None, jnp.bfloat16)
  assert name in str(caught.value) and WEIGHTS in str(caught.value)


def test_a_path_that_is_not_there_never_reaches_the_hub(monkeypatch, tmp_path):
  monkeypatch.setattr(huggingface_hub, 'snapshot_download', None)
  refused(tmp_path / 'absent', 'absent', 'not a directory')
  file = tmp_path / 'file'
  file.write_text('x')
  refused(file, 'not a directory')


# --- what is wrong -----------------------------------------------------------------


@pytest.mark.parametrize(
  'content, words',
  [
    (b'', 'empty'),
    (b'<!DOCTYPE html>\n<html><body>404</body></html>', 'HTML'),
    (b'  \n<html lang="en">', 'HTML'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n', 'git-lfs'),
    (b'\x80\x02}q\x00.', 'not safetensors'),
    (b'\xff' * 64, 'not safetensors'),
  ],
)
@pytest.mark.parametrize('many', [False, True])
def test_something_else_in_place_of_weights(model, content, words, many):
  folder = model('qwen2_tied')
  file = WEIGHTS
  if many:
    split(folder)
    file = 'model-00002-of-00003.safetensors'
  (folder / file).write_bytes(content)
  refused(folder, file, words)


@pytest.mark.parametrize('share', [0.0001, 0.003, 0.5, 0.99999])
def test_a_truncated_file(model, share):
  folder = model('qwen2_tied')
  whole = (folder / WEIGHTS).read_bytes()
  (folder / WEIGHTS).write_bytes(whole[: int(len(whole) * share)])
  refused(folder, WEIGHTS, 'truncated')


def drop(name):
  return lambda tensors: tensors.pop(name)


def put(name, value):
  return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
  'edit, words',
  [
    (drop('model.norm.weight'), ['model.norm.weight', 'missing']),
    (
      drop('model.layers.2.self_attn.k_proj.bias'),
      ['model.layers.2.self_attn.k_proj.bias', 'missing'],
    ),
    (
      put('model.layers.3.mlp.up_proj.weight', np.zeros((160, 64), np.float32)),
      ['model.layers.3.mlp.up_proj.weight', 'not part'],
    ),
    (
      put('model.layers.1.mlp.up_proj.weight', np.zeros((64, 160), np.float32)),
      ['model.layers.1.mlp.up_proj.weight', '[64, 160]', '[160, 64]'],
    ),
    (put('model.norm.weight', np.zeros(64, np.int8)), ['model.norm.weight', 'I8']),
  ],
)
def test_tensors_that_do_not_fit(model, edit, words):
  folder = model('qwen2_tied')
  edit_tensors(folder, edit)
  refused(folder, str(folder), *words)


def test_an_untied_model_without_a_head(model):
  folder = model('qwen2_tied')
  edit_config(folder, tie_word_embeddings=False)
  refused(folder, 'lm_head.weight', 'missing')


def test_no_weights_or_another_format(model):
  folder = model('qwen2_tied')
  (folder / WEIGHTS).rename(folder / 'pytorch_model.bin')
  refused(folder, str(folder), WEIGHTS, INDEX)


def test_an_index_that_is_wrong(model):
  folder = model('qwen2_tied')
  weight_map = split(folder)
  name, last = 'model.norm.weight', 'model-00003-of-00003.safetensors'

  def index(**changes):
    changed = {**weight_map, **changes}
    (folder / INDEX).write_text(json.dumps({'weight_map': changed}))

  index(**{'extra.weight': last})
  refused(folder, last, 'extra.weight', 'index')
  other = next(file for file in weight_map.values() if file != weight_map[name])
  index(**{name: other})
  refused(folder, name, INDEX)
  index(**{name: '../secret.safetensors'})
  refused(folder, INDEX, name, 'file name')
  index(**{name: 'gone.safetensors'})
  refused(folder, 'gone.safetensors', 'no such file')
  (folder / INDEX).write_text('{}')
  refused(folder, INDEX, 'weight_map')
  (folder / INDEX).write_text('<html>')
  refused(folder, INDEX, 'not JSON', error=files.FileError)
  index()
  (folder / last).unlink()
  refused(folder, last, 'no such file')


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model_type': 'qwen3_moe'}, 'qwen3_moe'),
    ({'model_type': None}, 'model_type'),
    ({'use_sliding_window': True, 'max_window_layers': 2}, 'sliding'),
    ({'layer_types': ['full_attention', 'sliding_attention'] * 2}, 'sliding'),
    ({'rope_scaling': {'type': 'yarn', 'factor': 4.0}}, 'yarn'),
    ({'rope_parameters': {'rope_type': 'linear', 'rope_theta': 1e6}}, 'linear'),
    ({'rope_parameters': 5}, 'rope_parameters is 5, an object wanted'),
    ({'layer_types': 5}, 'layer_types is 5, a list wanted'),
    ({'rope_scaling': 4.0}, 'rope_scaling'),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, 'low_freq_factor'),
    ({'rope_scaling': LLAMA3 | {'factor': 0.5}}, 'factor 0.5: must be at least 1'),
    ({'rope_scaling': LLAMA3 | {'low_freq_factor': 4.0}}, 'below high_freq_factor'),
    ({'rope_scaling': LLAMA3 | {'type': 'yarn'}}, 'yarn'),
    ({'rope_scaling': LLAMA3 | {'partial_rotary_factor': 0.5}}, 'partial_rotary'),
    ({'rope_scaling': {'factor': 2.0}}, 'rope_scaling []'),
    (
      {'rope_scaling': LLAMA3, 'rope_parameters': LLAMA3 | {'factor': 9.0}},
      'rope_scaling and rope_parameters differ',
    ),
    ({'mlp_bias': True}, 'mlp_bias'),
    ({'rope_interleaved': True}, 'rope_interleaved'),
    ({'quantization_config': {'bits': 4}}, 'quantized'),
    ({'hidden_act': 'gelu'}, 'gelu'),
    ({'hidden_size': '64'}, 'hidden_size'),
    ({'hidden_size': -64}, 'hidden_size'),
    ({'num_hidden_layers': True}, 'num_hidden_layers'),
    ({'num_attention_heads': 5}, 'head_dim'),
    ({'num_key_value_heads': 3}, 'num_kv_heads'),
    ({'tie_word_embeddings': 'yes'}, 'tie_word_embeddings'),
    ({'vocab_size': 10**12}, 'vocab_size'),
    ({'vocab_size': 10**9}, 'model.embed_tokens.weight'),
    ({'num_hidden_layers': 10**9}, 'model.layers.3.'),
    ({'hidden_size': 10**9}, 'model.embed_tokens.weight'),
  ],
)
def test_configurations_that_do_not_fit(model, changes, words):
  folder = model('qwen2_tied')
  edit_config(folder, **changes)
  refused(folder, str(folder), words)


def test_a_number_that_is_none(model):
  folder = model('qwen2_tied')
  edit_config(folder, rope_theta=float('nan'))
  refused(folder, str(folder), 'NaN', error=files.FileError)


@pytest.mark.parametrize('key', ['hidden_size', 'rope_theta', 'rms_norm_eps'])
def test_a_key_that_is_missing(model, key):
  folder = model('qwen2_tied')
  edit_config(folder, remove=[key])
  refused(folder, 'config.json', key, 'missing')


@pytest.mark.parametrize('content', [b'', b'<html>', b'[1]', b'\xff\xfe', b'[' * 10**5])
def test_a_damaged_config(model, content):
  folder = model('qwen2_tied')
  (folder / 'config.json').write_bytes(content)
  refused(folder, 'config.json', error=files.FileError)
  (folder / 'config.json').unlink()
  refused(folder, 'config.json', 'No such file', error=files.FileError)


@pytest.mark.parametrize('name', ['qwen3_tied', 'llama_untied'])
def test_biases_that_a_family_has_not(model, name):
  folder = model(name)
  edit_config(folder, attention_bias=True)
  refused(folder, 'attention_bias')


# --- what is written ---------------------------------------------------------------


@pytest.mark.parametrize('name', golden_models.NAMES)
def test_the_written_tensors_are_those_that_were_read(name, tmp_path):
  config, params, _ = golden_models.load(name)
  original = load_file(golden_models.FOLDER / name / WEIGHTS)
  dtype = original['model.norm.weight'].dtype
  hf.save(tmp_path / 'out', config, params, dtype)
  written = load_file(tmp_path / 'out' / WEIGHTS)
  assert set(written) == set(original)
  for key, value in original.items():
    assert written[key].dtype == value.dtype
    np.testing.assert_array_equal(written[key], value)
  assert hf.read_config(str(tmp_path / 'out')) == config


@pytest.mark.parametrize('name', golden_models.NAMES)
def test_transformers_reads_the_written_config(name, tmp_path):
  transformers = pytest.importorskip('transformers')
  config, params, _ = golden_models.load(name)
  hf.save(tmp_path, config, params, jnp.float32)
  ours = transformers.AutoConfig.from_pretrained(tmp_path)
  theirs = transformers.AutoConfig.from_pretrained(golden_models.FOLDER / name)
  assert type(ours) is type(theirs)
  for key in (
    'architectures hidden_size num_hidden_layers num_attention_heads rms_norm_eps '
    'num_key_value_heads intermediate_size vocab_size hidden_act tie_word_embeddings '
    'layer_types sliding_window rope_parameters'
  ).split():
    if hasattr(theirs, key):  # Llama's has no windows.
      assert getattr(ours, key) == getattr(theirs, key), key


def test_large_models_are_split_with_an_index(tmp_path, monkeypatch):
  config, params, _ = golden_models.load('qwen3_tied')
  monkeypatch.setattr(hf, 'MAX_FILE_BYTES', 200_000)
  hf.save(tmp_path / 'out', config, params, jnp.bfloat16)
  files = sorted((tmp_path / 'out').glob('*.safetensors'))
  assert len(files) == 3  # 400 kB of bfloat16, and no tensor is cut.
  assert all(file.stat().st_size < 210_000 for file in files)
  index = json.loads((tmp_path / 'out' / INDEX).read_text())
  assert index['metadata']['total_size'] == 2 * sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )
  _, back = hf.load(str(tmp_path / 'out'), None, jnp.float32)
  want = jax.tree.map(
    lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16).astype(np.float32), params
  )
  assert_same(back, want)


def test_a_model_is_never_overwritten(tmp_path):
  config, params, _ = golden_models.load('qwen2_tied')
  hf.save(tmp_path, config, params, jnp.float32)
  before = (tmp_path / WEIGHTS).read_bytes()
  zeros = jax.tree.map(jnp.zeros_like, params)
  with pytest.raises(hf.WeightError, match='exists already'):
    hf.save(tmp_path, config, zeros, jnp.float32)
  assert (tmp_path / WEIGHTS).read_bytes() == before


def test_a_save_that_fails_leaves_no_model(tmp_path, monkeypatch):
  config, params, _ = golden_models.load('qwen3_tied')

  def full(*args, **kwargs):
    raise OSError('No space left on device')

  monkeypatch.setattr(hf.os, 'replace', full)
  with pytest.raises(hf.WeightError, match='No space left'):
    hf.save(tmp_path, config, params, jnp.float32)
  assert not list(tmp_path.iterdir())


def test_parameters_of_another_config_are_refused(tmp_path):
  config, params, _ = golden_models.load('qwen2_tied')
  wider = dataclasses.replace(config, intermediate_size=161)
  for wrong in (params, decoder.unstack(params)):
    with pytest.raises(hf.WeightError, match='stacked tree'):
      hf.save(tmp_path / 'out', wider, wrong, jnp.float32)
  assert not (tmp_path / 'out').exists()


@pytest.mark.skipif(
  not importlib.util.find_spec('torch'), reason='torch is not installed'
)
@pytest.mark.parametrize('name', golden_models.NAMES)
def test_transformers_computes_the_same_logits(name, tmp_path):
  import torch
  import transformers

  config, params, record = golden_models.load(name)
  hf.save(tmp_path, config, params, jnp.float32)
  loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32, output_loading_info=True
  )
  assert not any(report[key] for key in ('missing_keys', 'unexpected_keys'))
  tokens, real = record['tokens'], record['attention_mask']
  with torch.no_grad():
    want = loaded(torch.tensor(tokens).long(), torch.tensor(real)).logits.numpy()
  hidden, _ = decoder.forward(
    config, params, tokens, golden_models.positions_of(tokens)
  )
  got = np.asarray(decoder.logits(config, params, hidden))
  np.testing.assert_allclose(got[real], want[real], rtol=0, atol=1e-5)
