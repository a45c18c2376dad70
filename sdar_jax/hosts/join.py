"""Joins the processes of a run, by `jax.distributed`."""

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

import sdar_jax
from sdar_jax import config as config_lib
from sdar_jax import files
from sdar_jax.config import ConfigError
from sdar_jax.hosts.team import Team
from sdar_jax.logs import writers
from sdar_jax.process import team as teams
from sdar_jax.process import terminal


@contextlib.contextmanager
def joined(
  place: teams.Place | None, config: ConfigDict, seconds: int = 300
) -> Iterator[Team]:
  """Joins the processes for the length of a block.

  No device may have been asked for before. A block that ends with an error ends all;
  where a process is lost, this one ends here: its devices may wait for ever.

  Args:
    place: of this process; None where SLURM, a TPU pod or the like says it.
    config: of the run, the same in all processes.
    seconds: to wait for the others.

  Raises:
    ConfigError: they cannot join; one line.
    PeerError: they run other versions or configs, or another one failed.
  """
  where = 'the cluster' if place is None else place.address
  print(f'waits for the others at {where}, {seconds} s at most', file=sys.stderr)
  _initialize(place, config, seconds)
  team = Team(config.hosts.watchdog_seconds)
  try:
    with team.together():
      _compare(team, config)
      yield team
    team.close()
  except BaseException as error:
    if team.lost and isinstance(error, Exception):
      terminal.fail(error, teams.LOST)
      sys.stdout.flush()
      os._exit(teams.LOST)
    if not isinstance(error, Exception):  # A second signal waits for nobody.
      os._exit(getattr(error, 'code', None) or 128 + getattr(error, 'number', 1))
    team.close()
    raise
  finally:
    jax.distributed.shutdown()


def _initialize(place: teams.Place | None, config: ConfigDict, seconds: int) -> None:
  """Calls `jax.distributed.initialize`; one line where that fails."""
  c = config.hosts
  # Its handler of SIGTERM would take the place of ours.
  jax.config.update('jax_enable_preemption_service', False)
  known = {}
  if place is not None:
    known = {
      'coordinator_address': place.address,
      'num_processes': place.count,
      'process_id': place.index,
    }
    _reach(place, seconds)
  try:
    jax.distributed.initialize(
      **known,
      initialization_timeout=seconds,
      heartbeat_timeout_seconds=c.heartbeat_seconds,
      shutdown_timeout_seconds=c.heartbeat_seconds,
    )
  except (RuntimeError, ValueError) as error:
    what = 'auto' if place is None else ','.join(map(str, place))
    raise ConfigError(
      f'--hosts={what}: the processes do not join ({files.one_line(error)}): check that'
      ' the first one runs and can be reached'
    ) from error


def _reach(place: teams.Place, seconds: int) -> None:
  """Waits until the first process listens: JAX would abort this one."""
  host, _, port = place.address.rpartition(':')
  until = time.monotonic() + seconds
  while place.index:
    try:
      socket.create_connection((host.strip('[]'), int(port)), 5.0).close()
      return
    except OSError as error:
      if time.monotonic() > until:
        raise ConfigError(
          f'--hosts={",".join(map(str, place))}: nobody answers at {place.address}'
          f' after {seconds} s ({files.one_line(error)}): check that process 0 runs and'
          ' can be reached'
        ) from error
      time.sleep(0.2)


def _compare(team: Team, config: ConfigDict) -> None:
  """Compares what all processes must share, before anything heavy."""
  versions = {'sdar-jax': sdar_jax.__version__, 'jax': jax.__version__}
  versions['the code of this package'] = writers.code_version()
  values = config_lib.flatten(config).items()
  settings = {f'config.{key}': value for key, value in values}
  team.agree(versions, 'install the same on all hosts')
  team.agree(settings, 'start all processes with the same config')
