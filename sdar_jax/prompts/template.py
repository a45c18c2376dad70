"""Chat templates of others, rendered in a process with limits. No JAX.

A template is a program by whoever published it. It runs in a process of its own, in
jinja2's sandbox and inside limits of computing time, memory and output; it reads the
messages and nothing else, and what it is told of the date never changes. The process
waits for the next request, so that a conversation costs no start of Python.
"""

import contextlib
import dataclasses
import datetime
import functools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

CPU_SECONDS = 2
MEMORY_BYTES = 2**29
MAX_CHARACTERS = 2**20  # Of one rendered conversation.
_WALL_SECONDS = 300  # For a machine with other things to do.
_ENVIRONMENT = ('LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH')  # What Python may need.


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages, whether to prompt the model, and the tools that it may call."""

  messages: tuple[Mapping[str, Any], ...]
  add_generation_prompt: bool
  tools: tuple[Mapping[str, Any], ...] | None = None


@dataclasses.dataclass(frozen=True)
class Rendered:
  """A conversation's text; for a failing template '' and one line."""

  text: str
  error: str


class TemplateError(ValueError):
  """A template without any output: one line with the reason."""


def render(
  template: str,
  conversations: Sequence[Conversation],
  variables: Mapping[str, Any],
  date: str,
) -> tuple[Rendered, ...]:
  """Renders conversations as transformers' `apply_chat_template` does.

  Args:
    template: the jinja2 text.
    conversations: what to render.
    variables: what else the template may read, such as `bos_token`.
    date: YYYY-MM-DD, for templates that ask for today's.

  Raises:
    TemplateError: it cannot be parsed, or does not end.
  """
  request = {
    'template': template,
    'conversations': [dataclasses.asdict(c) for c in conversations],
    'variables': variables,
    'date': date,
  }
  return _render(json.dumps(request))


class _Renderer:
  """Renders templates in a process, one request after another."""

  def __init__(self):
    self._turn = threading.Lock()
    self._process: subprocess.Popen[bytes] | None = None
    self._owner = 0  # A fork of this process must not talk to its renderer.

  def ask(self, request: str) -> dict[str, Any]:
    """Renders a request of one line.

    Raises:
      TemplateError: it does not end, or fails as no template can.
    """
    with self._turn:
      process = self._alive()
      alarm = threading.Timer(_WALL_SECONDS, process.kill)
      alarm.daemon = True
      alarm.start()
      try:
        process.stdin.write(request.encode() + b'\n')
        process.stdin.flush()
        reply = process.stdout.readline()
      except BrokenPipeError:
        reply = b''
      except BaseException:  # An answer that nobody waits for is not the next one's.
        self._end()
        raise
      finally:
        alarm.cancel()
      if not reply:
        raise TemplateError(self._cause())
    return json.loads(reply)

  def _alive(self) -> subprocess.Popen[bytes]:
    if self._owner != os.getpid() or self._process.poll() is not None:
      self._process, self._owner = _start(), os.getpid()
    return self._process

  def _end(self) -> None:
    self._process.kill()
    self._process.communicate()

  def _cause(self) -> str:
    """Says in one line why the process ended."""
    _, said = self._process.communicate()
    code = self._process.returncode
    if code == -signal.SIGKILL:
      return f'does not end within {_WALL_SECONDS} s, or needs too much memory'
    if code < 0:
      return f'does not end within {CPU_SECONDS} s of computing'
    return (
      ' '.join(said.decode(errors='replace').split('\n')[-2:]).strip()[:200] or 'fails'
    )


def _start() -> subprocess.Popen[bytes]:
  paths = [os.path.abspath(path) for path in sys.path]
  kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
  return subprocess.Popen(
    [sys.executable, '-P', '-m', 'sdar_jax.prompts.template'],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**kept, 'PYTHONPATH': os.pathsep.join(paths)},
    start_new_session=True,  # What a terminal's keys end is the program, not this.
  )


_renderer = _Renderer()


