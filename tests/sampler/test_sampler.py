"""The sampler against full forward passes, other schedules and golden records."""

import dataclasses
import functools
from pathlib import Path

import drawn
import eight
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from scipy import special

from sdar_jax.models import decoder, hf
from sdar_jax.sampler.sampler import Request, Sampler, SamplingParams

CONFIG = decoder.ModelConfig('qwen3', 100, 64, 128, 2, 4, 2, 16, 1e6, 1e-6, True)
VALID = 90
MAX_PROMPT, MAX_RESPONSE = 40, 12
HERE = Path(__file__).resolve().parents[1]
GOLDEN = HERE / 'golden' / 'models'
OTHER_MODELS = ('qwen2_tied', 'qwen2_untied_bf16')


@functools.cache
def _params(seed=0):
  params = drawn.weights(CONFIG, seed)
  # Larger matrices: the distributions get peaks, greedy gets unequal tokens.
  return jax.tree.map(lambda leaf: leaf * 5 if leaf.ndim > 1 else leaf, params)


def _sampler(slots=5, params=None, **changes):
  options = {
    'max_prompt_tokens': MAX_PROMPT,
    'max_response_tokens': MAX_RESPONSE,
    'valid_vocab': VALID,
    'prefill_chunk': 8,
    'prefill_tokens': 128,
  }
  params = _params() if params is None else params
  return Sampler(CONFIG, params, slots=slots, **{**options, **changes})


def _request(i, prompt=None, **options):
  rng = np.random.default_rng(i)
  if prompt is None:
    prompt = rng.integers(0, VALID, rng.integers(1, MAX_PROMPT + 1))
  return Request(i, prompt, SamplingParams(**{'max_tokens': 6, **options}), (7, i))


def _varied(i):
  rng = np.random.default_rng(i)
  options = {'max_tokens': int(rng.integers(1, MAX_RESPONSE + 1)), 'stop_ids': (3, 4)}
  options['temperature'] = float(rng.choice([0, 0.7, 1, 1]))
  if i % 10 == 0:
    options['top_k'], options['top_p'] = int(rng.choice([0, 5])), 0.9
  return _request(i, **options)


def _finish(sampler):
  done = {}
  while completions := sampler.poll():
    done.update({completion.request_id: completion for completion in completions})
  return done


def _play(sampler, requests):
  sampler.submit(requests)
  return _finish(sampler)


def _same(one, two):
  assert one.keys() == two.keys()
  for name in one:
    np.testing.assert_array_equal(one[name].token_ids, two[name].token_ids)
    np.testing.assert_array_equal(one[name].logprobs, two[name].logprobs)
    assert one[name].stop_reason == two[name].stop_reason


@quick.jit
def _logits(params, tokens):
  """Logits of one sequence by a forward pass without a cache, [T, V]."""
  hidden, _ = decoder.forward(
    CONFIG, params, tokens[None], jnp.arange(tokens.size)[None]
  )
  return decoder.logits(CONFIG, params, hidden)[0]


def _scored(params, request, ids):
  """Log-probabilities of `ids` after the request's prompt, from scratch."""
  start = len(request.prompt_ids)
  tokens = np.zeros(MAX_PROMPT + MAX_RESPONSE, np.int32)
  tokens[: start + len(ids)] = np.concatenate([request.prompt_ids, ids])
  logits = np.asarray(_logits(params, tokens), np.float64)
  logits = logits[start - 1 : start - 1 + len(ids), :VALID]
  logprobs = special.log_softmax(logits / (request.sampling.temperature or 1), axis=1)
  return logprobs[np.arange(len(ids)), ids]


@pytest.mark.parametrize('slots', [5, 16])
def test_results_do_not_depend_on_order_or_company(slots):
  requests = [_varied(i) for i in range(300)]
  whole = _play(_sampler(slots), requests)
  assert len({len(c.token_ids) for c in whole.values()}) == MAX_RESPONSE
  for seed in (1, 2):
    rng = np.random.default_rng(seed)
    sampler, order, pieces = _sampler(slots, return_fraction=seed / 2), None, {}
    order = rng.permutation(300)
    while len(order):
      size = rng.integers(0, 3 * slots)
      sampler.submit([requests[i] for i in order[:size]])
      order = order[size:]
      pieces.update({c.request_id: c for c in sampler.poll()})
    _same({**pieces, **_finish(sampler)}, whole)


