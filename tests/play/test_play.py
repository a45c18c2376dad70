"""`sdar play` over a pipe: what is typed is judged, played, taken back and kept."""

import io
import json
import pathlib
import re
import shutil

import jax.numpy as jnp
import micro_run
import numpy as np
import pytest
import quick

from sdar_jax.envs import worlds
from sdar_jax.envs.alfworld import engine
from sdar_jax.models import decoder, hf
from sdar_jax.play import judge, session, tool
from sdar_jax.prompts import bank_file
from sdar_jax.prompts.chat import Chat
from sdar_jax.rollout import recorded

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = ROOT / 'experiments' / 'tiny' / 'alfworld'
WORDS = [f'--config={ROOT}/experiments/alfworld.py:model=tiny', '--config.eval.tasks=4']


@pytest.fixture(scope='module', autouse=True)
def shared_programs():
  with micro_run.compiling():
    yield


@pytest.fixture
def play(monkeypatch, capsys):
  """Types lines; returns the exit code, what was printed, and its errors."""
  monkeypatch.chdir(ROOT)

  def run(lines, *words):
    text = ''.join(f'{line}\n' for line in lines)
    monkeypatch.setattr('sys.stdin', io.StringIO(text))
    code = tool.main([*WORDS, *words])
    return code, *capsys.readouterr()

  return run


def numbers(out):
  """(token, student, teacher, gap) of each line of a table."""
  found = re.findall(
    r'^(.{24})\s*(-?\d+\.\d\d)\s+(-?\d+\.\d\d)\s+(-?\d+\.\d\d)$', out, re.M
  )
  return [(name.rstrip(), *map(float, values)) for name, *values in found]


def oracle(prompts, response):
  """Log-probs of a response, by a whole forward pass for each prompt and token.

  All are rows of one width, the rest of each is zeros: attention looks back only.
  """
  model, params = hf.load(str(TINY), None, jnp.float32)
  known = Chat(TINY, enable_thinking=True).len_vocab
  rows = [[*p, *response[:i]] for p in prompts for i in range(len(response))]
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  for row, ids in zip(tokens, rows):
    row[: len(ids)] = ids

  def scores(params, tokens, ends):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = decoder.forward(model, params, tokens, positions)
    last = jnp.take_along_axis(hidden, ends[:, None, None], axis=1)
    return decoder.logits(model, params, last)[:, 0]

  ends = np.asarray([len(ids) - 1 for ids in rows])
  valid = np.asarray(quick.jit(scores)(params, tokens, ends), np.float64)[:, :known]
  logprobs = valid - np.log(np.exp(valid).sum(axis=1, keepdims=True))
  said = logprobs.reshape(len(prompts), len(response), known)
  return said[:, np.arange(len(response)), response]


def test_a_typed_action_is_judged_as_policy_and_teacher_would(play, tmp_path):
  out_file = tmp_path / 'demos.jsonl'
  lines = ['/think find vase', 'go to desk 1', '/save']
  code, out, error = play(lines, f'--out={out_file}')
  assert (code, error) == (0, '')
  [episode] = recorded.read(out_file, 'alfworld')
  chat = Chat(TINY, enable_thinking=True)
  response = '<think>find vase</think><action>go to desk 1</action>'
  assert episode[0].response == response
  ids = chat.encode_response(response)
  shown = re.search(r'the teacher sees (.*)', out)[1].split(', ')
  bank = bank_file.load(TINY / 'skills.json')
  known = {skill.id: skill for skill in bank.everything()}
  block = bank.block([known[name] for name in shown])
  prompts = [
    chat.render(t) for t in (episode[0].prompt, f'{block}\n\n{episode[0].prompt}')
  ]
  student, teacher = oracle(prompts, ids)
  table = numbers(out)
  assert [row[0] for row in table][-2:] == ['(end)', 'in all']
  expected = np.stack([student, teacher, teacher - student])
  expected = np.concatenate([expected, expected.sum(1, keepdims=True)], axis=1)
  np.testing.assert_allclose([row[1:] for row in table], expected.T, atol=0.011)
  ours = [line for line in out.splitlines() if str(tmp_path) not in line]
  assert max(map(len, ours)) <= 80


