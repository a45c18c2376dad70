"""Checks that the device is the one that a notebook is meant for.

python -m experiments.notebooks.device --platform=tpu --gib=15
"""

from collections.abc import Sequence

from sdar_jax.process import devices, flags, terminal

_GIB = 2**30


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints the devices; one line and exit code 2 where they are others."""
  parser = flags.Parser('python -m experiments.notebooks.device', __doc__)
  parser.add_argument('--platform', required=True, help='of JAX: tpu, gpu or cpu')
  parser.add_argument('--gib', type=float, default=0, help='that each has at least')
  options = parser.parse_all(argv)
  import jax  # Slow to import: --help does without.

  try:
    found = jax.devices()
  except RuntimeError as error:
    raise ValueError(f'JAX has no {options.platform} here: {error}') from error
  print(devices.summary(found))
  check(found, options.platform, options.gib)
  return 0


def check(found: Sequence, platform: str, gib: float) -> None:
  """Checks devices of JAX.

  Raises:
    ValueError: one is of another platform, or has less memory.
  """
  for device in found:
    has = (device.memory_stats() or {}).get('bytes_limit', 0) / _GIB
    if device.platform != platform or has < gib:
      raise ValueError(
        f'{device.device_kind} ({device.platform}) with {has:.1f} GiB: this notebook'
        f' wants {platform} with {gib:g} GiB; choose another runtime'
      )


if __name__ == '__main__':
  main()
