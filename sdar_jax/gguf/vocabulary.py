"""The tokenizer of a GGUF file as Hugging Face's files. No JAX."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from sdar_jax import files

_KEY = 'tokenizer.ggml.'
_CONTROL, _OWN, _UNUSED = (2, 3), 4, 5  # Kinds: unknown, control; user's; padding.
_CUT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}@| ?[^\s\p{L}\p{N}]+"
  r'[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_ENDS = ('eos', 'eot', 'eom')  # Tokens that end a response.
_NAMES = {'bos': 'bos', 'eos': 'eos', 'unknown': 'unk', 'padding': 'pad'}


@dataclasses.dataclass(frozen=True)
class Cut:
  """How text is cut before pairs are merged.

  Attributes:
    steps: pre-tokenizers, one after another.
    nfc: text is normalised to composed characters first.
    whole: a piece that is a token is never cut.
  """

  steps: tuple[pre_tokenizers.PreTokenizer, ...]
  nfc: bool = False
  whole: bool = False


def _split(pattern: str) -> tuple[pre_tokenizers.PreTokenizer, ...]:
  return (
    pre_tokenizers.Split(Regex(pattern), 'isolated'),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
  )


# By tokenizer.ggml.pre; as in the tokenizer.json of these families.
CUTS = {
  'smollm': Cut(
    (
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
  ),
  'qwen2': Cut(_split(_CUT.replace('@', '')), nfc=True),
  'llama-bpe': Cut(_split(_CUT.replace('@', '{1,3}')), whole=True),
}


def records(path: pathlib.Path, metadata: Mapping[str, Any]) -> dict[str, str]:
  """Makes the tokenizer's files: name -> text.

  Args:
    path: of the GGUF file, for errors.
    metadata: of the file.

  Raises:
    files.FileError: the tokenizer is of another kind, or damaged.
  """
  said = _Said(path, metadata)
  tokens, added = said.tokens()
  tokenizer = _tokenizer(said, tokens, added)
  special = {}
  for name, target in _NAMES.items():
    index = said.token_id(name, len(tokens))
    if index is not None:
      special[f'{target}_token'] = tokens[index]
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'clean_up_tokenization_spaces': False,
    **{f'{name}_token': None for name in ('bos', 'unk')},
    **special,
  }
  ids = [said.token_id(name, len(tokens)) for name in _ENDS]
  generation = {
    'eos_token_id': list(dict.fromkeys(index for index in ids if index in added))
  }
  for name, target in (('bos', 'bos'), ('padding', 'pad')):
    index = said.token_id(name, len(tokens))
    if index is not None:
      generation[f'{target}_token_id'] = index
  out = {
    'tokenizer.json': tokenizer.to_str(),
    'tokenizer_config.json': json.dumps(config, indent=2, ensure_ascii=False) + '\n',
    'generation_config.json': json.dumps(generation, indent=2) + '\n',
  }
  template = 'tokenizer.chat_template'
  if template in metadata:
    out['chat_template.jinja'] = str(metadata[template])
  return out


class _Said:
  """What the metadata say of a tokenizer, checked as it is read."""

  def __init__(self, path: pathlib.Path, metadata: Mapping[str, Any]):
    self.path, self._metadata = path, metadata

  def get(self, key: str, default: Any = None) -> Any:
    name = _KEY + key
    value = self._metadata[name] if name in self._metadata else default
    if value is None:
      raise files.FileError(f'{self.path}: key {name} is missing')
    return value

  def choice(self, key: str, choices: Any) -> str:
    value = self.get(key)
    if value not in choices:
      raise files.FileError(
        f'{self.path}: {_KEY}{key} {str(value)[:40]!r} is not supported, only'
        f' {", ".join(choices)}'
      )
    return value

  def token_id(self, name: str, count: int) -> int | None:
    """The id of a token with a role, or None."""
    index = self.get(f'{name}_token_id', -1)
    return index if type(index) is int and 0 <= index < count else None

  def tokens(self) -> tuple[list[str], dict[int, bool]]:
    """Reads the tokens by id, and which are added: id -> special.

    Rows of the embedding without a token, at the end, are left out.
    """
    tokens = self.get('tokens')
    kinds = self.get('token_type', [1] * len(tokens))
    if len(kinds) != len(tokens) or len(set(tokens)) != len(tokens):
      raise files.FileError(
        f'{self.path}: {_KEY}tokens: {len(set(tokens))} different ones,'
        f' {len(tokens)} in all, {len(kinds)} in {_KEY}token_type'
      )
    unused = [
      k == _UNUSED or t == f'[PAD{i}]' for i, (t, k) in enumerate(zip(tokens, kinds))
    ]
    while tokens and unused[len(tokens) - 1]:
      tokens = tokens[:-1]
    added = {
      index: kind in _CONTROL
      for index, kind in enumerate(kinds[: len(tokens)])
      if kind in _CONTROL or kind == _OWN
    }
    return tokens, added


def _tokenizer(
  said: _Said, tokens: list[str], added: Mapping[int, bool]
) -> tokenizers.Tokenizer:
  """Builds the tokenizer, each token under its id."""
  said.choice('model', ('gpt2',))
  cut = CUTS[said.choice('pre', CUTS)]
  plain = [index for index in range(len(tokens)) if index not in added]
  # Added tokens behind all others get the next ids; those before must be listed.
  listed = tokens[: max(plain, default=-1) + 1]
  vocabulary = {token: index for index, token in enumerate(listed)}
  merges = [tuple(merge.split(' ')) for merge in said.get('merges')]
  try:
    model = models.BPE(vocabulary, merges, ignore_merges=cut.whole)
  except Exception as error:  # The Rust library raises plain Exception.
    raise files.FileError(
      f'{said.path}: {_KEY}merges: {files.one_line(error, 100)}'
    ) from None
  built = tokenizers.Tokenizer(model)
  if cut.nfc:
    built.normalizer = normalizers.NFC()
  built.pre_tokenizer = pre_tokenizers.Sequence(list(cut.steps))
  built.decoder = decoders.ByteLevel()
  for index, special in added.items():
    token = tokenizers.AddedToken(tokens[index], special=special, normalized=False)
    (built.add_special_tokens if special else built.add_tokens)([token])
    if built.token_to_id(tokens[index]) != index:
      raise files.FileError(
        f'{said.path}: {_KEY}tokens: {tokens[index][:40]!r} cannot keep its id {index}'
      )
  begin = said.token_id('bos', len(tokens))
  if begin is not None and said.get('add_bos_token', False) is True:
    pair = [(tokens[begin], begin)]
    one = f'{tokens[begin]} $A'
    built.post_processor = processors.TemplateProcessing(
      single=one, pair=f'{one} {one.replace("$A", "$B")}', special_tokens=pair
    )
  return built
