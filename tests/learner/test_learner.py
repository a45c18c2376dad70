"""The jitted step against plain loops, and its behaviour when numbers go bad."""

import types

import chex
import jax
import jax.numpy as jnp
import micro
import numpy as np
import optax
import pytest
import quick

from sdar_jax.learner import checkpoint, optimizer
from sdar_jax.models import decoder

_params = micro.params


@quick.jit
def _row_logprobs(params, tokens):
  """[T, valid ids] of one row: log-softmax over the valid ids."""
  positions = jnp.arange(tokens.size)[None]
  hidden, _ = decoder.forward(micro.MODEL, params, tokens[None], positions)
  logits = decoder.logits(micro.MODEL, params, hidden)[0, :, : micro.VALID]
  return jax.nn.log_softmax(logits)


def _response_logprobs(params, prompt, response, length=40):
  """One row, token by token; nothing before looks at what fills it up."""
  first, row = len(prompt), [*prompt, *response]
  tokens = np.asarray(row + [0] * (length - len(row)), np.int32)
  logprobs = _row_logprobs(params, tokens)
  return [float(logprobs[first + i - 1, token]) for i, token in enumerate(response)]


def test_scores_are_those_of_single_rows():
  learner, params, ref = micro.learner(), _params(0), _params(1)
  rows = micro.minibatch(teacher_width=36)
  state = learner.init_state(params)
  (scored,) = micro.scored(learner, state, ref, [micro.split(rows)])
  names = ('old_logprobs', 'ref_logprobs', 'teacher_logprobs')
  scored = {name: micro.joined(scored, name) for name in names}
  for i, response in enumerate(rows.responses):
    prompts = {
      'old_logprobs': (params, rows.prompts[i]),
      'ref_logprobs': (ref, rows.prompts[i]),
      'teacher_logprobs': (params, rows.teacher_prompts[i]),
    }
    for name, (weights, prompt) in prompts.items():
      expected = _response_logprobs(weights, prompt, response)
      got = scored[name][i]
      np.testing.assert_allclose(got[: len(response)], expected, atol=2e-5)
      assert not got[len(response) :].any(), name


def _one_update(microbatch_rows=8, more=(), **kwargs):
  learner = micro.learner(**kwargs)
  state = learner.init_state(_params())
  parts = [*micro.split(micro.minibatch(), microbatch_rows), *more]
  (scored,) = micro.scored(learner, state, _params(1), [parts])
  return learner.train_step(state, scored)


@pytest.mark.parametrize(
  'aggregation', ['token-mean', 'seq-mean-token-mean', 'seq-mean-token-sum-norm']
)
def test_an_update_does_not_depend_on_the_microbatch_size(aggregation):
  """Nor on a microbatch without a token."""
  (empty,) = micro.split(micro.minibatch(1, rows=8, padding=8))
  whole, whole_metrics = _one_update(16, aggregation=aggregation)
  parts, parts_metrics = _one_update(8, [empty], aggregation=aggregation)
  for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(parts.params)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  for name, (total, count) in whole_metrics.items():
    np.testing.assert_allclose(total, parts_metrics[name][0], rtol=2e-4, atol=1e-5)
    if name not in ('loss', 'grad_norm', 'learning_rate', 'updates_skipped'):
      np.testing.assert_allclose(count, parts_metrics[name][1])


def test_a_mean_of_microbatch_means_depends_on_the_microbatch_size():
  """The released code's token mean, against its formula and against ours."""
  _, metrics = _one_update(8, algorithm='grpo', mean_over='microbatch')
  _, ours = _one_update(8, algorithm='grpo')
  _, single = _one_update(16, algorithm='grpo')
  learner = micro.learner(algorithm='grpo', mean_over='microbatch')
  state = learner.init_state(_params())
  parts = micro.split(micro.minibatch(), 8)
  (scored,) = micro.scored(learner, state, _params(1), [parts])
  whole = micro.learner(algorithm='grpo')
  means = []
  for microbatch in parts:
    (one,) = micro.scored(whole, state, _params(1), [[microbatch]])
    _, alone = whole.train_step(whole.init_state(_params()), one)
    means.append(float(alone['loss'][0]))
  assert len(scored) == 2
  np.testing.assert_allclose(metrics['loss'][0], np.mean(means), rtol=1e-5)
  assert abs(float(metrics['loss'][0] - ours['loss'][0])) > 1e-4
  np.testing.assert_allclose(ours['loss'][0], single['loss'][0], rtol=1e-4, atol=1e-6)


