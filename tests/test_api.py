"""Five lines of Python: loaded, asked, scored, trained with episodes from elsewhere."""

import collections
import dataclasses
import pathlib
import subprocess
import sys
import threading

import fakes
import micro_run
import numpy as np
import pytest

import sdar_jax
from sdar_jax import api
from sdar_jax.envs.nowhere import Nowhere
from sdar_jax.rollout import collecting, episodes

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = ROOT / 'experiments/tiny/alfworld'
SMALL = {'rollout.max_prompt_tokens': 64, 'rollout.max_response_tokens': 12}


@pytest.fixture(scope='module')
def policy():
  return sdar_jax.load(TINY, {**SMALL, 'rollout.slots': 4}, seed=3)


def test_importing_the_package_imports_no_jax():
  code = 'import sdar_jax, sys; assert not {"jax", "numpy"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)
  with pytest.raises(AttributeError, match="no attribute 'trian'"):
    sdar_jax.trian  # noqa: B018


def test_an_answer_is_a_function_of_its_prompt_and_seed(policy):
  texts = ['clean some dishsponge.', 'heat some egg.', 'put a mug on a desk.'] * 2
  together = policy.generate(texts, seed=5)
  alone = policy.generate(texts[0], seed=5)
  for answer in (together[0], alone):
    assert answer.ids.dtype == np.int32 and answer.logprobs.dtype == np.float32
    assert len(answer.ids) == len(answer.logprobs) <= 12
    assert answer.text == policy.chat.decode(answer.ids)
    np.testing.assert_array_equal(answer.prompt_ids, policy.chat.render(texts[0]))
  np.testing.assert_array_equal(alone.ids, together[0].ids)
  np.testing.assert_array_equal(alone.logprobs, together[0].logprobs)
  drawn = {a.ids.tobytes() for s in range(8) for a in policy.generate(texts, seed=s)}
  assert len(drawn) > 12  # Other seeds, and other places of a list, draw anew.
  greedy = policy.generate([texts[0]] * 3, temperature=0)
  assert len({a.ids.tobytes() for a in greedy}) == 1


def test_messages_ids_and_texts_are_prompts(policy):
  text = 'heat some egg.'
  said = [{'role': 'user', 'content': text}]
  first = policy.generate(text)
  for prompt in (said, policy.chat.render(text)):
    np.testing.assert_array_equal(policy.generate(prompt).ids, first.ids)
  assert len(policy.generate([said, text])) == 2


def test_where_an_answer_ends(policy):
  whole = policy.generate('heat some egg.', temperature=0)
  assert whole.stop_reason == 'stop' and whole.ids[-1] == policy.chat.stop_ids[0]
  cut = policy.generate('heat some egg.', temperature=0, max_tokens=3)
  assert (cut.stop_reason, len(cut.ids)) == ('length', 3)
  assert cut.ids.tolist() == whole.ids[:3].tolist()
  stopped = policy.generate('heat some egg.', temperature=0, stop=' egg')
  assert stopped.text == whole.text.partition(' egg')[0] != whole.text
  assert policy.chat.decode(stopped.ids).endswith(' egg')


def test_what_was_sampled_is_scored_as_it_was_sampled(policy):
  prompts = ['clean some dishsponge.', 'heat some egg.'] * 5
  answers = policy.generate(prompts, temperature=0.7, seed=1)
  scores = policy.logprobs(prompts, [a.ids for a in answers], temperature=0.7)
  for answer, score in zip(answers, scores, strict=True):
    np.testing.assert_allclose(score, answer.logprobs, atol=2e-4)
  said = policy.logprobs(['x'], ['<think>a</think>'])[0]
  assert len(said) == len(policy.chat.encode_response('<think>a</think>'))


@pytest.mark.parametrize(
  'options, says',
  [
    ({'temperature': -1}, 'temperature -1'),
    ({'top_p': 0}, 'top_p 0'),
    ({'max_tokens': 99}, 'max_response_tokens=12'),
    ({'max_tokens': 0}, 'max_tokens 0'),
    ({'stop': ''}, "stop_strings holds ''"),
    ({'stop': ('',)}, "stop_strings holds ''"),
    ({'stop': (1,)}, 'stop_strings holds 1'),
    ({'stop': None}, 'stop None'),
    ({'max_tokens': 2.5}, 'max_tokens 2.5: must be a whole number'),
    ({'top_k': 1.5}, 'top_k 1.5: must be a whole number'),
    ({'temperature': '1'}, "temperature '1': must be a number"),
    ({'seed': 1.5}, 'seed 1.5: must be a whole number'),
  ],
)
def test_wrong_numbers_are_one_line(policy, options, says):
  with pytest.raises(ValueError, match=says) as error:
    policy.generate('x', **options)
  assert '\n' not in str(error.value)
  with pytest.raises(ValueError, match='a prompt of'):
    policy.generate('mug ' * 99)
  assert policy.generate('x', max_tokens=1).ids.size == 1  # It goes on.


