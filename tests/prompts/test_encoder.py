"""Texts encoded line by line have the ids of the whole text."""

import functools

import hypothesis
import pytest
import shared
import tokenizers
from hypothesis import strategies
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from experiments.tiny import tokenizer as tiny
from sdar_jax.prompts import encoder

QWEN, LLAMA = encoder._PATTERNS
# What reaches over the end of a line in one pattern or the other, and what composes.
SIGNS = [*'aB1.,\'"$[(-_~! \n\r\t\v\x1c\x85', *'\xa0\u2028\u0301é日ſ🙂']
SIGNS += ['\n\n', '.\n', "'s", "\n'", '\r\n', '\n ', ' \n', 'a\nb', '1\n2', '!\n?']
TEXT = 'On the desk 12:\n a lamp.\n\nGo to desk 1.\nIt\'s "on".\n' * 3


def split(pattern):
  words = pre_tokenizers.Split(Regex(pattern), 'isolated')
  return [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def gpt2(**options):
  return [pre_tokenizers.ByteLevel(**{'add_prefix_space': False} | options)]


def trained(pre, normalizer=None):
  """A small byte-level BPE, with merges over the ends of lines where words reach."""
  out = tokenizers.Tokenizer(models.BPE())
  out.pre_tokenizer = pre_tokenizers.Sequence(pre)
  if normalizer:
    out.normalizer = normalizer
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  out.train_from_iterator(
    [TEXT, *['on\n\n'] * 9],  # GPT-2's words join line ends only at the end.
    trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False),
  )
  return out


@functools.cache
def made(name):
  if name == 'SmolLM2':
    return trained([pre_tokenizers.Digits(individual_digits=True), *gpt2()])
  if name in ('qwen2.5', 'qwen3'):
    path = shared.shared_path(f'tokenizers/{name}/tokenizer.json')
    return tokenizers.Tokenizer.from_file(str(path))
  return trained(split({'Qwen': QWEN, 'Llama': LLAMA}[name]), normalizers.NFC())


@pytest.mark.parametrize('name', ['Qwen', 'Llama', 'SmolLM2', 'qwen2.5', 'qwen3'])
def test_lines_have_the_ids_of_the_whole(name):
  encodes = encoder.Encoder(made(name), name)
  assert encodes._line is not None

  @hypothesis.settings(max_examples=300, deadline=None, database=None)
  @hypothesis.given(strategies.lists(strategies.sampled_from(SIGNS)).map(''.join))
  def check(text):
    assert encodes.encode(text) == encodes._whole(text)
    assert encodes.encode(text) == encodes._whole(text)  # From memory.

  check()
  long = TEXT + 'x' * (encoder._LONGEST + 1) + '\n' + TEXT
  assert encodes.encode(long) == encodes._whole(long)
  assert encodes._line.cache_info().hits > 300


@pytest.mark.parametrize(
  'other',
  [
    trained(gpt2(add_prefix_space=True)),  # A space before every piece.
    trained(split(r'[ \n]?\p{L}+|\s+|[^\s\p{L}]+')),  # A line's end begins a word.
    trained([pre_tokenizers.WhitespaceSplit()]),
    trained([pre_tokenizers.Metaspace()]),
    trained([*split(QWEN)[:1], *gpt2()]),  # The second splits again.
    trained(split(QWEN), normalizers.Strip()),
    trained(split(QWEN), normalizers.Sequence([normalizers.NFC()])),
    tiny.train([TEXT]),
  ],
)
def test_other_tokenizers_encode_the_whole(other):
  assert encoder.Encoder(other, 'other')._line is None


def test_dropout_is_of_the_whole():
  other = trained(split(QWEN))
  other.model.dropout = 0.1
  assert encoder.Encoder(other, 'other')._line is None