def test_a_teacher_of_its_own_follows_as_its_kind_says():
  """Whole distributions read weights that a step's updates must not move."""
  for weights, decay in (('policy', 0.0), ('ema', 0.9)):
    learner = micro.learner(
      algorithm='sdpg', teacher_weights=weights, ema_decay=decay, distill_coef=1.0
    )
    state = learner.init_state(_params())
    before = jax.device_get(state.teacher)
    parts = [micro.split(micro.minibatch(i)) for i in (0, 1)]
    for minibatch in micro.scored(learner, state, _params(1), parts):
      state, metrics = learner.train_step(state, minibatch)
      assert float(metrics['distill_loss'][0]) > 0
    jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.teacher))
    moved = jax.device_get(state.params)
    state = learner.finish_step(state)
    mix = lambda t, p, d=decay: d * t + (1 - d) * p
    want = jax.tree.map(mix, before, moved)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
      jax.device_get(state.teacher),
      want,
    )


@pytest.mark.parametrize('algorithm, kl_coef', [('sdpg', 0.01), ('sdar', 0.0)])
def test_the_initial_policy_teaches_from_the_one_copy_of_it(algorithm, kl_coef):
  """It is what the KL is to, and no part of the state, which is all that is saved.

  To the bit, of the same programs but for a teacher that they hand on.
  """
  settings = {'algorithm': algorithm, 'kl_coef': kl_coef, 'distill_coef': 1.0}
  learner = micro.learner(teacher_weights='initial', **settings)
  kept = micro.learner(teacher_weights='ema', ema_decay=1.0, **settings)
  parts = [micro.split(micro.minibatch(i)) for i in (0, 1)]
  assert learner.needs_initial and kept.needs_initial == (kl_coef != 0)
  state, other = (x.init_state(_params()) for x in (learner, kept))
  assert state.teacher == () and other.teacher != ()
  for _ in range(2):  # The second with a policy that is no longer the initial one.
    for mine, theirs in zip(
      micro.scored(learner, state, _params(), parts),
      micro.scored(kept, other, _params(), parts),
      strict=True,
    ):
      state, got = learner.train_step(state, mine, _params())
      other, want = kept.train_step(other, theirs)
      jax.tree.map(np.testing.assert_array_equal, got, want)
    state, other = learner.finish_step(state), kept.finish_step(other)
  jax.tree.map(np.testing.assert_array_equal, state.params, other.params)


def test_sampled_teachers_with_other_weights_are_scored_by_them():
  params, other = _params(), _params(1)
  parts = [micro.split(micro.minibatch())]
  plain = micro.learner(algorithm='sdar')
  kept = micro.learner(algorithm='sdar', teacher_weights='ema')
  state = kept.init_state(other)._replace(params=params)  # As after many steps.
  (want,) = micro.scored(plain, plain.init_state(other), _params(2), parts)
  (got,) = micro.scored(kept, state, _params(2), parts)
  np.testing.assert_array_equal(
    micro.joined(got, 'teacher_logprobs'), micro.joined(want, 'teacher_logprobs')
  )
  old = micro.joined(got, 'old_logprobs') - micro.joined(want, 'old_logprobs')
  assert np.abs(old).max() > 1e-3


def test_a_critic_learns_its_targets_beside_the_policy():
  learner = micro.learner(
    algorithm='ppo', rate=3e-2, kl_coef=0.0, value_coef=0.5, value_clip=10.0
  )
  state = learner.init_state(_params())
  assert not np.any(state.params['value_head']['kernel'])
  parts = [micro.split(micro.minibatch())]
  losses = []
  for _ in range(12):
    (scored,) = micro.scored(learner, state, None, parts)
    state, metrics = learner.train_step(state, scored)
    total, count = metrics['value_loss']
    losses.append(float(total / count))
  np.testing.assert_allclose(losses[0], 0.5, rtol=1e-6)  # Value 0, target 1.
  assert losses[-1] < 0.1
  values = micro.joined(scored, 'old_values')[micro.joined(scored, 'response_mask')]
  assert abs(values.mean() - 1) < 0.4


