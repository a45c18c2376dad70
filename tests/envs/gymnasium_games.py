"""A Gymnasium environment on strings, for the tests of its adapter."""

import gymnasium


class Echo(gymnasium.Env):
  """Answers with a drawn letter; cut off after three steps."""

  observation_space = action_space = gymnasium.spaces.Text(100)

  def reset(self, *, seed=None, options=None):
    super().reset(seed=seed)
    self.steps = 0
    return self._letter(), {}

  def step(self, action):
    self.steps += 1
    return f'{action} {self._letter()}', float(len(action)), False, self.steps == 3, {}

  def _letter(self):
    return 'abcdefgh'[int(self.np_random.integers(8))]


def make(name):
  assert name == 'Echo'
  return Echo()
