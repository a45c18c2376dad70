"""Replies to OpenAI's clients, whole and as streams. No JAX."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sdar_jax.envs import tool_calls
from sdar_jax.prompts.chat import Chat
from sdar_jax.rollout.request import Completion
from sdar_jax.serve import protocol


@dataclasses.dataclass(frozen=True)
class ReplyHead:
  """The beginning of all pieces of a reply."""

  identity: str
  created: int
  model: str
  kind: str

  def __call__(self, *, piece: bool = False) -> dict[str, Any]:
    """Writes it, of a whole reply or of a piece of a stream."""
    kind = 'text_completion'
    if self.kind == 'chat':
      kind = 'chat.completion.chunk' if piece else 'chat.completion'
    return {
      'id': self.identity,
      'object': kind,
      'created': self.created,
      'model': self.model,
    }


def whole(
  head: ReplyHead,
  asked: protocol.Inquiry,
  chat: Chat,
  prompt_ids: np.ndarray,
  done: Sequence[Completion],
) -> dict[str, Any]:
  """Writes a reply of all choices."""
  choices = []
  for index, completion in enumerate(done):
    text = chat.text_before(completion.token_ids, asked.sampling.stop_strings)
    choice: dict[str, Any] = {'index': index}
    reason = completion.stop_reason
    if asked.kind == 'chat':
      message = protocol.message_of(text, asked.names)
      if 'tool_calls' in message:
        reason = 'tool_calls' if reason == 'stop' else reason
        message['tool_calls'] = _calls(message['tool_calls'], head.identity, index)
      choice['message'] = {**message, 'refusal': None}
    else:
      choice['text'] = text
    choice['finish_reason'] = reason
    pair = completion.token_ids, completion.logprobs
    choices.append({**choice, **_extras(asked, chat, *pair)})
  out = {**head(), 'choices': choices, 'usage': usage(prompt_ids, done)}
  if asked.token_ids:
    out['prompt_token_ids'] = prompt_ids.tolist()
  return out


def usage(prompt_ids: np.ndarray, done: Sequence[Completion]) -> dict[str, int]:
  """Counts the tokens of a reply."""
  sampled = sum(len(completion.token_ids) for completion in done)
  return {
    'prompt_tokens': len(prompt_ids),
    'completion_tokens': sampled,
    'total_tokens': len(prompt_ids) + sampled,
  }


def _calls(
  calls: Sequence[tool_calls.ToolCall], identity: str, index: int
) -> list[dict[str, Any]]:
  return [
    {
      'id': f'call-{identity}-{index}-{i}',
      'type': 'function',
      'function': {
        'name': call.name,
        'arguments': json.dumps(call.arguments, ensure_ascii=False),
      },
    }
    for i, call in enumerate(calls)
  ]


def _extras(
  asked: protocol.Inquiry, chat: Chat, ids: np.ndarray, logprobs: np.ndarray
) -> dict[str, Any]:
  """Gives log-probs and ids of sampled tokens, where wanted."""
  out: dict[str, Any] = {'logprobs': None}
  values = [round(float(value), 6) for value in logprobs]
  tokens = ids.tolist() if asked.logprobs else []
  names = [chat.spell([i]) for i in tokens]
  if asked.logprobs and asked.kind == 'chat':
    content = [
      {
        'token': name,
        'logprob': value,
        'bytes': list(chat.bytes_of(token)),
        'top_logprobs': [],
      }
      for token, name, value in zip(tokens, names, values, strict=True)
    ]
    out['logprobs'] = {'content': content, 'refusal': None}
  elif asked.logprobs:
    out['logprobs'] = {
      'tokens': names,
      'token_logprobs': values,
      'top_logprobs': None,
      'text_offset': None,
    }
  if asked.token_ids:
    out['token_ids'] = ids.tolist()
  return out


class Stream:
  """Makes the pieces of one choice, as its tokens come.

  Text goes out when nothing that follows can change it: not what may become a stop
  string or a call of a tool, nor half a character.
  """

  def __init__(self, head: ReplyHead, asked: protocol.Inquiry, chat: Chat, index: int):
    self._head, self._asked, self._chat, self._index = head, asked, chat, index
    self._sent, self._tokens = '', 0
    self._held = list(asked.sampling.stop_strings)
    self._stops = len(self._held)
    self._held += [tool_calls.OPEN] if asked.names else []

  def first(self) -> dict[str, Any] | None:
    """Makes the piece with the role; None where a text needs none.

    The ids of the prompt are added to the first choice's.
    """
    if self._asked.kind == 'chat':
      return self._piece({'role': 'assistant', 'content': ''}, None, {})
    wanted = self._asked.token_ids and self._index == 0
    return self._piece('', None, {}) if wanted else None

  def more(self, ids: np.ndarray, logprobs: np.ndarray) -> dict[str, Any] | None:
    """Makes the piece of what is new and sure, if anything is."""
    text = self._sure(self._chat.decode(ids))
    return self._said(text, ids, logprobs, None)

  def last(self, done: Completion) -> list[dict[str, Any]]:
    """Makes the last pieces of the choice."""
    text = self._chat.text_before(done.token_ids, self._held[: self._stops])
    reason, calls = done.stop_reason, []
    if self._asked.names:
      message = protocol.message_of(text, self._asked.names)
      calls = message.get('tool_calls', [])
      if calls:  # Beside which words are stripped; what stood before them is out.
        before = self._sent[: len(self._sent) - len(self._sent.lstrip())]
        text = before + (message['content'] or '')
    out = []
    rest = self._said(text, done.token_ids, done.logprobs, None)
    if rest is not None:
      out.append(rest)
    if calls:
      reason = 'tool_calls' if reason == 'stop' else reason
      made = _calls(calls, self._head.identity, self._index)
      delta = {'tool_calls': [{'index': i, **call} for i, call in enumerate(made)]}
      out.append(self._piece(delta, None, {}))
    end = {} if self._asked.kind == 'chat' else ''
    return [*out, self._piece(end, reason, {})]

  def _said(
    self, text: str, ids: np.ndarray, logprobs: np.ndarray, reason: str | None
  ) -> dict[str, Any] | None:
    new = text[len(self._sent) :] if text.startswith(self._sent) else ''
    start = self._tokens
    wants = self._asked.logprobs or self._asked.token_ids
    if not new and not (wants and reason is None and len(ids) > start):
      return None
    self._sent += new
    self._tokens = len(ids)
    extras = {}
    if wants:
      extras = _extras(self._asked, self._chat, ids[start:], logprobs[start:])
    said = {'content': new} if self._asked.kind == 'chat' else new
    return self._piece(said, reason, extras)

  def _sure(self, text: str) -> str:
    """Cuts off what of a text may still change."""
    ends = [text.find(string) for string in self._held if string in text]
    text = text[: min(ends, default=len(text))].rstrip('\ufffd')
    for string in self._held:
      for length in range(min(len(string), len(text)), 0, -1):
        if text.endswith(string[:length]):
          text = text[:-length]
          break
    # Around a call the text is stripped: what may be its border waits.
    return text.rstrip() if self._asked.names else text

  def _piece(
    self, said: Any, reason: str | None, extras: dict[str, Any]
  ) -> dict[str, Any]:
    key = 'delta' if self._asked.kind == 'chat' else 'text'
    choice = {'index': self._index, key: said, 'logprobs': None, **extras}
    return {
      **self._head(piece=True),
      'choices': [{**choice, 'finish_reason': reason}],
    }
