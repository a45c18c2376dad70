"""Chat template and tokenizer: prompts to ids and back. No JAX.

The template's own tokens and everybody else's text never mix: the template is
rendered once with a placeholder, its control tokens become fixed ids, and text is
encoded by a tokenizer that has no control tokens at all. So whatever an environment
says, `<|im_end|>` in it stays the eleven characters that it is.
"""

import datetime
import hashlib
import json
import pathlib
import re
from typing import Any

import numpy as np
import tokenizers

from sdar_jax.prompts import tags
from sdar_jax.prompts import template as templates
from sdar_jax.prompts import tokenizer as tokenizer_lib
from sdar_jax.prompts.tokenizer import TokenizerError

__all__ = ['Chat', 'TokenizerError']

DATE = '2026-01-01'  # What templates that ask for today's are told.
# White space at its borders shows whether a template trims the message.
_USER = '\n  @user text@  \n'
_SYSTEM = '\n  @system text@  \n'
_ASSISTANT = '@assistant text@'
_THOUGHT_ENDS = '</think>'
_END_OF_TEXT = '<|endoftext|>'  # Ends a document for many models, and so a response.


class Chat:
  """Renders one user message into the ids of a prompt.

  Ids equal those of transformers' `apply_chat_template` with a generation prompt,
  as long as the text holds no control token; where it does, they are plain text.

  Attributes:
    control_ids: ids that no text turns into: all of the tokenizer's added tokens.
    stop_ids: ids that end a response. The first is the one with which the template
      ends an assistant's turn; then come the tokenizer's and the model's own.
    len_vocab: ids at or above it name no token: they must never be sampled.
    system: the system message of every prompt: the caller's or else the template's
      own default ('' where it has none).
    opening: with what the template begins every response, such as '<think>\\n'. The
      answer is well formed if it is so together with this.
    special_ids: name -> id of the special tokens, such as `eos_token`.
    digest: hex SHA-256 of all that decides what ids a text becomes and what ends a
      response: the tokenizer, the rendered template, the switches.
  """

  def __init__(
    self,
    path: str | pathlib.Path,
    *,
    enable_thinking: bool = False,
    system: str | None = None,
    instruction: str = '',
    date: str = DATE,
    model: str | pathlib.Path | None = None,
  ):
    """Loads a tokenizer.

    Args:
      path: a directory with tokenizer.json and a chat template, or a hub id.
      enable_thinking: the Qwen3 template's switch; off writes an empty think block.
      system: the system message; None leaves it to the template.
      instruction: the words of our own that end every user message. In them, and
        nowhere else, a tag such as `<think>` is the token that the tokenizer has for
        it, as transformers would have it.
      date: YYYY-MM-DD, what a template that asks for the date is told.
      model: the directory or hub id whose generation_config.json says what else ends
        a response; None is `path`.

    Raises:
      TokenizerError: one line naming the file and what is wrong with it.
    """
    files = tokenizer_lib.load(path, model)
    self._path = str(path)
    self._tokenizer = files.tokenizer
    self._plain = _without_added_tokens(self._tokenizer)
    added = self._tokenizer.get_added_tokens_decoder()
    self._added = {token.content: index for index, token in added.items()}
    named = files.special.items()
    self.special_ids = {k: self._added[v] for k, v in named if v in self._added}
    self.control_ids = frozenset(added)
    ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
    self.len_vocab = max(ids, default=-1) + 1
    said = tags.paired(self._added) | {*tags.find(instruction)}
    mute = {token.content for token in added.values() if token.special} - said
    self._tags = [name for name in self._added if name not in mute]
    self._frame = [name for name in self._added if name not in said]
    self._check_plain()
    switches = {'enable_thinking': enable_thinking}
    rendered = self._render_template(files, switches, date)
    self._read_template(*rendered[:2], instruction)
    self.system = self._default if system is None else system
    self._passed_system = system
    self.stop_ids = self._stop_ids(files, rendered[2])
    # Ids that leave no trace in a text.
    self._silent = {*self.stop_ids, *(self._added[name] for name in mute)}
    self.digest = self._digest(files, system)

  def _read_template(
    self, bare: templates.Rendered, with_system: templates.Rendered, instruction: str
  ) -> None:
    """Takes a rendered prompt apart, and one with a system message."""
    # Some templates strip what is said.
    self._shown = {_USER: _shown(_USER, bare), _SYSTEM: _shown(_SYSTEM, with_system)}
    strips = self._shown[_USER] != _USER
    self._instruction = instruction.rstrip() if strips else instruction
    self._ending = self._split(self._instruction, self._tags)
    self._bare = self._skeleton(bare, None)
    after = bare.text.rpartition(self._shown[_USER])[2]
    self.opening = tags.opening(after, self._frame)
    # A template may refuse or ignore a system message: that matters if there is one.
    self._refusal, self._with_system = '', None
    try:
      self._with_system = self._skeleton(with_system, _SYSTEM)
    except TokenizerError as error:
      self._refusal = f'{error} (with a system message)'
    self._default = _default_system(bare.text, with_system.text)

  def render(self, user_text: str, system: str | None = None) -> np.ndarray:
    """The prompt of one user message, generation prompt included.

    Args:
      user_text: any text; none of it becomes a control token.
      system: replaces this chat's system message, for this prompt.

    Returns:
      [L] int32 ids.

    Raises:
      TokenizerError: the template refuses a system message and there is one.
    """
    system = self._passed_system if system is None else system
    skeleton = self._bare if system is None else self._with_system
    if skeleton is None:
      raise TokenizerError(self._refusal)
    return np.asarray(self._assemble(skeleton, user_text, system), np.int32)

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
    """Counts the sampled ids up to the end of `text`; all without it.

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

  def thought_end(self, ids: np.ndarray, response: str) -> int:
    """Counts tokens up to the action; 0 after a thought closed beforehand.

    Args:
      ids: of the response.
      response: the same, decoded.
    """
    if _THOUGHT_ENDS in self.opening and _THOUGHT_ENDS not in response:
      return 0
    return self.end_of(ids, _THOUGHT_ENDS)

  def _encode(self, text: str) -> list[int]:
    if not text.isascii():
      text = text.encode('utf-8', 'replace').decode()  # Lone surrogates become '?'.
    return self._plain.encode(text, add_special_tokens=False).ids

  def _encode_message(self, before: str, text: str, after: str) -> list[int]:
    """Encodes a run of text around the user's message; tags become ids."""
    if len(self._ending) == 1 or not text.endswith(self._instruction):
      return self._encode(before + text + after)
    runs = list(self._ending)
    runs[0] = before + text[: len(text) - len(self._instruction)] + runs[0]
    runs[-1] = runs[-1] + after
    return self._encode_tagged(runs)

  def _encode_tagged(self, runs: list[str]) -> list[int]:
    """Encodes the pieces of `_split`."""
    ids: list[int] = []
    for index, run in enumerate(runs):
      ids += [self._added[run]] if index % 2 else self._encode(run)
    return ids

  def _split(self, text: str, tokens: Any) -> list[str]:
    """Cuts `text` at `tokens`: text at even places, tokens at odd ones."""
    names = sorted(tokens, key=len, reverse=True)
    if not names:
      return [text]
    return re.split('(' + '|'.join(map(re.escape, names)) + ')', text)

  def _check_plain(self) -> None:
    """Refuses a vocabulary with a control token as an ordinary word."""
    for name in self._added:
      if self.control_ids.intersection(self._encode(name)):
        raise TokenizerError(f'{self._path}: plain text can produce the token {name}')

  def _render_template(
    self, files: tokenizer_lib.Files, switches: dict[str, Any], date: str
  ) -> tuple[templates.Rendered, ...]:
    """A prompt, one with a system message, and one with its answer."""
    user = {'role': 'user', 'content': _USER}
    system = {'role': 'system', 'content': _SYSTEM}
    answer = {'role': 'assistant', 'content': _ASSISTANT}
    conversations = (
      templates.Conversation((user,), True),
      templates.Conversation((system, user), True),
      templates.Conversation((user, answer), False),
    )
    try:
      datetime.date.fromisoformat(date)
    except ValueError:
      raise TokenizerError(f'config.model.date={date!r}: must be YYYY-MM-DD') from None
    try:
      return templates.render(
        files.template, conversations, {**files.special, **switches}, date
      )
    except templates.TemplateError as error:
      raise TokenizerError(f'{self._path}: chat_template {error}') from None

  def _skeleton(
    self, rendered: templates.Rendered, system: str | None
  ) -> list[str | list[int]]:
    """Renders the template once, to fixed ids with gaps for text.

    A text run reaches from one control token to the next, so that byte pairs merge
    across the border of a message exactly as in the rendered string.
    """
    if rendered.error:
      raise TokenizerError(
        f'{self._path}: chat_template cannot be rendered: {rendered.error}'
      )
    text = rendered.text
    slots = [self._shown[slot] for slot in ((_SYSTEM,) if system else ()) + (_USER,)]
    parts: list[str | list[int]] = []
    fixed: list[int] = []
    found = []
    for index, run in enumerate(self._split(text, self._added)):
      held = [slot for slot in slots if slot in run]
      found += held
      if index % 2:
        fixed.append(self._added[run])
      elif held:
        parts += [fixed, run]
        fixed = []
      elif run:
        fixed += self._encode(run)
    parts.append(fixed)
    if found != slots or any(text.count(slot) != 1 for slot in slots):
      raise TokenizerError(
        f'{self._path}: chat_template must show each message once, unchanged or'
        ' stripped, between control tokens'
      )
    whole = self._tokenizer.encode(text, add_special_tokens=False).ids
    if self._assemble(parts, _USER, system) != whole:
      raise TokenizerError(
        f'{self._path}: the tokenizer joins text across control tokens (a prefix, or'
        ' tokens that take white space beside them), so prompts cannot be kept apart'
      )
    return parts

  def _assemble(
    self, skeleton: list[str | list[int]], user_text: str, system: str | None
  ) -> list[int]:
    """Ids of a skeleton with texts in their places."""
    if self._shown[_USER] != _USER:
      user_text = user_text.strip()
    if self._shown[_SYSTEM] != _SYSTEM:
      system = system and system.strip()
    ids: list[int] = []
    for part in skeleton:
      if isinstance(part, str):
        before, found, after = part.partition(self._shown[_USER])
        if system is not None:
          before = before.replace(self._shown[_SYSTEM], system)
        ids += (
          self._encode_message(before, user_text, after)
          if found
          else self._encode(before)
        )
      else:
        ids += part
    return ids

  def _stop_ids(
    self, files: tokenizer_lib.Files, answered: templates.Rendered
  ) -> tuple[int, ...]:
    """Lists the ids at the end of a response, the end of turn first."""
    after = answered.text.partition(_ASSISTANT)[2]
    tokens = self._split(after, self._added)[1::2]
    ends = [token for token in tokens if token not in self._tags][:1]
    ids = [self._added[token] for token in ends]
    ids += [v for k, v in self.special_ids.items() if k == 'eos_token']
    ids += files.end_ids
    if _END_OF_TEXT in self._added:
      ids.append(self._added[_END_OF_TEXT])
    if not ids:
      raise TokenizerError(
        f'{self._path}: nothing ends a response: neither the chat template ends a turn'
        ' with a control token nor is eos_token of tokenizer_config.json one'
      )
    return tuple(dict.fromkeys(ids))

  def _digest(self, files: tokenizer_lib.Files, system: str | None) -> str:
    shown = list(self._shown.values())
    parts = [files.digest, self._bare, self._with_system, shown, self.stop_ids]
    text = json.dumps([*parts, system, self._instruction])
    return hashlib.sha256(text.encode()).hexdigest()


def _without_added_tokens(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  plain = tokenizers.Tokenizer(tokenizer.model)  # Shares the vocabulary: no copy.
  if tokenizer.normalizer is not None:
    plain.normalizer = tokenizer.normalizer
  plain.pre_tokenizer = tokenizer.pre_tokenizer
  return plain


def _shown(slot: str, rendered: templates.Rendered) -> str:
  """A message as a template shows it."""
  return slot if slot in rendered.text else slot.strip()


def _default_system(bare: str, with_system: str) -> str:
  """Finds the default system message of a template; '' for none.

  It is what stands in `bare` where `with_system` has its message.
  """
  for slot in (_SYSTEM, _SYSTEM.strip()):
    before, found, after = with_system.partition(slot)
    if found and bare.startswith(before) and bare.endswith(after):
      return bare[len(before) : len(bare) - len(after)]
  return ''
