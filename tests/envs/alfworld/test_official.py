"""Official games: what is taken, what is left out, what is refused."""

import gzip
import json
import lzma
import os
import pickle

import problems
import pytest
from shared import shared_path

from sdar_jax.envs import base
from sdar_jax.envs.alfworld import published
from sdar_jax.envs.alfworld.engine import AlfworldEnv
from sdar_jax.envs.alfworld.official import OfficialGames, data_root
from sdar_jax.files import FileError

PICK = 'pick_and_place_simple-Apple-None-Desk-7'
LOOK = 'look_at_obj_in_light-Mug-None-DeskLamp-301'
NEW = '"rhs": "Your task is to: {}" template :: "move {o} to {r}"'
OLD = '"rhs": "Your task is to: {}" template :: "put {o} in/on {r}"'
PROBLEM = problems.build('pick', 'Apple', 'Desk')
LAMP = problems.build('look', 'Mug', 'DeskLamp')


def game(goal='put a apple in desk.', grammar=NEW, problem=PROBLEM, **others):
  return {
    'pddl_domain': '(define (domain alfred))',
    'grammar': grammar.replace('{}', goal),
    'pddl_problem': problem,
    'solvable': True,
    'walkthrough': [],
    **others,
  }


def write(root, game_id, content, release='json_2.1.1'):
  folder = root / release / game_id
  folder.mkdir(parents=True)
  text = content if isinstance(content, str) else json.dumps(content)
  (folder / 'game.tw-pddl').write_text(text)
  (folder / 'traj_data.json').write_text('{}')
  return folder / 'game.tw-pddl'


def pack(path, rows):
  opener = {'.xz': lzma.open, '.gz': gzip.open}.get(path.suffix, open)
  with opener(path, 'wt') as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)
  return path


ROWS = [
  {'id': f'train/{LOOK}/t1', 'task': 'look at mug.', 'pddl_problem': LAMP},
  {'id': f'train/{PICK}/t1', 'task': 'put a apple in desk.', 'pddl_problem': PROBLEM},
  {'id': f'train/{PICK}/t2', 'task': 'put a apple in desk.', 'pddl_problem': PROBLEM},
]


def test_a_folder_as_the_download_lays_it_out(tmp_path):
  write(tmp_path, f'train/{PICK}/t2', game())
  write(tmp_path, f'train/{PICK}/t1', game())
  write(tmp_path, f'train/{LOOK}/t1', game('look at mug.', problem=LAMP))
  write(tmp_path, f'train/{PICK}/t3', game(solvable=False))
  write(tmp_path, f'train/{PICK}/t4', {'pddl_problem': 'never tried'})
  write(tmp_path, 'train/pick_and_place_simple-AppleSliced-None-Desk-7/t1', game())
  write(tmp_path, 'train/pick_and_place_with_movable_recep-Apple-Pot-Desk-7/t1', game())
  write(tmp_path, 'train/juggle-Apple-None-Desk-7/t1', game())
  write(tmp_path, f'valid_seen/{PICK}/t1', game())
  (tmp_path / 'json_2.1.1/train/empty-A-B-C-1/t1').mkdir(parents=True)
  tasks = OfficialGames(str(tmp_path), 'train')
  assert [task.task_id for task in tasks] == [f'official/{row["id"]}' for row in ROWS]
  assert [task.goal for task in tasks] == [row['task'] for row in ROWS]
  assert tasks[0].task_type == 'look_at_obj_in_light'
  assert tasks[0].metadata == {
    'task_type': 'look_at_obj_in_light',
    'object': 'mug',
    'target': '',
    'tool': 'desklamp',
  }
  assert tasks[2].metadata['target'] == 'desk' and tasks[2].metadata['tool'] == ''
  assert len(tasks) == 3 and len(OfficialGames(str(tmp_path), 'valid_seen')) == 1
  for index in (3, -1):
    with pytest.raises(IndexError):
      tasks[index]
  first = AlfworldEnv().reset(tasks[1])
  assert first.text.endswith('Your task is to: put a apple in desk.')


