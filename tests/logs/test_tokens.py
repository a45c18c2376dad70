"""What is recorded of tokens, against values set by hand."""

import types

import numpy as np
import pytest

from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs.base import Task
from sdar_jax.logs import tokens, trajectories
from sdar_jax.prompts.skills import SkillView
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn


def _turn(size, prompt=(), **changes):
  values = {
    'prompt_text': 'look',
    'prompt_ids': np.asarray(prompt, np.int32),
    'response_ids': np.arange(1, size + 1, dtype=np.int32),
    'sampler_logprobs': np.full(size, -0.5, np.float32),
    'observation': '',
    'response': '',
    'action': '',
    'valid': True,
    'admissible': True,
    'reward': 0.0,
    'stop_reason': 'stop',
  }
  return Turn(**(values | changes))


def _groups(sizes=((2, 4), (3,), (1,), (1,))):
  """Two groups of two members, with turns of so many tokens."""
  task = Task('a', 'k', 'put it there', {}, None)
  members = [
    Trajectory(f't{i // 2}', 'k', i // 2, i % 2, [*map(_turn, s)], Outcome.FAILURE)
    for i, s in enumerate(sizes)
  ]
  return [Group(0, task, members[:2]), Group(1, task, members[2:])]


def _view(*ids):
  return SkillView(ids, (), 7 * len(ids))


def _spell(ids):
  return ''.join(f'<{i}>' for i in ids)


def _records(rows, known, views=None, prompts=None, **changes):
  settings = {'count': 3, 'episodes': 0, 'identity': (0, 1), 'spell': _spell}
  prompts = () if prompts is None else [prompts]
  return tokens.token_records(rows, known, prompts, views, **settings | changes)


def _places(rows, chosen):
  names = [(record['trajectory_id'], record['turn_id']) for record in chosen]
  return [[(row.trajectory_id, row.turn_id) for row in rows].index(n) for n in names]


def _known(rows, *names):
  width = max(len(row.turn.response_ids) for row in rows)
  mask = np.arange(width) < np.asarray([[len(r.turn.response_ids)] for r in rows])
  count = np.arange(len(rows) * width, dtype=np.float32).reshape(-1, width)
  return {'response_mask': mask, **{n: count + i for i, n in enumerate(names)}}


def test_records_are_the_rows_own_values():
  rows = rows_lib.rows(_groups(), invalid_penalty=0.1)
  known = _known(rows, 'advantages', 'old_logprobs', 'teacher_logprobs', 'old_entropy')
  known |= {'gate': known['advantages'] / 100, 'teaching': np.arange(5.0)}
  prompts = [np.asarray([9, i]) for i in range(len(rows))]
  records = _records(rows, known, [_view('s')] * len(rows), prompts)
  assert len(records) == 3
  for index, record in zip(_places(rows, records), records, strict=True):
    row, size = rows[index], len(rows[index].turn.response_ids)
    for name in ('advantages', 'gate', 'old_entropy'):
      assert record[name] == known[name][index, :size].tolist()
    assert record['gap'] == [1.0] * size
    assert record['teaching'] == index
    assert record['teacher_skills'] == ['s'] and record['teacher_skill_tokens'] == 7
    assert record['token_texts'] == [f'<{i}>' for i in row.turn.response_ids]
    assert record['teacher_prompt'] == f'<9><{index}>'


def test_records_have_what_the_method_has():
  rows = rows_lib.rows(_groups(), invalid_penalty=0.1)
  plain = _known(rows, 'advantages', 'old_logprobs')
  for record in _records(rows, plain):
    absent = {'gate', 'gap', 'teaching', 'teacher_skills', 'teacher_prompt'}
    assert not record.keys() & {*absent, 'old_entropy'}
    assert record['student_prompt'] == ''
  ungated = _known(rows, 'advantages', 'old_logprobs', 'teacher_logprobs')
  ungated['teaching'] = np.ones(len(rows))
  prompts = [np.zeros(1, int)] * len(rows)
  for record in _records(rows, ungated, [_view('s')] * len(rows), prompts):
    assert 'gate' not in record and record['gap']


def test_long_prompts_lose_their_middle_and_say_so():
  groups = _groups()
  groups[0].trajectories[0].turns[0].prompt_ids = np.arange(10_000, 20_000)
  rows = rows_lib.rows(groups, invalid_penalty=0.1)
  known = _known(rows, 'advantages', 'old_logprobs')
  long = max((r['student_prompt'] for r in _records(rows, known, count=9)), key=len)
  assert len(long) < 20_100 and '[50000 characters are left out]' in long
  assert long.startswith('<10000>') and long.endswith('<19999>')


def test_rows_are_drawn_from_every_group_by_what_they_are():
  groups = [
    Group(i, None, [Trajectory(f't{i}', 'k', i, 0, [_turn(1)] * 9, Outcome.FAILURE)])
    for i in range(4)
  ]
  rows = rows_lib.rows(groups, invalid_penalty=0.1)

  def chosen(step, some=rows, count=8):
    places = tokens._chosen(some, count, 0, (0, step))
    return {(some[i].group_id, some[i].turn_id) for i in places}

  assert sorted(group for group, _ in chosen(1)) == [0, 0, 1, 1, 2, 2, 3, 3]
  assert chosen(1) == chosen(1, rows[::-1]) != chosen(2)
  assert {turn for step in range(20) for _, turn in chosen(step)} == set(range(9))
  assert len(chosen(1, count=99)) == len(rows)


def test_whole_episodes_are_recorded_besides_single_turns():
  groups = [
    Group(
      i,
      None,
      [
        Trajectory(f't{i}', 'k', i, m, [_turn(1)] * (3 + m), Outcome.FAILURE)
        for m in range(3)
      ],
    )
    for i in range(4)
  ]
  rows = rows_lib.rows(groups, invalid_penalty=0.1)

  def counts(step, some=rows):
    found = [some[i] for i in tokens._chosen(some, 5, 2, (0, step))]
    of = [(r.group_id, r.trajectory.member) for r in found]
    return {name: of.count(name) for name in of}

  for step in range(9):
    found = counts(step)
    whole = [name for name, count in found.items() if count == 3 + name[1]]
    assert len({group for group, _ in whole}) == 2  # Of two groups.
    assert sum(found.values()) == 5 + sum(3 + member for _, member in whole)
    assert found == counts(step, rows[::-1])
  assert len({tuple(counts(step)) for step in range(9)}) > 1


@pytest.mark.parametrize(
  'parts, wanted',
  [
    ([b'go ', 'é'.encode()], ['go ', 'é']),
    ([b'a', *(bytes([b]) for b in '€'.encode()), b'z'], ['a', '', '', '€', 'z']),
    ([b'x\xf0\x9f', b'\x98\x80y'], ['', 'x😀y']),
    ([b'\xff', b'\xff', b'\xff', b'\xff', b'a'], ['', '', '', '\ufffd' * 4, 'a']),
    ([b'a', b'\xe2'], ['a', '\ufffd']),
    ([], []),
  ],
)
def test_a_character_of_several_tokens_is_told_where_it_is_whole(parts, wanted):
  spell = lambda ids: b''.join(parts[i] for i in ids).decode(errors='replace')
  got = tokens.texts(range(len(parts)), spell)
  assert got == wanted
  assert ''.join(got) == b''.join(parts).decode(errors='replace')


def test_means_are_over_the_response_and_of_taught_rows():
  rows = rows_lib.rows(_groups(), invalid_penalty=0.1)
  known = _known(rows, 'advantages', 'old_logprobs', 'teacher_logprobs')
  known |= {'gate': known['advantages'] / 100, 'teaching': np.asarray([1, 0, 1, 1, 1])}
  known['teacher_logprobs'][~known['response_mask']] = np.inf  # Padding is no token.
  got = tokens.turn_means(rows, known)
  first, second = got[0, 0], got[0, 1]
  assert first == {'advantage': 0.5, 'gap': 1.0, 'gate': pytest.approx(0.005)}
  assert second == {'advantage': np.mean([4, 5, 6, 7])}
  assert tokens.turn_means(rows, _known(rows, 'advantages'))[1, 0] == {'advantage': 9.0}


def test_a_head_sums_the_turns_up():
  groups = _groups()
  rows = rows_lib.rows(groups, invalid_penalty=0.1)
  known = _known(rows, 'advantages', 'old_logprobs')
  log = types.SimpleNamespace(token_rows=1, token_episodes=1)
  settings = {'log': log, 'identity': (0, 1), 'spell': _spell}
  records = [*tokens.step_records(groups, rows, known, None, None, **settings)]
  one = records[0]
  assert (one['goal'], one['length'], one['sampled']) == ('put it there', 2, 6)
  assert one['means'] == {'advantage': np.mean([0.5, 5.5])}
  assert [*one][-1] == 'turns' and one['schema'] == trajectories.SCHEMA_VERSION
  said = [sum('tokens' in turn for turn in r['turns']) for r in records]
  assert [r['recorded'] for r in records] == said and sum(said) in (2, 3)


def test_episodes_of_an_evaluation_are_of_the_same_tasks_every_time():
  keep = tokens.keeper(3, _spell, {'t1': 'find it'})
  played = [t for group in _groups() for t in group.trajectories]
  records = keep(played)
  assert len(records) == 3 and {r['task_id'] for r in records} == {'t0', 't1'}
  names = lambda found: sorted((r['task_id'], r['member']) for r in found)
  assert names(keep(played[::-1])) == names(records)
  for record in records:
    assert record['goal'] == ('find it' if record['task_id'] == 't1' else '')
    assert record['recorded'] == record['length']
    assert trajectories.from_json(record).task_id == record['task_id']
  assert tokens.keeper(0, _spell, {})(played) == []


def test_records_of_the_version_before_are_read():
  record = trajectories.to_json(_groups()[0].trajectories[0])
  assert trajectories.from_json(record | {'schema': 3}).member == 0
  for version in (2, 5, None):
    with pytest.raises(ValueError, match=f'schema {version}: this version reads 3 and'):
      trajectories.from_json(record | {'schema': version})