@pytest.mark.parametrize(
  'prompts, says',
  [
    ((text for text in 'ab'), 'prompts: a generator: must be a text'),
    ({'role': 'user', 'content': 'a'}, 'prompts: a dict'),
    (None, 'prompts: a NoneType'),
    ([3, 4], 'a prompt that is a int: must be a text'),
    (np.asarray([2**32 + 5]), 'ids from 4294967301 to 4294967301'),
    ([{'role': 'user', 'text': 'a'}], r'messages\[0\].content: must be a text'),
    ([{'role': 'tool', 'content': None}], r'messages\[0\].content: must be a text'),
  ],
)
def test_what_is_no_prompt_is_one_line(policy, prompts, says):
  with pytest.raises(ValueError, match=says) as error:
    policy.generate(prompts)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'prompt, said, temperature, says',
  [
    (np.zeros(0, np.int32), 'y', 1, 'row 0: a prompt of 0 tokens'),
    ('x', np.asarray([2**32 + 5]), 1, 'ids from 4294967301'),
    ('x', 'y', 0, 'temperature 0: must be at least'),
    ('x', 'y', np.nan, 'temperature nan'),
    ('x', 'y', -1, 'temperature -1'),
    ('x', [3, 893], 1, r'row 0: ids from .* to 893, must be in \[0, 893\)'),
    (np.asarray([5, -3]), 'y', 1, 'row 0: ids from -3'),
    (np.asarray([5.5, 3]), 'y', 1, r'an array of float64, shape \(2,\)'),
    (np.asarray([[5, 3]]), 'y', 1, 'must be ids'),
    (np.zeros(32_768, np.int32), 'y', 1, 'the model has 32768 positions'),
  ],
)
def test_what_cannot_be_scored_is_one_line(policy, prompt, said, temperature, says):
  with pytest.raises(ValueError, match=says) as error:
    policy.logprobs([prompt], [said], temperature=temperature)
  assert '\n' not in str(error.value)


def test_what_cannot_be_loaded_is_one_line(tmp_path):
  with pytest.raises(ValueError, match='not a directory'):
    sdar_jax.load(tmp_path / 'nothing here')
  with pytest.raises(ValueError, match=r'config\.rollout\.slot: no such key'):
    sdar_jax.load(TINY, {'rollout.slot': 3})
  with pytest.raises(ValueError, match=r"config\.rollout\.slots='x'"):
    sdar_jax.load(TINY, {'rollout.slots': 'x'})
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match=r'config\.json'):
    sdar_jax.load(tmp_path)
  with pytest.raises(IndexError, match='no tasks'):
    Nowhere().task('train', 0)


def test_a_config_is_read_and_changed():
  config = sdar_jax.config_of(
    'experiments/alfworld.py:model=tiny', {'eval.tasks': 9}, steps=4
  )
  assert (config.steps, config.eval.tasks, config.rollout.slots) == (4, 9, 64)
  with pytest.raises(ValueError, match=r'config\.steps=0'):
    sdar_jax.config_of('experiments/alfworld.py:model=tiny', steps=0)


def test_paths_are_the_user_s(tmp_path, monkeypatch):
  config = sdar_jax.config_of('experiments/alfworld.py:model=tiny')
  seen = []
  keep = lambda config, path, **rest: seen.append(path)
  monkeypatch.setattr(api.train_lib, 'train', keep)
  monkeypatch.setenv('HOME', str(tmp_path))
  assert [sdar_jax.train(config, '~/run')] == seen == [tmp_path / 'run']
  (tmp_path / 'run').mkdir()
  with pytest.raises(ValueError, match=f'{tmp_path}/run/config.json'):
    sdar_jax.config_of('~/run')
  for call in (lambda text: sdar_jax.train(config, text), sdar_jax.config_of):
    with pytest.raises(ValueError, match='remote paths are not supported'):
      call('gs://bucket/run')


class _Own:
  """Plays as the run would, and remembers what it was asked."""

  def __init__(self, change=lambda groups: groups):
    self.asked, self.change = [], change

  def __call__(self, asked):
    self.asked.append(asked)
    groups = episodes.collect(
      asked.pool,
      asked.tasks,
      asked.sampler,
      asked.agent,
      group_size=asked.group_size,
      identity=(asked.seed, asked.step),
      success_reward=asked.success_reward,
    )
    return self.change(groups)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """One run by its own loop, one by a collector that plays the same."""
  folder = tmp_path_factory.mktemp('runs')
  config = micro_run.config(micro_run.write_model(folder / 'model'), 'grpo', 2)
  own = _Own()
  errors = []

  def train():  # Not in the main thread: no signal can be handled there.
    try:
      path = sdar_jax.train(config, folder / 'hooked', collect=own)
      assert path == folder / 'hooked'
    except BaseException as error:
      errors.append(error)

  with micro_run.compiling():
    sdar_jax.train(config, folder / 'usual')
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
  assert not errors, errors
  return folder, own, config


