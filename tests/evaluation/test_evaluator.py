"""Evaluations of a run: played once for each step, shown beside its first."""

import json

import fakes
import pytest

from sdar_jax.evaluation import evaluate, panels
from sdar_jax.evaluation.evaluator import Evaluator
from sdar_jax.rollout import patience


class _Tasks(tuple):
  digest = 'tasks'


def _script(identity):
  """Right at the first turn, the third, or never, by task and member."""
  return str(1 + (identity[-1] + identity[-2]) % 3)


def _plan(seed):
  world = fakes.World()
  world.tasks = lambda split: _Tasks(fakes.tasks())
  panel = panels.make_panel(world, 'valid', 0)
  return evaluate.Plan(panel, fakes.agent(), 2, seed, False, 'w' * 64)


class _Console:
  def __init__(self):
    self.lines, self.shown = [], []
    self.line, self.table = self.lines.append, self.shown.append

  def once(self, what, line):
    """Says nothing."""

  def episodes(self, played, wanted):
    self.played = played, wanted


def _evaluator(directory, seed=0):
  console = _Console()
  waiting = patience.Patience(0.0, console.line, lambda: False)
  made = Evaluator(
    directory,
    _plan(seed),
    {'model_digest': 'm'},
    fakes.in_process(fakes.World()),
    patience=waiting,
    console=console,
    should_stop=lambda: False,
  )
  return made, console


def test_what_faults_spoiled_is_no_report_and_played_again(tmp_path):
  evaluator, _ = _evaluator(tmp_path)
  broken = fakes.ScriptedSampler(lambda identity: 'boom', 0)
  with pytest.raises(patience.EmptyStepError, match='evaluation at step 0: no result'):
    evaluator.report(0, broken)
  assert not list(tmp_path.rglob('eval/*.json'))
  report = evaluator.report(0, fakes.ScriptedSampler(_script, 0))
  assert report['n'] == 6 and report['step'] == 0
  unused = fakes.ScriptedSampler(_script, 0)
  assert _evaluator(tmp_path)[0].report(0, unused) == report and not unused.requests


def _headings(console):
  return [column.header for column in console.shown[0].columns]


def test_there_is_no_before_of_another_panel_or_setting(tmp_path):
  evaluator, console = _evaluator(tmp_path)
  evaluator.report(0, fakes.ScriptedSampler(_script, 0))
  evaluator.show(evaluator.report(5, fakes.ScriptedSampler(_script, 0)))
  assert _headings(console) == ['tasks', 'before', 'n', 'after', 'n']
  assert len(console.lines) == 2 and console.played == (6, 6)
  other, console = _evaluator(tmp_path, seed=1)
  other.sort()
  report = other.report(5, fakes.ScriptedSampler(_script, 0))
  other.show(report)
  assert _headings(console) == ['tasks', 'after', 'n'] and report['seed'] == 1
  assert any('there is no before' in line for line in console.lines)
  assert 'eval/superseded/: 2' in console.lines[0]


def test_episodes_are_kept_with_their_report(tmp_path):
  """They go aside with it, come back with it, and are written where it is played."""
  keep = lambda played: [{'task': t.task_id, 'seed': seed} for t in played[:2]]
  path = tmp_path / 'eval' / 'episodes' / '000000.jsonl'
  for seed in (0, 1, 0):
    evaluator, _ = _evaluator(tmp_path, seed)
    evaluator._keep = keep
    evaluator.sort()
    sampler = fakes.ScriptedSampler(_script, 0)
    evaluator.report(0, sampler)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line['seed'] for line in lines] == [seed, seed]
  assert not sampler.requests  # The third time both came back.
  (aside,) = (path.parent / 'superseded').glob('000000-*.jsonl')
  assert '"seed": 1' in aside.read_text()


def test_a_disk_without_room_for_episodes_costs_them_alone(tmp_path, caplog):
  evaluator, _ = _evaluator(tmp_path)
  evaluator._keep = lambda played: [{'task': 'x'}]
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'episodes').touch()  # In the way of the directory.
  assert evaluator.report(0, fakes.ScriptedSampler(_script, 0))['n'] == 6
  assert 'episodes of the evaluation lost' in caplog.text
