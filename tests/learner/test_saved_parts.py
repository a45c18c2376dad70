"""Each part of a checkpoint is needed, and a broken one is not gone on with."""

import re
import shutil

import jax
import jax.numpy as jnp
import micro_run
import pytest

from sdar_jax import train
from sdar_jax.learner import recovery
from sdar_jax.logs import writers
from sdar_jax.storage import identity

SAVED, STEPS = 2, 3  # A checkpoint after two passes, and one pass more.
# The last update before the checkpoint is not finite, hence counted in it.
SKIPPED = ((1, micro_run.UPDATES - 1),)
BAD = {
  'plain': SKIPPED,
  'streak': (*SKIPPED, (2, 0), (2, 1)),  # Three in a row, which end a run.
  'changed': SKIPPED,
  'refused': SKIPPED,
}
THIRD_PASS = 4  # Place in the training order of a task in quarantine from the start.
# What shows that a part is missing: the pass after the checkpoint as it is; the same
# with updates that are not finite; with a file that somebody has changed; or a refusal,
# where the part says what the run was started with.
CONTROLS = {
  **dict.fromkeys(('params', 'opt_state', 'teacher', 'step', 'skipped'), 'plain'),
  **dict.fromkeys(('task_cursor', 'quarantine', 'retrieval'), 'plain'),
  'skipped_in_a_row': 'streak',
  'digests': 'changed',
  # A given teacher, which is not there, has its test in test_identity.py.
  **{name: 'refused' for name in identity.INPUTS if name != 'teacher_digest'},
}


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """A method with a critic, a teacher of its own and retrieval that learns."""
  model = micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')
  with micro_run.compiling():
    yield micro_run.config(
      model,
      'ppo+sdar',
      STEPS,
      algorithm_teacher_weights='ema',
      algorithm_ema_decay=0.5,
      algorithm_kl_coef=0.0,
      skills_retrieval='ucb',
      skills_limit=1,
      optimizer_warmup_steps=9,
    )


@pytest.fixture(scope='module')
def interrupted(config, tmp_path_factory):
  """A run that has ended after two passes, to be copied."""
  path, short = (
    tmp_path_factory.mktemp('two') / 'run',
    config.copy_and_resolve_references(),
  )
  short.steps = SAVED
  outcome = micro_run.start(short, path, SKIPPED, THIRD_PASS)
  assert not outcome.error and outcome.saved[0] == SAVED
  return path


@pytest.fixture(scope='module')
def unbroken(config, tmp_path_factory):
  """Runs that nothing interrupts, by scenario."""
  return {
    name: micro_run.start(
      config, tmp_path_factory.mktemp(name) / 'run', BAD[name], THIRD_PASS
    )
    for name in ('plain', 'streak')
  }


def _resumed(config, interrupted, path, scenario):
  shutil.copytree(interrupted, path)
  if scenario == 'changed':
    text = (path / 'metrics.jsonl').read_text()
    (path / 'metrics.jsonl').write_text(
      text.replace('"train/rows": 8', '"train/rows": 9')
    )
  return micro_run.start(config, path, BAD[scenario])


def _forget(monkeypatch, part):
  """Makes runs go on with what a fresh one has in place of one saved part."""
  fresh, whole, restore = {}, train.Run._restore, recovery.restore

  def _restore(run):
    run.writer = writers.Mute()  # There is none yet.
    fresh.update(run._host())
    return whole(run)

  def forgetful(store, like, path, say):
    found = restore(store, like, path, say)
    if part in like._fields:
      return found._replace(state=found.state._replace(**{part: getattr(like, part)}))
    host = {key: value for key, value in found.host.items() if key != part}
    if CONTROLS[part] == 'plain':
      host[part] = fresh[part]
    return found._replace(host=host)

  monkeypatch.setattr(train.Run, '_restore', _restore)
  monkeypatch.setattr(recovery, 'restore', forgetful)


def test_every_part_of_a_checkpoint_has_a_control(interrupted):
  record = micro_run.record(interrupted, SAVED)
  leaves = {name.partition('.')[0] for name in record['leaves']}
  # What a method keeps of past steps is {} here; test_controls.py has its own test.
  assert leaves | set(record['host']) == {*CONTROLS, 'method'}


def test_a_resume_that_forgets_nothing_is_the_unbroken_run(
  config, interrupted, unbroken, tmp_path
):
  for scenario, whole in unbroken.items():
    assert _resumed(config, interrupted, tmp_path / scenario, scenario) == whole
  assert not unbroken['plain'].error and 'NonFinite' in unbroken['streak'].error
  changed = _resumed(config, interrupted, tmp_path / 'changed', 'changed')
  assert 'metrics.jsonl' in changed.error and not changed.saved


@pytest.mark.parametrize('part', CONTROLS)
def test_a_resume_that_forgets_a_part_is_not(
  config, interrupted, unbroken, tmp_path, monkeypatch, part
):
  scenario = CONTROLS[part]
  _forget(monkeypatch, part)
  outcome = _resumed(config, interrupted, tmp_path / 'run', scenario)
  if scenario == 'refused':
    assert outcome.error.startswith('InputError') and part in outcome.error
  elif scenario == 'changed':  # Nobody notices, and the number that is wrong stays.
    assert not outcome.error and outcome.files != unbroken['plain'].files
  elif part == 'step':  # Its passes would be trained, and their lines written, twice.
    assert outcome.error
  else:
    assert not outcome.error and outcome.saved[1:] != unbroken[scenario].saved[1:]
    # No number of a pass depends on how many updates there were without effect.
    assert (outcome.files == unbroken[scenario].files) == (part == 'skipped')


def _no_numbers(leaf):
  return jnp.full_like(leaf, jnp.nan) if leaf.dtype == jnp.float32 else leaf


@pytest.mark.parametrize(
  'part, error',
  [
    ('params', 'FloatingPointError: .* log-probability is not finite'),
    ('opt_state', 'NonFiniteError: 3 updates in a row were not finite at step 3'),
    ('teacher', 'NonFiniteError: 3 updates in a row were not finite at step 3'),
  ],
)
def test_saved_numbers_that_are_none_end_a_run_in_one_line(
  config, interrupted, tmp_path, monkeypatch, part, error
):
  restore = recovery.restore

  def broken(*args):
    found = restore(*args)
    wrong = jax.tree.map(_no_numbers, getattr(found.state, part))
    return found._replace(state=found.state._replace(**{part: wrong}))

  monkeypatch.setattr(recovery, 'restore', broken)
  outcome = _resumed(config, interrupted, tmp_path / 'run', 'plain')
  assert re.match(error, outcome.error) and '\n' not in outcome.error