def test_a_collector_that_plays_the_same_trains_the_same(trained):
  folder, own, _ = trained
  usual, hooked = (micro_run.files_of(folder / name) for name in ('usual', 'hooked'))
  assert usual == hooked and len(usual) > 3
  assert [asked.step for asked in own.asked] == [0, 1]
  assert (len(own.asked[0].tasks), own.asked[0].group_size) == (2, 2)
  assert own.asked[0].occurrences == [0, 0]


def test_a_task_that_comes_twice_in_a_step_is_told_apart():
  tasks, played, seen = fakes.tasks()[:1] * 2, collections.Counter(), []
  collect = collecting.adapted(lambda asked: seen.append(asked.occurrences) or [])
  options = {'group_size': 1, 'identity': (0, 0), 'success_reward': 1.0}
  for _ in range(2):  # A round, and one of refills.
    with pytest.raises(collecting.CollectedError, match='0 groups for 2 tasks'):
      collect(
        None,
        tasks,
        None,
        None,
        played=played,
        should_stop=None,
        progress=None,
        **options,
      )
  assert seen == [[0, 1], [2, 3]]


def test_a_run_is_loaded_by_its_name(trained):
  policy = sdar_jax.load(trained[0] / 'usual')
  assert policy.step == 2 and policy.config.world.name == 'alfworld'
  first = policy.generate('heat some egg', max_tokens=4)
  moved = trained[0] / 'moved'
  (trained[0] / 'usual').rename(moved)
  again = sdar_jax.load(moved).generate('heat some egg', max_tokens=4)
  np.testing.assert_array_equal(first.logprobs, again.logprobs)


def _turn(change):
  def changed(groups):
    turns = groups[1].trajectories[0].turns
    turns[0] = dataclasses.replace(turns[0], **change(turns[0]))
    return groups

  return changed


@pytest.mark.parametrize(
  'change, says',
  [
    (lambda groups: groups[:1], '1 groups for 2 tasks'),
    (lambda groups: groups[::-1], 'group 0 is group 1'),
    (lambda groups: [groups[0], groups[0]], 'group 1 is group 0'),
    (lambda g: [g[0], dataclasses.replace(g[1], trajectories=[])], r'members \[\]'),
    (_turn(lambda t: {'sampler_logprobs': t.sampler_logprobs[1:]}), 'turn 0: '),
    (_turn(lambda t: {'sampler_logprobs': t.sampler_logprobs * np.nan}), 'no number'),
    (_turn(lambda t: {'reward': float('nan')}), 'no number'),
    (_turn(lambda t: {'response_ids': t.response_ids[:0]}), 'at least one token'),
    (_turn(lambda t: {'prompt_ids': np.tile(t.prompt_ids, 9)}), 'max_prompt_tokens=64'),
    (_turn(lambda t: {'prompt_ids': t.prompt_ids - 999}), 'an id is negative'),
    (_turn(lambda t: {'response_ids': t.response_ids + 893}), 'must be below 893'),
    (
      _turn(lambda t: {'prompt_ids': t.prompt_ids.astype(int) + 2**32}),
      'must be below 893',
    ),
    (_turn(lambda t: {'sampler_logprobs': -t.sampler_logprobs}), 'must not be above 0'),
    (_turn(lambda t: {'response_ids': t.sampler_logprobs}), 'dtype float32'),
  ],
)
def test_groups_that_were_not_asked_for_are_one_line(trained, change, says):
  asked = trained[1].asked[0]
  groups = [_copied(group) for group in _played(trained)]
  with pytest.raises(collecting.CollectedError, match=says) as error:
    collecting.check(change(groups), asked)
  assert '\n' not in str(error.value)


def _copied(group):
  members = [dataclasses.replace(t, turns=[*t.turns]) for t in group.trajectories]
  return dataclasses.replace(group, trajectories=members)


def _played(trained):
  """The first step's groups, played again."""
  if not hasattr(_played, 'groups'):
    own = trained[1]
    _played.groups = own(dataclasses.replace(own.asked[0]))
    own.asked.pop()
  collecting.check(_played.groups, trained[1].asked[0])
  return _played.groups


def test_a_run_stops_when_it_is_told_to(trained, tmp_path):
  with micro_run.compiling():
    sdar_jax.train(trained[2], tmp_path / 'run', stop=lambda: True)
  saved = [p.name for p in (tmp_path / 'run/checkpoints').iterdir() if p.name.isdigit()]
  assert saved in ([], ['0'], ['1'])
