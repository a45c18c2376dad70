import json
import math
import os
import resource
import types

import jax.numpy as jnp
import numpy as np
import pytest

from sdar_jax.logs import writers
from sdar_jax.logs.trajectories import from_json
from sdar_jax.logs.writers import MetricsWriter
from sdar_jax.storage import ledger
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn


def _lines(path):
  return [json.loads(line) for line in path.read_text(encoding='ascii').splitlines()]


def _write(directory, steps, resume_step=None, scale=1.0):
  writer = MetricsWriter(directory, resume_step)
  for step in steps:
    writer.write(step, {'train/loss': scale / step}, {'perf/step_seconds': 0.5})
    writer.teacher(step, {'skills': {'look': step}})
    writer.trajectories(step, [{'step': step}])
  writer.close()


def test_floats_keep_their_bits(tmp_path):
  values = [0.1, 1 / 3, 5e-324, 1e308, -0.0, float(np.float32(0.1)), math.pi]
  writer = MetricsWriter(tmp_path, None)
  for step, value in enumerate(values, start=1):
    writer.write(step, {'train/loss': value}, {})
  read = [line['train/loss'] for line in _lines(tmp_path / 'metrics.jsonl')]
  assert [v.hex() for v in read] == [v.hex() for v in values]


def test_numbers_of_all_kinds_and_lists(tmp_path):
  writer = MetricsWriter(tmp_path, None)
  values = {
    'train/loss': jnp.float32(0.1),
    'train/kl': np.float64(2),
    'rollout/rows': 7,
    'train/gate_histogram': np.array([0.25, 0.75], np.float32),
    'train/gap_by_turn': [1.0, math.nan, -math.inf],
    'train/grad_norm': math.inf,
  }
  writer.write(1, values, {})
  (line,) = _lines(tmp_path / 'metrics.jsonl')
  assert line == {
    'step': 1,
    'train/loss': float(np.float32(0.1)),
    'train/kl': 2.0,
    'rollout/rows': 7,
    'train/gate_histogram': [0.25, 0.75],
    'train/gap_by_turn': [1.0, None, '-Infinity'],
    'train/grad_norm': 'Infinity',
  }
  assert float(line['train/grad_norm']) == math.inf


def test_clock_time_stays_out_of_the_metrics(tmp_path):
  _write(tmp_path / '', [1, 2])
  other = tmp_path / 'other'
  other.mkdir()
  _write(other, [1, 2])
  one, two = (d / 'metrics.jsonl' for d in (tmp_path, other))
  assert one.read_bytes() == two.read_bytes()
  for line in _lines(tmp_path / 'timing.jsonl'):
    assert line['time'] > 1.7e9 and line['perf/step_seconds'] == 0.5


def test_unknown_names_and_steps_that_do_not_rise_are_errors(tmp_path):
  writer = MetricsWriter(tmp_path, None)
  for values, timings in (
    ({'train/los': 1.0}, {}),
    ({'perf/step_seconds': 1.0}, {}),
    ({}, {'train/loss': 1.0}),
  ):
    with pytest.raises(ValueError, match='is not in the tables'):
      writer.write(1, values, timings)
  writer.write(2, {}, {})
  for step in (1, 2):
    with pytest.raises(ValueError, match=f'step {step} does not follow step 2'):
      writer.write(step, {}, {})


@pytest.mark.parametrize('name', ['metrics', 'timing', 'teacher'])
def test_resume_cuts_back_to_the_committed_step(tmp_path, name):
  _write(tmp_path, range(1, 8))
  _write(tmp_path, range(5, 10), resume_step=4)
  assert [line['step'] for line in _lines(tmp_path / f'{name}.jsonl')] == [
    *range(1, 10)
  ]


def test_a_resumed_run_leaves_the_files_of_an_unbroken_one(tmp_path):
  for name in ('unbroken', 'killed'):
    (tmp_path / name).mkdir()
  _write(tmp_path / 'unbroken', range(1, 10))
  _write(tmp_path / 'killed', range(1, 8))
  _write(tmp_path / 'killed', range(5, 10), resume_step=4)
  names = ['metrics.jsonl', 'teacher.jsonl']
  names += [f'trajectories/{step:06d}.jsonl' for step in range(1, 10)]
  for name in names:
    one, two = (tmp_path / run / name for run in ('unbroken', 'killed'))
    assert one.read_bytes() == two.read_bytes()


