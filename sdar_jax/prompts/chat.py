"""Chat template and tokenizer: prompts to ids and back. No JAX.

The template's own tokens and everybody else's text never mix: the template is
rendered once with a placeholder, its control tokens become fixed ids, and text is
encoded by a tokenizer that has no control tokens at all. So whatever an environment
says, `<|im_end|>` in it stays the eleven characters that it is.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdar_jax.prompts import messages as messages_lib
from sdar_jax.prompts import skeleton as skeletons
from sdar_jax.prompts import tags
from sdar_jax.prompts import tokenizer as tokenizer_lib
from sdar_jax.prompts.encoder import Encoder, split
from sdar_jax.prompts.tokenizer import TokenizerError

__all__ = ['Chat', 'TokenizerError']

DATE = '2026-01-01'  # What templates that ask for today's are told.
_THOUGHT_ENDS = '</think>'
_END_OF_TEXT = '<|endoftext|>'  # Ends a document for many models, and so a response.
_WHERE = {'with_system': 'with a system message', 'follow_up': 'behind an answer'}


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
    tools: Sequence[messages_lib.Message] | None = None,
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
      tools: of a world that speaks in messages: texts to render are then their JSON,
        as `envs.talking` writes them. None: a text is one user's message.

    Raises:
      TokenizerError: one line naming the file and what is wrong with it.
    """
    self._path = str(path)
    files = tokenizer_lib.load(path, model)
    self._encoder = encoder = Encoder(files.tokenizer, self._path)
    added, self.control_ids = encoder.added, encoder.control_ids
    self.len_vocab = encoder.len_vocab
    named = files.special.items()
    self.special_ids = {k: added[v] for k, v in named if v in added}
    said = tags.paired(added) | {*tags.find(instruction)}
    mute = encoder.special() - said
    self._tags = [name for name in added if name not in mute]
    switches = {'enable_thinking': enable_thinking}
    rendering = skeletons.render(files, switches, date, self._path)
    strips = rendering.user != skeletons.USER
    self._instruction = instruction.rstrip() if strips else instruction
    self._ending = split(self._instruction, self._tags)
    write = functools.partial(skeletons.write, files, switches, date, self._path)
    self._speech = messages_lib.Speech(
      write, encoder, self._tags, self._instruction, strips, self._path
    )
    self._bare = self._skeleton(rendering, 'bare')
    after = rendering.bare.text.rpartition(rendering.user)[2]
    self.opening = tags.opening(after, [name for name in added if name not in said])
    # A template may refuse or ignore a system message: that matters if there is one.
    self._with_system, self._refusal = self._if_any(rendering, 'with_system')
    self._follow_up, self._no_follow_up = self._if_any(rendering, 'follow_up')
    self.system = rendering.default_system if system is None else system
    self._tools, self._passed_system = tools, system
    self.stop_ids = self._stop_ids(files, rendering.answered.text)
    # Ids that leave no trace in a text.
    self._silent = {*self.stop_ids, *(added[name] for name in mute)}
    self.digest = self._digest(files, [rendering.user, rendering.system])

  def _skeleton(self, rendering: skeletons.Rendering, kind: str) -> skeletons.Skeleton:
    return skeletons.Skeleton(
      rendering, kind, self._encoder, self._encode_message, self._path
    )

  def _if_any(
    self, rendering: skeletons.Rendering, kind: str
  ) -> tuple[skeletons.Skeleton | None, str]:
    """Makes a skeleton, or says in a line why there is none."""
    try:
      return self._skeleton(rendering, kind), ''
    except TokenizerError as error:
      return None, f'{error} ({_WHERE[kind]})'

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
    said = None if self._tools is None else messages_lib.parse(user_text, system)
    if said is not None:
      return self.render_messages(said, self._tools)
    system = self._passed_system if system is None else system
    skeleton = self._bare if system is None else self._with_system
    if skeleton is None:
      raise TokenizerError(self._refusal)
    return np.asarray(skeleton.fill(user_text, system), np.int32)

  def follow(self, response_ids: np.ndarray, user_text: str) -> np.ndarray:
    """Continues a conversation behind a response, ids as they were sampled.

    Args:
      response_ids: [R] the response; whatever ended it, its turn is closed.
      user_text: any text; none of it becomes a control token.

    Returns:
      [L] int32 ids of all that follows the response, generation prompt included.

    Raises:
      TokenizerError: the template cannot be taken apart behind an answer.
    """
    self.check_follow()
    said = None if self._tools is None else messages_lib.parse(user_text)
    if said is not None:
      return self.follow_messages(response_ids, said, self._tools)
    ids = self._follow_up.fill(user_text, None)
    closed = len(response_ids) and ids[0] == response_ids[-1] == self.stop_ids[0]
    return np.asarray(ids[1:] if closed else ids, np.int32)

  def render_messages(
    self,
    messages: Sequence[messages_lib.Message],
    tools: Sequence[messages_lib.Message] = (),
  ) -> np.ndarray:
    """The prompt of a conversation, as the tokenizer's template writes it.

    Ids equal those of transformers' `apply_chat_template` with a generation prompt, as
    long as no text holds a control token; where one does, it is plain text. What an
    assistant said may hold the tokens of its tags.

    Args:
      messages: as `messages.checked` takes them.
      tools: functions with schemas.

    Returns:
      [L] int32 ids.

    Raises:
      messages.MessageError: one line saying what is wrong with them, or that the
        template does not show them.
    """
    return np.asarray(self._speech.prompt(messages, tools), np.int32)

  def follow_messages(
    self,
    response_ids: np.ndarray,
    messages: Sequence[messages_lib.Message],
    tools: Sequence[messages_lib.Message] = (),
  ) -> np.ndarray:
    """Continues a conversation behind a response, as `follow` does.

    Args:
      response_ids: [R] the response; whatever ended it, its turn is closed.
      messages: what was said since.
      tools: of the conversation.

    Returns:
      [L] int32 ids of all that follows the response, generation prompt included.
    """
    ids = self._speech.follow(messages, tools)
    closed = len(response_ids) and ids[0] == response_ids[-1] == self.stop_ids[0]
    return np.asarray(ids[1:] if closed else ids, np.int32)

  def check_follow(self) -> None:
    """Raises TokenizerError where conversations cannot go on."""
    if self._follow_up is None:
      raise TokenizerError(self._no_follow_up)

  def encode_text(self, text: str) -> np.ndarray:
    """Ids of `text`, [L] int32, none of them a control token."""
    return np.asarray(self._encoder.encode(text), np.int32)

  def encode_response(self, text: str) -> np.ndarray:
    """Ids of a response of our own making, such as an expert's, [R] int32.

    Tags are tokens where the tokenizer has such tokens; the stop token ends it. A tag
    that `opening` leaves open is not written again.
    """
    text = text.removeprefix(tags.unclosed(self.opening))
    ids = self._encoder.encode_runs(split(text, self._tags))
    return np.asarray([*ids, self.stop_ids[0]], np.int32)

  def decode(self, ids: Any) -> str:
    """Text of sampled ids, for environments and people.

    Special tokens and those that end a response are left out, tags are not.
    """
    ids = [i for i in np.asarray(ids, np.int64).tolist() if i not in self._silent]
    return self._encoder.decode(ids)

  def spell(self, ids: Any) -> str:
    """Decodes ids to the last: control tokens by their names."""
    return self._encoder.decode(np.asarray(ids, np.int64).tolist())

  def bytes_of(self, token: int) -> bytes:
    """Gives a token's own bytes, which may be a part of a character's."""
    return self._encoder.bytes_of(token)

  def text_before(self, ids: Any, ends: Sequence[str]) -> str:
    """Decodes ids up to the first of some texts."""
    text = self.decode(ids)
    found = [text.find(end) for end in ends if end in text]
    return text[: min(found, default=len(text))]

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

  def _encode_message(self, before: str, text: str, after: str) -> list[int]:
    """Encodes a run of text around the user's message; tags become ids."""
    if len(self._ending) == 1 or not text.endswith(self._instruction):
      return self._encoder.encode(before + text + after)
    runs = list(self._ending)
    runs[0] = before + text[: len(text) - len(self._instruction)] + runs[0]
    runs[-1] = runs[-1] + after
    return self._encoder.encode_runs(runs)

  def _stop_ids(self, files: tokenizer_lib.Files, answered: str) -> tuple[int, ...]:
    """Lists the ids at the end of a response, the end of turn first."""
    added = self._encoder.added
    tokens = split(answered.partition(skeletons.ASSISTANT)[2], added)[1::2]
    ends = [token for token in tokens if token not in self._tags][:1]
    ids = [added[token] for token in ends]
    ids += [v for k, v in self.special_ids.items() if k == 'eos_token']
    ids += files.end_ids
    if _END_OF_TEXT in added:
      ids.append(added[_END_OF_TEXT])
    if not ids:
      raise TokenizerError(
        f'{self._path}: nothing ends a response: neither the chat template ends a turn'
        ' with a control token nor is eos_token of tokenizer_config.json one'
      )
    return tuple(dict.fromkeys(ids))

  def _digest(self, files: tokenizer_lib.Files, shown: list[str]) -> str:
    system = self._with_system and self._with_system.parts
    parts = [files.digest, self._bare.parts, system, shown, self.stop_ids]
    parts += [] if self._tools is None else [list(self._tools), files.template]
    text = json.dumps([*parts, self._passed_system, self._instruction])
    return hashlib.sha256(text.encode()).hexdigest()
