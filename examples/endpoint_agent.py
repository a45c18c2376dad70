"""An agent of its own, trained: episodes played through the endpoint.

  python -m examples.endpoint_agent runs/endpoint

The agent below knows nothing of this project but the address of an endpoint: it speaks
to it with OpenAI's client, and would as well to any other. What it plays is a toy: a
thing hides in a room, always in the drawer, and there are three guesses. The policy is
the small model that ships here, which knows kitchens and nothing of the drawer.

Needs `pip install 'sdar-jax[serve]' openai`.
"""

import dataclasses
import random
import sys
from typing import Any, ClassVar

import openai

import sdar_jax
from sdar_jax import config as config_lib
from sdar_jax.envs import base
from sdar_jax.prompts.chat import Chat
from sdar_jax.serve.server import Played

MODEL = 'experiments/tiny/alfworld'
PLACES = ('cabinet 1', 'countertop 1', 'drawer 1', 'fridge 1', 'microwave 1', 'shelf 1')
THINGS = ('egg', 'apple', 'bread', 'lettuce', 'potato', 'tomato')


class HidingEnv:
  """Says whether the thing was there; it is always in the drawer."""

  def reset(self, task: base.Task) -> base.Observation:
    """Shows the room."""
    return base.Observation('at start\nnew ' + ' '.join(task.payload))

  def step(self, action: str) -> base.StepResult:
    """Looks where the agent goes."""
    found = action == 'go to drawer 1'
    observation = base.Observation('at ' + action.removeprefix('go to '))
    return base.StepResult(observation, float(found), done=found, success=found)


@dataclasses.dataclass(frozen=True)
class Hiding(base.World):
  """Find a thing in a room."""

  name: ClassVar[str] = 'hiding'
  splits: ClassVar[dict[str, int]] = {'train': 1000, 'valid_unseen': 100}
  instruction: ClassVar[str] = ''
  max_turns: int = base.setting(3, least=1)

  def task(self, split: str, index: int) -> base.Task:
    """Makes a room: its places are in any order."""
    task_id = f'hiding/{split}/{index:04d}'
    draw = random.Random(task_id)
    places = tuple(draw.sample(PLACES, len(PLACES)))
    goal = f'put some {draw.choice(THINGS)} in fridge.'
    return base.Task(task_id, 'hiding', goal, {'task_type': 'hiding'}, places)

  def make_env(self) -> HidingEnv:
    """Makes a room."""
    return HidingEnv()

  def render(self, task: base.Task, history: Any, observation: base.Observation) -> str:
    """Writes the goal, the room, and where one was last."""
    return f'{task.goal}\n{observation.text}'


def play(url: str, task: base.Task, session: str) -> tuple[float, bool]:
  """Plays one episode with OpenAI's client; returns reward and success."""
  client = openai.OpenAI(base_url=url, api_key='none', max_retries=0)
  world = Hiding()
  env = world.make_env()
  observation = env.reset(task)
  for _ in range(world.max_turns):
    reply = client.chat.completions.create(
      model='policy',
      messages=[{'role': 'user', 'content': world.render(task, (), observation)}],
      extra_body={'session': session},
    )
    action = world.parse(reply.choices[0].message.content, observation).action
    result = env.step(action)
    observation = result.observation
    if result.done:
      return result.reward, result.success
  return 0.0, False


def config() -> Any:
  """Makes the configuration: GRPO on the small model, for six steps."""
  c = config_lib.default('examples.endpoint_agent:Hiding')
  c.model.path, c.model.enable_thinking = MODEL, True
  c.algorithm.name, c.steps = 'grpo', 6
  c.rollout.tasks_per_step = c.rollout.group_size = 8
  c.rollout.slots, c.rollout.decode_chunk = 32, 8
  c.rollout.max_prompt_tokens, c.rollout.max_response_tokens = 64, 24
  c.rollout.prefill_chunk, c.rollout.prefill_tokens = 8, 128
  c.train.minibatch_rows, c.train.microbatch_rows = 64, 32
  c.train.length_buckets, c.train.teacher_buckets = (64, 88), (96,)
  c.skills.token_budget = 8
  c.optimizer.learning_rate = 3e-4
  c.eval.split, c.eval.tasks, c.eval.every = 'valid_unseen', 100, 0
  c.eval.temperature = 1.0
  return c


def main(workdir: str) -> None:
  """Trains, and says what the trained policy answers."""
  made = config()
  chat = Chat(made.model.path, enable_thinking=True, instruction='')
  sdar_jax.train(made, workdir, collect=Played(play, chat, workers=8))
  world = Hiding()
  task = world.tasks('valid_unseen')[0]
  text = world.render(task, (), world.make_env().reset(task))
  print(f'{text}\n> {sdar_jax.load(workdir).generate(text).text}')


if __name__ == '__main__':
  main(sys.argv[1])
