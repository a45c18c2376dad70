"""Divergence from the teacher against loops over single rows without padding."""

import dataclasses
import functools
import itertools
import math

import drawn
import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
import quick
from jax.extend import core
from scipy import special

from sdar_jax.learner import distributions, scoring
from sdar_jax.losses import divergence
from sdar_jax.models import decoder

MODEL, VALID, VOCAB = micro.MODEL, micro.VALID, micro.VOCAB
ROWS, WIDTH, TEACHER_WIDTH, LONGEST = 4, 12, 17, 6
# Prompt, teacher's prompt and response of each row: the first starts with one token,
# the second fills its rows and the longest response, the last is empty.
SIZES = ((1, 4, 5), (6, 11, 6), (5, 3, 2), (0, 0, 0))
DEFAULTS = {
  'kind': 'reverse_kl',
  'topk': 0,
  'jsd_weight': 0.3,
  'token_clip': math.inf,
  'temperature': 0.7,
  'valid_vocab': VALID,
  'chunk': 16,
}
CASES = [
  *({'kind': kind, 'topk': k} for kind in divergence.KINDS for k in (0, 5)),
  {'kind': 'forward_kl', 'topk': 5, 'token_clip': 0.9},
  {'kind': 'reverse_kl', 'token_clip': 1.8},
]
NAMES = ['-'.join(str(value) for value in case.values()) for case in CASES]
every_case = pytest.mark.parametrize('case', CASES, ids=NAMES)


@functools.cache
def weights(seed, scale=3.0):
  return jax.tree.map(lambda leaf: scale * np.asarray(leaf), drawn.weights(MODEL, seed))


def heads():
  """Student's and teacher's parameters, without what no output head needs."""
  return [{'embed': weights(seed)['embed']} for seed in (0, 1)]


@functools.cache
def rows():
  """Student's and teacher's tokens, and where the responses stand."""
  rng = np.random.default_rng(0)
  tokens = np.zeros((ROWS, WIDTH), np.int32)
  teacher_tokens = np.zeros((ROWS, TEACHER_WIDTH), np.int32)
  mask = np.zeros((ROWS, LONGEST), bool)
  for b, (start, begin, size) in enumerate(SIZES):
    response = rng.integers(0, VALID, size)
    tokens[b, : start + size] = [*rng.integers(0, VALID, start), *response]
    teacher_tokens[b, : begin + size] = [*rng.integers(0, VALID, begin), *response]
    mask[b, :size] = True
  starts, begins, _ = np.array(SIZES, np.int32).T
  where = {
    'prompt_lengths': starts,
    'teacher_offset': begins - starts,
    'response_mask': mask,
  }
  return tokens, teacher_tokens, where


@functools.cache
def states():
  tokens, teacher_tokens, _ = rows()
  how = scoring.Scoring(1.0, VALID, jnp.float32, remat='none', chunk=4)
  run = quick.jit(
    functools.partial(scoring.hidden_states, MODEL, positions=None, scoring=how)
  )
  return np.array(run(weights(0), tokens)), np.array(run(weights(1), teacher_tokens))


def compare(params, teacher_params, hidden, teacher_hidden, where, **changes):
  """`token_divergence` of rows, with `DEFAULTS` unless `changes` say otherwise."""
  values = {**DEFAULTS, **changes, 'dtype': jnp.float32, 'remat': 'none'}
  how, options = (
    kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
    for kind in (distributions.Divergence, scoring.Scoring)
  )
  places = where['prompt_lengths'][:, None] - 1 + jnp.arange(LONGEST)
  shift, mask = where['teacher_offset'][:, None], where['response_mask']
  states = [  # Each row is a lane of its own.
    scoring.states_at(part, jnp.where(mask, at, 0))
    for part, at in ((hidden, places), (teacher_hidden, places + shift))
  ]
  heads = (params, teacher_params)
  values = distributions.token_divergence(MODEL, heads, states, how, options)
  return scoring.by_rows(values, mask)


def arguments(**changes):
  return (*heads(), *states(), {**rows()[2], **changes})


@functools.cache
def column_weights():
  return np.random.default_rng(5).uniform(0.5, 1.5, (ROWS, LONGEST)).astype(np.float32)


@functools.cache
def gradient(**changes):
  """Gradients of a sum in which every column weighs something else, and the values."""

  def loss(*arguments):
    values = compare(*arguments, **changes)
    return (values * column_weights()).sum(), values

  return quick.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


@functools.cache
def value(**changes):
  return np.asarray(quick.jit(functools.partial(compare, **changes))(*arguments()))


@quick.jit
def single_logits(params, row):
  """[T, V] logits of a row of its own."""
  hidden, _ = decoder.forward(MODEL, params, row[None], jnp.arange(row.size)[None])
  return decoder.logits(MODEL, params, hidden)[0]


