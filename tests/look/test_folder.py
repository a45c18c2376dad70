"""Run directories as they are found: whole, old, cut short, hostile."""

import json
import math

import look_cases
import pytest

from sdar_jax.look import choice, episode, folder
from sdar_jax.look.episode import Seen
from sdar_jax.prompts.skills import Skill, SkillBank

EMPTY = SkillBank.empty('alfworld')


def _append(path, text, step=1):
  with open(path / 'trajectories' / f'{step:06d}.jsonl', 'a') as file:
    file.write(text)


def test_heads_are_what_the_records_say(tmp_path):
  run = folder.read(look_cases.write(tmp_path / 'run'))
  assert run.method == 'sdar' and run.notes == ()
  assert [(h.step, h.group_id, h.member) for h in run.episodes] == [
    (step, g, m) for step in (1, 2) for g in (0, 1) for m in (0, 1)
  ]
  for head, record in zip(run.episodes, look_cases.lines(tmp_path / 'run') * 2):
    assert head.record() == record
    assert (head.task_id, head.goal) == (record['task_id'], record['goal'])
    assert head.episode_return == record['return'] == 10.0 * head.member
    assert head.length == len(record['turns']) == 2
    assert head.recorded == sum('tokens' in turn for turn in record['turns'])
    assert head.means == {'advantage': head.member - 0.5, 'gap': 0.125, 'gate': 0.75}
  assert [h.recorded for h in run.episodes[:4]] == [2, 1, 0, 0]


