"""A world whose answers depend on the whole history, and faults to inject into it."""

import collections
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from sdar_jax.envs import base

GARBAGE = (
  None,
  'You see nothing.',
  base.Observation('start', ('left',)),
  base.StepResult(None, 0.0, False, False),
  base.StepResult(base.Observation(7), 0.0, False, False),
  base.StepResult(base.Observation('x', ['left']), 0.0, False, False),
  base.StepResult(base.Observation('x', ('left', 2)), 0.0, False, False),
  base.StepResult(base.Observation('x'), float('nan'), False, False),
  base.StepResult(base.Observation('x'), '1', False, False),
  base.StepResult(base.Observation('x'), 0.0, 1, False),
  base.StepResult(base.Observation('x'), 0.0, False, None),
  base.StepResult(base.Observation('x'), 0.0, False, False, {}),
)


def number(*parts):
  """A fraction in [0, 1) that the parts decide."""
  raw = hashlib.blake2b(json.dumps(parts).encode(), digest_size=7).digest()
  return int.from_bytes(raw, 'big') / 2**56


class Env:
  """Each answer names everything that was played; a fifth of the actions end it."""

  def __init__(self, faults):
    self.faults = faults

  def reset(self, task):
    self.state = [task.task_id]
    wrong = self.faults.strike(self.state)
    text = f'{task.task_id} \ud800\n'
    return wrong[0] if wrong else base.Observation(text, ('left', 'right'))

  def step(self, action):
    self.state = [*self.state, action]
    wrong = self.faults.strike(self.state)
    if wrong:
      return wrong[0]
    draw = number('end', self.state)
    return base.StepResult(
      base.Observation(json.dumps(self.state), (f'go {draw}', 'left')),
      draw / 3,
      draw < 0.2,
      draw < 0.1,
      draw if draw < 0.2 else None,
    )


class Injected:
  """Any world with faults put into its environments."""

  def __init__(self, world, faults):
    self.world, self.faults = world, faults
    self.name, self.max_turns = world.name, world.max_turns

  def make_env(self):
    return InjectedEnv(self.world.make_env(), self.faults)

  def prefetch(self, actions):
    self.world.prefetch(actions)


class InjectedEnv:
  def __init__(self, env, faults):
    self.env, self.faults = env, faults

  def reset(self, task):
    self.state = [task.task_id]
    wrong = self.faults.strike(self.state)
    return wrong[0] if wrong else self.env.reset(task)

  def step(self, action):
    self.state = [*self.state, action]
    wrong = self.faults.strike(self.state)
    return wrong[0] if wrong else self.env.step(action)


class NoFaults:
  def strike(self, state):
    return None


class Faults:
  """Draws faults by place (task and actions) and by how often it struck there before.

  Args:
    folder: shared by all workers; a file for each fault, holding its kind.
    rate: chance per call of an environment.
    kinds: of fault, with weights.
    deepest: most faults at one place; only the first of them may be a hang.
    seed: of the draws.
  """

  def __init__(self, folder, rate, kinds, deepest=2, seed=7):
    self.folder, self.rate = pathlib.Path(folder), rate
    self.kinds, self.deepest, self.seed = dict(kinds), deepest, seed

  def strike(self, state):
    for attempt in range(self.deepest):
      if number('rate', self.seed, attempt, state) >= self.rate:
        return None
      name = hashlib.sha256(json.dumps(state).encode()).hexdigest()
      kind = self._kind(state, attempt)
      try:
        with open(self.folder / f'{name}.{attempt}', 'x') as file:
          file.write(kind)
      except FileExistsError:
        continue
      return self._act(kind, state)
    return None

  def _kind(self, state, attempt):
    kinds = {k: w for k, w in self.kinds.items() if k != 'hang' or attempt == 0}
    draw = number('kind', self.seed, attempt, state) * sum(kinds.values())
    for kind, weight in kinds.items():
      draw -= weight
      if draw < 0:
        return kind

  def _act(self, kind, state):
    if kind == 'crash':
      os.kill(os.getpid(), signal.SIGKILL)
    if kind == 'hang':
      time.sleep(3600)
    if kind == 'error':
      raise RuntimeError('broken')
    if kind == 'wire':
      os.write(int(sys.argv[1]), b'\xff{"not": an answer}\n')
      time.sleep(3600)
    # Of a reset an observation would be an answer.
    wrong = [g for g in GARBAGE if len(state) > 1 or type(g) is not base.Observation]
    return (wrong[int(number('garbage', state) * len(wrong))],)

  def injected(self):
    """How many faults of each kind there were, as a pool should have counted them."""
    kinds = [path.read_text() for path in self.folder.iterdir()]
    return collections.Counter('garbage' if k == 'wire' else k for k in kinds)


class World:
  """Plays `Env`; `special` maps a task id to what its every step does."""

  name, max_turns = 'faulty', 6

  def __init__(self, faults=None, special=None):
    self.faults, self.special = faults or NoFaults(), special or {}

  def make_env(self):
    return Special(self.special) if self.special else Env(self.faults)

  def render(self, task, history, observation):
    past = ' '.join(f'{e.observation}>{e.action}' for e in history)
    return ascii(f'{past} {observation.text}')

  def parse(self, response, observation):
    return base.ParsedAction(response, True)

  def admits(self, action, observation):
    return action in observation.admissible

  def prefetch(self, actions):
    actions = list(actions)
    if 'prefetch' in self.special:
      self.special['seen'] = actions
    if 'die' in actions:
      os._exit(1)


class Special(Env):
  """Does by task what its world says, and reports on its process."""

  def __init__(self, special):
    super().__init__(NoFaults())
    self.special = special

  def reset(self, task):
    self.what = self.special.get(task.task_id)
    if self.what == 'hang at reset':
      time.sleep(3600)
    if self.what == 'crash at reset':
      os.kill(os.getpid(), signal.SIGKILL)
    return super().reset(task)

  def step(self, action):
    if self.what == 'hang':
      time.sleep(3600)
    if self.what == 'crash':
      os.kill(os.getpid(), signal.SIGKILL)
    if self.what == 'child':
      subprocess.Popen(['sleep', '600'], close_fds=False)
      os._exit(3)
    if self.what == 'refuse':
      raise base.EnvironmentFault('refused', 'the server said no')
    if self.what == 'late':
      raise base.EnvironmentTimeout('slow', 'the server did not answer')
    if self.what == 'own deadline':
      raise TimeoutError('no answer\nin time')
    result = super().step(action)
    if self.what == 'clock':
      return _say(time.monotonic_ns())
    if self.what == 'process':
      return _say(json.dumps([os.getpid(), sorted(sys.modules), dict(os.environ)]))
    if self.what == 'prefetch':
      return _say(json.dumps(self.special['seen']))
    if isinstance(self.what, tuple):
      return self.what[0]
    return result


def _say(text):
  return base.StepResult(base.Observation(str(text)), 0.0, False, False)


def tasks(count):
  return [base.Task(f'task {i}', 'kind', 'goal', {}, i) for i in range(count)]


def task(name):
  return base.Task(name, 'kind', 'goal', {}, None)