@pytest.mark.parametrize('chunk', [1, 8, 40])
def test_logprobs_equal_scored_ones(chunk):
  requests = [_varied(i) for i in range(24)]
  done = _play(_sampler(prefill_chunk=chunk), requests)
  for request in requests:
    got = done[request.request_id]
    assert got.token_ids.dtype == np.int32 and got.logprobs.dtype == np.float32
    want = _scored(_params(), request, got.token_ids)
    np.testing.assert_allclose(got.logprobs, want, atol=1e-4)


@pytest.mark.parametrize(
  'name',
  [
    'qwen3_tied',
    *(pytest.param(n, marks=pytest.mark.slow) for n in OTHER_MODELS),
  ],
)
def test_greedy_equals_the_golden_continuation(name):
  """The decoder's test has every model; `pytest -m slow tests/sampler` the others."""
  config, params = hf.load(str(GOLDEN / name), None, jnp.float32)
  want = np.load(GOLDEN / name / 'expected.npz')['greedy'][0]
  prompt, want = want[:16], want[16:]
  sampling = SamplingParams(max_tokens=len(want), temperature=0)
  sampler = Sampler(
    config,
    params,
    slots=2,
    max_prompt_tokens=16,
    max_response_tokens=len(want),
    valid_vocab=config.vocab_size,
  )
  done = _play(sampler, [Request('golden', prompt, sampling, ())])
  np.testing.assert_array_equal(done['golden'].token_ids, want)


