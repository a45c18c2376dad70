"""Sources of models and tokenizers: a directory or the hub. No JAX.

Nothing but data is ever fetched or read: no Python of a repository, no pickles.
"""

import pathlib
import re

from sdar_jax import files
from sdar_jax.process import shipped

MODEL_FILES = (
  'config.json',
  'generation_config.json',
  '*.safetensors',
  '*.safetensors.index.json',
)
TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'chat_template.jinja',
  'chat_template.json',
  'additional_chat_templates/*.jinja',
  'vocab.json',
  'vocab.txt',
  'merges.txt',
  'tokenizer.model',
)

_NAME = r'[A-Za-z0-9][A-Za-z0-9._-]*'
_HUB_ID = re.compile(rf'({_NAME}/{_NAME})(?:@([A-Za-z0-9._-]+))?')

_commits: dict[str, str] = {}  # Of each hub id, so that one process sees one commit.


def folder(path: str | pathlib.Path, patterns: tuple[str, ...]) -> pathlib.Path:
  """The local directory of a model or tokenizer.

  Args:
    path: a directory, also of a model that came with this package, or a hub id:
      'Qwen/Qwen2.5-3B-Instruct', or with a branch, tag or commit,
      'Qwen/Qwen2.5-3B-Instruct@main'.
    patterns: the files to fetch from the hub, as globs.

  Returns:
    The directory itself, or the hub's snapshot, whose name is its commit.

  Raises:
    files.FileError: neither exists, or the hub cannot be reached.
  """
  text = str(path)
  found = _HUB_ID.fullmatch(text)
  local = shipped.find(files.local_path(text, 'model or tokenizer'))
  if local.is_dir():
    return local
  if local.exists() or not found:
    raise files.FileError(
      f'{text}: not a directory, nor a hub id such as Qwen/Qwen3-0.6B'
    )
  import huggingface_hub  # Here because it takes a while.

  repository, revision = found.groups()
  try:
    snapshot = pathlib.Path(
      huggingface_hub.snapshot_download(
        repository,
        revision=_commits[text] if text in _commits else revision,
        allow_patterns=list(patterns),
      )
    )
  except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
    cause = files.one_line(error, 120)
    raise files.FileError(
      f'{text}: no such directory, and the hub did not give it ({cause})'
    ) from None
  _commits[text] = snapshot.name
  return snapshot


def list_files(
  directory: pathlib.Path, patterns: tuple[str, ...]
) -> list[pathlib.Path]:
  """Lists files matching one of the globs, sorted by name."""
  found = {file for glob in patterns for file in directory.glob(glob)}
  return sorted(file for file in found if file.is_file())


def digest(path: pathlib.Path) -> str:
  """Hex SHA-256 of a file.

  Raises:
    files.FileError: the hub's cache names another content, so the file is damaged.
  """
  value = files.digest(path)
  # The cache keeps large files under the digest that the hub promised.
  promised = path.resolve()
  if promised.parent.name == 'blobs' and re.fullmatch('[0-9a-f]{64}', promised.name):
    if promised.name != value:
      raise files.FileError(
        f'{path}: damaged, its content is not what the hub gave: delete {promised}'
      )
  return value
