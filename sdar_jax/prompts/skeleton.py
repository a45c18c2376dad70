"""Prompts of a chat template as fixed ids with gaps for text. No JAX.

The template is rendered once with placeholders; its control tokens become fixed ids. A
run of text reaches from one of them to the next, so that byte pairs merge across the
border of a message exactly as in the rendered string.
"""

import dataclasses
import datetime
from collections.abc import Callable
from typing import Any

from sdar_jax.prompts import template as templates
from sdar_jax.prompts import tokenizer as tokenizer_lib
from sdar_jax.prompts.encoder import Encoder, split
from sdar_jax.prompts.tokenizer import TokenizerError

# White space at its borders shows whether a template trims the message.
USER = '\n  @user text@  \n'
SYSTEM = '\n  @system text@  \n'
ASSISTANT = '@assistant text@'

Parts = list[str | list[int]]
# Ids of a user message between the text before and after it.
EncodeMessage = Callable[[str, str, str], list[int]]


@dataclasses.dataclass(frozen=True)
class Rendering:
  """A template with placeholders for what is said.

  Attributes:
    bare: a prompt of one user message.
    with_system: the same after a system message.
    answered: a user message with its answer.
    continued: the same, and a prompt of one more user message.
  """

  bare: templates.Rendered
  with_system: templates.Rendered
  answered: templates.Rendered
  continued: templates.Rendered

  @property
  def user(self) -> str:
    """The user's placeholder as the template shows it: some strip it."""
    return USER if USER in self.bare.text else USER.strip()

  @property
  def system(self) -> str:
    """The system's placeholder as the template shows it."""
    return SYSTEM if SYSTEM in self.with_system.text else SYSTEM.strip()

  @property
  def follow_up(self) -> templates.Rendered:
    """What stands behind an answer in `continued`."""
    found = self.continued
    if found.error or found.text.count(ASSISTANT) == 1:
      return templates.Rendered(found.text.rpartition(ASSISTANT)[2], found.error)
    return templates.Rendered('', 'it does not show an answer once, before the next')

  @property
  def default_system(self) -> str:
    """The template's own system message; '' for none.

    It is what stands in `bare` where `with_system` has its message.
    """
    bare = self.bare.text
    for slot in (SYSTEM, SYSTEM.strip()):
      before, found, after = self.with_system.text.partition(slot)
      if found and bare.startswith(before) and bare.endswith(after):
        return bare[len(before) : len(bare) - len(after)]
    return ''


def render(
  files: tokenizer_lib.Files, switches: dict[str, Any], date: str, path: str
) -> Rendering:
  """Renders a template with placeholders.

  Args:
    files: of the tokenizer, with the template.
    switches: what else the template may read, such as `enable_thinking`.
    date: YYYY-MM-DD, for templates that ask for today's.
    path: of the files, for messages.

  Raises:
    TokenizerError: the template renders nothing, or `date` is none.
  """
  user = {'role': 'user', 'content': USER}
  system = {'role': 'system', 'content': SYSTEM}
  answer = {'role': 'assistant', 'content': ASSISTANT}
  conversations = (
    templates.Conversation((user,), True),
    templates.Conversation((system, user), True),
    templates.Conversation((user, answer), False),
    templates.Conversation((user, answer, user), True),
  )
  try:
    datetime.date.fromisoformat(date)
  except ValueError:
    raise TokenizerError(f'config.model.date={date!r}: must be YYYY-MM-DD') from None
  try:
    variables = {**files.special, **switches}
    return Rendering(*templates.render(files.template, conversations, variables, date))
  except templates.TemplateError as error:
    raise TokenizerError(f'{path}: chat_template {error}') from None


def write(
  files: tokenizer_lib.Files,
  switches: dict[str, Any],
  date: str,
  path: str,
  conversation: templates.Conversation,
) -> templates.Rendered:
  """Writes one conversation with a tokenizer's template."""
  variables = {**files.special, **switches}
  try:
    return templates.render(files.template, [conversation], variables, date)[0]
  except templates.TemplateError as error:
    raise TokenizerError(f'{path}: chat_template {error}') from None


class Skeleton:
  """A prompt with gaps for a user's and perhaps a system's message.

  Attributes:
    parts: fixed ids, and runs of text with placeholders.
  """

  def __init__(
    self,
    rendering: Rendering,
    kind: str,
    encoder: Encoder,
    encode_message: EncodeMessage,
    path: str,
  ):
    """Takes a rendered prompt apart.

    Args:
      rendering: of the template.
      kind: which of it: 'bare', 'with_system' or 'follow_up'.
      encoder: of text.
      encode_message: of a user message.
      path: of the files, for messages.

    Raises:
      TokenizerError: messages cannot be told apart in it.
    """
    rendered, with_system = getattr(rendering, kind), kind == 'with_system'
    if rendered.error:
      raise TokenizerError(
        f'{path}: chat_template cannot be rendered: {rendered.error}'
      )
    self._user, self._system = rendering.user, rendering.system
    self._encoder, self._encode_message = encoder, encode_message
    text = rendered.text
    slots = [self._system, self._user] if with_system else [self._user]
    found = self._take_apart(text, slots)
    if found != slots or any(text.count(slot) != 1 for slot in slots):
      raise TokenizerError(
        f'{path}: chat_template must show each message once, unchanged or'
        ' stripped, between control tokens'
      )
    if self.fill(USER, SYSTEM if with_system else None) != encoder.encode_all(text):
      raise TokenizerError(
        f'{path}: the tokenizer joins text across control tokens (a prefix, or'
        ' tokens that take white space beside them), so prompts cannot be kept apart'
      )

  def _take_apart(self, text: str, slots: list[str]) -> list[str]:
    """Sets the parts; returns the placeholders in order."""
    self.parts: Parts = []
    fixed: list[int] = []
    found = []
    for index, run in enumerate(split(text, self._encoder.added)):
      held = [slot for slot in slots if slot in run]
      found += held
      if index % 2:
        fixed.append(self._encoder.added[run])
      elif held:
        self.parts += [fixed, run]
        fixed = []
      elif run:
        fixed += self._encoder.encode(run)
    self.parts.append(fixed)
    return found

  def fill(self, user_text: str, system: str | None) -> list[int]:
    """Gives the ids of a prompt with these texts in their places."""
    if self._user != USER:
      user_text = user_text.strip()
    if self._system != SYSTEM:
      system = system and system.strip()
    ids: list[int] = []
    for part in self.parts:
      if isinstance(part, str):
        before, found, after = part.partition(self._user)
        if system is not None:
          before = before.replace(self._system, system)
        ids += (
          self._encode_message(before, user_text, after)
          if found
          else self._encoder.encode(before)
        )
      else:
        ids += part
    return ids
