"""Samples on meshes of eight CPU devices; run by test_sampler.py in its own process."""

import drawn
import jax
import numpy as np

from sdar_jax.models import decoder, sharding
from sdar_jax.sampler.sampler import Request, Sampler, SamplingParams

CONFIG = decoder.ModelConfig('qwen3', 96, 64, 128, 2, 4, 2, 16, 1e6, 1e-6, True)


def _requests():
  rng = np.random.default_rng(0)
  for i in range(24):
    prompt = rng.integers(0, 90, rng.integers(1, 25)) if i % 4 else np.arange(20)
    sampling = SamplingParams(max_tokens=int(rng.integers(1, 9)), stop_ids=(3,))
    yield Request(i, prompt, sampling, (0, i))


def _play(params, mesh):
  sampler = Sampler(
    CONFIG,
    params,
    slots=8,
    max_prompt_tokens=24,
    max_response_tokens=8,
    valid_vocab=90,
    prefill_chunk=4,
    mesh=mesh,
  )
  sampler.submit(list(_requests()))
  done = {}
  while completions := sampler.poll():
    done.update({completion.request_id: completion for completion in completions})
  return done


def main():
  params = drawn.weights(CONFIG)
  params = jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, params)
  want, worst = _play(params, None), 0.0
  for sizes in ((8, 1, 1), (1, 2, 4), (2, 2, 2)):
    mesh = sharding.make_mesh(*sizes)
    placed = jax.device_put(
      params, sharding.param_shardings(CONFIG.param_specs(), mesh)
    )
    got = _play(placed, mesh)
    for name in want:
      np.testing.assert_array_equal(got[name].token_ids, want[name].token_ids)
      error = np.abs(got[name].logprobs - want[name].logprobs).max()
      worst = max(worst, float(error))
  assert worst < 1e-4, worst
  print(f'worst difference of a log-probability: {worst:.1e}')


if __name__ == '__main__':
  main()
