"""Traces of a run's steps: which are there, and what they name."""

import collections
import gzip
import json

import micro_run
import pytest

from sdar_jax.learner import profile


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')


def _events(directory):
  """The named events of each trace under a directory."""
  paths = sorted(directory.rglob('*.trace.json.gz'))
  return [
    [
      e
      for e in json.loads(gzip.decompress(p.read_bytes()))['traceEvents']
      if 'dur' in e
    ]
    for p in paths
  ]


@pytest.mark.long
def test_a_traced_step_names_its_phases_and_changes_no_number(model, tmp_path):
  lines = {}
  traced, ahead = {'log_profile_steps': (2,)}, {'train_compile_ahead': True}
  with micro_run.compiling():
    for name, changes in (('plain', {}), ('traced', traced), ('ahead', ahead)):
      config = micro_run.config(model, 'sdar', 2, **changes)
      assert not micro_run.start(config, tmp_path / name).error
      lines[name] = (tmp_path / name / 'metrics.jsonl').read_bytes()
  assert lines['plain'] == lines['traced'] == lines['ahead']
  assert not (tmp_path / 'plain' / 'profile').exists()
  (events,) = _events(tmp_path / 'traced' / 'profile')  # Of the one step.
  counts = collections.Counter(event['name'] for event in events)
  assert [counts[p] for p in ('rollout', 'batch', 'score', 'update')] == [1] * 4
  (step,) = [e for e in events if e['name'] == 'step']
  assert step['args']['step_num'] == '2'
  phases = {e['name']: e for e in events if e['name'] in ('rollout', 'update')}
  ends = {name: e['ts'] + e['dur'] for name, e in phases.items()}
  assert step['ts'] <= phases['rollout']['ts'] < ends['rollout']
  assert ends['rollout'] <= phases['update']['ts'] < ends['update']
  assert ends['update'] <= step['ts'] + step['dur']
  within = [e for e in events if phases['update']['ts'] < e['ts'] < ends['update']]
  assert any('fusion' in e['name'] for e in within)  # What the device did.


def test_a_profiler_that_fails_costs_the_trace(tmp_path, monkeypatch, caplog):
  def refuse(*args, **options):
    raise RuntimeError('another profile\nis active')

  monkeypatch.setattr(profile.jax.profiler, 'start_trace', refuse)
  profiler = profile.Profiler(tmp_path, (1,))
  profiler.begin(1)
  profiler.end()
  assert 'no trace: another profile is active' in caplog.text
