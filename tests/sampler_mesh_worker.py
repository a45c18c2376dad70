"""Samples on meshes of eight CPU devices; run by test_sampler.py in its own process."""

import sys

import drawn
import jax
import numpy as np

from benchmarks import hlo
from sdar_jax.models import decoder, sharding
from sdar_jax.sampler.sampler import Request, Sampler, SamplingParams

# Each axis alone or with key heads that it does not divide; and all three at once.
MESHES = {'some': ((8, 1, 1), (1, 2, 4)), 'others': ((2, 2, 2),)}
CONFIG = decoder.ModelConfig('qwen3', 96, 64, 128, 2, 4, 2, 16, 1e6, 1e-6, True)


def _requests():
  rng = np.random.default_rng(0)
  for i in range(24):
    prompt = rng.integers(0, 90, rng.integers(1, 25)) if i % 4 else np.arange(20)
    sampling = SamplingParams(max_tokens=int(rng.integers(1, 9)), stop_ids=(3,))
    yield Request(i, prompt, sampling, (0, i))


def _sampler(params, mesh):
  return Sampler(
    CONFIG,
    params,
    slots=8,
    max_prompt_tokens=24,
    max_response_tokens=8,
    valid_vocab=90,
    prefill_chunk=4,
    prefill_tokens=64,
    mesh=mesh,
  )


def _play(sampler, requests):
  sampler.submit(requests)
  done = {}
  while completions := sampler.poll():
    done.update({completion.request_id: completion for completion in completions})
  return done


def _check_alone(sampler, params, want):
  """On a mesh, too, no bit depends on company, on slots or on what is reused."""
  for request in list(_requests())[::3]:
    sampler.update(params)  # Forgets all prompts.
    (got,) = _play(sampler, [request]).values()
    np.testing.assert_array_equal(got.token_ids, want[request.request_id].token_ids)
    np.testing.assert_array_equal(got.logprobs, want[request.request_id].logprobs)


def _check_local(sampler):
  """A chunk and its slot are on one device: nothing travels."""
  tokens = np.zeros((sampler._rows, sampler._chunk), np.int32)
  rows = np.zeros((sampler._ways, sampler._rows // sampler._ways), np.int32)
  sampler._allocate()
  lowered = sampler._programs.prefill.lower(
    sampler._weights, sampler._cache, tokens, tokens, rows
  )
  assert not hlo.collectives(lowered.compile().as_text())


def main(which):
  params = drawn.weights(CONFIG)
  params = jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, params)
  want, worst = _play(_sampler(params, None), list(_requests())), 0.0
  for sizes in MESHES[which]:
    mesh = sharding.make_mesh(*sizes)
    placed = jax.device_put(
      params, sharding.param_shardings(CONFIG.param_specs(), mesh)
    )
    sampler = _sampler(placed, mesh)
    got = _play(sampler, list(_requests()))
    counts = sampler.statistics()
    assert counts.copied_tokens + counts.kept_tokens > 50, counts
    for name in want:
      np.testing.assert_array_equal(got[name].token_ids, want[name].token_ids)
      error = np.abs(got[name].logprobs - want[name].logprobs).max()
      worst = max(worst, float(error))
    _check_alone(sampler, placed, got)
    if sizes[2] == 1:
      _check_local(sampler)
  assert worst < 1e-4, worst
  print(f'worst difference of a log-probability: {worst:.1e}')


if __name__ == '__main__':
  main(sys.argv[1])
