"""Serves a policy: `sdar serve --checkpoint=RUN`. Device."""

import argparse
import importlib.util
import math
import os
from collections.abc import Sequence

from sdar_jax import files
from sdar_jax.process import flags, terminal

_KEY = 'SDAR_API_KEY'


def _parser() -> flags.Parser:
  parser = flags.Parser(
    'sdar serve',
    "Answers OpenAI's clients with a policy: /v1/chat/completions, /v1/completions,"
    ' /v1/models.',
    f'--config.KEY=VALUE sets keys of the configuration. On other addresses than this'
    f" machine's own a key is needed: --api-key-file, or the variable {_KEY}.",
  )
  parser.add_argument('--checkpoint', metavar='RUN', help='work directory of a run')
  parser.add_argument('--config', metavar='FILE.py[:ARGUMENT]', help='experiment')
  parser.add_argument(
    '--model', metavar='PATH', help='Hugging Face directory, hub id or .gguf file'
  )
  parser.add_argument('--host', default='127.0.0.1', help='default: %(default)s')
  parser.add_argument(
    '--port', type=int, default=8000, help='default: %(default)s; 0 is any that is free'
  )
  parser.add_argument('--name', default='policy', help='of the model, for clients')
  parser.add_argument('--api-key-file', metavar='FILE', help='holds the key')
  parser.add_argument(
    '--queue', type=int, default=256, help='requests at a time; default: %(default)s'
  )
  parser.add_argument(
    '--timeout', type=float, default=600.0, help='of a request, s; default: %(default)s'
  )
  return parser


def _key(options: argparse.Namespace) -> str:
  if options.api_key_file is None:
    return os.environ.get(_KEY, '')
  path = files.local_path(options.api_key_file, '--api-key-file')
  try:
    key = path.read_text('ascii').strip()
  except (OSError, ValueError) as error:
    raise flags.UsageError(f'--api-key-file={path}: {files.one_line(error)}') from None
  if not key:
    raise flags.UsageError(f'--api-key-file={path}: is empty')
  return key


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Serves until it is stopped; returns the exit code."""
  options, rest = _parser().parse(argv)
  known = [f'--{name}' for name in vars(options)]
  for word in rest:
    if flags.FLAG.match(word) and not flags.OVERRIDE.match(word):
      raise flags.UsageError(f'{word}: no such flag{flags.similar(word, known)}')
  for name in ('starlette', 'uvicorn'):
    if importlib.util.find_spec(name) is None:
      raise flags.UsageError(f"{name} is not installed: pip install 'sdar-jax[serve]'")
  given = [n for n in ('checkpoint', 'config', 'model') if getattr(options, n)]
  if given not in (['checkpoint'], ['config'], ['model'], ['checkpoint', 'config']):
    raise flags.UsageError(
      'name what is served: --checkpoint=RUN, --config=FILE.py or --model=PATH'
    )
  if not 0 <= options.port < 2**16:
    raise flags.UsageError(f'--port={options.port}: must be in [0, 65535]')
  if options.queue < 1 or not 0 < options.timeout < math.inf:
    raise flags.UsageError('--queue and --timeout must be positive')
  key = _key(options)
  from sdar_jax.serve import server  # Slow to import: --help does without.

  server.check_key(options.host, key)
  _serve(options, rest, key)
  return 0


def _serve(options: argparse.Namespace, rest: Sequence[str], key: str) -> None:
  from sdar_jax import api
  from sdar_jax.cli import config_file
  from sdar_jax.rollout.request import SamplingParams
  from sdar_jax.serve import protocol, server

  run = None
  if options.checkpoint:
    run = files.local_path(options.checkpoint, '--checkpoint')
  if options.model:
    config = config_file.checked(api.plain(options.model), rest)
  else:
    config = config_file.chosen(options.config, run, rest)
  policy = api.talking(config, run)
  policy.sampler.warmup()
  c = policy.config.rollout
  defaults = SamplingParams(
    max_tokens=c.max_response_tokens, stop_ids=policy.chat.stop_ids
  )
  with server.Endpoint(
    policy.sampler,
    policy.chat,
    defaults,
    longest=c.max_prompt_tokens,
    model=options.name,
    host=options.host,
    port=options.port,
    key=key,
    limits=protocol.Bounds(queue=options.queue, seconds=options.timeout),
    seed=(policy.config.seed,),
    talks=c.layout == 'conversation',
  ) as served:
    print(f'{options.name} at {served.url}', flush=True)
    try:
      served.wait()
    except terminal.Stopped as stopped:
      stopped.lost = 'no longer served'
      raise
