"""Programs are compiled for shapes that are new, and for nothing else."""

import jax
import micro
import numpy as np
import pytest

from sdar_jax.batching import packing
from sdar_jax.learner import compilations
from sdar_jax.models import sharding

WIDTHS, TEACHER_WIDTHS = (20, 24), (28, 32)
PAIRS = [(w, t) for w in WIDTHS for t in TEACHER_WIDTHS]
STEPS = 100
# Programs of a method for these buckets: scores and gradients for each width of a
# student's rows, the teacher's scores for each pair (`micro.privileged` has a student's
# places), three that know no width.
STUDENT, REFERENCE, GRADIENT = 3 * [len(WIDTHS)]
ADD, APPLY, FINISH = 3 * [1]
PROGRAMS = {'grpo': STUDENT + REFERENCE + GRADIENT + ADD + APPLY + FINISH}
PROGRAMS['sdar'] = PROGRAMS['grpo'] + len(PAIRS)


@pytest.fixture
def compiled():
  """Names of what is compiled, as it happens; compiled fast instead of well."""
  names, counting = [], [True]

  def listen(event, duration, **about):
    if counting[0] and 'backend_compile' in event:
      names.append(about.get('fun_name', '?'))

  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', True)
  jax.monitoring.register_event_duration_secs_listener(listen)
  yield names
  counting[0] = False  # A listener cannot be taken back.
  jax.config.update('jax_disable_most_optimizations', before)


def _step(learner, state, initial, parts, teaches):
  """A pass of the loop over one minibatch, whose microbatches have these widths."""
  minibatch = []
  for number, (width, teacher_width) in enumerate(parts):
    (sheet,) = micro.split(micro.minibatch(number, 4, width, teacher_width))
    if not teaches:
      sheet = {k: v for k, v in sheet.items() if not k.startswith('teacher')}
    minibatch.append(sheet)
  (scored,) = micro.scored(learner, state, initial, [minibatch])
  state, metrics = learner.train_step(state, scored, initial)
  assert np.isfinite(metrics['loss'][0])
  return learner.finish_step(state)


def _fresh(method, random):
  """A learner of a layer whose programs nothing has compiled, and its weights."""
  mesh = sharding.make_mesh(1, 1, 1)
  make = micro.learner.__wrapped__  # Not the shared one.
  learner = make(mesh, algorithm=method)
  draw = lambda spec: random.normal(size=spec.shape).astype(np.float32) / 8
  shardings = sharding.param_shardings(micro.MODEL.param_specs(), mesh)
  weights = jax.tree.map(draw, micro.MODEL.param_specs())
  params, initial = (jax.device_put(weights, shardings) for _ in range(2))
  return learner, learner.init_state(params), initial


# The latter for pairs of widths.
@pytest.mark.parametrize(
  'method',
  [
    pytest.param('sdar', marks=pytest.mark.long),
    pytest.param('sdpg', marks=pytest.mark.slow),
  ],
)
def test_what_is_compiled_ahead_is_not_compiled_again(compiled, method):
  random = np.random.default_rng(0)
  learner, state, initial = _fresh(method, random)
  how = packing.Packing('in order', 8, 8, WIDTHS, WIDTHS, micro.RESPONSE)
  before, weights = compilations.seconds(), jax.device_get(state.params)
  first, second = ((width, width) for width in WIDTHS)
  known = _known(learner, state, initial, first)
  ahead = compilations.Ahead(learner, how, wanted=True)
  ahead.scores(state, initial)
  ahead.gradients(state, initial, known)
  jax.tree.map(np.testing.assert_array_equal, state.params, weights)  # And there still.
  assert compilations.seconds() > before
  # What knows no width is compiled here.
  state = _step(learner, state, initial, [first, first], teaches=True)
  compiled.clear()
  for _ in range(2):
    state = _step(learner, state, initial, [second, first, second], teaches=True)
  ahead.scores(state, initial)
  ahead.gradients(state, initial, known)
  assert compiled == []
  never = compilations.Ahead(learner, how, wanted=False)
  never.scores(None, None), never.gradients(None, None, {})  # Looks at nothing.


def _known(learner, state, initial, widths):
  """What a run knows of a step's rows, as `micro.credited` has it."""
  (sheet,) = micro.split(micro.minibatch(0, 4, *widths))
  given, to_device = [], learner.to_device
  learner.to_device = lambda sheets, known: (
    given.append(known) or to_device(sheets, known)
  )
  micro.scored(learner, state, initial, [[sheet]])
  learner.to_device = to_device
  return given[0]


@pytest.mark.slow
@pytest.mark.parametrize('method', PROGRAMS)
def test_a_hundred_steps_compile_each_bucket_once(compiled, method):
  """Run with `pytest -m slow tests/learner/test_compilations.py`: a minute of CPU."""
  random = np.random.default_rng(0)
  learner, state, initial = _fresh(method, random)
  compiled.clear()
  teaches = method != 'grpo'
  state = _step(learner, state, initial, PAIRS, teaches)
  assert len(compiled) == PROGRAMS[method], compiled
  for _ in range(STEPS):
    parts = [PAIRS[i] for i in random.integers(0, len(PAIRS), random.integers(1, 5))]
    state = _step(learner, state, initial, parts, teaches)
  assert len(compiled) == PROGRAMS[method], compiled[PROGRAMS[method] :]
  assert int(state.step) == 1 + STEPS and int(state.skipped) == 0


def test_a_state_stays_where_it_was():
  """XLA would place it elsewhere, and every program be traced or compiled anew."""
  learner, state, initial = _fresh('sdar', np.random.default_rng(0))
  for _ in range(2):
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == learner.state_shardings
    state = _step(learner, state, initial, [(20, 28)], teaches=True)
