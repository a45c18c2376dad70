"""Conversations of messages, and tools, as ids. No JAX.

The tokenizer's own template writes the conversation with what is really said, so that
whatever it does with a text, it does. Before that, each text is made harmless: of every
control token that it spells, or could help to spell at its borders, one character is
exchanged for one that occurs nowhere. The control tokens of what the template wrote are
then all its own; the characters are put back in the runs of text between them, which
are encoded by a tokenizer that has no control tokens.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.prompts import skeleton as skeletons
from sdar_jax.prompts import template as templates
from sdar_jax.prompts.encoder import Encoder, split

ROLES = ('system', 'user', 'assistant', 'tool')
_PRIVATE = range(0xF0000, 0xFFFFE)  # Characters without a meaning, in plane 15.
_TEXTS = ('content', 'reasoning_content', 'name', 'tool_call_id')
Message = Mapping[str, Any]


class MessageError(ValueError):
  """Wrong messages or tools: one line naming which and why."""


def checked(messages: Any) -> list[dict[str, Any]]:
  """Checks and tidies messages as clients write them.

  Args:
    messages: objects with `role` and `content`, a text or a list of parts of type
      text; those of the assistant may have `tool_calls`, whose arguments are an object
      or the JSON of one.

  Returns:
    The same with texts for contents and objects for arguments; other keys are left out.

  Raises:
    MessageError: one is none of these.
  """
  if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
    raise MessageError('messages: must be a list of at least one message')
  return [_checked(message, f'messages[{i}]') for i, message in enumerate(messages)]


def _checked(message: Any, where: str) -> dict[str, Any]:
  if not isinstance(message, Mapping):
    raise MessageError(f'{where}: must be an object with role and content')
  role = message.get('role')
  role = 'system' if role == 'developer' else role
  if role not in ROLES:
    raise MessageError(f'{where}.role={str(role)[:40]!r}: must be one of {ROLES}')
  if message.get('content') is None and role != 'assistant':
    raise MessageError(
      f'{where}.content: must be a text, or a list of parts of type text'
    )
  out = {'role': role, 'content': _text(message.get('content'), f'{where}.content')}
  for key in _TEXTS[1:]:
    if message.get(key) is not None:
      out[key] = _text(message[key], f'{where}.{key}')
  calls = message.get('tool_calls')
  if calls:
    if role != 'assistant' or not isinstance(calls, Sequence) or isinstance(calls, str):
      raise MessageError(f"{where}.tool_calls: must be an assistant's list of calls")
    out['tool_calls'] = [
      _call(call, f'{where}.tool_calls[{i}]') for i, call in enumerate(calls)
    ]
  return out


def _text(content: Any, where: str) -> str:
  if content is None:
    return ''
  if isinstance(content, str):
    return content
  parts = []
  for part in content if isinstance(content, Sequence) else [None]:
    if not isinstance(part, Mapping) or not isinstance(part.get('text'), str):
      raise MessageError(f'{where}: must be a text, or a list of parts of type text')
    parts.append(part['text'])
  return ''.join(parts)


def _call(call: Any, where: str) -> dict[str, Any]:
  function = call.get('function') if isinstance(call, Mapping) else None
  if not isinstance(function, Mapping) or not isinstance(function.get('name'), str):
    raise MessageError(f'{where}.function: must be an object with name and arguments')
  arguments = function.get('arguments', {})
  if isinstance(arguments, str):
    try:
      arguments = files.parse_json(arguments or '{}', f'{where}.function.arguments')
    except files.FileError as error:
      raise MessageError(files.one_line(error)) from None
  if not isinstance(arguments, Mapping):
    raise MessageError(f'{where}.function.arguments: must be an object, or its JSON')
  out = {'type': 'function'} | {
    'function': {'name': function['name'], 'arguments': dict(arguments)}
  }
  if isinstance(call.get('id'), str):
    out['id'] = call['id']
  return out


def checked_tools(tools: Any) -> list[dict[str, Any]]:
  """Checks tools as clients write them: functions with schemas.

  Raises:
    MessageError: one is none.
  """
  if not isinstance(tools, Sequence) or isinstance(tools, str):
    raise MessageError('tools: must be a list')
  for i, tool in enumerate(tools):
    function = tool.get('function') if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get('name'), str):
      raise MessageError(f'tools[{i}].function: must be an object with a name')
  return [dict(tool) for tool in tools]


def parse(text: str, system: str | None = None) -> list[dict[str, Any]] | None:
  """Reads the text of a turn in messages; None for any other text.

  Args:
    text: JSON of messages on one line; what stands before it, an empty line between, is
      put before the first user's message.
    system: is put behind the system message, or made one.
  """
  block, _, line = text.rpartition('\n\n')
  if not line.startswith('['):
    return None
  messages = checked(files.parse_json(line, 'messages', list))
  if block:
    first = next((m for m in messages if m['role'] == 'user'), None)
    if first is None:
      messages.insert(0, {'role': 'user', 'content': block})
    else:
      first['content'] = f'{block}\n\n{first["content"]}'
  if system and messages[0]['role'] == 'system':
    messages[0]['content'] += f'\n\n{system}'
  elif system:
    messages.insert(0, {'role': 'system', 'content': system})
  return messages


class Speech:
  """Writes conversations with a template, and encodes them.

  Args:
    render: a conversation to the template's text, or its error.
    encoder: of text.
    tags: tokens that an assistant may say.
    instruction: with which a user's message may end: our words, whose tags are tokens.
    strips: the template strips messages.
    path: of the tokenizer, for errors.
  """

  def __init__(
    self,
    render: Callable[[templates.Conversation], templates.Rendered],
    encoder: Encoder,
    tags: Iterable[str],
    instruction: str,
    strips: bool,
    path: str,
  ):
    self._render, self._encoder = render, encoder
    self._instruction, self._strips, self._path = instruction, strips, path
    self._all = _Pieces(encoder.added)
    self._frame = _Pieces(set(encoder.added) - set(tags))

  def prompt(
    self, messages: Sequence[Message], tools: Sequence[Message] = ()
  ) -> list[int]:
    """Makes the ids of a conversation with a generation prompt.

    Raises:
      MessageError: a message or a tool is none, or the template does not show it.
    """
    messages, tools = checked(messages), checked_tools(tools)
    text, restore = self._written(messages, tools)
    self._check_shown(messages, tools, text.translate(restore))
    return self._encoded(text, restore)

  def follow(
    self, messages: Sequence[Message], tools: Sequence[Message] = ()
  ) -> list[int]:
    """Makes the ids of all that follows an answer, its end included.

    Raises:
      MessageError: as `prompt`; or what follows an answer cannot be told apart.
    """
    messages, tools = checked(messages), checked_tools(tools)
    answer = skeletons.ASSISTANT
    while any(answer in text for text in _texts([messages, tools])):
      answer += '@'
    before = [
      {'role': 'user', 'content': 'x'},
      {'role': 'assistant', 'content': answer},
    ]
    text, restore = self._written([*before, *messages], tools, trusted=2)
    _, found, tail = text.partition(answer)
    if not found:
      raise MessageError(f'{self._path}: chat_template does not show an answer')
    self._check_shown(messages, (), tail.translate(restore))
    return self._encoded(tail, restore)

  def _written(
    self,
    messages: Sequence[Message],
    tools: Sequence[Message],
    trusted: int = 0,
  ) -> tuple[str, dict[int, str]]:
    """Writes harmless texts; returns also how to restore them."""
    used = {character for text in _texts([messages, tools]) for character in text}
    marks = _Marks(used)
    said = [
      message if i < trusted else self._harmless(message, marks)
      for i, message in enumerate(messages)
    ]
    shown = _mapped(tools, self._all.changing(marks))
    written = self._render(templates.Conversation(tuple(said), True, shown or None))
    if written.error:
      raise MessageError(
        f'{self._path}: chat_template cannot write this conversation: {written.error}'
      )
    return written.text, marks.restore

  def _harmless(self, message: Message, marks: '_Marks') -> dict[str, Any]:
    out = _mapped(
      {k: v for k, v in message.items() if k != 'role'}, self._all.changing(marks)
    )
    text, ours = message['content'], self._instruction
    if message['role'] == 'assistant':
      out['content'] = self._frame.harmless(text, marks)
    elif message['role'] == 'user' and ours:
      text = text.rstrip() if self._strips else text
      if not text.endswith(ours):
        return {'role': 'user', **out}
      head = text[: len(text) - len(ours)]
      out['content'] = self._all.harmless(head, marks) + self._frame.harmless(
        ours, marks
      )
    return {'role': message['role'], **out}

  def _encoded(self, text: str, restore: Mapping[int, str]) -> list[int]:
    runs = split(text, self._encoder.added)
    return self._encoder.encode_runs([run.translate(restore) for run in runs])

  def _check_shown(
    self, messages: Sequence[Message], tools: Sequence[Message], text: str
  ) -> None:
    """Refuses conversations of which a template leaves something out."""
    for i, message in enumerate(messages):
      if message['role'] != 'assistant' and not _holds(text, message['content']):
        raise MessageError(
          f'{self._path}: chat_template does not show messages[{i}], of role'
          f' {message["role"]!r}'
        )
    for tool in tools:
      if tool['function']['name'] not in text:
        raise MessageError(f'{self._path}: chat_template shows no tools')


def _holds(text: str, content: str) -> bool:
  """Tests a text for a content, as it is or as JSON."""
  found = content.strip()
  return found in text or json.dumps(found, ensure_ascii=False)[1:-1] in text


class _Marks:
  """Unused characters, one for each exchanged."""

  def __init__(self, used: set[str]):
    self._free = (chr(code) for code in _PRIVATE if chr(code) not in used)
    self._marks: dict[str, str] = {}
    self.restore: dict[int, str] = {}

  def of(self, character: str) -> str:
    """Gives the mark in place of a character."""
    if character not in self._marks:
      mark = next(self._free)
      self._marks[character], self.restore[ord(mark)] = mark, character
    return self._marks[character]


class _Pieces:
  """Tokens, and the pieces of them to look for in texts.

  Joined to what a template writes before and after it, a text is part of a token if it
  holds the token, ends as the token begins, begins as it ends, or lies within it.
  """

  def __init__(self, tokens: Iterable[str]):
    names = sorted(tokens, key=len, reverse=True)
    self._whole = re.compile('|'.join(map(re.escape, names)) or '(?!)')
    cuts = [(name, i) for name in names for i in range(1, len(name))]
    self._heads = {name[:i] for name, i in cuts}
    self._tails = {name[i:] for name, i in cuts}
    self._names = names
    self._longest = max(map(len, names), default=0)

  def changing(self, marks: _Marks) -> Callable[[str, str], str]:
    """Gives `harmless` as `_mapped` calls it.

    By a key, and by the type in a schema, templates tell things apart: a word that
    merely lies within a token stays what it is there.
    """
    return lambda text, key: self.harmless(text, marks, within=key != 'type')

  def harmless(self, text: str, marks: _Marks, *, within: bool = True) -> str:
    """Marks a character of each such piece of a text.

    Args:
      text: of anybody.
      marks: what to write instead.
      within: whether to mark a text that lies within a token, as many a word does.
    """
    if not text.strip():
      return text
    marked = text
    while self._whole.search(marked):  # Again for tokens that overlapped.
      marked = self._whole.sub(lambda m: marks.of(m[0][0]) + m[0][1:], marked)
    characters = list(marked)

    def mark(place: int) -> None:
      if ord(characters[place]) not in marks.restore:
        characters[place] = marks.of(text[place])

    begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
    for first, last in {(a, b) for a in (0, begin) for b in (end, len(text))}:
      for length in range(1, min(last - first, self._longest) + 1):
        if text[last - length : last] in self._heads:
          mark(last - length)
        if text[first : first + length] in self._tails:
          mark(first + length - 1)
      if within and any(text[first:last] in name for name in self._names):
        mark(first)
    return ''.join(characters)


def _texts(value: Any) -> Iterable[str]:
  """Yields every text in a value of JSON, keys included."""
  if isinstance(value, str):
    yield value
  elif isinstance(value, Mapping):
    for key, item in value.items():
      yield from _texts(key)
      yield from _texts(item)
  elif isinstance(value, Sequence):
    for item in value:
      yield from _texts(item)


def _mapped(value: Any, change: Callable[[str, str], str], key: str = '') -> Any:
  """Changes the texts and keys of a value; told each text's key."""
  if isinstance(value, str):
    return change(value, key)
  if isinstance(value, Mapping):
    return {change(k, 'type'): _mapped(v, change, k) for k, v in value.items()}
  if isinstance(value, Sequence):
    return tuple(_mapped(item, change, key) for item in value)
  return value
