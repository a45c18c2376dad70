"""Runs of two processes that are hurt, resumed and moved; all of them long.

`pytest -m slow tests/hosts` runs them: fifteen CPU minutes.
"""

import json
import os
import pathlib
import signal
import time

import micro_run
import processes
import pytest
from processes import close, lines, same_files

from sdar_jax.storage.workdir import Workdir

STEPS = 3
LOST = {75, -signal.SIGABRT}  # We noticed, or `jax.distributed` did.
HEARTBEAT, GRACE = 10, 15  # Seconds.
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')


@pytest.fixture(scope='module')
def unbroken(model, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  processes.run(model, workdir, steps=STEPS)
  return workdir


def test_twenty_steps_are_those_of_one_process(model, tmp_path):
  processes.run(model, tmp_path / 'two', steps=20)
  processes.run(model, tmp_path / 'one', steps=20, count=1, devices=4)
  ours = processes.metrics(tmp_path / 'two')
  assert len(ours) == 20 and ours == processes.metrics(tmp_path / 'two', 1)
  close(lines(tmp_path / 'two/metrics.jsonl'), lines(tmp_path / 'one/metrics.jsonl'))


@pytest.mark.parametrize('harm', ['rollout 9 SIGKILL 0', 'update 2 SIGKILL 1'])
@pytest.mark.parametrize('how', ['SIGKILL', 'SIGSTOP'])
def test_the_others_end_when_one_dies_and_all_go_on_together(
  model, unbroken, tmp_path, harm, how
):
  harm, victim = harm.replace('SIGKILL', how), int(harm[-1])
  with processes.running(model, tmp_path / 'run', harm, steps=STEPS) as started:
    other = started[1 - victim]
    if how == 'SIGSTOP':
      _wait_for_stop(started[victim])
    else:
      assert started[victim].wait(timeout=300) == -signal.SIGKILL
    since = time.monotonic()
    assert other.wait(timeout=300) in LOST
    assert time.monotonic() - since < HEARTBEAT + GRACE
  assert len(lines(tmp_path / 'run/metrics.jsonl')) < STEPS
  processes.run(model, tmp_path / 'run', steps=STEPS)
  same_files(tmp_path / 'run', unbroken)
  assert processes.state(tmp_path / 'run') == processes.state(unbroken)


def _wait_for_stop(process):
  stat = pathlib.Path(f'/proc/{process.pid}/stat')
  until = time.monotonic() + 300
  while stat.read_text().rpartition(')')[2].split()[0] != 'T':
    assert process.poll() is None and time.monotonic() < until
    time.sleep(0.1)


@pytest.mark.parametrize('harm', ['rollout 9 SIGTERM 1', 'update 2 SIGTERM 0'])
def test_a_stop_of_one_is_a_stop_of_all(model, unbroken, tmp_path, harm):
  said = processes.run(model, tmp_path / 'run', harm, steps=STEPS)
  assert 'stopped on request after step 2' in said[0]
  saved = [processes.state(tmp_path / 'run', i) for i in (0, 1)]
  assert saved[0] == saved[1]
  assert sorted(p.name for p in (tmp_path / 'run/checkpoints').iterdir()) == ['1', '2']
  processes.run(model, tmp_path / 'run', steps=STEPS)
  same_files(tmp_path / 'run', unbroken)
  assert processes.state(tmp_path / 'run') == processes.state(unbroken)


def test_a_process_that_hangs_is_ended_and_so_are_the_others(model, tmp_path):
  limit = {'hosts_watchdog_seconds': 45}
  with processes.running(
    model, tmp_path / 'run', 'rollout 9 hang 1', steps=STEPS, **limit
  ) as started:
    assert started[1].wait(timeout=300) == 75
    since = time.monotonic()
    assert started[0].wait(timeout=300) in LOST
    assert time.monotonic() - since < HEARTBEAT + GRACE
  said = pathlib.Path(f'{tmp_path}/run.1.log').read_text().splitlines()[-1]
  assert 'process 1 made no progress' in said and 'hosts.watchdog_seconds=45' in said


@pytest.mark.parametrize(
  'harm, changes',
  [
    ('', {'rollout_tasks_per_step': 1}),  # The second process has no group.
    ('', {'rollout_tasks_per_step': 3}),
    # All that the second process plays; the panel's only task is the first one's.
    ('environment 1 fault 1', {'rollout_tasks_per_step': 3}),
    ('', {'method': 'dapo', 'rollout_refills': 1}),
  ],
)
def test_uneven_shares_are_no_trouble(model, tmp_path, harm, changes):
  processes.run(model, tmp_path / 'two', harm, **changes)
  ours = processes.metrics(tmp_path / 'two')
  # The metrics, and how often programs of all devices ran.
  assert len(ours) == 2 and ours == processes.metrics(tmp_path / 'two', 1)
  if harm:
    assert {line['rollout/faults'] for line in ours} == {2.0}  # Its group of two.
    assert {line['rollout/groups_kept'] for line in ours} == {2.0}
    counted = lines(tmp_path / 'two/timing.jsonl')
    assert all(line['perf/env_faults'] >= 2 for line in counted)
    return
  processes.run(model, tmp_path / 'one', count=1, devices=4, **changes)
  close(lines(tmp_path / 'two/metrics.jsonl'), lines(tmp_path / 'one/metrics.jsonl'))


def test_a_run_goes_on_with_another_number_of_processes(model, unbroken, tmp_path):
  for name, first, then in (('a', 2, 1), ('b', 1, 2)):
    run = tmp_path / name
    for steps, count in ((STEPS - 1, first), (STEPS, then)):
      processes.run(model, run, steps=steps, count=count, devices=4 // count)
    close(lines(run / 'metrics.jsonl'), lines(unbroken / 'metrics.jsonl'))


def test_a_step_that_differs_ends_the_run(model, tmp_path):
  said = processes.run(model, tmp_path / 'run', 'compare 2 drift 1', expect=70)
  for text in said:
    assert 'the digest of rows is ' in text.splitlines()[-1]
    assert 'step 2 is not one and the same' in text.splitlines()[-1]
  assert [line['step'] for line in lines(tmp_path / 'run/metrics.jsonl')] == [1]


def test_a_disk_that_refuses_the_writer_ends_all(model, tmp_path):
  said = processes.run(model, tmp_path / 'run', 'seal 2 full 0', steps=9, expect=74)
  for text in said:
    assert 'not saved (failure 3 in a row)' in text.splitlines()[-1]
  assert [p.name for p in (tmp_path / 'run/checkpoints').iterdir()] == ['1']
  assert json.loads((tmp_path / 'run/ledger.json').read_text())['checkpoint'] == 1


def test_a_held_directory_is_refused_to_all(model, tmp_path):
  config = micro_run.config(model, 'sdar', STEPS)
  with Workdir(tmp_path / 'run', config):
    said = processes.run(model, tmp_path / 'run', expect=2)
  words = f'is in use by pid {os.getpid()} on host'
  assert [words in text.splitlines()[-1] for text in said] == [True, True]
  assert said[1].splitlines()[-1].startswith('error: process 0: ')