def test_turns_are_taken_back_and_the_world_is_where_it_was(play):
  world = worlds.make('alfworld', {'size': 'small', 'max_turns': 12})
  task = world.tasks('valid_unseen')[0]
  take = 'take vase 1 from shelf 2'
  lines = ['go to shelf 2', take, '/undo', take, '/undo', '/undo', '/undo']
  code, out, _ = play([*lines, 'go to desk 1'])
  env = world.make_env()
  env.reset(task)
  alone = env.step('go to desk 1').observation.text
  assert code == 0 and out.count('back at turn') == 3
  assert out.count('You pick up the vase 1') == 2  # It lay there again.
  assert 'there is no turn to take back' in out
  after = out.rpartition('] go to desk 1')[2]
  assert ' '.join(alone.split()) in ' '.join(after.split())


def test_an_expert_plays_to_the_end_and_imitation_reads_it(play, tmp_path):
  out_file = tmp_path / 'new folder' / 'demos.jsonl'
  code, out, _ = play(['/expert'] * 13 + ['/save'], f'--out={out_file}')
  assert code == 0 and 'solved after' in out
  assert 'the episode is solved: /undo takes a turn back' in out
  turns = recorded.read(out_file, 'alfworld')[0]
  assert f'{len(turns)} turns added' in out and len(turns) < 12
  world = worlds.make('alfworld', {'size': 'small', 'parser': 'strict'})
  env, task = world.make_env(), world.tasks('valid_unseen')[0]
  seen = env.reset(task)
  for turn in turns:  # The file alone solves the task.
    parsed = world.parse(turn.response, seen)
    result = env.step(parsed.action)
    assert parsed.valid
    seen = result.observation
  assert result.success


def test_the_policys_turn_is_what_its_sampler_says(play):
  code, out, _ = play(['/policy', '/policy'])
  tables = numbers(out)
  assert code == 0 and out.count('\n> ') == 2
  assert [row[0] for row in tables].count('in all') == 2
  assert all(row[1] <= 0 for row in tables)


def test_nothing_is_kept_unasked_and_that_is_said(play, tmp_path):
  out_file = tmp_path / 'demos.jsonl'
  code, out, _ = play(['go to desk 1'], f'--out={out_file}')
  assert code == 0 and not out_file.exists()
  assert '1 turns were not kept: /save does that' in out
  code, out, _ = play(['/save', 'go to desk 1', '/save'])
  assert out.count('start with --out=FILE.jsonl') == 2


def test_what_the_next_task_leaves_behind_is_said(play, tmp_path):
  out_file = tmp_path / 'demos.jsonl'
  lines = ['go to desk 1', 'go to desk 1', '/undo', '/next', '/next', 'look', '/undo']
  code, out, _ = play(lines, f'--out={out_file}')
  assert code == 0 and out.count('turns were not kept') == 1
  assert '1 turns were not kept' in out.partition('] /next')[2].partition('] ')[0]


def test_a_turn_that_its_environment_loses_is_not_played(play, monkeypatch):
  step = engine.AlfworldEnv.step

  def failing(self, action):
    if action == 'break':
      raise RuntimeError('a server is away')
    return step(self, action)

  monkeypatch.setattr(engine.AlfworldEnv, 'step', failing)
  take = 'take vase 1 from shelf 2'
  lines = ['go to shelf 2', 'break', 'break', take, '/undo', take, '/next', 'look']
  code, out, error = play(lines)
  assert (code, error) == (0, '') and out.count('a server is away') == 2
  assert out.count('You pick up the vase 1') == 2  # Where the turns have led.


