"""Worlds of messages and tools instead of one text a turn. No JAX."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from sdar_jax.envs import base, tool_calls
from sdar_jax.envs.action_parser import ParsedAction
from sdar_jax.envs.base import Exchange, History

Message = dict[str, Any]


def dump(messages: Sequence[Mapping[str, Any]]) -> str:
  """Writes messages as the text of a turn: their JSON, on one line."""
  return json.dumps(list(messages), ensure_ascii=False)


@dataclasses.dataclass(frozen=True)
class TalkingWorld(base.World):
  """Base class of worlds in messages, with tools that the policy may call.

  What an environment says is the user's message at first and after words, and a tool's
  result after a call. An action is what was said, or the JSON of a call: `call_of`
  reads it. The tokenizer's own template writes messages and tools; so a turn's text,
  and what is recorded of it, is the JSON of its messages.

  Attributes:
    tools: functions with schemas, as OpenAI's clients write them.
    system: the first message; '' for none.
  """

  tools: ClassVar[tuple[Mapping[str, Any], ...]] = ()
  system: ClassVar[str] = ''
  instruction: ClassVar[str] = ''

  @property
  def digest(self) -> str:
    """Hex SHA-256 over everything that decides what episodes consist of."""
    return base.digest_of([super().digest, list(self.tools), self.system])

  def render(
    self,
    task: base.Task,
    history: History | Sequence[Exchange],
    observation: base.Observation,
  ) -> str:
    """Writes the whole conversation: `messages`, as JSON."""
    return dump(self.messages(task, history, observation))

  def messages(
    self,
    task: base.Task,
    history: History | Sequence[Exchange],
    observation: base.Observation,
  ) -> list[Message]:
    """Makes the messages of a turn's prompt."""
    said = [{'role': 'system', 'content': self.system}] if self.system else []
    said.append({'role': 'user', 'content': task.goal})
    before = None
    for exchange in history:
      said += self.heard(before, exchange.observation)
      said.append(spoken(exchange.action))
      before = exchange.action
    return said + self.heard(before, observation.text)

  def heard(self, before: str | None, text: str) -> list[Message]:
    """Makes the messages of an observation, by the action before it.

    At the first turn shown there is none: what is seen is the user's.
    """
    if not text:
      return []
    call = before is not None and call_of(before) is not None
    return [{'role': 'tool' if call else 'user', 'content': text}]

  def follow_up(
    self,
    task: base.Task,
    history: History | Sequence[Exchange],
    before: base.Observation | None,
    observation: base.Observation,
  ) -> str:
    """Writes the messages of what is new, as JSON."""
    del task, before
    return dump(self.heard(history[-1].action, observation.text))

  def parse(self, response: str, observation: base.Observation) -> ParsedAction:
    """Reads a response: one call of a tool, or words.

    Two calls, and one that is none, are no valid action: the words as they are.
    """
    del observation
    names = [tool['function']['name'] for tool in self.tools]
    try:
      said, calls = tool_calls.parse(response, names)
    except tool_calls.ToolCallError:
      return ParsedAction(response, False)
    if len(calls) > 1:
      return ParsedAction(response, False)
    if not calls:
      return ParsedAction(said, bool(said))
    call = {'name': calls[0].name, 'arguments': calls[0].arguments}
    return ParsedAction(json.dumps(call, ensure_ascii=False), True)

  def response(self, thought: str, action: str) -> str:
    """Writes a response: the inverse of `parse`."""
    call = call_of(action)
    if call is None:
      return action
    return f'{tool_calls.OPEN}\n{action}\n{tool_calls.CLOSE}'


def call_of(action: str) -> tool_calls.ToolCall | None:
  """Reads an action that is the JSON of a call; None for words."""
  try:
    _, calls = tool_calls.parse(f'{tool_calls.OPEN}{action}{tool_calls.CLOSE}')
  except tool_calls.ToolCallError:
    return None
  return calls[0]


def spoken(action: str) -> Message:
  """Makes the assistant's message of an action."""
  call = call_of(action)
  if call is None:
    return {'role': 'assistant', 'content': action}
  function = {'name': call.name, 'arguments': call.arguments}
  calls = [{'type': 'function', 'function': function}]
  return {'role': 'assistant', 'content': '', 'tool_calls': calls}
