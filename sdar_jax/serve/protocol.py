"""Requests of OpenAI's clients, read and checked. No JAX."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdar_jax.envs import tool_calls
from sdar_jax.prompts import messages as messages_lib
from sdar_jax.prompts.chat import Chat
from sdar_jax.rollout.request import SamplingParams

_MOST_STOPS, _LONGEST_STOP, _LONGEST_SESSION = 8, 200, 200
_SHARED = (
  *('model', 'max_tokens', 'temperature', 'top_p', 'top_k', 'n', 'seed', 'stop'),
  *('stream', 'stream_options', 'logprobs', 'return_token_ids', 'session', 'user'),
)
_OF_CHAT = ('messages', 'tools', 'tool_choice', 'max_completion_tokens', 'top_logprobs')
# Read by OpenAI's own servers and without a meaning here.
_UNREAD = ('metadata', 'store', 'service_tier', 'parallel_tool_calls')
# What may be said only with the value that means nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
  'frequency_penalty': (0, None),
  'presence_penalty': (0, None),
  'logit_bias': (None, {}),
  'response_format': (None, {'type': 'text'}),
  'echo': (False, None),
  'best_of': (1, None),
  'suffix': (None, ''),
  'reasoning_effort': (None,),
}


class BadRequest(ValueError):
  """A refused request: one line.

  Attributes:
    status: of HTTP.
    kind: as OpenAI names it.
    parameter: of the body, or None.
  """

  def __init__(self, text: str, parameter: str | None = None, status: int = 400):
    super().__init__(text)
    self.status, self.parameter = status, parameter
    self.kind = {401: 'authentication_error', 429: 'rate_limit_error'}.get(
      status, 'server_error' if status >= 500 else 'invalid_request_error'
    )


@dataclasses.dataclass(frozen=True)
class Bounds:
  """The limits of a server.

  Attributes:
    body_bytes: of a request.
    queue: requests that wait or decode at a time, each of `n` counted.
    choices: n, at most.
    seconds: for an answer to be ready.
    sessions: conversations that are remembered, the newest.
  """

  body_bytes: int = 2**22
  queue: int = 256
  choices: int = 16
  seconds: float = 600.0
  sessions: int = 4096


@dataclasses.dataclass(frozen=True)
class Inquiry:
  """A request, checked.

  Attributes:
    kind: 'chat' or 'text'.
    messages, tools: of a chat, as the client wrote them.
    prompt: of a text: a text, or ids.
    sampling: how tokens are drawn.
    n: choices.
    seed: of their random numbers; None for any.
    session: whose trajectory it is a turn of; '' for none.
    stream, usage: whether to stream, and to end with a count of tokens.
    logprobs, token_ids: whether to give them.
  """

  kind: str
  messages: Sequence[Mapping[str, Any]]
  tools: Sequence[Mapping[str, Any]]
  prompt: str | np.ndarray
  sampling: SamplingParams
  n: int
  seed: int | None
  session: str
  stream: bool
  usage: bool
  logprobs: bool
  token_ids: bool

  @property
  def names(self) -> list[str]:
    """Lists the names of the tools."""
    return [tool['function']['name'] for tool in self.tools]


def read(
  body: Mapping[str, Any],
  kind: str,
  *,
  model: str,
  chat: Chat,
  defaults: SamplingParams,
  limits: Bounds,
  session: str = '',
) -> Inquiry:
  """Checks the body of a request.

  Args:
    body: JSON.
    kind: 'chat' or 'text'.
    model: the name that is served.
    chat: of the policy.
    defaults: of sampling; its `max_tokens` is the most.
    limits: of the server.
    session: of the request's header; '' for none.

  Raises:
    BadRequest: one line naming the parameter.
  """
  _check_keys(body, kind)
  if body.get('model') not in (None, model):
    said = str(body['model'])[:80]
    raise BadRequest(f'model {said!r}: this server has {model!r}', 'model', 404)
  n = _number(body, 'n', int, 1, 1, limits.choices)
  session = session or _flagged(body, 'session', str, '')
  if len(session) > _LONGEST_SESSION:
    raise BadRequest(f'session: at most {_LONGEST_SESSION} characters', 'session')
  if session and n > 1:
    raise BadRequest('n: 1 in a session, which goes on from one answer', 'n')
  options = body.get('stream_options') or {}
  if not isinstance(options, Mapping):
    raise BadRequest('stream_options: must be an object', 'stream_options')
  messages, tools, prompt = _said(body, kind)
  return Inquiry(
    kind=kind,
    messages=messages,
    tools=tools,
    prompt=prompt,
    sampling=_sampling(body, chat, defaults),
    n=n,
    seed=_number(body, 'seed', int, None, -(2**63), 2**63 - 1),
    session=session,
    stream=_flagged(body, 'stream', bool, False),
    usage=bool(options.get('include_usage')),
    logprobs=_wants_logprobs(body, kind),
    token_ids=_flagged(body, 'return_token_ids', bool, False),
  )


def _sampling(
  body: Mapping[str, Any], chat: Chat, defaults: SamplingParams
) -> SamplingParams:
  take = lambda key, *rest: _number(body, key, *rest)
  asked = take('max_completion_tokens', int, None, 1, defaults.max_tokens)
  most = take('max_tokens', int, asked, 1, defaults.max_tokens)
  try:
    return SamplingParams(
      max_tokens=most or defaults.max_tokens,
      temperature=take('temperature', float, defaults.temperature, 0, 100),
      top_p=take('top_p', float, defaults.top_p, 0, 1),
      top_k=take('top_k', int, defaults.top_k, 0, 2**31 - 1),
      stop_ids=chat.stop_ids,
      stop_strings=_stops(body),
    )
  except ValueError as error:
    raise BadRequest(str(error)) from None


def _check_keys(body: Mapping[str, Any], kind: str) -> None:
  known = {*_SHARED, *_UNREAD, *(_OF_CHAT if kind == 'chat' else ('prompt',))}
  for key, value in body.items():
    if key in _NEUTRAL:
      if value not in _NEUTRAL[key]:
        raise BadRequest(f'{key}: not supported, leave it out', key)
    elif key not in known:
      raise BadRequest(f'{key[:60]!r}: no such parameter here', key[:60])


def _number(
  body: Mapping[str, Any], key: str, kind: type, default: Any, least: Any, most: Any
) -> Any:
  value = body.get(key)
  if value is None:
    return default
  fits = isinstance(value, int) and not isinstance(value, bool)
  if kind is float:
    fits = fits or isinstance(value, float)
  if not fits or not least <= value <= most or not math.isfinite(value):
    what = 'a whole number' if kind is int else 'a number'
    raise BadRequest(f'{key}: must be {what} from {least} to {most}', key)
  return kind(value)


def _flagged(body: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
  value = body.get(key)
  if value is None:
    return default
  if not isinstance(value, kind):
    raise BadRequest(f'{key}: must be a {kind.__name__}', key)
  return value


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
  value = body.get('stop') or ()
  stops = [value] if isinstance(value, str) else value
  fits = isinstance(stops, Sequence) and len(stops) <= _MOST_STOPS
  if not fits or not all(
    isinstance(text, str) and 0 < len(text) <= _LONGEST_STOP for text in stops
  ):
    raise BadRequest(
      f'stop: must be at most {_MOST_STOPS} texts of 1 to {_LONGEST_STOP} characters',
      'stop',
    )
  return tuple(stops)


def _wants_logprobs(body: Mapping[str, Any], kind: str) -> bool:
  top = _number(body, 'top_logprobs', int, 0, 0, 20)
  if kind == 'text':
    top = _number(body, 'logprobs', int, 0, 0, 5)
    wanted = body.get('logprobs') is not None
  else:
    wanted = _flagged(body, 'logprobs', bool, False)
  if top > (kind == 'text'):
    raise BadRequest(
      'top_logprobs: only the log-probs of the tokens that were sampled are given',
      'top_logprobs',
    )
  return wanted


def _said(body: Mapping[str, Any], kind: str) -> tuple[Any, Any, Any]:
  """Reads the messages and tools, or the prompt."""
  if kind == 'text':
    prompt = body.get('prompt')
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
      prompt = prompt[0]
    if isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
      if not all(0 <= i < 2**31 for i in prompt):
        raise BadRequest('prompt: an id is out of range', 'prompt')
      return (), (), np.asarray(prompt, np.int32)
    if not isinstance(prompt, str) or not prompt:
      raise BadRequest('prompt: must be one text, or a list of ids', 'prompt')
    return (), (), prompt
  try:
    messages = messages_lib.checked(body.get('messages'))
    tools = messages_lib.checked_tools(body.get('tools') or [])
  except messages_lib.MessageError as error:
    raise BadRequest(str(error), str(error).partition('[')[0].split(':')[0]) from None
  choice = body.get('tool_choice')
  if choice not in (None, 'auto', 'none'):
    raise BadRequest("tool_choice: must be 'auto' or 'none'", 'tool_choice')
  return messages, () if choice == 'none' else tools, ''


def message_of(text: str, names: Sequence[str]) -> dict[str, Any]:
  """Makes the assistant's message of a response, calls apart.

  What is no right call is what was said, whole: the agent sees it.
  """
  said, calls = text, []
  if names:
    try:
      said, calls = tool_calls.parse(text, names)
    except tool_calls.ToolCallError:
      said, calls = text, []
  out: dict[str, Any] = {'role': 'assistant', 'content': said if calls else text}
  if calls:
    out['content'] = said or None
    out['tool_calls'] = calls
  return out
