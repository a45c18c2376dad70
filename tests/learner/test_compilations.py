"""Programs are compiled for shapes that are new, and for nothing else."""

import dataclasses

import jax
import micro
import numpy as np
import pytest

from sdar_jax.models import sharding

WIDTHS, TEACHER_WIDTHS = (20, 24), (28, 32)
PAIRS = [(w, t) for w in WIDTHS for t in TEACHER_WIDTHS]
STEPS = 100
# Programs of a method for these buckets: scores and gradients for each width of a
# student's rows, the teacher's scores for each of its own, three that know no width.
STUDENT, REFERENCE, GRADIENT = 3 * [len(WIDTHS)]
ADD, APPLY, FINISH = 3 * [1]
PROGRAMS = {'grpo': STUDENT + REFERENCE + GRADIENT + ADD + APPLY + FINISH}
PROGRAMS['sdar'] = PROGRAMS['grpo'] + len(TEACHER_WIDTHS)


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


@pytest.mark.slow
@pytest.mark.parametrize('method', PROGRAMS)
def test_a_hundred_steps_compile_each_bucket_once(compiled, method):
  """Run with `pytest -m slow tests/learner/test_compilations.py`: a minute of CPU."""
  model = dataclasses.replace(micro.MODEL, num_layers=1)
  mesh = sharding.make_mesh(1, 1, 1)
  make = micro.learner.__wrapped__  # Not the shared one.
  learner = make(mesh, algorithm=method, model=model)
  random = np.random.default_rng(0)
  draw = lambda spec: random.normal(size=spec.shape).astype(np.float32) / 8
  shardings = sharding.param_shardings(model.param_specs(), mesh)
  weights = jax.tree.map(draw, model.param_specs())
  params, initial = (jax.device_put(weights, shardings) for _ in range(2))
  state = learner.init_state(params)
  compiled.clear()
  teaches = method != 'grpo'
  state = _step(learner, state, initial, PAIRS, teaches)
  assert len(compiled) == PROGRAMS[method], compiled
  for _ in range(STEPS):
    parts = [PAIRS[i] for i in random.integers(0, len(PAIRS), random.integers(1, 5))]
    state = _step(learner, state, initial, parts, teaches)
  assert len(compiled) == PROGRAMS[method], compiled[PROGRAMS[method] :]
  assert int(state.step) == 1 + STEPS and int(state.skipped) == 0