def test_a_group_shares_one_prefill_and_nothing_changes(monkeypatch):
  prompts = np.random.default_rng(0).integers(0, VALID, (3, 30))
  requests = [_request(i, prompts[i // 6]) for i in range(18)]
  sampler, rows = _sampler(), []
  prefill = sampler._programs.prefill

  def counted(weights, cache, tokens, positions, slots):
    rows.extend(positions[positions >= 0])
    return prefill(weights, cache, tokens, positions, slots)

  monkeypatch.setattr(sampler._programs, 'prefill', counted)
  shared = _play(sampler, requests)
  once = sorted(3 * list(range(29)))
  assert sorted(rows) == once
  # New parameters make every stored prompt stale.
  sampler.update(_params())
  _same(_play(sampler, requests), shared)
  assert sorted(rows) == sorted(2 * once)
  monkeypatch.undo()
  alone = {}
  for request in requests:
    alone.update(_play(_sampler(), [request]))
  _same(alone, shared)


def test_a_stored_prompt_may_be_overwritten_while_others_need_it():
  rng = np.random.default_rng(5)
  prompts = rng.integers(0, VALID, (6, 20))
  requests = [_request(i, prompts[rng.integers(6)]) for i in range(120)]
  alone = {}
  for request in requests:
    sampler = _sampler()
    alone.update(_play(sampler, [request]))
  _same(_play(_sampler(), requests), alone)


def test_a_long_cache_is_read_alike_whatever_the_neighbours_need():
  # More than attention.DENSE_KEYS positions: prefill and decode attend by blocks, the
  # last of which reaches back over the first.
  sizes = {'max_prompt_tokens': 600, 'prefill_chunk': 32}
  rng = np.random.default_rng(0)
  short, long, edge = (rng.integers(0, VALID, size) for size in (9, 600, 507))
  requests = [_request(i, (short, long, edge)[i % 3]) for i in range(9)]
  together = _play(_sampler(**sizes), requests)
  alone, sampler = {}, _sampler(**sizes)
  for request in requests:
    alone.update(_play(sampler, [request]))
  _same(alone, together)
  if jax.default_backend() != 'gpu':  # It reads the whole cache.
    # No block is read that only idle slots could reach.
    keys, values = sampler._cache
    sampler._cache = decoder.Cache(
      tuple(array.at[..., 512:].set(jnp.nan) for array in keys),
      tuple(array.at[:, :, 512:].set(jnp.nan) for array in values),
    )
    _same(_play(sampler, requests[:1]), {0: together[0]})
  model = dataclasses.replace(CONFIG, attention='dense')

  @quick.jit
  def logits(tokens):
    positions = jnp.arange(tokens.size)[None]
    hidden, _ = decoder.forward(model, _params(), tokens[None], positions)
    return decoder.logits(model, _params(), hidden)[0, :, :VALID]

  for request in requests[:6]:
    ids, start = together[request.request_id].token_ids, len(request.prompt_ids)
    tokens = np.zeros(612, np.int32)
    tokens[: start + len(ids)] = np.concatenate([request.prompt_ids, ids])
    want = special.log_softmax(np.float64(logits(tokens))[start - 1 :], axis=1)
    want = want[np.arange(len(ids)), ids]
    np.testing.assert_allclose(together[request.request_id].logprobs, want, atol=1e-4)


def test_equal_identities_draw_equal_tokens_and_others_do_not():
  prompt = np.arange(9)
  sampling = SamplingParams(max_tokens=8)
  identities = {'a': (1, 2), 'b': (1, 2), 'c': (1, 3)}
  requests = [Request(name, prompt, sampling, i) for name, i in identities.items()]
  done = _play(_sampler(), requests)
  np.testing.assert_array_equal(done['a'].token_ids, done['b'].token_ids)
  assert (done['a'].token_ids != done['c'].token_ids).any()


def test_invalid_ids_have_no_probability():
  embedding = _params()['embed']['embedding']
  loud = embedding.at[VALID:].set(100 * embedding[: CONFIG.vocab_size - VALID])
  params = {**_params(), 'embed': {'embedding': loud}}
  requests = [_request(i, max_tokens=MAX_RESPONSE) for i in range(60)]
  requests += [_request(i, temperature=0) for i in range(60, 80)]
  done = _play(_sampler(params=params), requests)
  for request in requests:
    ids = done[request.request_id].token_ids
    assert ids.max() < VALID
    want = _scored(params, request, ids)
    np.testing.assert_allclose(done[request.request_id].logprobs, want, atol=1e-4)


def test_nothing_compiles_after_warmup():
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if 'backend_compile' in event else 0
  )
  sampler = _sampler(slots=6)
  sampler.warmup()
  assert compiled
  compiled.clear()
  rng = np.random.default_rng(0)
  for batch in range(100):
    size = rng.integers(1, 20)
    requests = [_varied(100 * batch + i) for i in range(size)]
    requests += [_request(100 * batch + 90 + i, range(12)) for i in range(4)]
    assert len(_play(sampler, requests)) == size + 4
  sampler.update(_params(1))
  sampler.clear()
  _play(sampler, [_varied(0)])
  assert not compiled


def test_stop_ids_end_a_response_and_belong_to_it():
  requests = [_request(i, max_tokens=MAX_RESPONSE) for i in range(40)]
  free = _play(_sampler(), requests)
  stop = (5, 17, 40)
  requests = [_request(i, max_tokens=MAX_RESPONSE, stop_ids=stop) for i in range(40)]
  sampler = _sampler()
  done = _play(sampler, requests)
  reasons = set()
  for name, whole in free.items():
    hits = [i for i, token in enumerate(whole.token_ids) if token in stop]
    length = hits[0] + 1 if hits else MAX_RESPONSE
    np.testing.assert_array_equal(done[name].token_ids, whole.token_ids[:length])
    assert done[name].stop_reason == ('stop' if hits else 'length')
    reasons.add(done[name].stop_reason)
  assert reasons == {'stop', 'length'}
  # The slots' next requests know nothing of it.
  requests = [_request(i, max_tokens=MAX_RESPONSE) for i in range(40)]
  _same(_play(sampler, requests), free)


@pytest.mark.parametrize('chunk', [1, 3, 64])
def test_stop_strings_cut_at_the_first_token_in_any_chunk(chunk):
  def decode(ids):
    return ' '.join(f'<{token}' for token in ids)

  requests = [_request(i, max_tokens=MAX_RESPONSE) for i in range(40)]
  free = _play(_sampler(), requests)
  strings = ('9 <', '<1')  # One reaches over two tokens.
  options = {'max_tokens': MAX_RESPONSE, 'stop_strings': strings}
  requests = [_request(i, **options) for i in range(40)]
  done = _play(_sampler(decode=decode, decode_chunk=chunk), requests)
  lengths = set()
  for name, whole in free.items():
    hits = [
      n
      for n in range(1, MAX_RESPONSE + 1)
      if any(string in decode(whole.token_ids[:n]) for string in strings)
    ]
    length = hits[0] if hits else MAX_RESPONSE
    np.testing.assert_array_equal(done[name].token_ids, whole.token_ids[:length])
    np.testing.assert_array_equal(done[name].logprobs, whole.logprobs[:length])
    assert done[name].stop_reason == ('stop' if hits else 'length')
    lengths.add(length)
  assert len(lengths) > 3


def test_update_is_picked_up():
  requests = [_request(i) for i in range(10)]
  sampler = _sampler()
  before = _play(sampler, requests)
  sampler.update(_params(1))
  after = _play(sampler, requests)
  _same(after, _play(_sampler(params=_params(1)), requests))
  assert any((before[i].logprobs[0] != after[i].logprobs[0]) for i in range(10))


def test_update_makes_stored_prompts_stale():
  request = _request(0, np.arange(12))
  sampler = _sampler()
  _play(sampler, [request])
  sampler.update(_params(1))
  again = _play(sampler, [request])
  _same(again, _play(_sampler(params=_params(1)), [request]))


def test_a_stored_prompt_survives_while_its_slot_is_idle():
  requests = [_request(i, np.arange(i, i + 12)) for i in range(4)]
  sampler = _sampler()
  first = _play(sampler, requests)
  _play(sampler, [_request(9, max_tokens=MAX_RESPONSE)])
  _same(_play(sampler, requests), first)


def test_an_idle_poll_returns_nothing():
  sampler = _sampler()
  assert sampler.poll() == []
  sampler.submit([])
  assert sampler.poll() == []
  sampler.submit([_request(0)])
  sampler.clear()
  assert sampler.poll() == []


def test_broken_parameters_are_an_error_and_leave_nothing_behind():
  sampler = _sampler()
  sampler.update(jax.tree.map(lambda leaf: leaf * jnp.nan, _params()))
  sampler.submit([_request(i) for i in range(12)])
  with pytest.raises(FloatingPointError, match='not finite'):
    sampler.poll()
  assert sampler.poll() == []
  sampler.update(_params())
  requests = [_request(i) for i in range(12)]
  _same(_play(sampler, requests), _play(_sampler(), requests))


@pytest.mark.parametrize(
  ('request_', 'message'),
  [
    (_request(1, range(41)), 'a prompt of 41 tokens.*max_prompt_tokens=40'),
    (_request(1, []), 'a prompt of 0 tokens'),
    (_request(1, [1, VALID]), 'valid_vocab=90'),
    (_request(1, [-1]), 'valid_vocab=90'),
    (_request(1, max_tokens=13), 'max_tokens 13.*max_response_tokens=12'),
    (_request(1, stop_ids=tuple(range(9))), '9 stop_ids, at most 8'),
    (_request(1, stop_strings=('x',)), 'decode='),
  ],
)
def test_a_wrong_request_is_one_line_and_none_is_queued(request_, message):
  sampler = _sampler()
  with pytest.raises(ValueError, match=message) as error:
    sampler.submit([_request(0), request_])
  assert '\n' not in str(error.value)
  assert sampler.poll() == []


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'valid_vocab': 101}, 'vocab_size=100'),
    ({'slots': 0}, 'slots 0'),
    ({'prefill_chunk': 0}, 'prefill_chunk 0.*max_prompt_tokens=40'),
    ({'prefill_chunk': 41}, 'prefill_chunk 41'),
  ],
)
def test_wrong_sizes_are_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    _sampler(**changes)
  assert '\n' not in str(error.value)