@functools.lru_cache(maxsize=64)
def _render(request: str) -> tuple[Rendered, ...]:
  reply = _renderer.ask(request)
  if 'error' in reply:
    raise TemplateError(reply['error'])
  return tuple(Rendered(**item) for item in reply['rendered'])


def _limit() -> None:
  """Bounds this process as far as the system can."""
  for kind, value in (
    (resource.RLIMIT_AS, MEMORY_BYTES),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
  ):
    _set_limit(kind, value, value)


def _limit_time() -> None:
  """Bounds the time of the request at hand."""
  _, most = resource.getrlimit(resource.RLIMIT_CPU)
  used = resource.getrusage(resource.RUSAGE_SELF)
  _set_limit(
    resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS, most
  )


def _set_limit(kind: int, soft: int, hard: int) -> None:
  with contextlib.suppress(ValueError, OSError):
    resource.setrlimit(kind, (soft, hard))


def _environment(date: str) -> Any:
  """Makes the environment of transformers' templates, at a fixed date."""
  import jinja2
  import jinja2.ext
  import jinja2.nodes
  import jinja2.sandbox
  import jinja2.utils

  class Generation(jinja2.ext.Extension):
    """The `generation` tag around assistant text: renders its content."""

    tags = frozenset({'generation'})

    def parse(self, parser: Any) -> Any:
      line = next(parser.stream).lineno
      body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
      return jinja2.nodes.Scope(body).set_lineno(line)

  def namespace(*args: Any, **values: Any) -> Any:
    if any(str(name).startswith('_') for name in dict(*args, **values)):
      raise jinja2.exceptions.SecurityError(
        'a namespace with a name that begins with _'
      )
    return jinja2.utils.Namespace(*args, **values)

  def raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)

  def tojson(value: Any, ensure_ascii: bool = False, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **settings)

  env = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, 'jinja2.ext.loopcontrols'],
  )
  env.filters['tojson'] = tojson
  env.globals.update(
    raise_exception=raise_exception,
    strftime_now=datetime.datetime.fromisoformat(date).strftime,
    namespace=namespace,
    dict=lambda *args, **values: dict(*args, **values),
  )
  return env


def _compile(env: Any, text: str) -> Any:
  """The template, if it asks for nothing private."""
  import jinja2
  from jinja2 import nodes

  for node in env.parse(text).find_all((nodes.Getattr, nodes.NSRef)):
    if node.attr.startswith('_'):
      raise jinja2.exceptions.SecurityError(f'asks for the private name {node.attr}')
  return env.from_string(text)


def _one(template: Any, variables: Mapping[str, Any]) -> dict[str, str]:
  parts, size = [], 0
  try:
    for part in template.generate(variables):
      parts.append(part)
      size += len(part)
      if size > MAX_CHARACTERS:
        return {'text': '', 'error': f'writes more than {MAX_CHARACTERS} characters'}
  except Exception as error:  # Templates fail in every way that expressions can.
    return {'text': '', 'error': _reason(error)}
  return {'text': ''.join(parts), 'error': ''}


def _reason(error: Exception) -> str:
  return ' '.join(str(error).split())[:200] or type(error).__name__


def _serve() -> None:
  """Answers requests from stdin on stdout, a line each."""
  environment = functools.lru_cache(maxsize=4)(_environment)
  compiled = functools.lru_cache(maxsize=4)(_compile)
  limited = False
  for line in sys.stdin.buffer:
    request = json.loads(line)
    env = environment(request['date'])  # Imports jinja2, before there are limits.
    if not limited:
      _limit()
      limited = True
    _limit_time()
    try:
      template = compiled(env, request['template'])
    except Exception as error:  # Likewise, while it is parsed.
      reply = {'error': _reason(error)}
    else:
      variables = {**request['variables'], 'documents': None}
      reply = {
        'rendered': [
          _one(template, {**variables, **conversation})
          for conversation in request['conversations']
        ]
      }
    sys.stdout.write(json.dumps(reply) + '\n')
    sys.stdout.flush()


if __name__ == '__main__':
  _serve()