def test_what_is_left_out_is_said_once(tmp_path, caplog):
  write(tmp_path, f'train/{PICK}/t1', game())
  write(tmp_path, f'train/{PICK}/t2', game(solvable=False))
  write(tmp_path, f'train/{PICK}/t3', {'grammar': 'never checked'})
  write(tmp_path, 'train/pick_and_place_simple-AppleSliced-None-Desk-7/t1', game())
  write(tmp_path, 'train/pick_and_place_with_movable_recep-A-Pot-Desk-7/t1', game())
  write(tmp_path, 'train/.ipynb_checkpoints-A-B-C-1/t1', game())
  for number in range(3):
    os.unlink(write(tmp_path, f'train/{LOOK}/t{number}', ''))
  write(tmp_path, f'train/train/{PICK}/t9', game())  # Unpacked into itself.
  (tmp_path / 'json_2.1.1/train/notes').mkdir()
  (tmp_path / 'json_2.1.1/train/.DS_Store').write_text('')
  assert len(OfficialGames(str(tmp_path), 'train')) == 1
  (line,) = caplog.messages
  assert line.startswith(f'{tmp_path}, train: 1 games to play: ') and '\n' not in line
  for count in (
    f'1 marked unsolvable left out (first: train/{PICK}/t2)',
    f'1 not marked solvable left out (first: train/{PICK}/t3)',
    '2 with a movable receptacle or a sliced object left out',
    '1 of another task type left out (first: train/.ipynb_checkpoints-A-B-C-1/t1)',
    f'3 without game.tw-pddl left out (first: train/{LOOK}/t0)',
    '1 folders with games below <task>/<trial> left out',
  ):
    assert count in line


def test_a_split_without_a_usable_game_is_one_line(tmp_path):
  write(tmp_path, f'train/{PICK}/t1', game(solvable=False))
  os.unlink(write(tmp_path, f'train/{PICK}/t2', ''))
  with pytest.raises(FileError, match=r"no playable game of 'train' \(1 marked") as e:
    OfficialGames(str(tmp_path), 'train')
  assert '1 without game.tw-pddl' in str(e.value) and '\n' not in str(e.value)


def test_links_that_lead_nowhere_and_pipes_are_named(tmp_path):
  path = write(tmp_path, f'train/{PICK}/t1', game())
  os.unlink(path)
  os.symlink('nowhere', path)
  with pytest.raises(FileError, match=r't1/game\.tw-pddl: No such file'):
    OfficialGames(str(tmp_path), 'train')
  os.unlink(path)
  os.mkfifo(path)
  with pytest.raises(FileError, match=r't1/game\.tw-pddl: is no regular file'):
    OfficialGames(str(tmp_path), 'train')


def test_remote_places_are_refused():
  with pytest.raises(FileError, match=r'gs://bucket/games.*not supported'):
    OfficialGames('gs://bucket/games', 'train')


@pytest.mark.parametrize('name', ['train.jsonl', 'train.jsonl.gz', 'train.jsonl.xz'])
def test_packed_files_are_the_same_games(tmp_path, name):
  for row in ROWS:
    goal, problem = row['task'], row['pddl_problem']
    write(tmp_path / 'laid_out', row['id'], game(goal, problem=problem))
  (tmp_path / 'packed').mkdir()
  path = pack(tmp_path / 'packed' / name, reversed(ROWS))
  laid_out = OfficialGames(str(tmp_path / 'laid_out'), 'train')
  packed = OfficialGames(str(tmp_path / 'packed'), 'train')
  assert list(packed) == list(laid_out) == list(OfficialGames(str(path), 'train'))
  assert packed.digest == laid_out.digest
  assert pickle.loads(pickle.dumps(packed)).digest == packed.digest


def test_the_digest_covers_everything_that_is_played(tmp_path):
  variants = [ROWS, ROWS[:2]]
  for key, value in (('task', 'other.'), ('pddl_problem', PROBLEM + ' ')):
    variants.append([{**ROWS[1], key: value}, ROWS[0], ROWS[2]])
  digests = []
  for number, rows in enumerate(variants):
    path = pack(tmp_path / f'{number}.jsonl', rows)
    digests.append(OfficialGames(str(path), 'train').digest)
  digests.append(OfficialGames(str(tmp_path / '0.jsonl'), 'train', 'old').digest)
  assert len(set(digests)) == len(digests)