@functools.cache
def probabilities_of(seed, in_teacher):
  """For each row, [size, VALID] probabilities of its response's tokens, in float64."""
  params, out = weights(seed), []
  for b, sizes in enumerate(SIZES):
    prompt, size = sizes[in_teacher], sizes[2]
    if not size:
      out.append(np.zeros((0, VALID)))
      continue
    row = np.zeros(TEACHER_WIDTH, np.int32)  # Nothing looks at what fills it up.
    row[: prompt + size] = rows()[in_teacher][b, : prompt + size]
    logits = np.asarray(single_logits(params, row), np.float64)
    responses = logits[prompt - 1 : prompt + size - 1, :VALID]
    out.append(special.softmax(responses / DEFAULTS['temperature'], axis=-1))
  return out


def shares(p, ids):
  """Probabilities of `ids` and of what is left."""
  top = [p[v] for v in ids]
  return [*top, sum(p[v] for v in range(VALID) if v not in ids)]


def loop(kind, topk=0, token_clip=math.inf):
  """The divergence by row, token and id."""
  out = np.zeros((ROWS, LONGEST))
  students, teachers = probabilities_of(0, 0), probabilities_of(1, 1)
  for b, (_, _, size) in enumerate(SIZES):
    for i in range(size):
      s, t = students[b][i], teachers[b][i]
      if topk:
        ids = sorted(range(VALID), key=lambda v: -t[v])[:topk]
        s, t = shares(s, ids), shares(t, ids)
      total = 0.0
      for x, y in zip(s, t):
        m = DEFAULTS['jsd_weight'] * y + (1 - DEFAULTS['jsd_weight']) * x
        total += {
          'reverse_kl': special.rel_entr(x, y),
          'forward_kl': special.rel_entr(y, x),
          'jsd': DEFAULTS['jsd_weight'] * special.rel_entr(y, m)
          + (1 - DEFAULTS['jsd_weight']) * special.rel_entr(x, m),
        }[kind]
      out[b, i] = min(total, token_clip)
  return out


@every_case
def test_values_are_those_of_a_loop_over_rows_without_padding(case):
  want = loop(**case)
  assert ((want > 1e-3) == rows()[2]['response_mask']).all()  # Something to measure.
  got = np.asarray(gradient(**case)(*arguments())[1])
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-5)
  np.testing.assert_array_equal(got[~rows()[2]['response_mask']], 0)


