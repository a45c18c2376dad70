"""Text to ids, so that no text becomes a control token. No JAX."""

import functools
import json
import re
from collections.abc import Iterable

import tokenizers

from sdar_jax.prompts.tokenizer import TokenizerError

# Between lines, if printable ASCII stands before the line's end and behind it: words of
# the pre-tokenizers below never reach across, and NFC composes nothing there. White
# space on either side could be of one word with the line's end.
_CUT = re.compile(r'(?<=[!-~]\n)(?=[!-~])')
_WORDS = (  # Of Qwen2 and Qwen3; of Llama 3 with numbers of one to three digits.
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_PATTERNS = (_WORDS % '', _WORDS % '{1,3}')
# Prompts repeat lines: instructions, skills, what was seen before. Some MB of memory.
_REMEMBERED, _LONGEST = 8192, 256


class Encoder:
  """A tokenizer beside the same one without its control tokens.

  Attributes:
    added: content -> id of the tokenizer's added tokens.
    control_ids: their ids: what no text turns into.
    len_vocab: ids at or above it name no token.
  """

  def __init__(self, tokenizer: tokenizers.Tokenizer, path: str):
    """Takes a tokenizer apart.

    Raises:
      TokenizerError: its vocabulary has a control token as an ordinary word.
    """
    self._tokenizer, self._plain = tokenizer, _without_added_tokens(tokenizer)
    self._line = None
    if _keeps_lines_apart(self._plain):
      self._line = functools.lru_cache(_REMEMBERED)(lambda text: (*self._whole(text),))
    decoder = tokenizer.get_added_tokens_decoder()
    self.added = {token.content: index for index, token in decoder.items()}
    self.control_ids = frozenset(decoder)
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    self.len_vocab = max(ids, default=-1) + 1
    for name in self.added:
      if self.control_ids.intersection(self.encode(name)):
        raise TokenizerError(f'{path}: plain text can produce the token {name}')

  def special(self) -> frozenset[str]:
    """Names the added tokens that the tokenizer declares special."""
    decoder = self._tokenizer.get_added_tokens_decoder()
    return frozenset(token.content for token in decoder.values() if token.special)

  def encode(self, text: str) -> list[int]:
    """Encodes `text`; none of the ids is a control token."""
    if not text.isascii():
      text = text.encode('utf-8', 'replace').decode()  # Lone surrogates become '?'.
    if self._line is None:
      return self._whole(text)
    ids: list[int] = []
    for line in _CUT.split(text):
      ids += self._line(line) if len(line) <= _LONGEST else self._whole(line)
    return ids

  def _whole(self, text: str) -> list[int]:
    return self._plain.encode(text, add_special_tokens=False).ids

  def encode_all(self, text: str) -> list[int]:
    """Encodes `text` as the whole tokenizer does, control tokens and all."""
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def encode_runs(self, runs: Iterable[str]) -> list[int]:
    """Encodes the pieces of `split`."""
    ids: list[int] = []
    for index, run in enumerate(runs):
      ids += [self.added[run]] if index % 2 else self.encode(run)
    return ids

  def decode(self, ids: list[int]) -> str:
    """Decodes ids, control tokens included."""
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def bytes_of(self, token: int) -> bytes:
    """Gives a token's own bytes, which may be a part of a character's."""
    text = self.decode([token])
    if '\ufffd' not in text or token in self.control_ids:
      return text.encode()
    name = self._tokenizer.id_to_token(token)
    if match := re.fullmatch('<0x([0-9A-Fa-f]{2})>', name):
      return bytes.fromhex(match[1])
    own = _bytes_by_letter()
    return bytes(own[c] for c in name) if own.keys() >= set(name) else text.encode()


@functools.cache
def _bytes_by_letter() -> dict[str, int]:
  """The letters by which byte-level vocabularies write bytes.

  A byte that is a printable letter of Latin-1 is written as that, the others in order
  as the letters from U+0100 on.
  """
  plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(256) if byte not in plain]
  letters = [*plain, *range(256, 256 + len(others))]
  return {chr(letter): byte for letter, byte in zip(letters, plain + others)}


def split(text: str, tokens: Iterable[str]) -> list[str]:
  """Cuts `text` at `tokens`: text at even places, tokens at odd ones."""
  names = sorted(tokens, key=len, reverse=True)
  if not names:
    return [text]
  return re.split('(' + '|'.join(map(re.escape, names)) + ')', text)


def _keeps_lines_apart(tokenizer: tokenizers.Tokenizer) -> bool:
  """Whether words are known not to reach over `_CUT`."""
  model, state = tokenizer.model, lambda part: json.loads(part.__getstate__())
  if not isinstance(model, tokenizers.models.BPE) or model.dropout:
    return False
  if tokenizer.pre_tokenizer is None:
    return False
  if tokenizer.normalizer and state(tokenizer.normalizer) != {'type': 'NFC'}:
    return False
  found = state(tokenizer.pre_tokenizer)
  *splits, last = found.get('pretokenizers', [found])
  if last.get('type') != 'ByteLevel' or last['add_prefix_space']:
    return False
  if not last['use_regex']:
    *splits, words = splits or [{}]
    pattern = words.get('pattern', {}).get('Regex')
    if pattern not in _PATTERNS or words['behavior'] != 'Isolated' or words['invert']:
      return False
  return all(split['type'] == 'Digits' for split in splits)


def _without_added_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  plain = tokenizers.Tokenizer(tokenizer.model)  # Shares the vocabulary: no copy.
  if tokenizer.normalizer is not None:
    plain.normalizer = tokenizer.normalizer
  plain.pre_tokenizer = tokenizer.pre_tokenizer
  return plain
