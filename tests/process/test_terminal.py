"""Streams that outlive their readers: what they drop, raise and escape."""

import io
import os
import pathlib

import pytest

from sdar_jax.process.terminal import Steady

FULL = pathlib.Path('/dev/full')


def _unread():
  """A pipe whose reader is gone."""
  reader, writer = os.pipe()
  os.close(reader)
  return open(writer, 'w')


@pytest.mark.parametrize('display', [False, True])
def test_a_pipe_without_a_reader_takes_everything_and_closes(display):
  stream = _unread()
  steady = Steady(stream, display=display)
  for _ in range(3):
    assert steady.write('x' * 99_999) == 99_999
    steady.flush()
  stream.close()  # As the interpreter does at its end: nothing is left to fail.


@pytest.mark.parametrize('display', [False, True])
def test_a_terminal_that_was_closed_takes_everything(display):
  controller, line = os.openpty()
  steady = Steady(open(line, 'w'), display=display)
  os.close(controller)
  steady.write('x\n')
  steady.flush()


class _Failing(io.StringIO):
  def __init__(self, error):
    super().__init__()
    self.error, self.tried = error, 0

  def write(self, text):
    self.tried += 1
    raise self.error


@pytest.mark.parametrize('error', [OSError(28, 'full'), ValueError('it is closed')])
def test_only_a_display_may_be_lost_to_a_disk_or_to_its_program(error):
  stream = _Failing(error)
  for tried in (1, 2):
    with pytest.raises(type(error)):
      Steady(stream).write('a result')
    assert stream.tried == tried
  steady = Steady(stream, display=True)
  assert steady.write('progress') == 8 and steady.write('more') == 4
  assert stream.tried == 3  # What has failed is not tried again.


@pytest.mark.skipif(not FULL.exists(), reason='no /dev/full')
def test_a_full_disk_is_an_error_of_results_and_not_of_a_display():
  steady = Steady(FULL.open('w'), display=True)
  steady.write('progress')
  steady.flush()
  steady.close()
  steady = Steady(FULL.open('w'))
  steady.write('a result')
  with pytest.raises(OSError, match='No space left'):
    steady.flush()
  with pytest.raises(OSError, match='No space left'):
    steady.close()


@pytest.mark.parametrize('display', [False, True])
@pytest.mark.parametrize(
  'encoding, written',
  [
    ('ascii', b'gr\\xfcn \\u2192 \\udc80'),
    ('latin-1', b'gr\xfcn \\u2192 \\udc80'),
    ('utf-8', 'grün → \\udc80'.encode()),
  ],
)
def test_characters_that_an_encoding_lacks_are_escaped(encoding, written, display):
  raw = io.BytesIO()
  steady = Steady(io.TextIOWrapper(raw, encoding), display=display)
  assert steady.write('grün → \udc80') == 8
  steady.flush()
  assert raw.getvalue() == written


def test_a_stream_that_never_was_is_the_null_device():
  steady = Steady(None)
  steady.write('x')
  steady.flush()
  assert not steady.isatty() and os.fstat(steady.fileno()).st_rdev
  steady.close()