def test_the_version_before_is_read(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  old = [look_cases.older(record) for record in look_cases.lines(path)]
  text = ''.join(json.dumps(record) + '\n' for record in old)
  (path / 'trajectories' / '000001.jsonl').write_text(text)
  run = folder.read(path)
  assert run.notes == () and [h.recorded for h in run.episodes] == [2, 1, 0, 0]
  assert [h.length for h in run.episodes] == [2] * 4 and run.episodes[0].means == {}
  skill = Skill('plan_clean', 'plan', 'find take clean put', '')
  bank = SkillBank('1', 'alfworld', '', '', (skill,), {}, {}, '', 'bank')
  (one, _) = episode.load(run.episodes[0], bank).turns
  assert one.seen == Seen('', '', 'plan: find take clean put\n\n', 'a room')
  unknown = episode.load(run.episodes[0], EMPTY).turns[0]
  assert unknown.seen.teacher.strip() == 'plan_clean'


def test_records_of_other_versions_are_left_out_and_said(tmp_path):
  path = look_cases.write(tmp_path / 'run')
  text = json.dumps(look_cases.lines(path)[0] | {'schema': 99})
  (path / 'trajectories' / '000001.jsonl').write_text(text + '\n')
  run = folder.read(path)
  assert {head.step for head in run.episodes} == {2}
  (note,) = run.notes
  assert '000001.jsonl: left out line 1: trajectory schema 99' in note
  with pytest.raises(folder.LookError, match='schema 99: this version reads 3 and 4'):
    folder.read(path, step=1)


@pytest.mark.parametrize(
  'text',
  [
    '{"schema": 4, "task_id": "half',
    '{"schema": 4}',
    '{"schema": 4, "turns": []}',
    '[]',
    'null',
    '',
    '\x00\x00\x00',
    '[' * 5000,
    '{"schema": {}, "turns": []}',
    '{"schema": NaN, "turns": []}',
    '{"schema": 4, "task_id": 7, "task_type": "", "group_id": 0, "member": 0,'
    ' "outcome": "", "return": 0, "score": null, "turns": []}',
    '{"schema": 4, "task_id": "t", "task_type": "", "group_id": true, "member": 0,'
    ' "outcome": "", "return": 0, "score": null, "turns": []}',
    '{"schema": 4, "task_id": "t", "task_type": "", "group_id": 0, "member": 0,'
    ' "outcome": "", "return": 0, "score": null, "means": [], "turns": []}',
  ],
)
def test_damaged_lines_cost_themselves(tmp_path, text):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  _append(path, text + '\n' + json.dumps(look_cases.lines(path)[0]) + '\n')
  run = folder.read(path)
  assert len(run.episodes) == 5 and len(run.notes) == 1
  assert 'left out line 5: ' in run.notes[0] and '\n' not in run.notes[0]


def test_a_file_that_is_being_written_shows_its_whole_lines(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  file = path / 'trajectories' / '000001.jsonl'
  whole = file.read_bytes()
  for size in range(0, len(whole), 401):
    file.write_bytes(whole[:size])
    count = whole[:size].count(b'\n')
    try:
      run = folder.read(path)
    except folder.LookError as error:
      assert count == 0 and '\n' not in str(error)
      continue
    assert len(run.episodes) == count
    assert len(run.notes) == (not whole[:size].endswith(b'\n'))


def test_too_long_a_line_is_left_out(tmp_path, monkeypatch):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  monkeypatch.setattr(folder, '_LONGEST', 5000)
  _append(path, json.dumps(look_cases.lines(path)[0] | {'pad': 'x' * 5000}) + '\n')
  run = folder.read(path)
  assert len(run.episodes) == 4 and 'longer than 5000 bytes' in run.notes[0]


def test_no_run_is_one_line(tmp_path):
  for path, said in (
    (tmp_path / 'none', 'no such directory'),
    (tmp_path, 'no episodes in trajectories/'),
  ):
    with pytest.raises(folder.LookError, match=said) as caught:
      folder.read(path)
    assert '\n' not in str(caught.value)
  look_cases.write(tmp_path / 'run')
  with pytest.raises(folder.LookError, match='no episodes of step 7'):
    folder.read(tmp_path / 'run', step=7)


def test_a_run_without_its_config_is_shown_and_said(tmp_path):
  path = look_cases.write(tmp_path / 'run')
  (path / 'config.json').unlink()
  (path / 'run.json').write_text('{')
  run = folder.read(path)
  assert len(run.episodes) == 8 and len(run.notes) == 2 and run.method == ''


def test_a_file_that_changed_since_is_an_error_in_one_line(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  head = folder.read(path).episodes[-1]
  (path / 'trajectories' / '000001.jsonl').write_text('{}\n')
  with pytest.raises(folder.LookError, match=r'000001\.jsonl line 4: not JSON'):
    head.record()


@pytest.mark.parametrize(
  'change, said',
  [
    (lambda t: t['tokens']['gate'].pop(), '7 token_texts, but 6 gate'),
    (lambda t: t['response_ids'].pop(), '7 token_texts, but 6 response_ids'),
    (lambda t: t.update(observation=7), "'7' is no text"),
    (lambda t: t.pop('action'), "a turn has no 'action'"),
    (lambda t: t['tokens'].update(token_texts='text'), 'token_texts is no list'),
    (lambda t: t.update(tokens=[1]), ''),
    (lambda t: t.update(means=3), ''),
  ],
)
def test_a_damaged_turn_is_an_error_in_one_line(tmp_path, change, said):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  records = look_cases.lines(path)
  change(records[0]['turns'][0])
  text = ''.join(json.dumps(record) + '\n' for record in records)
  (path / 'trajectories' / '000001.jsonl').write_text(text)
  with pytest.raises(folder.LookError, match=r'000001\.jsonl line 1: ') as caught:
    episode.load(folder.read(path).episodes[0], EMPTY)
  assert said in str(caught.value) and '\n' not in str(caught.value)


def test_turns_are_what_the_records_say(tmp_path):
  path = look_cases.write(tmp_path / 'run', steps=[1])
  view = episode.load(folder.read(path).episodes[0], EMPTY)
  said = look_cases.lines(path)[0]['turns'][0]
  turn = view.turns[0]
  for name in ('gate', 'gap', 'advantages', 'old_logprobs', 'old_entropy'):
    assert list(turn.tokens.columns[name]) == said['tokens'][name]
  assert list(turn.tokens.columns['sampler_logprobs']) == said['sampler_logprobs']
  assert turn.tokens.columns['action_mask'] == (0, 0, 1, 1, 1, 1, 1)
  assert turn.tokens.texts == look_cases.TEXTS and turn.tokens.teacher == (
    'plan_clean',
  )
  seen, given = turn.seen, said['tokens']
  assert seen.before + seen.student + seen.after == given['student_prompt']
  assert seen.before + seen.teacher + seen.after == given['teacher_prompt']
  assert seen.student == '' and 'plan: a room first' in seen.teacher


@pytest.mark.parametrize(
  'student, teacher, own, theirs',
  [
    ('go there', 'go there', '', ''),
    ('go there', 'first look go there', '', 'first look '),
    ('a a a', 'a a a a', '', ' a'),
    ('shown x then', 'then', 'shown x ', ''),
    ('one', 'two', 'one', 'two'),
    ('', 'all', '', 'all'),
  ],
)
def test_prompts_are_split_at_what_one_has_alone(student, teacher, own, theirs):
  seen = episode.aligned(student, teacher)
  assert seen.before + seen.student + seen.after == student
  assert seen.before + seen.teacher + seen.after == teacher
  assert (seen.student, seen.teacher) == (own, theirs)


def test_long_texts_are_cut_and_half_characters_replaced(tmp_path):
  size = {'steps': [1], 'count': 1, 'members': 1, 'turns': 1, 'recorded': ()}
  path = look_cases.write(tmp_path / 'run', text='x\ud800' + 'y' * 10**7, **size)
  (turn,) = episode.load(folder.read(path).episodes[0], EMPTY).turns
  assert turn.observation.startswith('x\ufffdyyy')
  assert turn.observation.endswith('[9980002 characters more]')
  assert len(turn.observation) < 20_100


def test_infinities_and_nothing_are_told_apart():
  values = ['Infinity', '-Infinity', None, True, 'x', 3, 0.5]
  got = [folder.number_of(value) for value in values]
  assert got == [math.inf, -math.inf, None, None, None, 3.0, 0.5]


def test_episodes_are_chosen_and_ordered(tmp_path):
  heads = folder.read(look_cases.write(tmp_path / 'run', count=12)).episodes
  pick = lambda **asked: [
    (h.step, h.group_id, h.member) for h in choice.Choice(**asked)(heads)
  ]
  assert pick(step=2, group=3) == [(2, 3, 0), (2, 3, 1)]
  assert pick(step=1, task='train/1', member=0) == [(1, 1, 0), (1, 10, 0), (1, 11, 0)]
  assert pick(step=1, task='generated/train/1', member=0) == [(1, 1, 0)]
  assert {member for *_, member in pick(outcome='success')} == {1}
  assert pick(step=1, order='best')[0] == (1, 0, 1)
  assert pick(step=1, order='worst')[0] == (1, 0, 0)
  with pytest.raises(folder.LookError, match='of task moon: there are 48 of 12 tasks'):
    pick(task='moon')
  assert choice.first(heads).recorded == 2
  assert [h.member for h in choice.members(heads, heads[2])] == [0, 1]
  shown = [(run, head) for run in (0, 1) for head in heads]
  start, beside = choice.opened(shown, ordered=False)
  assert (start, beside) == (0, 48) and shown[beside][1] == heads[0]
  assert choice.opened(shown[:48], ordered=True) == (0, None)
