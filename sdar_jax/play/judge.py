"""What policy and teacher think of a response that somebody typed."""

import numpy as np

from sdar_jax import build
from sdar_jax import parts as parts_lib
from sdar_jax.envs import base
from sdar_jax.learner import scoring
from sdar_jax.models import sharding
from sdar_jax.prompts import fitting


class Judge:
  """Scores responses under the student's prompt and the teacher's.

  Args:
    player: the policy.

  Attributes:
    blind: why there is no teacher; '' where there is one.
  """

  def __init__(self, player: parts_lib.Player):
    c = player.config
    self._player = player
    how = build.make_scoring(c, player.chat, temperature=c.rollout.temperature)
    score = lambda params, tokens: scoring.token_logprobs(
      player.model, params, tokens, None, how
    )
    self._score = sharding.Program(score, player.mesh)
    self._buckets = sorted({*c.train.length_buckets, *c.train.teacher_buckets})
    self._rows = c.mesh.data * c.mesh.fsdp
    self.blind = self._find_teacher()

  def _find_teacher(self) -> str:
    config, teacher = self._player.config, self._player.teacher
    algorithm, name = build.make_algorithm(config), config.algorithm.name
    if algorithm.distillation is None:
      return f'config.algorithm.name={name} has no teacher'
    context = algorithm.distillation.context
    if context not in ('skills', 'other_view'):
      return f"the teacher of {name} sees a '{context}', which one episode has not"
    if not [*teacher.retriever.bank.everything()]:
      return 'there are no skills for the teacher: config.skills.path'
    return ''

  def student(self, fitted: fitting.Fitted, ids: np.ndarray) -> np.ndarray:
    """Scores under the prompt of the turn, [R] nats."""
    return self._logprobs(fitted.ids, ids)

  def teacher(
    self, fitted: fitting.Fitted, head: fitting.Fitted, task: base.Task, ids: np.ndarray
  ) -> tuple[np.ndarray, tuple[str, ...]]:
    """Scores under the teacher's prompt: [R] nats, and which skills it saw.

    Args:
      fitted: the prompt of the turn.
      head: that of the turn in which its conversation began; the same without one.
      task: of the episode.
      ids: [R] the response.
    """
    prompt, view = self._player.teacher.prompt(head.text, task)
    prompt = np.concatenate([prompt, fitted.ids[len(head.ids) :]])
    return self._logprobs(prompt, ids), view.skill_ids

  def _logprobs(self, prompt: np.ndarray, ids: np.ndarray) -> np.ndarray:
    length = len(prompt) + len(ids)
    width = next((size for size in self._buckets if size >= length), length)
    tokens = np.zeros((self._rows, width), np.int32)
    tokens[0, :length] = [*prompt, *ids]
    scored, _ = self._score(self._player.joined, tokens)
    return np.asarray(scored)[0, len(prompt) : length]
