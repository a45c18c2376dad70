"""Paths and JSON from outside: read as meant, or one line naming them."""

import json
import pathlib

import pytest

from sdar_jax import files


@pytest.mark.parametrize('text', ['gs://bucket/run', 's3://b', 'gs:/bucket/run'])
def test_remote_paths_are_refused_naming_the_key(text):
  with pytest.raises(files.FileError, match=r'--workdir=.*remote'):
    files.local_path(text, '--workdir')


@pytest.mark.parametrize('text', ['', 'a\0b', '~nobody-of-this-name/run'])
def test_paths_that_are_none_are_refused(text):
  with pytest.raises(files.FileError, match='--output='):
    files.local_path(text, '--output')


def test_home_is_meant_by_a_tilde(monkeypatch):
  monkeypatch.setenv('HOME', '/somewhere')
  assert files.local_path('~/run', 'k') == pathlib.Path('/somewhere/run')
  assert files.local_path('a:b/c', 'k') == pathlib.Path('a:b/c')


@pytest.mark.parametrize(
  'data, reason',
  [
    (b'', 'empty'),
    (b'  \n', 'empty'),
    (b'{"a": 1', 'not JSON'),
    (b'<!DOCTYPE html><html>Quota</html>', 'not JSON'),
    (b'\xff\xfe{}', 'not JSON'),
    (b'[' * 200_000, 'not JSON'),
    (b'{"a": NaN}', 'NaN is no JSON number'),
    (b'{"a": ' + b'9' * 5000 + b'}', 'not JSON'),
    (b'[1]', 'must be an object, not a list'),
    (b'null', 'must be an object, not a NoneType'),
  ],
)
def test_what_is_no_json_object_is_one_line_naming_the_file(tmp_path, data, reason):
  path = tmp_path / 'some.json'
  path.write_bytes(data)
  with pytest.raises(files.FileError) as error:
    files.read_json(path)
  text = str(error.value)
  assert str(path) in text and reason in text and '\n' not in text


def test_a_byte_order_mark_is_skipped(tmp_path):
  path = tmp_path / 'some.json'
  path.write_bytes(b'\xef\xbb\xbf' + json.dumps({'a': 'ä'}).encode())
  assert files.read_json(path) == {'a': 'ä'}


def test_missing_folders_and_large_files_are_one_line(tmp_path):
  with pytest.raises(files.FileError, match='No such file'):
    files.read_json(tmp_path / 'absent.json')
  with pytest.raises(files.FileError, match='directory'):
    files.read_json(tmp_path)
  path = tmp_path / 'large.json'
  path.write_bytes(b'"' + b'a' * 100 + b'"')
  with pytest.raises(files.FileError, match='larger than the 50 bytes'):
    files.read_json(path, str, limit=50)
