"""A counting world and a sampler that follows a script, without JAX."""

import numpy as np

from sdar_jax.envs import base
from sdar_jax.envs.pool import pool
from sdar_jax.prompts import skills
from sdar_jax.rollout import episodes
from sdar_jax.rollout.request import Completion, SamplerCounts, SamplingParams


class CountingEnv:
  """Says numbers; the episode is won by saying the task's number."""

  def reset(self, task):
    self.goal, self.said = task.payload, []
    return base.Observation('start', ('1', '2', '3', 'boom'))

  def step(self, action):
    if action == 'boom':
      raise RuntimeError('broken')
    self.said.append(action)
    won = action == self.goal
    observation = base.Observation(f'said {action}', ('1', '2', '3'))
    done = won or action == 'quit'
    return base.StepResult(observation, float(won), done, won)


class World:
  name, max_turns = 'counting', 3

  def make_env(self):
    return CountingEnv()

  def render(self, task, history, observation):
    past = ' '.join(f'{e.observation}>{e.action}' for e in history)
    return f'{task.goal} | {past} | {observation.text}'

  def parse(self, response, observation):
    return base.ParsedAction(response, bool(response))

  def admits(self, action, observation):
    return action in observation.admissible

  def prefetch(self, actions):
    pass


def in_process(world=None):
  return pool.InProcessPool(world or World(), retries=0)


class ScriptedSampler:
  """Completes in an order of its own; the text is a function of identity alone."""

  def __init__(self, script, shuffle):
    self.script, self.random = script, np.random.default_rng(shuffle)
    self.waiting, self.requests = [], []

  def submit(self, requests):
    self.waiting += requests
    self.requests += requests

  def poll(self):
    self.random.shuffle(self.waiting)
    count = int(self.random.integers(1, len(self.waiting) + 1))
    now, self.waiting = self.waiting[:count], self.waiting[count:]
    return [self._complete(request) for request in now]

  def release(self):
    assert not self.waiting  # As the sampler: nothing is on its way.

  def statistics(self):
    return SamplerCounts()

  def _complete(self, request):
    ids = np.frombuffer(self.script(request.identity).encode(), np.uint8)
    logprobs = np.zeros(len(ids), np.float32)
    return Completion(request.request_id, ids.astype(np.int32), logprobs, 'stop')


def prompt(text, task, member):
  return np.frombuffer(text.encode(), np.uint8).astype(np.int32), skills.NOTHING


def decode(ids):
  return bytes(np.asarray(ids, np.uint8)).decode()


def agent(limit=1000):
  return episodes.Agent(prompt, decode, SamplingParams(max_tokens=9), limit)


def tasks():
  return [base.Task(f'task {i}', 'kind', f'say {i}', {}, str(i)) for i in range(1, 4)]
