"""Whatever is reused, a request completes as it does alone, to the bit."""

import functools

import drawn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.models import decoder
from sdar_jax.rollout.request import SamplerCounts
from sdar_jax.sampler.sampler import Request, Sampler, SamplingParams

CONFIG = decoder.ModelConfig('qwen3', 100, 64, 128, 2, 4, 2, 16, 1e6, 1e-6, True)
VALID, MAX_PROMPT, MAX_RESPONSE, SLOTS, CHUNK = 90, 48, 6, 4, 5


@functools.cache
def _samplers(dtype):
  """One that plays, and one that plays a request at a time and knows nothing."""
  params = jax.tree.map(
    lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, drawn.weights(CONFIG)
  )
  make = lambda: Sampler(
    CONFIG,
    params,
    slots=SLOTS,
    max_prompt_tokens=MAX_PROMPT,
    max_response_tokens=MAX_RESPONSE,
    valid_vocab=VALID,
    dtype=jnp.dtype(dtype),
    prefill_chunk=CHUNK,
    prefill_tokens=4 * CHUNK,
    decode_chunk=2,
  )
  return make(), make(), params


def _alone(request, dtype):
  _, sampler, params = _samplers(dtype)
  sampler.update(params)  # Forgets all prompts.
  sampler.submit([request])
  (done,) = sampler.poll() or sampler.poll()
  return done


def _prompts(rng):
  """Groups of prompts, many of which have a head in common."""
  head = rng.integers(0, VALID, rng.integers(0, 20))
  for _ in range(rng.integers(1, 5)):
    own = rng.integers(0, VALID, rng.integers(1, 12))
    start = head[: rng.integers(0, len(head) + 1)] if rng.random() < 0.5 else head
    for _ in range(rng.integers(1, 5)):
      yield np.concatenate([start, own])


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_reuse_changes_no_bit(dtype):
  @settings(max_examples=25, deadline=None)
  @given(st.integers(0, 2**32 - 1))
  def check(seed):
    rng = np.random.default_rng(seed)
    sampler, _, params = _samplers(dtype)
    if rng.random() < 0.3:
      sampler.update(params)
    asked, done, turns = {}, {}, 0
    fresh = list(_prompts(rng))
    while fresh or len(done) < len(asked):
      for prompt in fresh:
        sampling = SamplingParams(max_tokens=int(rng.integers(1, MAX_RESPONSE + 1)))
        name = len(asked)
        asked[name] = Request(name, prompt, sampling, (seed, name))
        sampler.submit([asked[name]])
      fresh = []
      for one in sampler.poll():
        done[one.request_id] = one
        # The conversation goes on: what was said, then something new.
        before, new = asked[one.request_id].prompt_ids, rng.integers(0, VALID, 4)
        longer = np.concatenate([before, one.token_ids, new])
        if rng.random() < 0.7 and turns < 20 and len(longer) <= MAX_PROMPT:
          fresh.append(longer)
          turns += 1
    for name, request in asked.items():
      want = _alone(request, dtype)
      np.testing.assert_array_equal(done[name].token_ids, want.token_ids)
      np.testing.assert_array_equal(done[name].logprobs, want.logprobs)

  check()


def test_what_was_reused_is_counted():
  sampler, _, params = _samplers('float32')
  sampler.update(params)
  sampler.statistics()
  ask = lambda i, ids: Request(i, ids, SamplingParams(max_tokens=4), (i,))
  sampler.submit([ask(0, range(12)), ask(1, range(12))])
  while sampler.poll():
    pass
  got = sampler.statistics()
  assert got == SamplerCounts(
    prompt_tokens=22,
    copied_tokens=11,
    prefilled_tokens=11,
    prefill_positions=20,
    decoded_tokens=8,
    decode_positions=4 * SLOTS,
  )
  # The response is in the slot, too, but only the prompt is taken over.
  sampler.submit([ask(2, [*range(12), 1, 2, 3])])
  while sampler.poll():
    pass
  got = sampler.statistics()
  assert (got.prompt_tokens, got.kept_tokens, got.copied_tokens) == (14, 10, 0)
  assert (got.prefilled_tokens, got.prefill_positions) == (4, 20)
  assert sampler.statistics() == SamplerCounts()


def test_nothing_to_do_is_no_call(monkeypatch):
  sampler, _, params = _samplers('float32')
  sampler.update(params)
  called = []
  for name in ('prefill', 'copy'):
    program = getattr(sampler._programs, name)
    counted = lambda *a, name=name, program=program: called.append(name) or program(*a)
    monkeypatch.setattr(sampler._programs, name, counted)
  ask = lambda i, ids: Request(i, ids, SamplingParams(max_tokens=1), (i,))
  for prompts, want in (
    ([[5]], []),  # Decoding reads the only token.
    ([[1, 2], [3, 4]], ['prefill']),
    ([[1, 2]], []),  # In place.
    ([[1, 2], [1, 2]], ['copy']),
  ):
    called.clear()
    sampler.statistics()
    sampler.submit([ask(i, ids) for i, ids in enumerate(prompts)])
    while sampler.poll():
      pass
    assert called == want
    # No step is taken for slots that have all ended.
    assert sampler.statistics().decode_positions == SLOTS
