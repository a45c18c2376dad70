"""Serves scripts and notebooks: `config_of`, `load` and `train`.

Errors are exceptions of one line, no signal is handled and no process ended.
"""

import dataclasses
import functools
import math
import numbers
import pathlib
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from sdar_jax import build, files
from sdar_jax import config as config_lib
from sdar_jax import parts as parts_lib
from sdar_jax import train as train_lib
from sdar_jax.cli import config_file
from sdar_jax.learner import lengths, scoring
from sdar_jax.models import hf, sharding
from sdar_jax.rollout.collecting import Collector
from sdar_jax.rollout.request import (
  MIN_TEMPERATURE,
  Completion,
  Request,
  SamplingParams,
)
from sdar_jax.storage import recorded

_NOWHERE = 'sdar_jax.envs.nowhere:Nowhere'
# What a model is loaded with where no run says it.
_PLAIN = (8, 1024)  # Slots, and tokens of a prompt.
_SCORED_TOGETHER = 8  # Rows of a scoring pass.
_SHORTEST = 64  # Tokens of its least width.

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Answer:
  """A policy's answer to one prompt.

  Attributes:
    text: for people and programs: special tokens and the stop string are not in it.
    ids: [R] int32, exactly as sampled, the stop token included.
    logprobs: [R] float32, nats, at the sampling temperature (1 for greedy).
    stop_reason: 'stop' or 'length'.
    prompt_ids: [L] int32, what it was given.
  """

  text: str
  ids: np.ndarray
  logprobs: np.ndarray
  stop_reason: str
  prompt_ids: np.ndarray


