"""Prints where the time of traced steps went, on the host and on the device.

  sdar --config=... --workdir=RUN --config.log.profile_steps="(2,3)"
  python -m benchmarks.traces RUN [--top=12]

Reads the newest trace below RUN/profile: seconds of each phase; the busy seconds of the
threads that run programs, by program and by kind of operation. Operations are counted
without those that they contain.
"""

import collections
import gzip
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdar_jax import files
from sdar_jax.process import flags, terminal

PHASES = ('rollout', 'batch', 'score', 'update', 'eval')

Event = Mapping[str, Any]


def find(run: pathlib.Path) -> pathlib.Path:
  """Finds the newest trace of a run.

  Raises:
    ValueError: there is none.
  """
  found = sorted(run.glob('profile/plugins/profile/*/*.trace.json.gz'))
  if not found:
    raise ValueError(f'{run}: no trace below profile/: see config.log.profile_steps')
  return found[-1]


def read(path: pathlib.Path) -> list[Event]:
  """Reads the events that have a duration.

  Raises:
    ValueError: not a trace; the file is named.
  """
  try:
    events = json.loads(gzip.decompress(path.read_bytes()))['traceEvents']
    return [event for event in events if event.get('ph') == 'X']
  except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(f'{path}: no trace: {files.one_line(error)}') from error


def phases(events: Iterable[Event]) -> dict[str, float]:
  """Sums the seconds of each phase of the steps."""
  out = dict.fromkeys(PHASES, 0.0)
  for event in events:
    if event['name'] in out:
      out[event['name']] += event['dur'] / 1e6
  return out


def operations(events: Iterable[Event]) -> dict[tuple[str, str], float]:
  """Sums the seconds of operations by program and kind.

  Args:
    events: of a trace; those of programs name their 'hlo_module'.

  Returns:
    Busy seconds over all threads of (program, kind of operation), each without the
    operations that ran inside it on the same thread.
  """
  threads = collections.defaultdict(list)
  for event in events:
    if 'hlo_module' in event.get('args', {}):
      threads[event['pid'], event['tid']].append(event)
  out: dict[tuple[str, str], float] = collections.defaultdict(float)
  for its in threads.values():
    open_: list[tuple[float, tuple[str, str]]] = []  # Ends and names, outermost first.
    for event in sorted(its, key=lambda e: (e['ts'], -e['dur'])):
      while open_ and open_[-1][0] <= event['ts']:
        open_.pop()
      kind = event['name'].partition('.')[0]
      name = (event['args']['hlo_module'].removeprefix('jit_'), kind)
      out[name] += event['dur'] / 1e6
      if open_:
        out[open_[-1][1]] -= event['dur'] / 1e6
      open_.append((event['ts'] + event['dur'], name))
  return dict(out)


def table(title: str, seconds: Mapping[str, float], top: int) -> list[str]:
  """Formats the largest of some seconds, with their shares."""
  total = sum(seconds.values())
  lines = [f'{title}: {total:.2f} s']
  for name, value in sorted(seconds.items(), key=lambda item: -item[1])[:top]:
    lines.append(f'  {value:8.2f} s {value / max(total, 1e-9):6.1%}  {name}')
  return lines


@terminal.program
def main(argv: Sequence[str]) -> int:
  """Prints the tables of a run's newest trace."""
  parser = flags.Parser('python -m benchmarks.traces', __doc__)
  parser.add_argument('run', type=pathlib.Path, help='directory of a run')
  parser.add_argument('--top', type=int, default=12, help='rows of a table')
  options = parser.parse_all(argv)
  events = read(find(options.run))
  found = operations(events)
  programs: dict[str, float] = collections.defaultdict(float)
  for (program, _), seconds in found.items():
    programs[program] += seconds
  named = {f'{program}: {kind}': seconds for (program, kind), seconds in found.items()}
  lines = table('phases', phases(events), options.top)
  lines += table('programs, busy', programs, options.top)
  lines += table('operations, busy', named, options.top)
  print('\n'.join(lines))
  return 0


if __name__ == '__main__':
  main()
