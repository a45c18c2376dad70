"""Records of others' files: found, opened by content, checked by field.

Whatever is wrong is one line that names the file and the record; whatever is left out
or filled in is counted and said once.
"""

import bz2
import codecs
import contextlib
import csv
import gzip
import io
import itertools
import json
import logging
import lzma
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sdar_jax import files
from sdar_jax.files import FileError

MAX_RECORD = 16 * 2**20  # Bytes, or characters of a JSON value; official ones: 60 kB.
_CHUNK = 1 << 20  # Characters read at a time from a long file.
_DAMAGE = (
  *(ValueError, OSError, EOFError, RecursionError, OverflowError),
  *(lzma.LZMAError, zlib.error, csv.Error),
)
_PACKED = {b'\x1f\x8b': gzip.open, b'\xfd7zXZ\x00': lzma.open, b'BZh': bz2.open}
_FOREIGN = {  # First bytes -> what the file is instead of text.
  b'PAR1': 'is Parquet; write it as JSON lines: pandas.read_parquet(FILE)'
  ".to_json(NAME.jsonl, orient='records', lines=True)",
  b'PK\x03\x04': 'is a zip archive; unpack it',
  b'\x28\xb5\x2f\xfd': 'is compressed by zstd; unpack it',
  codecs.BOM_UTF16_LE: 'is UTF-16; save it as UTF-8',
  codecs.BOM_UTF16_BE: 'is UTF-16; save it as UTF-8',
  b'version https://git-lfs': 'is a Git LFS pointer, not the data: run git lfs pull',
  b'<': 'is a web page (of an error or a quota?), not the data; download it again',
}
_SPACE = re.compile(r'[ \t\r\n]*')
_log = logging.getLogger(__name__)


def data_root(data_dir: str, variable: str) -> Path:
  """Finds the official files of a world.

  Args:
    data_dir: where they lie; '' means the environment variable.
    variable: its name.

  Raises:
    FileError: neither names a place that exists.
  """
  named = data_dir or os.environ.get(variable, '')
  if not named:
    raise FileError(
      f"config.world.source='official': set config.world.data_dir or ${variable} to the"
      ' folder of the official files (third_party/envs/README.md)'
    )
  root = files.local_path(named, f'config.world.data_dir or ${variable}')
  if not root.exists():
    raise FileError(f'{root}: does not exist; set config.world.data_dir or ${variable}')
  return root


class Omitted:
  """Counts omitted and filled-in records, by reason."""

  def __init__(self) -> None:
    self.counts: Counter[str] = Counter()
    self._first: dict[str, str] = {}

  def add(self, reason: str, example: str) -> None:
    """Counts one record, perhaps as the example of its reason."""
    self.counts[reason] += 1
    self._first.setdefault(reason, example[:100])

  def __str__(self) -> str:
    return '; '.join(
      f'{count} {reason} (first: {self._first[reason]})'
      for reason, count in self.counts.items()
    )

  def say(self, source: object) -> None:
    """Logs all counts in one line, if there are any."""
    if self.counts:
      _log.warning('%s: %s', source, self)


class naming:  # A class: entered once a record, and a generator is slower.
  """Turns damage into a FileError of one line with its place.

  Attributes:
    place: may be changed while it goes on.
  """

  def __init__(self, place: object):
    self.place = place

  def __enter__(self) -> None:
    pass

  def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
    if isinstance(error, _DAMAGE) and not isinstance(error, FileError):
      reason = getattr(error, 'strerror', None) or files.one_line(error)
      raise FileError(f'{self.place}: {reason}') from None


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
  """Opens a file of UTF-8 text, plain or compressed, by its content.

  Raises:
    FileError: it is missing, empty, no regular file, or not text.
  """
  path = Path(path)
  with naming(path), contextlib.ExitStack() as stack:
    if path.exists() and not path.is_file():  # A pipe would be waited for.
      raise ValueError('is a folder' if path.is_dir() else 'is no regular file')
    file = stack.enter_context(open(path, 'rb'))
    for packed in (True, False):
      head = file.peek(64)[:64]
      opener = next((_PACKED[m] for m in _PACKED if head.startswith(m)), None)
      if opener is None:
        break
      if not packed:
        raise ValueError('is compressed twice; unpack it once')
      file = stack.enter_context(opener(file, 'rb'))
    if not head:
      raise ValueError('is empty')
    if head.startswith(codecs.BOM_UTF8):
      file.read(len(codecs.BOM_UTF8))
    bare = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for start, what in _FOREIGN.items():
      if bare.startswith(start):
        raise ValueError(what)
    yield file


