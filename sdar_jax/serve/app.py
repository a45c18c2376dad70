"""The routes: requests in, replies out, errors as OpenAI's. Device."""

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sdar_jax import files
from sdar_jax.logs import trajectories
from sdar_jax.prompts.chat import Chat, TokenizerError
from sdar_jax.prompts.messages import MessageError
from sdar_jax.rollout.request import Completion, SamplingParams
from sdar_jax.serve import protocol, replies
from sdar_jax.serve.engine import Engine, FullError, Partial, StoppedError
from sdar_jax.serve.protocol import BadRequest
from sdar_jax.serve.sessions import SessionError, Sessions, prompt_ids

_BODY_SECONDS = 30.0
_MOST_REWARD = 1e9
_LOOPBACK = ('localhost', '127.0.0.1', '[::1]')


class Gone(Exception):
  """A client's departure."""


class App:
  """Routes of an endpoint over an engine.

  Args:
    engine: answers.
    chat: of the policy.
    sessions: conversations that are recorded.
    model: name under which the policy is served.
    defaults: of sampling; its `max_tokens` is the most.
    longest: tokens of a prompt.
    limits: of what is taken.
    key: that clients must show; '' for none, and then only for this machine.
  """

  def __init__(
    self,
    engine: Engine,
    chat: Chat,
    sessions: Sessions,
    *,
    model: str,
    defaults: SamplingParams,
    longest: int,
    limits: protocol.Bounds,
    key: str = '',
  ):
    self.engine, self.chat, self.sessions = engine, chat, sessions
    self._model, self._defaults, self._longest = model, defaults, longest
    self._limits, self._key = limits, key
    self._nonce = int.from_bytes(os.urandom(8), 'big')
    self._count, self._created = 0, int(time.time())
    session = '/v1/sessions/{name:path}'
    routes = (
      ('/health', 'GET', self._health),
      ('/v1/models', 'GET', self._models),
      ('/v1/models/{name:path}', 'GET', self._models),
      ('/v1/chat/completions', 'POST', lambda request: self._answer(request, 'chat')),
      ('/v1/completions', 'POST', lambda request: self._answer(request, 'text')),
      (f'{session}/reward', 'POST', self._reward),
      (session, 'GET', self._session),
      (session, 'DELETE', self._session),
    )
    self.asgi = Starlette(
      routes=[
        Route(path, self._guarded(handle), methods=[method])
        for path, method, handle in routes
      ],
      exception_handlers={
        404: lambda request, error: _error(BadRequest('no such path', status=404)),
        405: lambda request, error: _error(BadRequest('no such method', status=405)),
      },
    )

  def _guarded(self, handle: Callable[[Request], Any]) -> Callable[[Request], Any]:
    """Checks who asks, and makes errors replies."""

    async def guarded(request: Request) -> Response:
      try:
        self._admit(request)
        return await handle(request)
      except BadRequest as error:
        return _error(error)
      except (MessageError, TokenizerError, SessionError) as error:
        return _error(BadRequest(files.one_line(error, 500)))
      except FullError as error:
        return _error(BadRequest(f'{error}: try again later', status=429))
      except StoppedError as error:
        return _error(BadRequest(files.one_line(error, 500), status=503))
      except TimeoutError:
        return _error(BadRequest('it took too long', status=503))
      except RecursionError:
        return _error(BadRequest('the JSON of the body is too deep'))
      except (Gone, ClientDisconnect):
        return Response(status_code=499)
      except Exception as error:  # One request that fails ends no server.
        said = f'{type(error).__name__}: {files.one_line(error, 200)}'
        return _error(BadRequest(said, status=500))

    return guarded

  def _admit(self, request: Request) -> None:
    if not self._key:
      # Without a key a page that a browser shows must not reach it by another name.
      host = request.headers.get('host', '').lower().rpartition(':')
      name = host[0] if host[1] and host[2].isdecimal() else ''.join(host)
      if name not in _LOOPBACK:
        raise BadRequest(f'host {name[:80]!r}: only this machine is served', status=403)
      return
    given = request.headers.get('authorization', '').encode('latin-1')
    want = f'Bearer {self._key}'.encode()
    # Digests: of equal length, whatever was given.
    if not hmac.compare_digest(_digest(given), _digest(want)):
      raise BadRequest('a wrong API key, or none', status=401)

  async def _health(self, request: Request) -> Response:
    return JSONResponse({'status': 'ok', 'requests': self.engine.load})

  async def _models(self, request: Request) -> Response:
    known = {'id': self._model, 'object': 'model', 'created': self._created}
    known |= {'owned_by': 'sdar-jax', 'max_prompt_tokens': self._longest}
    name = request.path_params.get('name')
    if name is None:
      return JSONResponse({'object': 'list', 'data': [known]})
    if name != self._model:
      raise BadRequest(f'model {name[:80]!r}: there is none', 'model', 404)
    return JSONResponse(known)

  async def _body(self, request: Request) -> Mapping[str, Any]:
    """Reads a body of JSON within the limits."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':  # Which a browser sends to nobody unasked.
      raise BadRequest('content-type: must be application/json', status=415)
    most, data = self._limits.body_bytes, bytearray()
    try:
      async with asyncio.timeout(min(self._limits.seconds, _BODY_SECONDS)):
        async for part in request.stream():
          data += part
          if len(data) > most:
            raise BadRequest(f'a body of more than {most} bytes', status=413)
    except TimeoutError:
      raise BadRequest('the body did not come in time', status=408) from None
    try:
      return files.parse_json(bytes(data), 'body')
    except files.FileError as error:
      raise BadRequest(files.one_line(error)) from None

  async def _answer(self, request: Request, kind: str) -> Response:
    asked = protocol.read(
      await self._body(request),
      kind,
      model=self._model,
      chat=self.chat,
      defaults=self._defaults,
      limits=self._limits,
      session=request.headers.get('x-session', ''),
    )
    goes_on = False
    if asked.session:
      begun = await asyncio.to_thread(self.sessions.begin, asked)
      prompt, identity, goes_on = begun
      identities = [identity if asked.seed is None else (asked.seed, 0)]
    else:
      prompt = await asyncio.to_thread(prompt_ids, self.chat, asked)
      self._count += 1
      root = (self._nonce, self._count) if asked.seed is None else (asked.seed,)
      identities = [(*root, i) for i in range(asked.n)]
    waiting = None
    try:
      if len(prompt) > self._longest:
        self.sessions.refuse(asked.session)
        raise BadRequest(
          f'a prompt of {len(prompt)} tokens: this server takes {self._longest}',
          'messages' if kind == 'chat' else 'prompt',
          status=400,
        )
      waiting = _Waiting(self, request, asked, prompt, goes_on)
      waiting.ask(identities)
      if asked.stream:
        reply, waiting = _Streamed(waiting), None  # Which ends it.
        return reply
      return JSONResponse(await waiting.whole())
    except BaseException:
      if waiting is None or not waiting.numbers:
        self.sessions.drop(asked.session)
      raise
    finally:
      if waiting is not None:
        waiting.end()

  async def _reward(self, request: Request) -> Response:
    body = await self._body(request)
    unknown = set(body) - {'reward', 'success', 'score'}
    reward, success, score = (body.get(k) for k in ('reward', 'success', 'score'))
    if unknown or not _is_number(reward, _MOST_REWARD):
      raise BadRequest('reward: must be a number; success and score may be given too')
    if not (score is None or (_is_number(score, 1) and score >= 0)):
      raise BadRequest('score: must be from 0 to 1', 'score')
    if not isinstance(success, bool | None):
      raise BadRequest('success: must be true or false', 'success')
    name = request.path_params['name']
    won = reward > 0 if success is None else success
    turns = self.sessions.reward(name, reward, success=won, score=score)
    return JSONResponse({'session': name, 'turns': turns, 'reward': reward})

  async def _session(self, request: Request) -> Response:
    name = request.path_params['name']
    if request.method == 'DELETE':
      self.sessions.forget(name)
      return JSONResponse({'session': name, 'deleted': True})
    return JSONResponse(trajectories.to_json(self.sessions.trajectory(name)))


class _Streamed(StreamingResponse):
  """A stream of a request, ended with it however it ends."""

  def __init__(self, waiting: '_Waiting'):
    super().__init__(
      waiting.stream(),
      media_type='text/event-stream',
      headers={'Cache-Control': 'no-cache'},
    )
    self._waiting = waiting

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    """Sends it."""
    try:
      await super().__call__(scope, receive, send)
    finally:  # A generator that never began would not.
      self._waiting.end()


class _Waiting:
  """A request on its way: its choices and its client."""

  def __init__(
    self,
    app: App,
    request: Request,
    asked: protocol.Inquiry,
    prompt: np.ndarray,
    goes_on: bool,
  ):
    self._app, self._request, self._asked = app, request, asked
    self._prompt, self._goes_on = prompt, goes_on
    self._events: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()
    self._loop = asyncio.get_running_loop()
    self._done: dict[int, Completion] = {}
    self._ended = False
    self.numbers: list[int] = []
    kind = 'chatcmpl' if asked.kind == 'chat' else 'cmpl'
    self._head = replies.ReplyHead(
      f'{kind}-{uuid.uuid4().hex}', int(time.time()), app._model, asked.kind
    )

  def ask(self, identities: list[tuple[int, ...]]) -> None:
    """Asks the engine for a choice of each identity."""

    def tell(index: int) -> Callable[[Any], None]:
      def told(event: Any) -> None:
        with contextlib.suppress(RuntimeError):  # The loop has ended.
          self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

      return told

    a = self._asked
    self.numbers = self._app.engine.ask(
      self._prompt, a.sampling, identities, tell, partial=a.stream
    )

  async def _next(self) -> tuple[int, Any]:
    """Takes the next event; raises an error among them."""
    index, event = await self._events.get()
    if isinstance(event, StoppedError):
      raise event
    if isinstance(event, ValueError):
      raise BadRequest(files.one_line(event, 500))
    if isinstance(event, Completion):
      self._done[index] = event
      if self._asked.session:
        self._app.sessions.record(self._asked, self._prompt, event, self._goes_on)
    return index, event

  async def whole(self) -> dict[str, Any]:
    """Waits for all choices, as long as the client does."""

    async def completed() -> None:
      while len(self._done) < len(self.numbers):
        await self._next()

    async def left() -> None:
      while (await self._request.receive())['type'] != 'http.disconnect':
        pass

    tasks = [asyncio.ensure_future(completed()), asyncio.ensure_future(left())]
    try:
      async with asyncio.timeout(self._app._limits.seconds):
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
      if not tasks[0].done():
        raise Gone
      await tasks[0]
    finally:
      for task in tasks:
        task.cancel()
    done = [self._done[index] for index in range(len(self.numbers))]
    return replies.whole(self._head, self._asked, self._app.chat, self._prompt, done)

  async def stream(self) -> AsyncIterator[str]:
    """Yields the pieces as events, an error too."""
    made = [
      replies.Stream(self._head, self._asked, self._app.chat, i)
      for i in range(len(self.numbers))
    ]
    try:
      async with asyncio.timeout(self._app._limits.seconds):
        for choice in made:
          if piece := choice.first():
            if self._asked.token_ids and choice is made[0]:
              piece['prompt_token_ids'] = self._prompt.tolist()
            yield _event(piece)
        while len(self._done) < len(self.numbers):
          index, event = await self._next()
          pieces = []
          if isinstance(event, Partial):
            pieces = [made[index].more(event.ids, event.logprobs)]
          elif isinstance(event, Completion):
            pieces = made[index].last(event)
          for piece in filter(None, pieces):
            yield _event(piece)
      if self._asked.usage:
        used = replies.usage(self._prompt, list(self._done.values()))
        yield _event({**self._head(piece=True), 'choices': [], 'usage': used})
      yield 'data: [DONE]\n\n'
    except (BadRequest, StoppedError, TimeoutError) as error:
      self.end()  # Who reads of it may ask again at once.
      if not isinstance(error, BadRequest):
        said = files.one_line(error) if str(error) else 'it took too long'
        error = BadRequest(said, status=503)
      yield _event(json.loads(_error(error).body))

  def end(self) -> None:
    """Frees the slots of what nobody waits for any more."""
    left = [n for i, n in enumerate(self.numbers) if i not in self._done]
    ended, self._ended = self._ended, True
    if left and not ended:  # The session's next turn may have begun.
      self._app.engine.cancel(left)
      self._app.sessions.drop(self._asked.session)


def _event(piece: Mapping[str, Any]) -> str:
  return f'data: {json.dumps(piece)}\n\n'


def _digest(value: bytes) -> bytes:
  return hashlib.sha256(value).digest()


def _is_number(value: Any, most: float) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and -most <= value <= most


def _error(error: BadRequest) -> JSONResponse:
  said = {'message': str(error), 'type': error.kind, 'param': error.parameter}
  code = {404: 'model_not_found', 401: 'invalid_api_key'}.get(error.status)
  return JSONResponse(
    {'error': {**said, 'code': code}},
    status_code=error.status,
    headers={'Retry-After': '1'} if error.status in (429, 503) else None,
  )