def test_update_is_adamw_on_the_gradient():
  """optax.adamw with a plain gradient of the same objective gives the same weights."""
  learner = micro.learner(rate=1e-3, kl_coef=0.0, entropy_coef=0.0, distill_coef=0.0)
  state = learner.init_state(_params())
  rows = micro.minibatch(padding=0)
  (scored,) = micro.scored(learner, state, None, [micro.split(rows)])

  pairs = list(zip(rows.prompts, rows.responses, strict=True))
  tokens = np.zeros((len(pairs), 24), np.int32)  # Nothing looks at what fills it up.
  weights = np.zeros((len(pairs), 24), np.float32)
  for i, (prompt, response) in enumerate(pairs):
    tokens[i, : len(prompt) + len(response)] = [*prompt, *response]
    weights[i, len(prompt) : len(prompt) + len(response)] = rows.advantages[i]

  def loss(params):
    positions = jnp.broadcast_to(jnp.arange(24), tokens.shape)
    hidden, _ = decoder.forward(micro.MODEL, params, tokens, positions)
    logits = decoder.logits(micro.MODEL, params, hidden)[..., : micro.VALID]
    logprobs = jax.nn.log_softmax(logits)[:, :-1]
    picked = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=-1)[..., 0]
    # On policy every ratio is 1, where the surrogate's gradient is the score function.
    return -jnp.sum(weights[:, 1:] * picked) / sum(map(len, rows.responses))

  @quick.jit
  def update(params):
    grads = jax.grad(loss)(params)
    tx = optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.adamw(1e-3, b1=0.9, b2=0.999, eps=micro.EPS, weight_decay=0.01),
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), optax.tree.norm(grads)

  expected, norm = update(state.params)
  new, metrics = learner.train_step(state, scored)
  np.testing.assert_allclose(metrics['grad_norm'][0], norm, rtol=1e-4)
  for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.long
def test_updates_that_are_not_finite_are_skipped_and_counted():
  learner = micro.learner(optimized=True)
  state = learner.init_state(_params())
  before = jax.device_get((state.params, state.opt_state))
  bad = micro.minibatch()
  bad.advantages[3] = np.nan
  good = micro.minibatch(1)
  parts = [micro.split(bad), micro.split(good)]
  bad, good = micro.scored(learner, state, _params(1), parts)
  for count in (1, 2):
    state, metrics = learner.train_step(state, bad)
    assert int(state.skipped) == int(state.skipped_in_a_row) == count
    assert float(metrics['updates_skipped'][0]) == 1
  after = jax.device_get((state.params, state.opt_state))
  jax.tree.map(np.testing.assert_array_equal, before, after)
  state, _ = learner.train_step(state, good)
  assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)
  moved = jax.tree.map(lambda a, b: np.any(a != b), before[0], dict(state.params))
  assert all(jax.tree.leaves(moved))


def _with(state, part, value):
  """A state with this number in a part of it."""

  def changed(tree):
    # A token that no row holds: a moment of its reaches no other weight.
    table = tree['embed']['embedding'].at[micro.VOCAB - 1, 0].set(value)
    return {**tree, 'embed': {'embedding': table}}

  if part == 'params':
    return state._replace(params=changed(state.params))
  clip, adam, *rest = state.opt_state
  adam = adam._replace(**{part: changed(getattr(adam, part))})
  return state._replace(opt_state=(clip, adam, *rest))


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('part', ['params', 'mu', 'nu'])
def test_no_update_leaves_a_number_that_is_not_finite(part, bad):
  """However finite its gradient and loss: nu at infinity holds its weight still."""
  learner = micro.learner(optimized=True)
  state = learner.init_state(_params())
  (scored,) = micro.scored(learner, state, _params(1), [micro.split(micro.minibatch())])
  state = _with(state, part, bad)
  before = jax.device_get((state.params, state.opt_state))
  state, metrics = learner.train_step(state, scored)
  if part != 'params':  # The embedding is the output head, too.
    assert np.isfinite(metrics['loss'][0]) and np.isfinite(metrics['grad_norm'][0])
  assert int(state.skipped) == int(state.skipped_in_a_row) == 1
  assert float(metrics['updates_skipped'][0]) == 1
  after = jax.device_get((state.params, state.opt_state))
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_an_update_that_overflows_a_weight_is_skipped():
  """Though moments are finite after it, as before: 1e37 over eps is not."""
  learner = micro.learner(optimized=True)
  state = learner.init_state(_params())
  (scored,) = micro.scored(learner, state, _params(1), [micro.split(micro.minibatch())])
  state, metrics = learner.train_step(_with(state, 'mu', 1e37), scored)
  assert float(metrics['updates_skipped'][0]) == 1
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_an_update_looks_before_it_writes():
  """So that nothing is held twice; XLA for CPU ignores it (tests/learner/test_fits)."""
  learner = micro.learner(optimized=True)
  state = learner.init_state(_params())
  lowered = learner._apply.lower(state, _params(), jnp.zeros(()))
  assert 'optimization_barrier' in lowered.as_text()
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert lowered.compile().memory_analysis().alias_size_in_bytes >= 3 * size


