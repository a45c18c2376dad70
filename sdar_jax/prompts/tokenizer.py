"""Tokenizer files: ids, control tokens, chat template. No JAX.

The tokenizer that runs is the one in tokenizer.json, loaded by the library that wrote
it. No class is looked up by name, so a folder's own code has no way to run.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from sdar_jax import files, hub

# What templates may read; `eos_token` also ends a response.
_SPECIAL = (
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
)
_GENERATION = ('generation_config.json', 'config.json')  # The first that says it.
_FLAGS = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')


class TokenizerError(ValueError):
  """A tokenizer missing, damaged or without a chat template."""


@dataclasses.dataclass(frozen=True)
class Files:
  """The content of a tokenizer's directory.

  Attributes:
    folder: the directory, or the hub's snapshot.
    tokenizer: text to ids and back; every added token has the id that the files say.
    template: the chat template, jinja2.
    special: name -> token, such as `eos_token`; what templates may read.
    end_ids: ids that the model's generation_config.json, or else its config.json, ends
      a generation with; () where neither says.
    digest: hex SHA-256 of tokenizer.json and of tokens that other files add.
  """

  folder: pathlib.Path
  tokenizer: tokenizers.Tokenizer
  template: str
  special: Mapping[str, str]
  end_ids: tuple[int, ...]
  digest: str


def load(path: str | pathlib.Path, model: str | pathlib.Path | None = None) -> Files:
  """Reads a tokenizer.

  Args:
    path: a directory, or a hub id.
    model: likewise, what says how generation ends; None is `path`.

  Raises:
    TokenizerError: one line naming the file and what is wrong with it.
  """
  try:
    folder = hub.folder(path, (*hub.TOKENIZER_FILES, *_GENERATION))
    file = folder / 'tokenizer.json'
    if not file.exists():
      raise TokenizerError(f'{file}: missing; set config.model.tokenizer')
    record = files.read_json(file)
    config = _optional(folder / 'tokenizer_config.json')
    template = find_template(folder, config)
    tokenizer = _load(file, record)
    added = _add_tokens(folder, config, tokenizer)
    special = {**_special(folder / 'special_tokens_map.json'), **_named(config)}
    ends = folder if model is None else hub.folder(model, _GENERATION)
    end_ids = _end_ids(ends, tokenizer)
  except files.FileError as error:
    hint = '' if 'config.model' in str(error) else '; see config.model.tokenizer'
    raise TokenizerError(f'{error}{hint}') from None
  text = json.dumps([files.digest(file), added])
  digest = hashlib.sha256(text.encode()).hexdigest()
  return Files(folder, tokenizer, template, special, end_ids, digest)


def _optional(path: pathlib.Path) -> dict[str, Any]:
  return files.read_json(path) if path.exists() else {}


def _load(path: pathlib.Path, record: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """Loads tokenizer.json and compares it with its description."""
  if not isinstance(record.get('model'), dict):
    raise TokenizerError(f'{path}: no key "model"')
  if record['model'].get('dropout'):
    raise TokenizerError(
      f'{path}: model.dropout is {record["model"]["dropout"]!r}, so one text has many'
      ' encodings: set it to null'
    )
  try:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
  except Exception as error:  # The Rust library raises plain Exception.
    raise TokenizerError(f'{path}: cannot be loaded: {files.one_line(error)}') from None
  tokenizer.no_truncation()  # Nor would a text be cut or padded without a word.
  tokenizer.no_padding()
  for token in record.get('added_tokens') or ():
    _check_id(path, tokenizer, token['content'], token['id'])
  vocabulary = tokenizer.get_vocab(with_added_tokens=True)
  if len(set(vocabulary.values())) < len(vocabulary):
    by_id: dict[int, str] = {}
    for token, index in sorted(vocabulary.items()):
      if index in by_id:
        raise TokenizerError(
          f'{path}: {by_id[index]!r} and {token!r} have one id, {index}'
        )
      by_id[index] = token
  return tokenizer


def _check_id(
  path: pathlib.Path, tokenizer: tokenizers.Tokenizer, token: str, index: Any
) -> None:
  """Refuses token numbers changed by the library on loading."""
  actual = tokenizer.token_to_id(token)
  if actual != index:
    raise TokenizerError(
      f'{path}: token {token!r} has id {index!r} there, but loads as {actual}'
    )


def _add_tokens(
  folder: pathlib.Path, config: Mapping[str, Any], tokenizer: tokenizers.Tokenizer
) -> list[Any]:
  """Adds tokens of tokenizer_config.json and added_tokens.json.

  Returns:
    [id, token, flags] of each, in order of ids.
  """
  legacy = folder / 'added_tokens.json'
  wanted: list[tuple[int, str, dict[str, bool], pathlib.Path]] = []
  for token, index in _optional(legacy).items():
    if type(index) is not int:
      raise TokenizerError(f'{legacy}: {token!r} has id {index!r}, not a number')
    wanted.append((index, token, {}, legacy))
  path, key = folder / 'tokenizer_config.json', 'added_tokens_decoder'
  declared = config[key] if key in config else {}
  if not isinstance(declared, dict):
    raise TokenizerError(f'{path}: {key} is no object')
  for number, entry in declared.items():
    whole = isinstance(entry, dict) and isinstance(entry.get('content'), str)
    if not number.isdecimal() or not whole:
      raise TokenizerError(f'{path}: {key}.{number[:40]} is no token')
    flags = {flag: entry[flag] is True for flag in _FLAGS if flag in entry}
    wanted.append((int(number), entry['content'], flags, path))
  added = []
  for index, token, flags, file in sorted(wanted, key=lambda item: item[0]):
    if tokenizer.token_to_id(token) is None:
      new = tokenizers.AddedToken(token, **flags)
      (tokenizer.add_special_tokens if new.special else tokenizer.add_tokens)([new])
      added.append([index, token, flags])
    _check_id(file, tokenizer, token, index)
  return added


def _special(path: pathlib.Path) -> dict[str, str]:
  return _named(_optional(path))


def _named(record: Mapping[str, Any]) -> dict[str, str]:
  """Reads special tokens by name: a text, or an object with it."""
  out = {}
  for name in _SPECIAL:
    value = record[name] if name in record else None
    if isinstance(value, dict) and 'content' in value:
      value = value['content']
    if isinstance(value, str):
      out[name] = value
  return out


def find_template(folder: pathlib.Path, config: Mapping[str, Any]) -> str:
  """The default chat template, wherever it is kept.

  As in transformers, a file of its own precedes tokenizer_config.json, where it is a
  text or a list of named ones.
  """
  named: dict[str, str] = {}
  where = folder / 'tokenizer_config.json'
  legacy = _optional(folder / 'chat_template.json')
  for record, path in (
    (legacy, folder / 'chat_template.json'),
    (config, where),
  ):
    if record.get('chat_template') is not None:
      named |= _named_templates(record['chat_template'], path)
      where = path
  extra = sorted((folder / 'additional_chat_templates').glob('*.jinja'))
  for path in (*extra, folder / 'chat_template.jinja'):
    if path.exists():
      name = 'default' if path.parent == folder else path.stem
      named[name], where = _read_text(path), path
  if not named:
    raise TokenizerError(
      f'{folder}: no chat template: no key "chat_template" in tokenizer_config.json and'
      ' no chat_template.jinja'
    )
  if 'default' in named:
    return named['default']
  if len(named) == 1:
    return next(iter(named.values()))
  raise TokenizerError(
    f'{where}: chat templates {sorted(named)}, but none is named default: put the one'
    f' to use into {folder / "chat_template.jinja"}'
  )


def _named_templates(value: Any, path: pathlib.Path) -> dict[str, str]:
  if isinstance(value, str):
    return {'default': value}
  if isinstance(value, dict):
    value = [{'name': name, 'template': text} for name, text in value.items()]
  named = {}
  for entry in value if isinstance(value, list) else [None]:
    pair = (
      [entry.get(k) for k in ('name', 'template')] if isinstance(entry, dict) else []
    )
    if not pair or not all(isinstance(part, str) for part in pair):
      raise TokenizerError(
        f'{path}: chat_template must be a text or a list of objects with name and'
        ' template'
      )
    named[pair[0]] = pair[1]
  return named


def _read_text(path: pathlib.Path) -> str:
  try:
    data = path.read_bytes()
    if len(data) > files.MAX_JSON_BYTES:
      raise TokenizerError(f'{path}: {len(data)} bytes are too many for a template')
    return data.decode('utf-8-sig')
  except (OSError, UnicodeDecodeError) as error:
    raise TokenizerError(f'{path}: {files.one_line(error)}') from None


def _end_ids(folder: pathlib.Path, tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
  """Collects the ids at the end of a generation, all added tokens."""
  control = tokenizer.get_added_tokens_decoder()
  for name in _GENERATION:
    record = _optional(folder / name)
    if record.get('eos_token_id') is None:
      continue
    value = record['eos_token_id']
    ids = value if isinstance(value, list) else [value]
    for index in ids:
      if type(index) is not int or index not in control:
        raise TokenizerError(
          f'{folder / name}: eos_token_id {str(value)[:60]}: {str(index)[:20]!r} is'
          ' no control token of tokenizer.json'
        )
    return tuple(dict.fromkeys(ids))
  return ()
