"""Runs a program: terminal, signals, errors, exit code. No JAX."""

import contextlib
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TextIO

from sdar_jax import files

WRONG_INPUT = 2  # The exit code where an error names no other.
_NO_READER = (errno.EPIPE, errno.EIO)  # Of a pipe, of a terminal.
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
  """SIGTERM or SIGINT came.

  Attributes:
    number: of the signal.
    lost: what the program had done and will not keep.
  """

  def __init__(self, number: int):
    super().__init__(number)
    self.number = number
    self.lost = 'nothing was written'

  def __str__(self) -> str:
    return f'stopped by {signal.Signals(self.number).name}: {self.lost}'


class Steady:
  """Drops what is written to a stream without a reader.

  A character that its encoding lacks is escaped.

  Args:
    stream: None is one that was closed when the process began.
    display: it shows progress and no results, so that neither a full disk nor a stream
      that was closed since is an error.
  """

  def __init__(self, stream: TextIO | None, *, display: bool = False):
    self._stream = open(os.devnull, 'w') if stream is None else stream
    self._display, self._gone = display, False

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    encoding = getattr(self._stream, 'encoding', None) or 'utf-8'
    safe = text.encode(encoding, 'backslashreplace').decode(encoding)
    self._try(lambda: self._stream.write(safe))
    return len(text)

  def flush(self) -> None:
    self._try(self._stream.flush)

  def _try(self, act: Callable[[], Any]) -> None:
    if self._gone:
      return
    try:
      act()
    except (OSError, ValueError) as error:  # ValueError: it is closed.
      if not (self._display or getattr(error, 'errno', None) in _NO_READER):
        raise
      self._gone = True
      with contextlib.suppress(OSError, ValueError):
        # What the interpreter flushes at its end would be an error once more.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def program(main: Callable[[Sequence[str]], int]) -> Callable[..., int]:
  """Makes a program of `main`, from words to an exit code.

  Called with words it returns the exit code. Called with none, as a console script is,
  it reads the process's and ends it with that code. An error is one line on stderr: see
  `fail`. Modules in the working directory can be imported, after installed ones.
  """

  @functools.wraps(main)
  def called(argv: Sequence[str] | None = None) -> int:
    if argv is None:
      sys.path.append('')
      run(called)
    try:
      return main(argv)
    except Exception as error:
      if isinstance(error, (ValueError, OSError)) or hasattr(error, 'exit_code'):
        return fail(error, getattr(error, 'exit_code', WRONG_INPUT))
      raise

  return called


def fail(error: BaseException, code: int, hint: str = '') -> int:
  """Prints an error in one line; SDAR_TRACEBACK=1 raises it.

  Returns:
    The exit code.
  """
  if os.environ.get('SDAR_TRACEBACK') == '1':
    raise error
  text = files.one_line(error, 1000) + (f'; {hint}' if hint else '')
  with contextlib.suppress(OSError):  # Where it goes may be a file on a full disk.
    print(f'error: {text}', file=sys.stderr)
  return code


def run(main: Callable[[Sequence[str]], int]) -> NoReturn:
  """Runs a program that no terminal or pipe can break; then exits.

  Characters that the terminal lacks are escaped; a reader that goes away, as `| head`
  does, ends no run; SIGTERM and SIGINT raise `Stopped`, a second one kills.

  Args:
    main: takes the words after the program's name, returns the exit code.
  """
  _prepare()
  try:
    code = main(sys.argv[1:])
  except Stopped as stopped:
    print(stopped, file=sys.stderr)
    code = 128 + stopped.number
  sys.exit(code)


def _prepare() -> None:
  for name in ('stdout', 'stderr'):
    setattr(sys, name, Steady(getattr(sys, name)))
  for number in _SIGNALS:
    signal.signal(number, _stop)


def _stop(number: int, frame: Any) -> None:
  del frame
  for other in _SIGNALS:
    signal.signal(other, signal.SIG_DFL)
  raise Stopped(number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
  """Holds SIGTERM and SIGINT off while a result is written."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  earlier = [signal.signal(number, signal.SIG_IGN) for number in _SIGNALS]
  try:
    yield
  finally:
    for number, handler in zip(_SIGNALS, earlier, strict=True):
      signal.signal(number, handler)
