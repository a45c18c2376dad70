"""Demonstrations to imitate: expert turns, practice in copying. No JAX."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from sdar_jax.envs import base
from sdar_jax.prompts import fitting
from sdar_jax.prompts.skills import SkillView

# encode(text) -> ids of a response, tags as tokens and the stop token at its end.
Encode = Callable[[str], np.ndarray]
Prompt = Callable[[str, base.Task], tuple[np.ndarray, SkillView]]


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """One turn to imitate: `prompt_ids` [L] and `response_ids` [R], int32."""

  prompt_ids: np.ndarray
  response_ids: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lessons:
  """Choice of experts, mistakes and limits of demonstrations.

  Attributes:
    skilled_fraction: of the episodes, those whose prompts show skills.
    informed_fraction: of the other episodes, those that the informed expert plays too.
    mistake_rate: chance that a mistake is played in place of the expert's action,
      whose answer to the situation is still what is imitated.
    seed: of the draws.
    max_prompt_tokens: longest prompt, skills not counted.
    follow: continues a conversation behind a response; None begins anew every turn.
  """

  skilled_fraction: float
  informed_fraction: float
  mistake_rate: float
  seed: int
  max_prompt_tokens: int
  follow: fitting.Follow | None = None


def play(
  world: base.World,
  tasks: base.TaskSet,
  *,
  plain: Prompt,
  skilled: Prompt,
  encode: Encode,
  lessons: Lessons,
) -> Iterator[Demonstration]:
  """Plays expert turns, for ever: episode i plays task i.

  Prompts are those of rollout: one that cannot be made to fit ends its episode.

  Args:
    world: the world and its experts.
    tasks: the training tasks, used in order.
    plain: the prompt without skills.
    skilled: the prompt with skills.
    encode: response text to ids.
    lessons: what is demonstrated.

  Raises:
    ValueError: not even the first prompt fits.
  """
  for index in itertools.count():
    task = tasks[index % len(tasks)]
    random = np.random.default_rng([lessons.seed, index])
    with_skills = bool(random.random() < lessons.skilled_fraction)
    informed = with_skills or (  # A fraction of 0 takes no draw from what follows.
      lessons.informed_fraction > 0 and random.random() < lessons.informed_fraction
    )
    kind = world.demonstrators[0 if informed else 1]
    expert = world.expert(kind, seed=int(random.integers(2**31)))
    prompt = skilled if with_skills else plain
    empty = True
    for demonstration in episode(world, task, expert, prompt, encode, lessons, random):
      empty = False
      yield demonstration
    if empty and index == 0:
      raise ValueError(
        f'task {task.task_id}: its first prompt exceeds config.rollout.'
        f'max_prompt_tokens={lessons.max_prompt_tokens}: raise it'
      )


def episode(
  world: base.World,
  task: base.Task,
  expert: base.Expert,
  prompt: Prompt,
  encode: Encode,
  lessons: Lessons,
  random: np.random.Generator,
) -> Iterator[Demonstration]:
  """Plays one episode: its prompts and the expert's responses."""
  env = world.make_env()
  observation = env.reset(task)
  expert.reset(task, observation)
  history: list[base.Exchange] = []
  last = None
  for _ in range(world.max_turns):
    thought, action = expert.plan(observation)
    fitted = fitting.next_prompt(
      world,
      lambda text: prompt(text, task),
      task,
      history,
      observation,
      max_tokens=lessons.max_prompt_tokens,
      follow=lessons.follow,
      last=last,
    )
    if fitted is None:
      return
    demonstration = Demonstration(fitted.ids, encode(world.response(thought, action)))
    last = fitting.Last(fitted, demonstration.response_ids)
    yield demonstration
    if random.random() < lessons.mistake_rate:
      action = world.mistake(observation, random)
    result = env.step(action)
    history.append(base.Exchange(observation.text, action))
    observation = result.observation
    expert.observe(action, observation)
    if result.done:
      return


def with_new_names(
  source: Iterator[Demonstration], sets: Sequence[np.ndarray], *, vocab: int, seed: int
) -> Iterator[Demonstration]:
  """Exchanges names, anew in each demonstration.

  A name in a prompt then says nothing but itself: which surname follows a first name
  can only be read, not known, and names of unseen tasks are as good as any.

  Args:
    source: demonstrations.
    sets: ids that may stand for each other, [n] each.
    vocab: ids in all.
    seed: of the draws.
  """
  random = np.random.default_rng(seed)
  for demonstration in source:
    table = np.arange(vocab, dtype=np.int32)
    for ids in sets:
      table[ids] = random.permutation(ids)
    yield Demonstration(
      table[demonstration.prompt_ids], table[demonstration.response_ids]
    )


def copying(
  ids: Sequence[int], *, shortest: int, longest: int, seed: int
) -> Iterator[Demonstration]:
  """Makes practice in copying, for ever: random tokens, then the same.

  What a prompt names has to be written again exactly, names that training tasks never
  mention included. Random tokens teach that within a few hundred updates, because
  nothing else predicts them.

  Args:
    ids: the tokens to draw from.
    shortest: tokens of a prompt, at least.
    longest: tokens of a prompt, at most.
    seed: of the draws.
  """
  random = np.random.default_rng(seed)
  while True:
    length = int(random.integers(shortest, longest + 1))
    drawn = random.choice(np.asarray(ids, np.int32), length)
    yield Demonstration(drawn, drawn)
