"""A tokenizer with its chat template: prompts to ids, sampled ids to text. No JAX.

The template's own tokens and everybody else's text never mix: the template is
rendered once with a placeholder, its control tokens become fixed ids, and text is
encoded by a tokenizer that has no control tokens at all. So whatever an environment
says, `<|im_end|>` in it stays the eleven characters that it is.
"""

import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import tokenizers

from sdar_jax import tags

# White space at its borders shows whether a template trims the message.
_USER = '\n  @user text@  \n'
_SYSTEM = '\n  @system text@  \n'


class TokenizerError(ValueError):
  """A tokenizer that is missing, damaged or lacks a chat template."""


class Chat:
  """Renders one user message into the ids that a policy continues.

  Ids equal those of transformers' `apply_chat_template` with a generation prompt,
  as long as the text holds no control token; where it does, they are plain text.

  Attributes:
    control_ids: ids that no text turns into: all of the tokenizer's added tokens.
    stop_ids: ids that end a response: `<|im_end|>` and `<|endoftext|>`.
    len_vocab: ids at or above it name no token: they must never be sampled.
    system: the system message of every prompt: the caller's or else the template's
      own default ('' where it has none).
    opening: with what the template begins every response, such as '<think>\\n'. The
      answer is well formed if it is so together with this.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    *,
    enable_thinking: bool = False,
    system: str | None = None,
    instruction: str = '',
  ):
    """Loads a tokenizer.

    Args:
      path: a directory with tokenizer.json and tokenizer_config.json, or a hub id.
      enable_thinking: the Qwen3 template's switch; off writes an empty think block.
      system: the system message; None leaves it to the template.
      instruction: the words of our own that end every user message. In them, and
        nowhere else, a tag such as `<think>` is the token that the tokenizer has for
        it, as transformers would have it.

    Raises:
      TokenizerError: one line naming the file and what is wrong with it.
    """
    self._path = str(path)
    self._hub = _load(self._path)
    self._enable_thinking = enable_thinking
    self._tokenizer = self._hub.backend_tokenizer
    self._plain = _without_added_tokens(self._tokenizer)
    added = self._tokenizer.get_added_tokens_decoder()
    self._added = {token.content: index for index, token in added.items()}
    self.control_ids = frozenset(added)
    self.len_vocab = len(self._hub)
    self.stop_ids = tuple(map(self._control_id, ('<|im_end|>', '<|endoftext|>')))
    self._instruction = instruction
    said = tags.paired(self._added) | {*tags.find(instruction)}
    mute = {token.content for token in added.values() if token.special} - said
    self._tags = [name for name in self._added if name not in mute]
    # Ids that leave no trace in a text.
    self._silent = {*self.stop_ids, *(self._added[name] for name in mute)}
    self._ending = self._split(instruction, self._tags)
    self._check_plain()
    frame = [name for name in self._added if name not in said]
    self.opening = tags.opening(self._messages(None).rpartition(_USER)[2], frame)
    self._bare = self._skeleton(None)
    self._with_system = self._skeleton(_SYSTEM)
    self.system = self._default_system() if system is None else system
    self._passed_system = system

  def render(self, user_text: str, system: str | None = None) -> np.ndarray:
    """The prompt of one user message, generation prompt included.

    Args:
      user_text: any text; none of it becomes a control token.
      system: replaces this chat's system message, for this prompt.

    Returns:
      [L] int32 ids.
    """
    system = self._passed_system if system is None else system
    skeleton = self._bare if system is None else self._with_system
    ids: list[int] = []
    for part in skeleton:
      if isinstance(part, str):
        before, slot, after = part.partition(_SYSTEM)
        if slot:
          ids += self._encode(before + system + after)
        else:
          before, _, after = part.partition(_USER)
          ids += self._encode_message(before, user_text, after)
      else:
        ids += part
    return np.asarray(ids, np.int32)

  def encode_text(self, text: str) -> np.ndarray:
    """Ids of `text`, [L] int32, none of them a control token."""
    return np.asarray(self._encode(text), np.int32)

  def encode_response(self, text: str) -> np.ndarray:
    """Ids of a response of our own making, such as an expert's, [R] int32.

    Tags are tokens where the tokenizer has such tokens; the stop token ends it. A tag
    that `opening` leaves open is not written again.
    """
    text = text.removeprefix(tags.unclosed(self.opening))
    ids = self._encode_tagged(self._split(text, self._tags))
    return np.asarray([*ids, self.stop_ids[0]], np.int32)

  def decode(self, ids: Any) -> str:
    """Text of sampled ids, for environments and people.

    Special tokens and those that end a response are left out, tags are not.
    """
    ids = [i for i in np.asarray(ids, np.int64).tolist() if i not in self._silent]
    return self._tokenizer.decode(ids, skip_special_tokens=False)

  def end_of(self, ids: np.ndarray, text: str) -> int:
    """How many of sampled `ids` it takes until they spell `text`; all if they never do.

    Args:
      ids: [R] int32.
      text: what to look for, such as '</think>'.
    """
    low, high = 0, len(ids)  # The answer is from low to high.
    while low < high:
      middle = (low + high) // 2
      if text in self.decode(ids[:middle]):
        high = middle
      else:
        low = middle + 1
    return low

  def _encode(self, text: str) -> list[int]:
    if not text.isascii():
      text = text.encode('utf-8', 'replace').decode()  # Lone surrogates become '?'.
    return self._plain.encode(text, add_special_tokens=False).ids

  def _encode_message(self, before: str, text: str, after: str) -> list[int]:
    """A text run with the user's message in it; tags of our instruction are ids."""
    if len(self._ending) == 1 or not text.endswith(self._instruction):
      return self._encode(before + text + after)
    runs = list(self._ending)
    runs[0] = before + text[: len(text) - len(self._instruction)] + runs[0]
    runs[-1] = runs[-1] + after
    return self._encode_tagged(runs)

  def _encode_tagged(self, runs: list[str]) -> list[int]:
    """Ids of what `_split` cut."""
    ids: list[int] = []
    for index, run in enumerate(runs):
      ids += [self._added[run]] if index % 2 else self._encode(run)
    return ids

  def _control_id(self, name: str) -> int:
    if name not in self._added:
      raise TokenizerError(f'{self._path}: tokenizer.json has no token {name}')
    return self._added[name]

  def _split(self, text: str, tokens: Any) -> list[str]:
    """Cuts `text` at `tokens`: text at even places, tokens at odd ones."""
    names = sorted(tokens, key=len, reverse=True)
    if not names:
      return [text]
    return re.split('(' + '|'.join(map(re.escape, names)) + ')', text)

  def _check_plain(self) -> None:
    """A vocabulary could hold a control token as an ordinary word: refuse it."""
    for name in self._added:
      if self.control_ids.intersection(self._encode(name)):
        raise TokenizerError(f'{self._path}: plain text can produce the token {name}')

  def _messages(self, system: str | None) -> str:
    messages = [{'role': 'user', 'content': _USER}]
    if system is not None:
      messages.insert(0, {'role': 'system', 'content': system})
    try:
      return self._hub.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=self._enable_thinking,
      )
    except Exception as error:  # jinja2 and transformers raise many kinds.
      raise TokenizerError(
        f'{self._path}: chat_template cannot be rendered: {_one_line(error)}'
      ) from None

  def _skeleton(self, system: str | None) -> list[str | list[int]]:
    """The template as fixed ids, with strings where text has its place.

    A text run reaches from one control token to the next, so that byte pairs merge
    across the border of a message exactly as in the rendered string.
    """
    rendered = self._messages(system)
    slots = [_USER] if system is None else [_SYSTEM, _USER]
    parts: list[str | list[int]] = []
    fixed: list[int] = []
    found = []
    for index, run in enumerate(self._split(rendered, self._added)):
      held = [slot for slot in slots if slot in run]
      found += held
      if index % 2:
        fixed.append(self._added[run])
      elif len(held) == 1:
        parts += [fixed, run]
        fixed = []
      elif run:
        fixed += self._encode(run)
    if found != slots or any(rendered.count(slot) != 1 for slot in slots):
      raise TokenizerError(
        f'{self._path}: chat_template must show each message once, unchanged, between '
        'control tokens'
      )
    return [*parts, fixed]

  def _default_system(self) -> str:
    head = re.match(
      r'<\|im_start\|>system\n(.*?)<\|im_end\|>', self._messages(None), re.S
    )
    return head.group(1) if head else ''