@pytest.mark.long
def test_meshes_sample_what_one_device_does():
  assert 'worst difference' in eight.run('sampler_mesh_worker.py', 'some')


@pytest.mark.slow
def test_a_mesh_of_all_axes_samples_what_one_device_does():
  """Run with `pytest -m slow tests/sampler/test_sampler.py`: half a minute of CPU."""
  assert 'worst difference' in eight.run('sampler_mesh_worker.py', 'others')


def test_requests_come_and_go_between_two_passes():
  """What is cancelled is not told and frees its slot; the others are as ever."""
  requests = [_varied(i) for i in range(40)]
  whole = _play(_sampler(), requests)
  sampler, done, begun = _sampler(decode_chunk=2), {}, {}
  for i in range(0, 40, 8):
    sampler.submit(requests[i : i + 8])
    done |= {c.request_id: c for c in sampler.advance()}
    begun |= sampler.progress()
    sampler.cancel({i, i + 3, i + 7, 10**6})
    assert not {i, i + 3, i + 7} & set(sampler.progress())
  told = {*done}
  done |= _finish(sampler)
  gone = {i + k for i in range(0, 40, 8) for k in (0, 3, 7)} - told
  assert done.keys() == whole.keys() - gone and len(gone) > 9
  _same(done, {name: whole[name] for name in done})
  assert begun and any(name in done for name in begun)
  for name, (ids, logprobs) in begun.items():
    np.testing.assert_array_equal(ids, whole[name].token_ids[: len(ids)])
    np.testing.assert_array_equal(logprobs, whole[name].logprobs[: len(ids)])
  sampler.release()  # Nothing is on its way any more.