def lines(path: str | Path) -> Iterator[tuple[str, bytes]]:
  """Yields (place, line) of a file's lines but blank ones."""
  with opened(path) as file:
    for number in itertools.count(1):
      place = f'{path}, line {number}'
      with naming(place):
        line = file.readline(MAX_RECORD + 1)
        if len(line) > MAX_RECORD:
          raise ValueError(f'is longer than {MAX_RECORD} bytes')
      if not line:
        return
      if line.strip():
        yield place, line


def table(path: str | Path, delimiter: str) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields (place, row) of a table with a header."""
  with opened(path) as file:
    text = io.TextIOWrapper(file, 'utf-8', newline='')
    rows = csv.DictReader(text, delimiter=delimiter, strict=True)
    while True:
      with naming(f'{path}, after line {rows.line_num}'):
        row = next(rows, None)
        if row is None:
          return
        if None in row or None in row.values():
          raise ValueError(f'has not the {len(rows.fieldnames)} fields of the header')
        if delimiter == '\t' and any('\t' in v and '\n' in v for v in row.values()):
          raise ValueError(
            'a field begins with a quotation mark and goes on over other rows: double'
            ' the marks within texts and enclose those, or write JSON lines'
          )
      yield f'{path}, line {rows.line_num}', row


def items(
  path: str | Path, what: str, under: str | None = None
) -> Iterator[tuple[str, Any]]:
  """Yields (place, value) of a JSON list, a piece at a time.

  Args:
    path: of the file.
    what: the list is of, for errors.
    under: the key of the top-level object that holds the list; None: it is the file.
  """
  with opened(path) as file:
    stream, where = _Stream(file), naming(str(path))
    if under is not None and not stream.find(under):
      raise ValueError(f'has no {under!r}')
    if not stream.skip('['):
      raise ValueError(f'must be a JSON list of {what}')
    for number in itertools.count(1):
      with where:
        if stream.ended(']', first=number == 1):
          break
        where.place = f'{path}, item {number}'
        value = stream.value()
      yield where.place, value
    stream.close(under is not None)


def members(path: str | Path, what: str) -> Iterator[tuple[str, str, Any]]:
  """Yields (place, key, value) of a JSON object; as `items` otherwise."""
  with opened(path) as file:
    stream, keys, where = _Stream(file), set(), naming(str(path))
    if not stream.skip('{'):
      raise ValueError(f'must be a JSON object of {what}')
    while True:
      with where:
        if stream.ended('}', first=not keys):
          break
        key = stream.key()
        where.place = f'{path}, {key[:80]}'
        if key in keys:
          raise ValueError('occurs twice')
        keys.add(key)
        value = stream.value()
      yield where.place, key, value
    stream.close(False)


class _Stream:
  """Reads JSON values one after the other from a file."""

  def __init__(self, file: BinaryIO):
    self._file = io.TextIOWrapper(file, 'utf-8')
    self._text, self._at = '', 0
    self._decode = json.JSONDecoder().raw_decode  # NaN is for who uses the field.

  def _more(self) -> bool:
    """Appends the file's next characters to the unused ones."""
    left = len(self._text) - self._at
    if left > MAX_RECORD:
      raise ValueError(f'is damaged, or longer than {MAX_RECORD} characters')
    more = self._file.read(max(_CHUNK, left))
    self._text, self._at = self._text[self._at :] + more, 0
    return bool(more)

  def _next(self) -> str:
    """Gives the next character but spaces; '' at the end."""
    while True:
      self._at = _SPACE.match(self._text, self._at).end()
      if self._at < len(self._text):
        return self._text[self._at]
      if not self._more():
        return ''

  def skip(self, mark: str) -> bool:
    """Steps over a mark, if it comes next."""
    found = self._next() == mark
    self._at += found
    return found

  def ended(self, bracket: str, first: bool) -> bool:
    """Tests for the end of a list or object; else skips a comma."""
    if self.skip(bracket):
      return True
    if not first:
      if not self.skip(','):
        raise ValueError('no comma follows: the file is damaged or was cut off')
      self._next()
    return False

  def close(self, inside: bool) -> None:
    """Checks that nothing follows but the rest of an outer object."""
    while inside and not self.ended('}', first=False):
      self.key()
      self.value()
    if self._next():
      raise ValueError('the file goes on after the end: are these two files in one?')

  def find(self, wanted: str) -> bool:
    """Steps into an object, to the value of a key."""
    first = self.skip('{')
    while not self.ended('}', first):
      if self.key() == wanted:
        return True
      self.value()
      first = False
    return False

  def key(self) -> str:
    """Reads the next key; then comes its value."""
    self._next()
    key = self.value()
    if not isinstance(key, str) or not self.skip(':'):
      raise ValueError('no key and value follow: the file is damaged or was cut off')
    self._next()
    return key

  def value(self) -> Any:
    """Reads the next value; spaces before it have been skipped."""
    while True:
      try:
        value, end = self._decode(self._text, self._at)
      except json.JSONDecodeError as error:
        if not self._more():
          reason = f'{error.msg}: the file is damaged or was cut off'
          raise ValueError(reason) from None
        continue
      if end == len(self._text) and self._more():
        continue  # A number may go on.
      self._at = end
      return value


