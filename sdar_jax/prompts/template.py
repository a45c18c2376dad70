"""Chat templates of others, rendered in a process with limits. No JAX.

A template is a program by whoever published it. It runs in a process of its own, in
jinja2's sandbox and inside limits of computing time, memory and output; it reads the
messages and nothing else, and what it is told of the date never changes.
"""

import dataclasses
import datetime
import functools
import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

CPU_SECONDS = 2
MEMORY_BYTES = 2**29
MAX_CHARACTERS = 2**20  # Of one rendered conversation.
_WALL_SECONDS = 300  # For a machine with other things to do.
_ENVIRONMENT = ('LD_LIBRARY_PATH', 'DYLD_LIBRARY_PATH')  # What Python may need.


@dataclasses.dataclass(frozen=True)
class Conversation:
  """Messages with role and content, and whether to prompt the model."""

  messages: tuple[Mapping[str, str], ...]
  add_generation_prompt: bool


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


@functools.lru_cache(maxsize=16)
def _render(request: str) -> tuple[Rendered, ...]:
  paths = [os.path.abspath(path) for path in sys.path]
  kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
  try:
    done = subprocess.run(
      [sys.executable, '-P', '-m', 'sdar_jax.prompts.template'],
      input=request.encode(),
      capture_output=True,
      timeout=_WALL_SECONDS,
      env={**kept, 'PYTHONPATH': os.pathsep.join(paths)},
    )
  except subprocess.TimeoutExpired:
    raise TemplateError(f'does not end within {_WALL_SECONDS} s') from None
  if done.returncode < 0:
    raise TemplateError(f'does not end within {CPU_SECONDS} s of computing')
  if done.returncode:
    lines = done.stderr.decode(errors='replace').split('\n')
    raise TemplateError(' '.join(lines[-2:]).strip()[:200] or 'fails')
  reply = json.loads(done.stdout)
  if 'error' in reply:
    raise TemplateError(reply['error'])
  return tuple(Rendered(**item) for item in reply['rendered'])


def _limit() -> None:
  """Bounds this process as far as the system can."""
  for kind, value in (
    (resource.RLIMIT_CPU, CPU_SECONDS),
    (resource.RLIMIT_AS, MEMORY_BYTES),
    (resource.RLIMIT_FSIZE, 0),
    (resource.RLIMIT_CORE, 0),
  ):
    try:
      resource.setrlimit(kind, (value, value))
    except (ValueError, OSError):
      continue


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
  """Reads one request from stdin, answers on stdout."""
  request = json.loads(sys.stdin.buffer.read())
  env = _environment(request['date'])
  _limit()
  try:
    template = _compile(env, request['template'])
  except Exception as error:  # Likewise, while it is parsed.
    reply = {'error': _reason(error)}
  else:
    variables = {**request['variables'], 'tools': None, 'documents': None}
    reply = {
      'rendered': [
        _one(template, {**variables, **conversation})
        for conversation in request['conversations']
      ]
    }
  sys.stdout.write(json.dumps(reply))


if __name__ == '__main__':
  _serve()
