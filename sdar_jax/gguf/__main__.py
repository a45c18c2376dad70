"""Converts a file: `python -m sdar_jax.gguf FILE DIR`. Host, no JAX."""

from collections.abc import Sequence

from sdar_jax import files
from sdar_jax.process import flags, terminal


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Writes a Hugging Face directory; returns the exit code."""
  parser = flags.Parser(
    'python -m sdar_jax.gguf',
    'Converts a GGUF file of Llama, Qwen2, Qwen2.5 or Qwen3 into a Hugging Face'
    ' directory.',
    'exit codes: 0 done; 2 the file cannot be read, or the directory not be written.',
  )
  parser.add_argument('file', metavar='FILE', help='a .gguf file')
  parser.add_argument('output', metavar='DIR', help='directory, absent or empty')
  parser.add_argument(
    '--dtype',
    choices=('float32', 'bfloat16'),
    default='float32',
    help='of the weights; float32 keeps every bit (default: %(default)s)',
  )
  options = parser.parse_all(argv)
  from sdar_jax.gguf import convert  # Slow to import: --help does without.

  path = files.local_path(options.file, 'FILE')
  output = files.local_path(options.output, 'DIR')
  convert.write(path, output, options.dtype)
  print(f'wrote {output} ({options.dtype})')
  return 0


if __name__ == '__main__':
  main()