def shown(value: Any) -> str:
  """Writes a value as JSON, shortened for an error."""
  text = json.dumps(value)
  return text if len(text) <= 60 else f'{text[:57]}...'


def fields(value: Any) -> Mapping[str, Any]:
  """Checks for an object."""
  if not isinstance(value, dict):
    raise ValueError(f'must be an object, not {shown(value)}')
  return value


def text(row: Mapping[str, Any], key: str, blank: bool = False) -> str:
  """Gives a required text of a record; `blank` permits an empty one."""
  if key not in row:
    raise ValueError(f'has no text {key!r}')
  return checked_text(row[key], key, blank)


def checked_text(value: Any, key: str, blank: bool = False) -> str:
  """Checks a field's value for a text of whole characters."""
  if not isinstance(value, str):
    raise ValueError(f'has no text {key!r} but {shown(value)}')
  if not blank and not value.strip():
    raise ValueError(f'its {key!r} is empty')
  if not value.isascii():
    value.encode()  # Lone surrogates are refused here, not in the middle of a run.
  return value


def texts(row: Mapping[str, Any], key: str, least: int = 0) -> tuple[str, ...]:
  """Gives a required list of non-empty texts of a record."""
  if key not in row or not isinstance(row[key], list):
    found = f' but {shown(row[key])}' if key in row else ''
    raise ValueError(f'has no list of texts {key!r}{found}')
  if len(row[key]) < least:
    raise ValueError(f'its {key!r} is an empty list')
  return checked_texts(row[key], key)


def checked_texts(
  values: Sequence[Any], key: str, blank: bool = False
) -> tuple[str, ...]:
  """Checks many texts at once: a full catalogue has tens of millions."""
  try:
    joined = ''.join(values)
    sound = joined.isascii() and (blank or all(map(str.strip, values)))
  except TypeError:
    sound = False
  if not sound:
    for value in values:
      checked_text(value, key, blank)
  return tuple(values)