@pytest.mark.parametrize(('algorithm', 'more'), [('sdar', 0), ('sdpg', 1)])
def test_only_whole_distributions_are_compiled_for_pairs_of_widths(algorithm, more):
  learner = micro.learner(algorithm=algorithm)
  state, programs = learner.init_state(_params()), []
  for width in (28, 28, 36):  # The first state has not been through an update yet.
    parts = micro.split(micro.minibatch(teacher_width=width))
    (scored,) = micro.scored(learner, state, _params(1), [parts])
    state, _ = learner.train_step(state, scored)
    programs.append(learner._gradient._jitted._cache_size())
  assert programs[2] - programs[1] == more


def test_bfloat16_compute_keeps_float32_weights_and_moments():
  """Updates far below bfloat16's resolution of a weight still add up."""
  rate, updates = 1e-6, 8
  learner = micro.learner(rate=rate, dtype='bfloat16')
  state = learner.init_state(_params())
  before = jax.device_get(state.params)
  parts = [micro.split(micro.minibatch())]
  (scored,) = micro.scored(learner, state, _params(1), parts)
  (other,) = micro.scored(micro.learner(), state, _params(1), parts)
  rounded, exact = (micro.joined(m, 'old_logprobs') for m in (scored, other))
  assert np.any(rounded != exact)
  for _ in range(updates):
    state, _ = learner.train_step(state, scored)
  moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
  for leaf in [*jax.tree.leaves(state.params), *moments]:
    assert leaf.dtype == jnp.float32
  embedding = before['embed']['embedding']
  moved = np.abs(np.asarray(state.params['embed']['embedding']) - embedding)
  step = np.abs(embedding) * 2.0**-8  # Half the distance of two bfloat16 numbers.
  assert np.median(moved[embedding != 0]) > rate / 10
  assert (moved < step)[np.abs(embedding) > 0.01].all()


def test_zero_coefficients_leave_grpo_bit_for_bit():
  sdar, _ = _one_update(algorithm='sdar', distill_coef=0.0, optimized=True)
  grpo, _ = _one_update(algorithm='grpo', optimized=True)
  jax.tree.map(np.testing.assert_array_equal, sdar.params, grpo.params)
  other, _ = _one_update(algorithm='sdar', distill_coef=0.5)
  leaves = zip(jax.tree.leaves(other.params), jax.tree.leaves(grpo.params))
  assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in leaves)


def test_warm_up_counts_passes_of_the_loop():
  learner = micro.learner(rate=1.0)
  state = learner.init_state(_params())
  assert int(learner.finish_step(learner.finish_step(state)).step) == 2


def test_moments_on_the_host_change_no_bit(tmp_path):
  here, away = (micro.learner(moments=where) for where in ('device', 'host'))
  states = []
  for learner in (here, away):
    state, parts = learner.init_state(_params()), [micro.split(micro.minibatch())]
    for _ in range(2):
      (scored,) = micro.scored(learner, state, _params(1), parts)
      state, _ = learner.train_step(state, scored)
    states.append(state)
  kinds = [
    {
      leaf.sharding.memory_kind
      for leaf in jax.tree.leaves(state.opt_state)
      if leaf.ndim
    }
    for state in states
  ]
  assert kinds == [{'device'}, {'pinned_host'}]
  chex.assert_trees_all_equal(*jax.device_get(states))
  store = checkpoint.CheckpointStore(tmp_path, 2)
  store.save(1, states[1], {})
  restored = store.restore(away.init_state(_params())).state
  chex.assert_trees_all_equal(*jax.device_get((states[1], restored)))
  kind = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(restored.opt_state)}
  assert 'pinned_host' in kind


def test_a_device_without_such_a_memory_is_named():
  device = types.SimpleNamespace(
    device_kind='abacus',
    addressable_memories=lambda: [types.SimpleNamespace(kind='device')],
  )
  optimizer.check_place('device', device)
  with pytest.raises(ValueError, match="moments='host': abacus has no memory"):
    optimizer.check_place('host', device)