def test_a_thought_that_the_template_opens_is_part_of_the_answer(play, tmp_path):
  folder = shutil.copytree(TINY, tmp_path / 'model')
  path = folder / 'tokenizer_config.json'
  record = json.loads(path.read_text())
  head = record['chat_template'].split('{%- if add_generation_prompt %}')[0]
  opens = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>' }}"
  record['chat_template'] = f'{head}{opens}{{%- endif %}}'
  path.write_text(json.dumps(record))
  said = '/say find vase</think><action>go to desk 1</action>'
  lines = [said, '/expert', 'inventory', '/say <action>inventory</action>']
  code, out, _ = play(
    lines, f'--config.model.path={folder}', f'--config.model.tokenizer={folder}'
  )
  wrong = [line.endswith('(malformed, or not possible)') for line in _played(out)]
  assert code == 0 and wrong == [False, False, False, True]


def _played(out):
  return [line for line in out.splitlines() if line.startswith('> ')]


def test_wild_lines_are_wasted_turns_and_no_terminal_obeys_them(play):
  lines = ['', '  ', '/dance', '/look', '\x1b[31mred', '/say ' + 'x' * 5, '/quit', 'no']
  code, out, _ = play(lines)
  assert code == 0 and '\x1b' not in out and '\\x1b[31mred' in out
  assert '/dance: no such command' in out and '] no' not in out
  assert out.count('(malformed, or not possible)') == 2
  assert 'put a vase in dresser' in out.partition('] /look')[2]


def test_methods_without_a_teacher_say_so(play):
  words = ['--config.algorithm.name=grpo', '--config.algorithm.distill_coef=0.01']
  code, out, error = play(['go to desk 1'], *words)
  assert code == 0, error
  assert 'config.algorithm.name=grpo has no teacher' in out and 'gap' not in out
  words = ['--config.algorithm.name=opid', '--config.algorithm.distill_coef=0.01']
  _, out, _ = play([], *words)
  assert "sees a 'feedback', which one episode has not" in out


@pytest.mark.parametrize(
  ('words', 'says'),
  [
    (['--task=100000'], '--task=100000: must be below'),
    (['--task=nosuch'], '--task=nosuch'),
    (['--split=nosuch'], 'nosuch'),
    (['--checkpoint=/no/run'], '--checkpoint=/no/run'),
    (['--out=/'], '--out'),
    (['--config.stepss=3'], 'did you mean'),
  ],
)
def test_wrong_words_are_named(play, words, says):
  code, _, error = play([], *words)
  assert code == 2 and says in error and error.count('\n') == 1


def test_a_task_is_found_by_its_id(play):
  code, out, _ = play(['/next'], '--split=train', '--task=generated/train/000002')
  assert code == 0 and out.startswith('generated/train/000002: ')
  assert 'generated/train/000003: ' in out


def test_a_conversations_teacher_differs_at_its_head_only(monkeypatch):
  """The ids that follow the first prompt follow the teacher's first prompt, too."""
  seen = []
  known = judge.Judge.__new__(judge.Judge)
  ids = lambda *values: np.asarray(values, np.int32)
  view = type('View', (), {'skill_ids': ('s',)})
  teacher = type(
    'Teacher', (), {'prompt': lambda self, text, task: (ids(9, 9, 1), view)}
  )
  known._player = type('Player', (), {'teacher': teacher()})
  known._logprobs = lambda prompt, response: seen.append(prompt.tolist())
  make = lambda *values: type('Fitted', (), {'ids': ids(*values), 'text': ''})
  known.teacher(make(1, 2, 3), make(1), None, ids(7))
  assert seen == [[9, 9, 1, 2, 3]]
  assert issubclass(session.PlayError, ValueError)


def test_help_names_every_command():
  source = pathlib.Path(tool.__file__).read_text()
  known = set(re.findall(r"^      '(/\w+)':", source, re.M)) | {'/quit'}
  assert known <= set(re.findall(r'/\w+', tool._HELP)) and len(known) == 10
  assert json.dumps(tool._HELP).isascii()


def test_a_run_by_itself_has_its_own_configuration(tmp_path, capsys):
  assert tool.main([f'--checkpoint={tmp_path}']) == 2
  said = capsys.readouterr().err
  assert str(tmp_path / 'config.json') in said and said.count('\n') == 1
  assert tool.main([]) == 2
  assert 'name what is played: --checkpoint=RUN' in capsys.readouterr().err