def test_both_generations_of_grammar(tmp_path):
  write(tmp_path, f'train/{PICK}/t1', game(grammar=NEW))
  write(tmp_path, f'train/{PICK}/t2', game(grammar=OLD))
  for grammar, expected in (
    ('new', ['new', 'new']),
    ('old', ['old', 'old']),
    ('file', ['new', 'old']),
  ):
    tasks = OfficialGames(str(tmp_path), 'train', grammar)
    assert [task.payload.grammar for task in tasks] == expected
  texts = []
  for task in OfficialGames(str(tmp_path), 'train', 'file'):
    env = AlfworldEnv()
    env.reset(task)
    texts.append(env.step('go to desk 1').observation.text.split('. ')[0])
  assert texts == ['You arrive at desk 1', 'You arrive at loc 1']
  write(tmp_path, f'train/{PICK}/t3', game(grammar='"Your task is to: {}"'))
  with pytest.raises(FileError, match=r't3.*has neither'):
    OfficialGames(str(tmp_path), 'train', 'file')
  with pytest.raises(ValueError, match=r"config\.world\.grammar='both'"):
    OfficialGames(str(tmp_path), 'train', 'both')


def test_nothing_in_a_game_file_is_evaluated(tmp_path):
  trap = tmp_path / 'sprung'
  evil = f"{{__import__('pathlib').Path('{trap}').touch()}}"
  written = write(tmp_path, f'train/{PICK}/t1', game(evil, NEW + evil))
  task = OfficialGames(str(tmp_path), 'train')[0]
  env = AlfworldEnv()
  assert env.reset(task).text.endswith(evil)
  env.step('look')
  assert not trap.exists() and written.exists()


def test_goals_by_people_keep_their_characters(tmp_path):
  words = 'Put the "red" apple\ton\\the desk \u2013 caf\u00e9.'
  write(tmp_path, f'train/{PICK}/t1', game(json.dumps(words)[1:-1]))
  assert OfficialGames(str(tmp_path), 'train')[0].goal == words


@pytest.mark.parametrize(
  'content, message',
  [
    ('{"pddl_problem": "(define', 'not JSON'),
    ('<html>not found</html>', 'is a web page'),
    ('', 'is empty'),
    ('[' * 100_000, 'not JSON .maximum recursion'),
    ('[]', 'must be an object'),
    (' ' * (16 * 2**20 + 1), 'larger than'),
    (game(solvable='yes'), 'its \'solvable\' is "yes", not true or false'),
    (game(solvable=1), "its 'solvable' is 1, not true or false"),
    (game('long ' * 9_999), 'its goal has 49995 characters, more than 10000'),
    (game(problem=PROBLEM[:-40]), 'not whole'),
    (game(problem=None), "no text 'pddl_problem'"),
    (game(grammar='nothing'), 'states no goal'),
    (game('UNKNOWN GOAL.'), 'states no goal'),
    (game('\\ud800'), 'surrogates'),
  ],
)
def test_damaged_files_are_named_in_one_line(tmp_path, content, message):
  write(tmp_path, f'train/{PICK}/t1', game())
  path = write(tmp_path, f'train/{PICK}/t2', content)
  with pytest.raises(FileError, match=message) as caught:
    OfficialGames(str(tmp_path), 'train')
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_a_game_that_only_parsing_finds_damaged_is_named(tmp_path):
  write(tmp_path, f'train/{PICK}/t1', game(problem='(define (:init) (:goal (and)))'))
  task = OfficialGames(str(tmp_path), 'train')[0]
  with pytest.raises(ValueError, match=f'official/train/{PICK}/t1: PDDL problem'):
    AlfworldEnv().reset(task)