def test_eager_values_are_the_jitted_ones():
  case = {'kind': 'jsd', 'topk': 5}
  got = compare(*arguments(), **case)
  np.testing.assert_allclose(got, value(**case), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', divergence.KINDS)
def test_all_ids_are_the_whole_vocabulary_and_fewer_tell_less(kind):
  values = [value(kind=kind, topk=k) for k in (1, 5, VALID)]
  whole = value(kind=kind)
  np.testing.assert_allclose(values[-1], whole, rtol=1e-5, atol=1e-5)
  for fewer, more in itertools.pairwise(values):
    assert (fewer <= more + 1e-5).all()
  assert (values[0] < 0.9 * whole)[rows()[2]['response_mask']].any()


def test_every_argument_reaches_the_divergence():
  base = {'kind': 'jsd', 'topk': 5, 'token_clip': 10.0}
  changes = [
    {'kind': 'forward_kl'},
    {'topk': 6},
    {'jsd_weight': 0.6},
    {'token_clip': 0.1},
    {'temperature': 1.0},
    {'valid_vocab': VALID - 20},
  ]
  reference = value(**base)
  for change in changes:
    assert np.abs(value(**{**base, **change}) - reference).max() > 1e-3, change


def log_shares(logits, ids):
  logprobs = jax.nn.log_softmax(logits)
  if ids is None:
    return logprobs
  chosen = jnp.take_along_axis(logprobs, ids, -1)
  rest = jnp.log(1 - jnp.exp(chosen).sum(-1, keepdims=True))
  return jnp.concatenate([chosen, rest], -1)


def naive_loss(head, hidden, kind, topk=0, token_clip=math.inf):
  """`loss` row by row, with all logits of a row at once."""
  total = 0.0
  for b, (start, begin, size) in enumerate(SIZES[:3]):
    sides = []
    for side, row, first in (
      (head, hidden[b], start),
      (heads()[1], states()[1][b], begin),
    ):
      logits = row[first - 1 : first + size - 1] @ side['embed']['embedding'][:VALID].T
      sides.append(logits / DEFAULTS['temperature'])
    ids = jnp.argsort(-sides[1])[:, :topk] if topk else None
    s, t = (log_shares(side, ids) for side in sides)
    w = DEFAULTS['jsd_weight']
    m = jnp.log(w * jnp.exp(t) + (1 - w) * jnp.exp(s))
    values = {
      'reverse_kl': jnp.exp(s) * (s - t),
      'forward_kl': jnp.exp(t) * (t - s),
      'jsd': w * jnp.exp(t) * (t - m) + (1 - w) * jnp.exp(s) * (s - m),
    }[kind].sum(-1)
    values = jnp.minimum(values, token_clip)
    total += (values * column_weights()[b, :size]).sum()
  return total


def close(got, want, rtol=1e-4):
  """Trees agree to a share of the largest entry of each leaf."""
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    atol = rtol * float(np.abs(other).max()) + 1e-30
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@every_case
def test_the_gradient_is_that_of_all_logits_at_once(case):
  (head, _, hidden, _), _ = gradient(**case)(*arguments())
  naive = functools.partial(naive_loss, **case)
  want = quick.jit(jax.grad(naive, argnums=(0, 1)))(heads()[0], states()[0])
  close((head, hidden), want)


@every_case
def test_gradients_reach_the_student_where_it_is_compared_and_nothing_else(case):
  (head, teacher_head, hidden, teacher_hidden), values = gradient(**case)(*arguments())
  head = head['embed']['embedding']
  assert np.abs(head[:VALID]).max() > 0
  np.testing.assert_array_equal(head[VALID:], 0)
  unclipped = (values > 0) & (values < case.get('token_clip', math.inf))
  before = np.zeros((ROWS, WIDTH), bool)
  for b, t in zip(*np.nonzero(unclipped)):
    before[b, SIZES[b][0] + t - 1] = True
  np.testing.assert_array_equal(np.abs(hidden).max(-1) > 0, before)
  for leaf in jax.tree.leaves((teacher_head, teacher_hidden)):
    np.testing.assert_array_equal(leaf, 0)


# One that divides all places, all of them, and more; the default leaves a rest.
@pytest.mark.parametrize('chunk', [4, 24, 256])
@pytest.mark.parametrize('case', [CASES[0], CASES[5]], ids=[NAMES[0], NAMES[5]])
def test_chunks_change_nothing(case, chunk):
  got, values = gradient(**case, chunk=chunk)(*arguments())
  want, reference = gradient(**case)(*arguments())
  np.testing.assert_allclose(values, reference, rtol=1e-5, atol=1e-6)
  close(got, want, rtol=1e-5)


@pytest.mark.parametrize('case', CASES[:7], ids=NAMES[:7])
def test_nothing_between_places_matters(case):
  hidden, teacher_hidden = (array.copy() for array in states())
  used, in_teacher = (np.zeros(array.shape[:2], bool) for array in states())
  used[:, 0] = in_teacher[:, 0] = True  # Padding reads, and does not use, a state.
  for b, (start, begin, size) in enumerate(SIZES):
    if size:
      used[b, start - 1 : start + size - 1] = True
      in_teacher[b, begin - 1 : begin + size - 1] = True
  poison = np.array([np.nan, np.inf, -np.inf, 1e38] * 8, np.float32)
  hidden[~used], teacher_hidden[~in_teacher] = poison, poison[::-1]
  want = gradient(**case)(*arguments())
  got = gradient(**case)(*heads(), hidden, teacher_hidden, rows()[2])
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('case', CASES[:7], ids=NAMES[:7])
def test_equal_prompts_and_weights_have_no_divergence(case):
  head, (hidden, _) = heads()[0], states()
  where = {**rows()[2], 'teacher_offset': np.zeros(ROWS, np.int32)}
  grads, values = gradient(**case)(head, head, hidden, hidden, where)
  np.testing.assert_allclose(values, 0, atol=1e-6)
  scale = gradient(**case)(*arguments())[0]
  for leaf, other in zip(jax.tree.leaves(grads), jax.tree.leaves(scale)):
    assert np.abs(leaf).max() <= 1e-5 * np.abs(other).max()


def equations(jaxpr):
  """All equations of a jaxpr and of those inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in core.jaxprs_in_params(equation.params):
      yield from equations(inner)


@pytest.mark.parametrize('topk', [0, 5])
@pytest.mark.parametrize('chunk', [2 * ROWS, LONGEST * ROWS])
def test_no_logits_of_more_than_a_chunk_exist(topk, chunk):
  plain = gradient(topk=topk, chunk=chunk).__wrapped__
  traced = jax.make_jaxpr(plain)(*arguments())
  found = list(equations(traced.jaxpr))
  shapes = [out.aval.shape for equation in found for out in equation.outvars]
  head = (VOCAB, MODEL.hidden_size)
  largest = max(
    math.prod(shape) for shape in shapes if VOCAB in shape and shape != head
  )
  assert largest == chunk * VOCAB
  # The teacher's ids are kept for the backward pass, not looked for once more.
  names = [equation.primitive.name for equation in found]
  assert names.count('approx_top_k') == (topk > 0)
  assert ('scan' in names) == (chunk < LONGEST * ROWS)  # No loop of one.


@pytest.mark.parametrize(
  'change, message',
  [
    ({'chunk': 0}, 'chunk 0: must be at least 1'),
    ({'valid_vocab': VOCAB + 1}, f'valid_vocab {VOCAB + 1}: must be in'),
    ({'topk': VALID + 1}, f'topk {VALID + 1}: must be in 0 .. valid_vocab = {VALID}'),
    ({'topk': -1}, 'topk -1: must be in'),
    ({'kind': 'kl'}, "divergence='kl'"),
    ({'kind': 'jsd', 'jsd_weight': 1.0}, 'jsd_weight=1.0'),
  ],
)
def test_what_is_out_of_range_is_refused(change, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(functools.partial(compare, **change), *arguments())
