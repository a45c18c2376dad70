"""The sampler: `submit`, `poll` completions, `update`, `release` memory.

Requests wait in order for one of a fixed number of slots. A poll admits as many as
there are free slots, computes what no slot holds of their prompts (see `admission`) and
decodes until enough slots have finished. All shapes are fixed: a request's tokens
depend on its prompt, its identity and the number of slots, and on nothing else that
shares the batch or was there before.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Container, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdar_jax.models import decoder
from sdar_jax.rollout.request import (
  Completion,
  Request,
  SamplerCounts,
  SamplingParams,
  request_key,
)
from sdar_jax.sampler import admission, decoding

__all__ = ['Completion', 'Request', 'Sampler', 'SamplingParams']

MAX_STOP_IDS = 8
NO_ID = -1
COPIES_PER_CALL = 16


@dataclasses.dataclass
class _Job:
  """A request on its way; `checked` tokens were searched for stop strings."""

  request: Request
  prompt: np.ndarray
  checked: int = 0


class Sampler:
  """Continues prompts with the model, many at a time."""

  def __init__(
    self,
    config: decoder.ModelConfig,
    params: decoder.Params,
    *,
    slots: int,
    max_prompt_tokens: int,
    max_response_tokens: int,
    valid_vocab: int,
    dtype: Any = jnp.float32,
    decode: Callable[[np.ndarray], str] | None = None,
    mesh: Mesh | None = None,
    prefill_chunk: int = 16,
    prefill_tokens: int = 512,
    decode_chunk: int = 64,
    return_fraction: float = 0.5,
  ):
    """Compiles and allocates nothing yet (see `warmup`).

    Args:
      config: the model.
      params: from `parameters.init_params` or `hf.load`; used as they are.
      slots: requests that decode at the same time, S.
      max_prompt_tokens: longest prompt.
      max_response_tokens: longest response.
      valid_vocab: len(tokenizer); ids from here on are impossible.
      dtype: dtype of computation and of the cache.
      decode: ids to text; needed for stop strings only.
      mesh: a mesh from `sharding.make_mesh`, or None for one device.
      prefill_chunk: tokens of a prompt that are computed, and reused, as one.
      prefill_tokens: tokens of one prefill call, padding included.
      decode_chunk: most tokens per slot before the host looks at stop strings.
      return_fraction: share of the decoding requests that a poll waits for.

    Raises:
      ValueError: sizes that do not fit together, in one line.
    """
    self._ways = mesh.shape['data'] * mesh.shape['fsdp'] if mesh else 1
    _check_sizes(config, slots, valid_vocab, self._ways)
    _check_chunk(prefill_chunk, max_prompt_tokens)
    self._count, self._valid_vocab, self._decode = slots, valid_vocab, decode
    self._max_prompt, self._max_response = max_prompt_tokens, max_response_tokens
    self._decode_chunk, self._fraction = decode_chunk, return_fraction
    self._chunk = prefill_chunk
    self._rows = decoding.prefill_rows(prefill_tokens, prefill_chunk, self._ways)
    length = max_prompt_tokens + max_response_tokens
    self._programs = decoding.programs(
      config, slots, length, valid_vocab, jnp.dtype(dtype), mesh
    )
    self._counts = collections.Counter()
    self.clear()
    self.update(params)

  def submit(self, requests: Sequence[Request]) -> None:
    """Queues requests: all of them or, if one is wrong, none.

    Args:
      requests: any number, in the order in which they should start.

    Raises:
      ValueError: a request that does not fit, in one line.
    """
    self._waiting.extend([self._check(request) for request in requests])

  def poll(self) -> list[Completion]:
    """Decodes until at least one request completes.

    Returns:
      What completed, in slot order; [] when there is nothing left to do.

    Raises:
      FloatingPointError: a log-probability is not finite; every request is forgotten.
    """
    while self._waiting or self._held.free < self._count:
      completions = self.advance()
      if completions:
        return completions
    return []

  def advance(self) -> list[Completion]:
    """Admits what waits and decodes once: one pass of `poll`.

    A server looks between two of these for new requests, and at `progress`.
    """
    self._allocate()
    self._admit()
    active = int(self._slots.active.sum())
    self._run(self._decode_chunk, active - math.ceil(self._fraction * active))
    return self._collect()

  def progress(self) -> dict[Hashable, tuple[np.ndarray, np.ndarray]]:
    """Gives the ids and log-probs so far of the requests that are decoding."""
    ids, logprobs = self._responses
    return {
      job.request.request_id: (ids[slot, :count].copy(), logprobs[slot, :count].copy())
      for slot, job in enumerate(self._jobs)
      if job is not None and (count := int(self._slots.count[slot]))
    }

  def cancel(self, request_ids: Container[Hashable]) -> None:
    """Forgets requests, waiting or decoding; their slots are free again."""
    gone = lambda job: job is not None and job.request.request_id in request_ids
    self._waiting = collections.deque(job for job in self._waiting if not gone(job))
    for slot, job in enumerate(self._jobs):
      if gone(job):
        self._release(slot)

  def statistics(self) -> SamplerCounts:
    """Counts what was done since the last call."""
    counts, self._counts = self._counts, collections.Counter()
    return SamplerCounts(**counts)

  def update(self, params: decoder.Params) -> None:
    """Uses `params` from the next token on, also in running requests.

    They are cast and, where they are split over `fsdp`, gathered when the next token
    needs them, once.

    Args:
      params: a tree like the one given at the start; resharded if need be.
    """
    if self._programs.params_sharding is not None:
      params = jax.device_put(params, self._programs.params_sharding)
    self._params, self._weights = params, None
    self._held.forget()

  def release(self) -> None:
    """Gives the memory of cache and weights back until the next poll.

    Raises:
      RuntimeError: a request is still on its way.
    """
    if self._waiting or self._held.free < self._count:
      raise RuntimeError('release: a request is still on its way')
    self._cache = self._weights = None
    self._held.forget()

  def _allocate(self) -> None:
    """Takes the memory of cache and weights where it was given back."""
    if self._cache is None:
      self._cache = self._programs.make_cache()
    if self._weights is None:
      self._weights = self._programs.weights(self._params)

  def clear(self) -> None:
    """Forgets every request and empties the cache."""
    count = self._count
    self._waiting: collections.deque[_Job] = collections.deque()
    self._jobs: list[_Job | None] = [None] * count
    # Neighbours are on one device: prompts are dealt to all of them.
    order = np.arange(count).reshape(self._ways, -1).T.flatten().tolist()
    self._held = admission.Prefixes(order)
    self._cache = None
    self._responses = decoding.Responses(
      np.zeros((count, self._max_response), np.int32),
      np.zeros((count, self._max_response), np.float32),
    )
    self._slots = decoding.Slots(
      active=np.zeros(count, bool),
      token=np.zeros(count, np.int32),
      position=np.zeros(count, np.int32),
      count=np.zeros(count, np.int32),
    )
    self._options = decoding.Options(
      limit=np.zeros(count, np.int32),
      key=np.zeros((count, 2), np.uint32),
      temperature=np.ones(count, np.float32),
      top_k=np.zeros(count, np.int32),
      top_p=np.ones(count, np.float32),
      stop_ids=np.full((count, MAX_STOP_IDS), NO_ID, np.int32),
    )

  def warmup(self) -> None:
    """Compiles every program ahead of the first poll."""
    self._allocate()
    self._prefill([])
    self._copy([])
    self._run(0, 0)

  def _check(self, request: Request) -> _Job:
    prompt = np.array(request.prompt_ids, np.int32)
    options, name = request.sampling, f'request {request.request_id!r}'
    if not 0 < len(prompt) <= self._max_prompt:
      raise ValueError(
        f'{name}: a prompt of {len(prompt)} tokens, must be in '
        f'[1, max_prompt_tokens={self._max_prompt}]'
      )
    if prompt.min() < 0 or prompt.max() >= self._valid_vocab:
      raise ValueError(
        f'{name}: prompt ids from {prompt.min()} to {prompt.max()}, must be in '
        f'[0, valid_vocab={self._valid_vocab})'
      )
    if options.max_tokens > self._max_response:
      raise ValueError(
        f'{name}: max_tokens {options.max_tokens}, at most '
        f'max_response_tokens={self._max_response}'
      )
    if len(options.stop_ids) > MAX_STOP_IDS:
      raise ValueError(
        f'{name}: {len(options.stop_ids)} stop_ids, at most {MAX_STOP_IDS}'
      )
    if options.stop_strings and self._decode is None:
      raise ValueError(f'{name}: stop_strings need a Sampler with decode=')
    return _Job(request, prompt)

  def _admit(self) -> None:
    """Gives free slots to waiting requests; fills their caches."""
    count = min(len(self._waiting), self._held.free)
    jobs = [self._waiting.popleft() for _ in range(count)]
    plan = admission.plan(self._held, [job.prompt[:-1] for job in jobs], self._chunk)
    for job, slot in zip(jobs, plan.slots, strict=True):
      self._start(slot, job)
    each, rows = self._count // self._ways, self._rows // self._ways
    for wave in plan.waves:
      for start in range(0, len(wave.copies), COPIES_PER_CALL):
        self._copy(wave.copies[start : start + COPIES_PER_CALL])
      for call in admission.calls(wave.chunks, each, self._ways, rows):
        self._prefill(call)
    self._counts.update(
      prompt_tokens=plan.wanted, kept_tokens=plan.kept, copied_tokens=plan.copied
    )

  def _start(self, slot: int, job: _Job) -> None:
    self._jobs[slot] = job
    sampling = job.request.sampling
    slots, options = self._slots, self._options
    slots.active[slot] = True
    slots.token[slot] = job.prompt[-1]
    slots.position[slot] = len(job.prompt) - 1
    slots.count[slot] = 0
    options.limit[slot] = sampling.max_tokens
    options.key[slot] = request_key(job.request.identity)
    options.temperature[slot] = sampling.temperature
    options.top_k[slot] = sampling.top_k
    options.top_p[slot] = sampling.top_p
    options.stop_ids[slot] = NO_ID
    options.stop_ids[slot, : len(sampling.stop_ids)] = sampling.stop_ids

  def _prefill(self, chunks: Sequence[tuple[int, admission.Chunk]]) -> None:
    tokens = np.zeros((self._rows, self._chunk), np.int32)
    positions = np.full((self._rows, self._chunk), -1, np.int32)
    slots = np.zeros(self._rows, np.int32)
    for row, (slot, start, ids) in chunks:
      tokens[row, : len(ids)] = ids
      positions[row, : len(ids)] = np.arange(start, start + len(ids))
      slots[row] = slot % (self._count // self._ways)
    slots = slots.reshape(self._ways, -1)
    self._cache = self._programs.prefill(
      self._weights, self._cache, tokens, positions, slots
    )
    if chunks:
      self._counts['prefill_positions'] += tokens.size
      self._counts['prefilled_tokens'] += int((positions >= 0).sum())

  def _copy(self, batch: Sequence[tuple[int, int]]) -> None:
    sources = np.zeros(COPIES_PER_CALL, np.int32)
    targets = np.full(COPIES_PER_CALL, self._count, np.int32)
    for row, (source, target) in enumerate(batch):
      sources[row], targets[row] = source, target
    self._cache = self._programs.copy(self._cache, sources, targets)

  def _run(self, max_steps: int, max_active: int) -> None:
    before = self._slots
    self._cache, slots, responses = self._programs.decode(
      self._weights,
      self._cache,
      self._slots,
      self._options,
      self._responses,
      np.int32(max_steps),
      np.int32(max_active),
    )
    # Copies: `_start` writes into them.
    self._slots = decoding.Slots(*(np.array(array) for array in slots))
    self._responses = decoding.Responses(*(np.asarray(array) for array in responses))
    # A step that was taken is one more token of some slot.
    sampled = self._slots.count - before.count
    self._counts['decoded_tokens'] += int(sampled.sum())
    self._counts['decode_positions'] += int(sampled.max()) * self._count

  def _collect(self) -> list[Completion]:
    completions = []
    for slot, job in enumerate(self._jobs):
      if job is None:
        continue
      count = int(self._slots.count[slot])
      ids = self._responses.ids[slot, :count]
      cut = self._find_stop_string(job, ids)
      if self._slots.active[slot] and cut is None:
        continue
      ids = ids[:cut].copy()
      logprobs = self._responses.logprobs[slot, : cut if cut else count].copy()
      if not np.isfinite(logprobs).all():
        self.clear()
        raise FloatingPointError(
          f'request {job.request.request_id!r}: a log-probability is not finite; '
          "the model's parameters or logits are broken"
        )
      stop = cut is not None or ids[-1] in job.request.sampling.stop_ids
      reason = 'stop' if stop else 'length'
      completions.append(Completion(job.request.request_id, ids, logprobs, reason))
      self._release(slot)
    return completions

  def _find_stop_string(self, job: _Job, ids: np.ndarray) -> int | None:
    """Counts tokens up to the first stop string, or None.

    Every prefix is looked at once, so the answer does not depend on chunks.
    """
    strings = job.request.sampling.stop_strings
    while strings and job.checked < len(ids):
      job.checked += 1
      text = self._decode(ids[: job.checked])
      if any(string in text for string in strings):
        return job.checked
    return None

  def _release(self, slot: int) -> None:
    self._jobs[slot] = None
    self._held.release(slot)
    self._slots.active[slot] = False
    # An idle slot must not make the others pay for the sort.
    self._options.top_k[slot], self._options.top_p[slot] = 0, 1


def _check_sizes(config, slots, valid_vocab, ways):
  if not 0 < valid_vocab <= config.vocab_size:
    raise ValueError(
      f'valid_vocab {valid_vocab}: must be in [1, vocab_size={config.vocab_size}]'
    )
  if slots < 1 or slots % ways:
    raise ValueError(
      f'slots {slots}: must be positive and divide by the mesh axes data*fsdp={ways}'
    )


def _check_chunk(chunk, max_prompt_tokens):
  if not 1 <= chunk <= max_prompt_tokens:
    raise ValueError(
      f'prefill_chunk {chunk}: must be in [1, max_prompt_tokens={max_prompt_tokens}]'
    )