class ChatPolicy:
  """A policy to talk to.

  Attributes:
    config: of the run, or the defaults with a model's path.
    chat: its tokenizer and template.
    sampler: completes prompts; of several threads, use `generate`, which locks it.
    step: of the checkpoint; 0 for a model as it was.
  """

  def __init__(self, parts: parts_lib.Policy):
    """Makes a sampler for a policy; nothing is compiled yet."""
    self.config, self.chat = parts.config, parts.chat
    self.step = parts.weights['step']
    self._parts, self._turn = parts, threading.Lock()
    self._score = functools.cache(self._make_score)
    self._positions = functools.cache(lambda: hf.read_context(self.config.model.path))
    drawn = parts.config, parts.chat, sharding.local_mesh(parts.mesh), parts.model
    self.sampler = build.make_sampler(*drawn, parts.joined, with_skills=False)

  def generate(
    self,
    prompts: Prompt | Sequence[Prompt],
    *,
    tools: Sequence[Message] = (),
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: str | Sequence[str] = (),
    seed: int = 0,
  ) -> Any:
    """Answers a prompt, or a list of prompts together.

    Args:
      prompts: a text, which is one user's message; a list of messages; [L] ids; or a
        list of any of these.
      tools: functions that the template shows.
      max_tokens: of an answer; None is config.rollout.max_response_tokens.
      temperature: divides the logits; 0 is greedy.
      top_p, top_k: as `SamplingParams` has them.
      stop: texts, after the first of which an answer ends.
      seed: the i-th answer is a function of the policy, its prompt, (seed, i) and the
        number of slots, whatever is answered beside it.

    Returns:
      An `Answer`, or a list of them for a list of prompts.

    Raises:
      ValueError: one line: a prompt is none, is too long, or a number is out of range.
    """
    several = _are_several(prompts)
    asked = [self.prompt_ids(p, tools) for p in (prompts if several else [prompts])]
    most = self.config.rollout.max_response_tokens
    sampling = SamplingParams(
      max_tokens=most if max_tokens is None else max_tokens,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      stop_ids=self.chat.stop_ids,
      stop_strings=_stops(stop),
    )
    if not isinstance(seed, numbers.Integral):
      raise ValueError(f'seed {seed!r:.40}: must be a whole number')
    with self._turn:
      done = self._completed(
        [Request(i, ids, sampling, (seed, i)) for i, ids in enumerate(asked)]
      )
    answers = [
      Answer(
        self.chat.text_before(done[i].token_ids, sampling.stop_strings),
        done[i].token_ids,
        done[i].logprobs,
        done[i].stop_reason,
        ids,
      )
      for i, ids in enumerate(asked)
    ]
    return answers if several else answers[0]

  def prompt_ids(self, prompt: Prompt, tools: Sequence[Message] = ()) -> np.ndarray:
    """Makes the ids of a prompt, [L] int32."""
    if isinstance(prompt, np.ndarray):
      return _ids(prompt)
    if isinstance(prompt, str) and not tools:
      return self.chat.render(prompt)
    if not isinstance(prompt, Sequence):
      raise ValueError(
        f'a prompt that is a {type(prompt).__name__}: must be a text, a list of'
        ' messages, or an array of ids'
      )
    if isinstance(prompt, str):
      prompt = [{'role': 'user', 'content': prompt}]
    return self.chat.render_messages(prompt, tools)

  def logprobs(
    self,
    prompts: Sequence[Prompt],
    responses: Sequence[str | np.ndarray],
    *,
    temperature: float = 1.0,
  ) -> list[np.ndarray]:
    """Scores given responses, as training does.

    Args:
      prompts: [B], as `generate` takes them.
      responses: [B], ids; or texts, which the stop token ends.
      temperature: divides the logits.

    Returns:
      [R] float32 for each response, nats.

    Raises:
      ValueError: one line: an id, a length or the temperature is out of range.
    """
    if not MIN_TEMPERATURE <= temperature < math.inf:
      raise ValueError(f'temperature {temperature}: must be at least {MIN_TEMPERATURE}')
    pairs = [
      (
        self.prompt_ids(prompt),
        self.chat.encode_response(said)
        if isinstance(said, str)
        else _ids(np.asarray(said)),
      )
      for prompt, said in zip(prompts, responses, strict=True)
    ]
    self._check(pairs)
    out = []
    for start in range(0, len(pairs), _SCORED_TOGETHER):
      out += self._scored(pairs[start : start + _SCORED_TOGETHER], temperature)
    return out

  def _check(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Raises ValueError where the model has no such ids or positions."""
    known, positions = self.chat.len_vocab, self._positions()
    for number, pair in enumerate(pairs):
      ids = np.concatenate(pair)
      if not len(pair[0]):
        raise ValueError(f'row {number}: a prompt of 0 tokens, must have at least 1')
      if not 0 <= ids.min() <= ids.max() < known:
        raise ValueError(
          f'row {number}: ids from {ids.min()} to {ids.max()}, must be in [0, {known})'
        )
      if positions is not None and len(ids) > positions:
        raise ValueError(
          f'row {number}: {len(ids)} tokens, the model has {positions} positions'
        )

  def _completed(self, requests: Sequence[Request]) -> dict[Any, Completion]:
    self.sampler.submit(requests)
    done: dict[Any, Completion] = {}
    try:
      while len(done) < len(requests):
        done |= {c.request_id: c for c in self.sampler.poll()}
    except BaseException:  # An interrupted cell leaves nothing to the next one.
      self.sampler.clear()
      raise
    return done

  def _scored(
    self, pairs: Sequence[tuple[np.ndarray, np.ndarray]], temperature: float
  ) -> list[np.ndarray]:
    width = _SHORTEST
    while width < max(len(prompt) + len(said) for prompt, said in pairs):
      width *= 2
    tokens = np.zeros((_SCORED_TOGETHER, width), np.int32)
    for row, pair in enumerate(pairs):
      both = np.concatenate(pair)
      tokens[row, : len(both)] = both
    scores = self._score(temperature)(self._parts.joined, jnp.asarray(tokens))
    return [
      np.asarray(scores[row, len(prompt) : len(prompt) + len(said)])
      for row, (prompt, said) in enumerate(pairs)
    ]

  def _make_score(self, temperature: float) -> Callable[..., Any]:
    how = build.make_scoring(self.config, self.chat, temperature=temperature)
    model = self._parts.model

    def score(params, tokens):
      return scoring.token_logprobs(model, params, tokens, None, how)[0]

    return sharding.Program(score, self._parts.mesh)


def _ids(value: np.ndarray) -> np.ndarray:
  """Checks an array of ids."""
  if value.ndim != 1 or not np.issubdtype(value.dtype, np.integer):
    raise ValueError(
      f'an array of {value.dtype}, shape {value.shape}: must be ids, [L] whole numbers'
    )
  if len(value) and max(value.max(), -value.min()) > np.iinfo(np.int32).max:
    raise ValueError(f'ids from {value.min()} to {value.max()}: must be 32-bit numbers')
  return value.astype(np.int32)


def _stops(stop: Any) -> tuple[str, ...]:
  if not isinstance(stop, Sequence):
    raise ValueError(f'stop {stop!r:.40}: must be a text or a list of texts')
  return (stop,) if isinstance(stop, str) else tuple(stop)


def _are_several(prompts: Any) -> bool:
  """Tells a list of prompts from one of messages, which are objects."""
  if isinstance(prompts, str | np.ndarray):
    return False
  if not isinstance(prompts, Sequence):
    raise ValueError(
      f'prompts: a {type(prompts).__name__}: must be a text, a list of messages, an'
      ' array of ids, or a list of any of these'
    )
  return not (len(prompts) and isinstance(prompts[0], Mapping))


def config_of(
  source: str | pathlib.Path, changes: Mapping[str, Any] | None = None, **more: Any
) -> ml_collections.ConfigDict:
  """Reads a configuration and sets keys of it.

  Args:
    source: what --config takes, 'experiments/alfworld.py:model=tiny'; or the work
      directory of a run.
    changes: values by key, such as {'eval.tasks': 20}.
    **more: likewise, for keys without a dot: steps=4.

  Raises:
    ValueError: one line saying what is wrong.
  """
  text = str(source)
  run = files.local_path(text, 'source')
  read = config_file.of_run if run.is_dir() else config_file.read
  return _changed(read(run if run.is_dir() else text), {**(changes or {}), **more})


def _changed(
  config: ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> ml_collections.ConfigDict:
  known = config_lib.flatten(config)
  for key, value in changes.items():
    if key not in known:
      raise config_lib.ConfigError(f'config.{key}: no such key')
    room, _, leaf = key.rpartition('.')
    try:
      (config[room] if room else config)[leaf] = value
    except TypeError as error:
      said = files.one_line(error)
      raise config_lib.ConfigError(f'config.{key}={value!r}: {said}') from None
  return config_file.checked(config)


def load(
  path: str | pathlib.Path, changes: Mapping[str, Any] | None = None, **more: Any
) -> ChatPolicy:
  """Loads a policy to talk to.

  Args:
    path: the work directory of a run, whose newest checkpoint and configuration are
      taken; or what config.model.path takes: a Hugging Face directory, a hub id, a
      .gguf file.
    changes: values by key of the configuration, such as {'rollout.slots': 2}.
    **more: likewise, for keys without a dot.

  Raises:
    ValueError: one line saying what is wrong.
  """
  text, changes = str(path), {**(changes or {}), **more}
  place = files.local_path(text, 'path')
  if recorded.is_run(place):
    config = _changed(config_file.of_run(place), changes)
    return talking(config, place)
  return talking(_changed(plain(text), changes))


def talking(
  config: ml_collections.ConfigDict, run: pathlib.Path | None = None
) -> ChatPolicy:
  """Makes a policy to talk to: the config's, or a checkpoint's.

  Raises:
    ValueError: one line saying what is wrong.
  """
  lengths.check_context(config, with_skills=False)
  return ChatPolicy(parts_lib.policy(config, None if run is None else str(run)))


def plain(model: str) -> ml_collections.ConfigDict:
  """Makes the configuration of a model without a run."""
  config = config_lib.default(_NOWHERE).lock()
  config.model.path = model
  config.rollout.slots, config.rollout.max_prompt_tokens = _PLAIN
  return config


def train(
  config: ml_collections.ConfigDict,
  workdir: str | pathlib.Path,
  *,
  collect: Collector | None = None,
  stop: Callable[[], bool] = lambda: False,
) -> pathlib.Path:
  """Trains, or goes on with it: `sdar_jax.train(config, workdir)`.

  Args:
    config: as `config_of` gives it.
    workdir: of the run.
    collect: plays the training episodes instead of the run's own loop; see
      `rollout.collecting`.
    stop: asked after every step, and while episodes are played, whether to save and
      return.

  Returns:
    The work directory, which `load` takes.

  Raises:
    Exception: as `train.train`; `config` is checked before anything heavy starts.
  """
  config_lib.validate(config)
  path = files.local_path(str(workdir), 'workdir')
  train_lib.train(config, path, collect=collect, stop=stop)
  return path


class _Callable(types.ModuleType):
  """Calls `train` where its module, of the same name, is called."""

  def __call__(self, *args: Any, **options: Any) -> pathlib.Path:
    return train(*args, **options)


sys.modules[train_lib.__name__].__class__ = _Callable
