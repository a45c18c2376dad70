"""One HTTP exchange with a limit on its time and its bytes."""

import http.client
import io
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable

from sdar_jax.envs.base import EnvironmentFault, EnvironmentTimeout

_PIECE = 65536  # bytes


class TooLarge(Exception):
  """More bytes came than may."""


def post(url: str, body: bytes, until: float, max_bytes: int) -> tuple[int, bytes]:
  """Posts JSON and reads the reply. Follows no redirect, uses no proxy.

  Args:
    url: checked by `check_url`.
    body: what to send.
    until: when to give up, on `time.monotonic`'s clock; it bounds the whole exchange.
    max_bytes: of the reply, its headers included.

  Returns:
    Status and content.

  Raises:
    EnvironmentTimeout: `until` passed.
    EnvironmentFault: 'refused', 'dropped' (the connection broke), 'unreachable',
      'too_large' or 'garbage' (not HTTP).
  """
  try:
    return _post(urllib.parse.urlsplit(url), body, until, max_bytes)
  except TimeoutError:
    raise EnvironmentTimeout('timeout', f'{url}: no complete reply in time') from None
  except TooLarge:
    message = f'{url}: the reply exceeds {max_bytes} bytes'
    raise EnvironmentFault('too_large', message) from None
  except ConnectionRefusedError:
    raise EnvironmentFault('refused', f'{url}: connection refused') from None
  except (ConnectionError, http.client.IncompleteRead) as error:
    raise EnvironmentFault('dropped', f'{url}: {type(error).__name__}') from None
  except (http.client.HTTPException, ValueError) as error:
    message = f'{url}: no HTTP reply: {type(error).__name__}'
    raise EnvironmentFault('garbage', message) from None
  except OSError as error:
    raise EnvironmentFault('unreachable', f'{url}: {error}') from None


def check_url(url: str) -> None:
  """Raises ValueError unless this is an http(s) URL with a host."""
  try:
    parts = urllib.parse.urlsplit(url)
    sound = parts.scheme in ('http', 'https') and parts.hostname and parts.port != 0
  except ValueError:  # The port is not a number.
    sound = False
  if not sound or not url.isascii() or not url.isprintable() or ' ' in url:
    raise ValueError(
      f'config.world.url={url!r}: must be like http://127.0.0.1:8000/retrieve'
    )


def _post(
  parts: urllib.parse.SplitResult, body: bytes, until: float, max_bytes: int
) -> tuple[int, bytes]:
  secure = parts.scheme == 'https'
  port = parts.port or (443 if secure else 80)
  sock = _connect(parts.hostname, port, until)
  try:
    if secure:
      sock.settimeout(_left(until))
      context = ssl.create_default_context()
      sock = context.wrap_socket(sock, server_hostname=parts.hostname)
    connection = http.client.HTTPConnection(parts.hostname, port)
    connection.sock = _Bounded(sock, until, max_bytes)
    target = (parts.path or '/') + (f'?{parts.query}' if parts.query else '')
    headers = {'Content-Type': 'application/json', 'Connection': 'close'}
    connection.request('POST', target, body, headers)
    return _read(connection.getresponse(), max_bytes)
  finally:
    sock.close()


def _read(response: http.client.HTTPResponse, max_bytes: int) -> tuple[int, bytes]:
  """Reads in pieces: a merely claimed length is never allocated."""
  if response.length is not None and response.length > max_bytes:
    raise TooLarge
  pieces = []
  while piece := response.read(_PIECE):
    pieces.append(piece)
  if response.length:
    raise http.client.IncompleteRead(b'', response.length)
  return response.status, b''.join(pieces)


def _connect(host: str, port: int, until: float) -> socket.socket:
  """Tries the host's addresses in turn, all within the time."""
  error: OSError = OSError(f'no address for {host}')
  for family, kind, protocol, _, address in _addresses(host, port, until):
    sock = socket.socket(family, kind, protocol)
    try:
      sock.settimeout(_left(until))
      sock.connect(address)
      return sock
    except OSError as failure:
      sock.close()
      error = failure
  raise error


def _addresses(host: str, port: int, until: float) -> list[tuple]:
  """Looks up a host in a thread: the system's look-up has no deadline."""
  found: list[list[tuple] | Exception] = []

  def look_up() -> None:
    try:
      found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, ValueError) as error:
      found.append(error)

  thread = threading.Thread(target=look_up, daemon=True)
  thread.start()
  thread.join(_left(until))
  if not found:
    raise TimeoutError
  if isinstance(found[0], Exception):
    raise found[0]
  return found[0]


def _left(until: float) -> float:
  """Seconds left, or TimeoutError."""
  left = until - time.monotonic()
  if left <= 0:
    raise TimeoutError
  return left


class _Bounded:
  """A socket for http.client with every call within the time left."""

  def __init__(self, sock: socket.socket, until: float, max_bytes: int):
    self._sock = sock
    self._until = until
    self._max_bytes = max_bytes

  def sendall(self, data: bytes) -> None:
    self._sock.settimeout(_left(self._until))
    self._sock.sendall(data)  # The timeout is that of the whole call.

  def makefile(self, mode: str) -> io.BufferedReader:
    del mode  # Always 'rb'.
    return io.BufferedReader(_Reader(self._receive, self._max_bytes), _PIECE)

  def _receive(self, buffer: memoryview) -> int:
    self._sock.settimeout(_left(self._until))
    return self._sock.recv_into(buffer)

  def close(self) -> None:
    """Leaves it open: http.client closes before it reads such a reply."""


class _Reader(io.RawIOBase):
  """Counts received bytes."""

  def __init__(self, receive: Callable[[memoryview], int], left: int):
    super().__init__()
    self._receive = receive
    self._left = left

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: memoryview) -> int:
    count = self._receive(buffer)
    self._left -= count
    if self._left < 0:
      raise TooLarge
    return count