def test_a_fresh_start_moves_earlier_results_aside(tmp_path):
  old = {}
  for scale in (2.0, 3.0):
    _write(tmp_path, range(1, 4), scale=scale)
    old[scale] = (tmp_path / 'metrics.jsonl').read_bytes()
    for step in (0, 2):
      ledger.write_report(tmp_path, f'{step:06d}.json', {})
  _write(tmp_path, [1], resume_step=None)
  assert _lines(tmp_path / 'metrics.jsonl') == [{'step': 1, 'train/loss': 1.0}]
  assert os.listdir(tmp_path / 'trajectories') == ['000001.jsonl']
  # The report of the initial policy stays; nothing is deleted, however often.
  assert os.listdir(tmp_path / 'eval') == ['000000.json']
  assert ledger.check(tmp_path) == []  # Nor is it missed.
  for name, scale in (('aside-1', 2.0), ('aside-2', 3.0)):
    assert (tmp_path / name / 'metrics.jsonl').read_bytes() == old[scale]
    assert len(os.listdir(tmp_path / name / 'trajectories')) == 3
    assert {'timing.jsonl', 'teacher.jsonl'} < set(os.listdir(tmp_path / name))
  assert (tmp_path / 'aside-1' / 'eval' / '000002.json').exists()
  assert MetricsWriter(tmp_path, 1).aside is None  # A resumed run moves nothing.


@pytest.mark.parametrize('name', ['metrics.jsonl', 'teacher.jsonl'])
def test_changed_lines_are_noticed_on_resume(tmp_path, name):
  writer = MetricsWriter(tmp_path, None)
  for step in (1, 2, 3):
    writer.write(step, {'train/loss': 1.5 * step}, {})
    writer.teacher(step, {'skills': {'look': step}})
    if step == 2:
      digests = writer.digests()
  writer.close()
  path, whole = tmp_path / name, (tmp_path / name).read_bytes()
  for text in (b'', whole.replace(b'2', b'7', 1), whole[: whole.index(b'\n') + 1]):
    path.write_bytes(text)
    with pytest.raises(ValueError, match='changed since it was written') as caught:
      MetricsWriter(tmp_path, 2, digests=digests)
    assert str(path) in str(caught.value) and '\n' not in str(caught.value)
    assert path.read_bytes() == text
  path.write_bytes(whole.replace(b'"step": 3', b'"step": 4'))  # Written once more.
  writer = MetricsWriter(tmp_path, 2, digests=digests)
  assert writer.digests() == digests
  writer.close()


@pytest.mark.parametrize('tail', [b'{"step": 4, "train/lo', b'{', b'\x00\x00\xff'])
def test_a_torn_last_line_is_dropped(tmp_path, tail):
  _write(tmp_path, range(1, 4))
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(tail)
  _write(tmp_path, [4], resume_step=3)
  assert [line['step'] for line in _lines(tmp_path / 'metrics.jsonl')] == [1, 2, 3, 4]


def test_damage_before_the_committed_step_is_an_error(tmp_path):
  _write(tmp_path, range(1, 4))
  path = tmp_path / 'metrics.jsonl'
  text = path.read_text().replace('"step": 2', '"stop": 2')
  path.write_text(text)
  with pytest.raises(ValueError, match=r'metrics\.jsonl line 2: no step') as caught:
    MetricsWriter(tmp_path, 3)
  assert '\n' not in str(caught.value)
  assert path.read_text() == text
  MetricsWriter(tmp_path, 1).close()  # What is cut away may be anything.


def test_a_full_disk_delays_lines_but_tears_none(tmp_path, caplog):
  writer = MetricsWriter(tmp_path, None)
  writer.write(1, {'train/loss': 1.0}, {})
  before = (tmp_path / 'metrics.jsonl').read_bytes()
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, hard))
  try:
    writer.write(2, {'train/loss': 2.0}, {})
    writer.trajectories(2, [{'text': 'x' * 1000}])
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert (tmp_path / 'metrics.jsonl').read_bytes() == before
  assert 'metrics.jsonl: File too large: not written yet' in caplog.text
  assert 'trajectories of step 2 lost' in caplog.text
  assert os.listdir(tmp_path / 'trajectories') == []
  writer.write(3, {'train/loss': 3.0}, {})
  writer.close()
  for name in ('metrics', 'timing'):
    assert [line['step'] for line in _lines(tmp_path / f'{name}.jsonl')] == [1, 2, 3]


