"""Export of a policy: weights, tokenizer and stop tokens.

What is written is loaded again and compared before it gets its final names, so that a
directory with a config.json is whole.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from sdar_jax import files, hub
from sdar_jax.models import adapter_files, decoder, hf
from sdar_jax.process import terminal
from sdar_jax.prompts import chat, tokenizer

_STAGING = '.partial'  # Where files lie until all of them are right.
_GENERATION = 'generation_config.json'
_PROBE = 'You see a cabinet 3.\n\n  <think> <|im_end|> 台所 1,234.50'


class ExportError(ValueError):
  """A directory that cannot be written or read back: one line."""


@dataclasses.dataclass(frozen=True)
class ExportedPolicy:
  """A policy to export, and what its files are made of.

  Attributes:
    source: the model's directory or hub id: its config.json and generation_config.json
      are completed, not replaced.
    tokenizer: the tokenizer's directory or hub id, whose files are copied.
    chat: tokenizer and template of the run.
    load_chat: loads those of a directory in the same way.
    model: hyperparameters.
    params: stacked parameters.
    adapters: written alone in peft's format, or None for the whole model.
    dtype: of the weights in the files; '' is that of `source`.
  """

  source: str
  tokenizer: str
  chat: chat.Chat
  load_chat: Callable[[pathlib.Path], chat.Chat]
  model: decoder.ModelConfig
  params: Any
  adapters: Any
  dtype: str


def required(config: ConfigDict, output: pathlib.Path | None) -> pathlib.Path:
  """Checks, before anything is computed, what is to be written and where.

  Raises:
    ExportError: no output is named, it cannot be written, or there will be no adapters,
      or none by themselves.
  """
  if output is None:
    raise ExportError('--output is missing: name the directory to write')
  if config.export.adapter and not config.model.lora_rank:
    raise ExportError('config.export.adapter=True: config.model.lora_rank is 0')
  if config.export.adapter and config.model.adapter:
    raise ExportError(
      f'config.export.adapter=True: config.model.adapter={config.model.adapter!r} is'
      ' merged into the model that the new ones belong to: export that model whole'
    )
  prepare(output)
  return output


def prepare(output: pathlib.Path) -> None:
  """Checks in advance for a writable directory.

  Raises:
    ExportError: it is a file, holds other files or cannot be made or written.
  """
  try:
    fresh = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    if (output / _STAGING).is_dir():  # An export that was killed.
      shutil.rmtree(output / _STAGING)
    others = sorted(path.name for path in output.iterdir())
    if others:
      raise ExportError(
        f'--output={output}: holds {others[0]} already: choose another directory'
      )
    (output / _STAGING).mkdir()
    (output / _STAGING / 'probe').write_bytes(b'x')
    shutil.rmtree(output / _STAGING)
    if fresh:
      output.rmdir()
  except OSError as error:
    raise ExportError(
      f'--output={output}: cannot be written ({files.one_line(error)})'
    ) from None


def keep(output: pathlib.Path, policy: ExportedPolicy) -> None:
  """Writes a directory and says so; where that fails, writes it elsewhere.

  Raises:
    files.OutputError: it is not at `output`; one line saying why and where it is.
  """

  def save(path: pathlib.Path) -> None:
    dtype = write(path, policy)
    rest = '' if dtype == 'float32' else '; config.export.dtype=float32 keeps every bit'
    print(f'wrote {path} ({dtype}{rest})')

  with terminal.uninterrupted():
    files.write_somewhere(output, save, 'the model')


def write(output: pathlib.Path, policy: ExportedPolicy) -> str:
  """Writes a directory and loads it again.

  Returns:
    The dtype of the weights.

  Raises:
    ExportError: it cannot be written, or what was written loads as something else.
    WeightError, TokenizerError: likewise, of weights and tokenizer.
  """
  prepare(output)
  alone = policy.adapters is not None
  dtype = jnp.dtype(
    'float32' if alone else policy.dtype or hf.stored_dtype(policy.source)
  )
  staging = output / _STAGING
  try:
    staging.mkdir(parents=True)
    if alone:
      adapter_files.save(staging, policy.model, policy.adapters, policy.source)
    else:
      _write_all(staging, policy, dtype)
      _check(staging, policy, dtype)
    names = [path.name for path in staging.iterdir()]
    for name in sorted(names, key=lambda name: name == 'config.json'):
      os.replace(staging / name, output / name)
    staging.rmdir()
    files.sync(output)
  except OSError as error:
    raise ExportError(
      f'--output={output}: cannot be written ({files.one_line(error)})'
    ) from None
  finally:
    shutil.rmtree(staging, ignore_errors=True)
  return dtype.name


def _write_all(folder: pathlib.Path, policy: ExportedPolicy, dtype: jnp.dtype) -> None:
  source = hf.snapshot(policy.source)
  config = files.read_json(source / 'config.json')
  present = (source / _GENERATION).exists()
  generation = files.read_json(source / _GENERATION) if present else {}
  generation = generation_record(policy.chat, generation, config)
  for key in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
    value = generation[key] if key in generation else None
    if key not in config or config[key] is None:  # One id: what every reader takes.
      config[key] = value[0] if isinstance(value, list) else value
  hf.save(folder, policy.model, policy.params, dtype, config)
  _write_json(folder / _GENERATION, generation)
  _copy_tokenizer(hub.folder(policy.tokenizer, hub.TOKENIZER_FILES), folder)


def generation_record(
  ours: chat.Chat, generation: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
  """Makes a generation_config.json with the stop tokens of a run.

  Args:
    ours: tokenizer and template of the run.
    generation: the source's own, {} if it has none.
    config: the source's config.json.

  Returns:
    `generation` with every stop id of `ours`, and the ids of begin and padding where
    source or tokenizer name them.
  """
  record = {k: v for k, v in generation.items() if k != 'transformers_version'}
  for name in ('bos_token', 'pad_token'):
    key = f'{name}_id'
    known = [r[key] for r in (record, config) if key in r and r[key] is not None]
    known += [index for special, index in ours.special_ids.items() if special == name]
    if known:
      record[key] = known[0]
  ends = record['eos_token_id'] if 'eos_token_id' in record else None
  ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
  record['eos_token_id'] = list(dict.fromkeys([*ends, *ours.stop_ids]))
  return record


def _copy_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
  """Copies the tokenizer's files, without references to code."""
  for file in hub.list_files(source, hub.TOKENIZER_FILES):
    target = folder / file.relative_to(source)
    target.parent.mkdir(exist_ok=True)
    shutil.copyfile(file, target)
  path = folder / 'tokenizer_config.json'
  config = files.read_json(path) if path.exists() else {}
  if 'auto_map' in config:
    del config['auto_map']
    _write_json(path, config | {'tokenizer_class': 'PreTrainedTokenizerFast'})
  separate = folder / 'chat_template.jinja'
  if 'chat_template' not in config and not separate.exists():
    # It is in chat_template.json, where transformers looks for images only.
    separate.write_text(tokenizer.find_template(folder, config), 'utf-8')


def _write_json(path: pathlib.Path, record: dict[str, Any]) -> None:
  text = json.dumps(record, indent=2, ensure_ascii=False) + '\n'
  path.write_text(text, 'utf-8')


def _check(folder: pathlib.Path, policy: ExportedPolicy, dtype: jnp.dtype) -> None:
  """Checks that the written files load as the policy."""
  hf.check_saved(folder, policy.model, policy.params, dtype)
  ours, again = policy.chat, policy.load_chat(folder)
  for what, a, b in (
    ('tokenizer', ours.digest, again.digest),
    ('prompt', ours.render(_PROBE).tolist(), again.render(_PROBE).tolist()),
    ('text', ours.encode_text(_PROBE).tolist(), again.encode_text(_PROBE).tolist()),
    ('end', ours.stop_ids, again.stop_ids),
  ):
    if a != b:
      raise ExportError(
        f'{folder.parent}: the {what} that was written loads as another:'
        f' {files.one_line(ValueError(a), 60)}, {files.one_line(ValueError(b), 60)}'
      )
