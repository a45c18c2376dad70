"""The sampler: `submit`, `poll` completions, `update`, `release` memory.

Requests wait in order for one of a fixed number of slots. A poll admits as many as
there are free slots (one prefill per distinct prompt, copied to every slot that asks
for it) and decodes until enough slots have finished. All shapes are fixed: a request's
tokens depend on its prompt, its identity and the number of slots, and on nothing else
that shares the batch.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sdar_jax.models import decoder
from sdar_jax.rollout.request import Completion, Request, SamplingParams, request_key
from sdar_jax.sampler import decoding

__all__ = ['Completion', 'Request', 'Sampler', 'SamplingParams']

MAX_STOP_IDS = 8
NO_ID = -1
COPIES_PER_CALL = 16
BUCKETS = 8
BUCKET_MULTIPLE = 16


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
    prefill_buckets: Sequence[int] | None = None,
    prefill_tokens: int = 512,
    decode_chunk: int = 64,
    return_fraction: float = 0.5,
  ):
    """Compiles and allocates nothing yet (see `warmup`).

    Args:
      config: the model.
      params: from `decoder.init_params` or `convert.load`; used as they are.
      slots: requests that decode at the same time, S.
      max_prompt_tokens: longest prompt.
      max_response_tokens: longest response.
      valid_vocab: len(tokenizer); ids from here on are impossible.
      dtype: dtype of computation and of the cache.
      decode: ids to text; needed for stop strings only.
      mesh: a mesh from `sharding.make_mesh`, or None for one device.
      prefill_buckets: lengths that prompts are padded to; None is equal steps.
      prefill_tokens: tokens of one prefill call, padding included.
      decode_chunk: most tokens per slot before the host looks at stop strings.
      return_fraction: share of the decoding requests that a poll waits for.

    Raises:
      ValueError: sizes that do not fit together, in one line.
    """
    self._ways = mesh.shape['data'] * mesh.shape['fsdp'] if mesh else 1
    _check_sizes(config, slots, valid_vocab, self._ways)
    self._count, self._valid_vocab, self._decode = slots, valid_vocab, decode
    self._max_prompt, self._max_response = max_prompt_tokens, max_response_tokens
    self._chunk, self._fraction = decode_chunk, return_fraction
    self._prefill_tokens = prefill_tokens
    self._buckets = _buckets(prefill_buckets, max_prompt_tokens)
    # Padding a prompt to its bucket must stay inside the cache.
    length = max(max_prompt_tokens + max_response_tokens, self._buckets[-1])
    self._programs = decoding.programs(
      config, slots, length, valid_vocab, jnp.dtype(dtype), mesh
    )
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
    while self._waiting or len(self._free) < self._count:
      self._allocate()
      self._admit()
      active = int(self._slots.active.sum())
      self._run(self._chunk, active - math.ceil(self._fraction * active))
      completions = self._collect()
      if completions:
        return completions
    return []

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
    self._resident.clear()

  def release(self) -> None:
    """Gives the memory of cache and weights back until the next poll.

    Raises:
      RuntimeError: a request is still on its way.
    """
    if self._waiting or len(self._free) < self._count:
      raise RuntimeError('release: a request is still on its way')
    self._cache = self._weights = None
    self._resident.clear()

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
    self._free = list(reversed(range(count)))
    # The slot that holds a prompt's keys and values, and the prompt that a slot holds.
    self._resident: dict[bytes, int] = {}
    self._held = [b''] * count
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
    for bucket in self._buckets:
      self._prefill([], bucket)
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
    copies: list[tuple[int, int]] = []
    prefills: dict[int, list[tuple[np.ndarray, int]]] = {}
    while self._waiting and self._free:
      job = self._waiting.popleft()
      prefix = job.prompt[:-1]
      name = prefix.tobytes()
      source = self._resident.get(name)
      slot = self._take_slot(source)
      self._start(slot, job)
      if not name:
        continue
      if source is None:
        self._resident[name], self._held[slot] = slot, name
        bucket = next(size for size in self._buckets if size >= len(prefix))
        prefills.setdefault(bucket, []).append((prefix, slot))
      elif source != slot:
        copies.append((source, slot))
    for bucket, rows in prefills.items():
      for batch in _batches(rows, self._prefill_rows(bucket)):
        self._prefill(batch, bucket)
    # Last, to find what was just prefilled. No prefill overwrites an older source: a
    # source that was free went to the request itself, and the others are in use.
    for batch in _batches(copies, COPIES_PER_CALL):
      self._copy(batch)

  def _take_slot(self, source: int | None) -> int:
    """Takes a free slot, preferably `source`; forgets its content."""
    if source in self._free:
      self._free.remove(source)
      return source
    slot = self._free.pop()
    if self._resident.get(self._held[slot]) == slot:
      del self._resident[self._held[slot]]
    return slot

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

  def _prefill_rows(self, bucket: int) -> int:
    """Computes the rows of a prefill call from its bucket only."""
    rows = max(1, self._prefill_tokens // bucket)
    return -(-rows // self._ways) * self._ways

  def _prefill(self, batch: Sequence[tuple[np.ndarray, int]], bucket: int) -> None:
    rows = self._prefill_rows(bucket)
    tokens = np.zeros((rows, bucket), np.int32)
    slots = np.full(rows, self._count, np.int32)
    for row, (prefix, slot) in enumerate(batch):
      tokens[row, : len(prefix)] = prefix
      slots[row] = slot
    self._cache = self._programs.prefill(self._params, self._cache, tokens, slots)

  def _copy(self, batch: Sequence[tuple[int, int]]) -> None:
    sources = np.zeros(COPIES_PER_CALL, np.int32)
    targets = np.full(COPIES_PER_CALL, self._count, np.int32)
    for row, (source, target) in enumerate(batch):
      sources[row], targets[row] = source, target
    self._cache = self._programs.copy(self._cache, sources, targets)

  def _run(self, max_steps: int, max_active: int) -> None:
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
    self._free.append(slot)
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


def _batches(items: list, size: int) -> list[list]:
  return [items[start : start + size] for start in range(0, len(items), size)]


def _buckets(sizes: Sequence[int] | None, max_prompt_tokens: int) -> tuple[int, ...]:
  """Lists the padded lengths of prompts less their last token."""
  longest = max(1, max_prompt_tokens - 1)
  if sizes is None:
    step = -(-longest // (BUCKETS * BUCKET_MULTIPLE)) * BUCKET_MULTIPLE
    sizes = range(step, longest + step, step)
  sizes = tuple(sorted(sizes))
  if sizes[0] < 1 or sizes[-1] < longest:
    raise ValueError(
      f'prefill_buckets {sizes}: must be positive and reach max_prompt_tokens - 1 = '
      f'{longest}'
    )
  return sizes
