"""Episodes played through an endpoint, as a learner takes them."""

import json
import time

import numpy as np
import pytest

pytest.importorskip('starlette', reason="needs 'sdar-jax[serve]'")
pytest.importorskip('uvicorn', reason="needs 'sdar-jax[serve]'")
httpx = pytest.importorskip('httpx', reason='needs httpx')
import fakes  # noqa: E402
from serve_cases import Scripted  # noqa: E402

from experiments.tiny import tokenizer  # noqa: E402
from sdar_jax.envs.base import EnvironmentFault  # noqa: E402
from sdar_jax.prompts.chat import Chat  # noqa: E402
from sdar_jax.rollout import collecting, episodes  # noqa: E402
from sdar_jax.rollout.request import SamplingParams  # noqa: E402
from sdar_jax.serve.server import Played  # noqa: E402
from sdar_jax.trajectory import Outcome  # noqa: E402


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  tokenizer.save(tokenizer.train(['say 1 or 2', 'start said']), folder)
  return Chat(folder)


def _asked(chat, **changes):
  sampling = SamplingParams(max_tokens=50, temperature=0.7, stop_ids=chat.stop_ids)
  agent = episodes.Agent(None, chat.decode, sampling, 300)
  values = {
    'step': 3,
    'seed': 9,
    'tasks': fakes.tasks(),
    'occurrences': [0, 0, 0],
    'group_size': 2,
    'sampler': Scripted(chat, lambda prompt, request: str(1 + request.identity[-1])),
    'agent': agent,
    'pool': None,
    'success_reward': 10.0,
    'should_stop': lambda: False,
    'progress': lambda ended, wanted: None,
  }
  return collecting.Asked(**{**values, **changes})


def _say(url, text, session, **more):
  body = {'messages': [{'role': 'user', 'content': text}], 'session': session, **more}
  reply = httpx.post(f'{url}/chat/completions', json=body, timeout=30)
  reply.raise_for_status()
  return reply.json()['choices'][0]['message']['content']


def _play(url, task, session):
  """Wins by saying the number of the turn that is the task's; the third is too late."""
  for turn in range(2):
    said = _say(url, f'{task.goal}, turn {turn}', session)
    if said == task.payload:
      return 1.0, True
  return 0.0, False


@pytest.mark.parametrize('workers', [1, 5])
def test_groups_are_what_was_sampled(chat, workers):
  told = []
  asked = _asked(chat, progress=lambda *counts: told.append(counts))
  groups = Played(_play, chat, workers=workers)(asked)
  collecting.check(groups, asked)
  turns = [[len(t.turns) for t in group.trajectories] for group in groups]
  assert turns == [[1, 1], [2, 2], [2, 2]] and told[-1] == (6, 6)
  outcomes = [group.trajectories[0].outcome for group in groups]
  assert outcomes == [Outcome.SUCCESS, Outcome.SUCCESS, Outcome.FAILURE]
  assert [group.trajectories[1].episode_return for group in groups] == [10, 10, 0]
  second = groups[1].trajectories[0].turns[1]
  assert json.loads(second.prompt_text)[0]['content'] == 'say 2, turn 1'
  np.testing.assert_array_equal(second.prompt_ids, chat.render('say 2, turn 1'))
  np.testing.assert_array_equal(second.response_ids, chat.encode_response('2'))
  assert second.response == '2' and not second.goes_on
  keys = [request.identity for request in asked.sampler.requests]
  assert len(set(keys)) == 10 and {key[:2] for key in keys} == {(9, 3)}
  assert {request.sampling.temperature for request in asked.sampler.requests} == {0.7}


def test_what_is_drawn_does_not_depend_on_who_is_first(chat):
  keys = []
  for workers in (1, 6):
    asked = _asked(chat)
    Played(_play, chat, workers=workers)(asked)
    keys.append({request.identity for request in asked.sampler.requests})
  assert keys[0] == keys[1]


def test_a_fault_is_no_reward_and_a_mistake_is_an_error(chat):
  def broken(url, task, session):
    if task.payload == '2':
      raise EnvironmentFault('refused', 'no')
    if task.payload == '3':
      _say(url, 'x', session)
      raise EnvironmentFault('refused', 'no')
    return _play(url, task, session)

  asked = _asked(chat)
  groups = Played(broken, chat)(asked)
  collecting.check(groups, asked)
  outcomes = [[t.outcome for t in group.trajectories] for group in groups]
  assert outcomes == [[Outcome.SUCCESS] * 2, *[[Outcome.ENV_ERROR] * 2] * 2]

  def mistaken(url, task, session):
    raise KeyError('typo')

  with pytest.raises(KeyError, match='typo'):
    Played(mistaken, chat)(_asked(chat))


def test_a_prompt_without_room_ends_its_episode_and_not_the_run(chat):
  def play(url, task, session):
    if task.payload == '1':
      return _play(url, task, session)
    if task.payload == '3':
      _say(url, 'x', session)
    try:
      _say(url, 'x' * 400, session)
    except httpx.HTTPStatusError:
      if task.payload == '3' or session.endswith('0'):
        raise
    return 0.0, False  # An agent that takes it as the end.

  asked = _asked(chat)
  groups = Played(play, chat)(asked)
  collecting.check(groups, asked)
  outcomes = [[t.outcome for t in group.trajectories] for group in groups]
  assert outcomes == [[Outcome.SUCCESS] * 2, *[[Outcome.PROMPT_TOO_LONG] * 2] * 2]
  turns = [[len(t.turns) for t in group.trajectories] for group in groups]
  assert turns == [[1, 1], [0, 0], [1, 1]]


def test_what_a_learner_takes_is_drawn_as_it_expects(chat):
  replies = []

  def play(url, task, session):
    body = {'messages': [{'role': 'user', 'content': 'x'}], 'session': session}
    post = lambda **more: httpx.post(f'{url}/chat/completions', json={**body, **more})
    replies.append([post(temperature=1), post(top_p=0.5), post(temperature=0.7)])
    return 0.0, False

  Played(play, chat, workers=1)(_asked(chat))
  for hot, narrow, right in replies:
    assert hot.status_code == narrow.status_code == 400 and right.status_code == 200
    assert '(0.7, 1.0, 0)' in hot.json()['error']['message']


def test_a_step_stops_when_the_run_does(chat):
  stop = []

  def play(url, task, session):
    stop.append(True)
    return _play(url, task, session)

  with pytest.raises(episodes.Interrupted):
    Played(play, chat, workers=1)(_asked(chat, should_stop=lambda: bool(stop)))


def test_an_agent_that_never_ends_does_not_keep_a_run_from_stopping(chat):
  stop, ended = [], []

  def play(url, task, session):
    until = time.monotonic() + 30
    try:
      while time.monotonic() < until:
        _say(url, 'on and on', '')
        stop.append(True)
    finally:
      ended.append(time.monotonic() < until)

  with pytest.raises(episodes.Interrupted):
    Played(play, chat, workers=1)(_asked(chat, should_stop=lambda: bool(stop)))
  assert ended == [True]


@pytest.mark.parametrize('said', [None, 1.0, (1.0, {}), ('1', True), (1.0, True, {})])
def test_what_an_agent_returns_is_checked(chat, said):
  def play(url, task, session):
    _play(url, task, session)
    return said

  with pytest.raises(collecting.CollectedError, match="play: task 'task 1' gave") as e:
    Played(play, chat, workers=1)(_asked(chat))
  assert '\n' not in str(e.value)