def _without_added_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  plain = tokenizers.Tokenizer(tokenizer.model)  # Shares the vocabulary: no copy.
  if tokenizer.normalizer is not None:
    plain.normalizer = tokenizer.normalizer
  plain.pre_tokenizer = tokenizer.pre_tokenizer
  return plain


def _one_line(error: Exception) -> str:
  lines = str(error).strip().splitlines() or [type(error).__name__]
  return lines[0][:200]


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(file.read_text('utf-8'))
  except FileNotFoundError:
    raise TokenizerError(f'{file}: missing; set config.model.tokenizer') from None
  except (OSError, UnicodeDecodeError, ValueError) as error:
    raise TokenizerError(f'{file}: not readable JSON: {_one_line(error)}') from None
  if not isinstance(value, dict):
    raise TokenizerError(f'{file}: not a JSON object')
  return value


def _check_directory(path: pathlib.Path) -> None:
  if 'model' not in _read_json(path / 'tokenizer.json'):
    raise TokenizerError(f'{path / "tokenizer.json"}: no key "model"')
  config = _read_json(path / 'tokenizer_config.json')
  if 'chat_template' not in config and not (path / 'chat_template.jinja').exists():
    raise TokenizerError(f'{path / "tokenizer_config.json"}: no key "chat_template"')


def _load(path: str) -> Any:
  """The transformers tokenizer of a directory or a hub id, or one line why not."""
  # Spares the console a remark that PyTorch is not installed.
  os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
  import transformers  # Here because it takes seconds.

  directory = pathlib.Path(path).expanduser()
  is_hub_id = re.fullmatch(r'[\w.-]+/[\w.-]+', path) and not path.startswith('.')
  if directory.is_dir():
    _check_directory(directory)
    path = str(directory)
  elif not is_hub_id:
    raise TokenizerError(
      f'{path}: no such tokenizer directory; set config.model.tokenizer'
    )
  try:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
      path, local_files_only=directory.is_dir()
    )
  except Exception as error:  # The Rust library raises plain Exception.
    kind = 'directory' if directory.is_dir() else 'hub id (no such directory here)'
    raise TokenizerError(
      f'{path}: tokenizer cannot be loaded from this {kind}: {_one_line(error)}'
    ) from None
  if not hasattr(tokenizer, 'backend_tokenizer'):
    raise TokenizerError(f'{path}: no tokenizer.json, which this project needs')
  if not tokenizer.chat_template:
    raise TokenizerError(f'{path}: the tokenizer has no chat_template')
  return tokenizer
