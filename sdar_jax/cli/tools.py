"""Finds the tools: words behind `sdar`, as `sdar compare RUN`. No JAX."""

import dataclasses
import importlib
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Tool:
  """A program of its own flags.

  Attributes:
    summary: for --help.
    module: whose `main` takes the words behind the tool's name.
  """

  summary: str
  module: str


TOOLS = {
  'view': Tool('look at episodes, token by token', 'sdar_jax.look.view'),
  'report': Tool('draw how runs went', 'sdar_jax.look.report'),
  'play': Tool('play an episode by hand, turn by turn', 'sdar_jax.play.tool'),
  'serve': Tool("answer OpenAI's clients with a policy", 'sdar_jax.serve.command'),
  'compare': Tool('compare runs by method over seeds', 'sdar_jax.compare'),
  'study': Tool('run methods x seeds, then compare', 'sdar_jax.cli.study'),
}


def run(argv: Sequence[str]) -> int:
  """Runs the tool that the first word names; returns its exit code."""
  name, *words = argv
  return importlib.import_module(TOOLS[name].module).main(words)