def _turn(ids, text):
  return Turn(
    prompt_ids=np.arange(3, dtype=np.int32),
    response_ids=np.asarray(ids, np.int32),
    sampler_logprobs=np.full(len(ids), -0.1, np.float32),
    **{'prompt_text': text} if 'prompt_text' in Turn.__dataclass_fields__ else {},
    observation=text,
    response=text,
    action=text,
    valid=True,
    admissible=False,
    reward=0.0,
    stop_reason='stop',
  )


def _groups(text='go'):
  return [
    Group(
      group_id,
      None,
      [
        Trajectory('t', 'look', group_id, member, [_turn([5, 6], text)] * 2, outcome)
        for member, outcome in enumerate((Outcome.SUCCESS, Outcome.MAX_TURNS))
      ],
    )
    for group_id in range(3)
  ]


def test_trajectories_carry_the_token_arrays_of_sampled_turns(tmp_path):
  gap = np.array([0.5, -0.25], np.float32)
  tokens = [{'trajectory_id': 5, 'turn_id': 1, 'gap': gap, 'advantage': 1.5}]
  writer = MetricsWriter(tmp_path, None)
  writer.trajectories(3, writers.with_tokens(_groups(), tokens))
  records = _lines(tmp_path / 'trajectories' / '000003.jsonl')
  assert len(records) == 6
  carrying = [
    (record['group_id'], record['member'], i)
    for record in records
    for i, turn in enumerate(record['turns'])
    if 'tokens' in turn
  ]
  assert carrying == [(2, 1, 1)]
  found = records[5]['turns'][1]['tokens']
  assert found['gap'] == [0.5, -0.25] and found['advantage'] == 1.5
  read = from_json(records[5])
  assert read.outcome is Outcome.MAX_TURNS
  np.testing.assert_array_equal(read.turns[1].response_ids, [5, 6])


def test_token_arrays_of_a_turn_that_is_not_there_are_an_error():
  tokens = [{'trajectory_id': 6, 'turn_id': 0}]
  with pytest.raises(ValueError, match=r'\(6, 0\)'):
    list(writers.with_tokens(_groups(), tokens))


WILD = 'a\x00\x1b[31m\n\r\x7f\x9b\u2028\ud800b\udfffc😀\U0010ffff"\\'


def test_wild_text_is_escaped(tmp_path):
  writer = MetricsWriter(tmp_path, None)
  writer.trajectories(1, writers.with_tokens(_groups(WILD), []))
  data = (tmp_path / 'trajectories' / '000001.jsonl').read_bytes()
  assert data.count(b'\n') == 6
  assert all(32 <= byte < 128 or byte == 10 for byte in data)
  text = json.loads(data.splitlines()[0])['turns'][0]['response']
  assert text == WILD.replace('\ud800', '\ufffd').replace('\udfff', '\ufffd')
  text.encode()  # A reader can put it anywhere.


def test_trajectories_of_later_steps_go_when_a_run_resumes(tmp_path):
  _write(tmp_path, range(1, 6))
  (tmp_path / 'trajectories' / 'notes.jsonl').write_text('mine')
  MetricsWriter(tmp_path, 2).close()
  names = sorted(os.listdir(tmp_path / 'trajectories'))
  assert names == ['000001.jsonl', '000002.jsonl', 'notes.jsonl']


def test_sinks_get_every_finite_number(tmp_path):
  got = []
  sink = types.SimpleNamespace(
    write=lambda step, values: got.append((step, values)),
    close=lambda: got.append('end'),
  )
  writer = MetricsWriter(tmp_path, None, [sink])
  numbers = {'train/gate_histogram': [0.5, 0.25], 'train/gap_by_turn': [math.nan]}
  writer.write(1, {**numbers, 'train/loss': math.inf}, {'perf/step_seconds': 2})
  writer.close()
  values = {
    'train/gate_histogram/0': 0.5,
    'train/gate_histogram/1': 0.25,
    'perf/step_seconds': 2.0,
  }
  assert got == [(1, values), 'end']


def test_a_sink_that_fails_costs_its_own_numbers(tmp_path, caplog):
  got = []

  def fail(*args):
    raise ConnectionError('no\nroute')

  broken = types.SimpleNamespace(write=fail, close=fail)
  sound = types.SimpleNamespace(
    write=lambda step, values: got.append(step), close=lambda: got.append('end')
  )
  writer = MetricsWriter(tmp_path, None, [broken, sound])
  writer.write(1, {'train/loss': 1.0}, {})
  writer.close()
  assert got == [1, 'end'] and len(_lines(tmp_path / 'metrics.jsonl')) == 1
  assert 'step 1 lost: no route' in caplog.text