@pytest.mark.parametrize(
  'spoil, message',
  [
    (lambda data: data[: len(data) // 2], 'not JSON|ended'),
    (lambda data: b'<html>' + data, 'is a web page'),
    (lambda data: b'', 'is empty'),
  ],
)
@pytest.mark.parametrize('suffix', ['', '.gz', '.xz'])
def test_damaged_packed_files_are_named(tmp_path, spoil, message, suffix):
  path = pack(tmp_path / f'train.jsonl{suffix}', ROWS)
  path.write_bytes(spoil(path.read_bytes()))
  with pytest.raises(FileError, match=message) as caught:
    OfficialGames(str(tmp_path), 'train')
  assert str(tmp_path) in str(caught.value) and '\n' not in str(caught.value)


def test_damaged_packed_lines_are_numbered(tmp_path):
  path = pack(tmp_path / 'train.jsonl', [ROWS[0], {'id': ROWS[1]['id']}])
  with pytest.raises(FileError, match=r'train\.jsonl, line 2: .*no text'):
    OfficialGames(str(tmp_path), 'train')
  pack(path, [ROWS[0], ROWS[0]])
  with pytest.raises(FileError, match=f'{ROWS[0]["id"]} twice'):
    OfficialGames(str(tmp_path), 'train')
  pack(path, ROWS)
  with pytest.raises(FileError, match='carry no grammar'):
    OfficialGames(str(tmp_path), 'train', 'file')


@pytest.mark.parametrize(
  'name',
  ['../train/a-b-c-d-1/t', '/etc/passwd', 'train/../../x', 'train/a b/t', 'train/%2e/'],
)
def test_unsafe_ids_are_refused(tmp_path, name):
  pack(tmp_path / 'train.jsonl', [{**ROWS[0], 'id': name}])
  with pytest.raises(FileError, match=r'train\.jsonl, line 1: .* is not a game id'):
    OfficialGames(str(tmp_path), 'train')


@pytest.mark.parametrize('split', ['..', '../x', '/', 'a/b', '', 'a\x00b', 'a b'])
def test_unsafe_splits_are_refused(tmp_path, split):
  with pytest.raises(base.SplitError, match='must be the name of a folder of games'):
    OfficialGames(str(tmp_path), split)


def test_names_of_folders_are_checked(tmp_path):
  write(tmp_path, f'train/{PICK}/t 1', game())
  with pytest.raises(FileError, match=r't 1/game\.tw-pddl: .* is not a game id'):
    OfficialGames(str(tmp_path), 'train')
  write(tmp_path, 'valid_seen/pick_and_place_simple-Apple/t1', game())
  with pytest.raises(FileError, match='does not name type, object and target'):
    OfficialGames(str(tmp_path), 'valid_seen')


def test_links_out_of_the_data_are_refused(tmp_path):
  write(tmp_path / 'inside', f'train/{PICK}/t1', game())
  outside = write(tmp_path / 'outside', f'train/{PICK}/t2', game())
  link = tmp_path / f'inside/json_2.1.1/train/{PICK}/t2'
  link.symlink_to(outside.parent)
  with pytest.raises(FileError, match='leads out of'):
    OfficialGames(str(tmp_path / 'inside'), 'train')
  os.unlink(link)
  link.symlink_to(tmp_path / f'inside/json_2.1.1/train/{PICK}/t1')
  assert len(OfficialGames(str(tmp_path / 'inside'), 'train')) == 2


def test_where_the_games_lie(tmp_path, monkeypatch):
  monkeypatch.delenv('ALFWORLD_DATA', raising=False)
  with pytest.raises(FileError, match='ALFWORLD_DATA'):
    data_root('')
  monkeypatch.setenv('ALFWORLD_DATA', str(tmp_path))
  assert data_root('') == tmp_path
  with pytest.raises(FileError, match='does not exist'):
    data_root(str(tmp_path / 'nowhere'))
  with pytest.raises(FileError, match=r'json_2\.1\.1/train'):
    OfficialGames('', 'train')
  write(tmp_path, f'train/{PICK}/t1', game(), release='json_2.1.2')
  assert len(OfficialGames('', 'train')) == 1
  assert len(OfficialGames(str(tmp_path / 'json_2.1.2'), 'train')) == 1


def test_the_public_games():
  for split, count in (('valid_seen', 140), ('valid_train', 200)):
    tasks = OfficialGames(str(shared_path('data/alfworld')), split)
    ids = [task.task_id for task in tasks]
    assert len(ids) == count and ids == sorted(ids)
    assert all(task.task_type in task.task_id for task in tasks)


def test_a_published_manifest_names_games_by_their_files(tmp_path):
  for trial in ('t1', 't2', 't3'):
    write(tmp_path, f'valid_seen/{PICK}/{trial}', game())
  tasks = lambda split: OfficialGames(str(tmp_path), split)
  place = '${ALFWORLD_DATA}/json_2.1.1/valid_seen/' + PICK
  rows = [
    {'index': i, 'metadata': {'gamefile': f'{place}/{trial}/game.tw-pddl'}}
    for i, trial in enumerate(('t3', 't1'))
  ]
  found = published.find(rows, tasks)
  want = [f'official/valid_seen/{PICK}/{trial}' for trial in ('t3', 't1')]
  assert [task.task_id for task in found] == want
  for name, line in (
    (f'{place}/t9/game.tw-pddl', "row 1: no playable game 'official/valid_seen/"),
    ('elsewhere.json', "row 1 names no game: its gamefile is 'elsewhere.json'"),
  ):
    with pytest.raises(ValueError, match=line):
      published.find([{'metadata': {'gamefile': name}}], tasks)
  with pytest.raises(ValueError, match='row 1 names no game'):
    published.find([{}], tasks)
