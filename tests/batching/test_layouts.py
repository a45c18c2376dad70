"""Both layouts say the same of every turn: scores, credit, loss and gradient."""

import algorithm_cases as cases
import drawn
import jax
import micro
import numpy as np
import pytest

from sdar_jax.batching import packing
from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs.base import Task
from sdar_jax.methods import interface
from sdar_jax.methods.credit import assign_credit
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

# Each kind of arithmetic of a policy (tokens, sequences, a critic) and of a teacher
# (sampled tokens, distributions); `slow` has every row of the table.
QUICK = ('gspo+sdar', 'ppo', 'sdpg')


def _episode(random, group, member):
  """Turns that go on, one of them beginning anew."""
  turns, ids = [], []
  for turn_id in range(3):
    goes_on = turn_id == 1 or (turn_id == 2 and member == 0)
    more = random.integers(0, micro.VALID, random.integers(2, 5))
    ids = [*ids, *more] if goes_on else more
    response = random.integers(0, micro.VALID, random.integers(1, 6))
    turns.append(
      Turn(
        prompt_text='',
        prompt_ids=np.asarray(ids, np.int32),
        response_ids=response.astype(np.int32),
        sampler_logprobs=np.zeros(len(response), np.float32),
        observation=f'room {turn_id % 2}',
        response='',
        action='',
        valid=turn_id != 2,
        admissible=True,
        reward=10.0 * (turn_id == 2 and member == 1),
        stop_reason='stop',
        goes_on=goes_on,
      )
    )
    ids = [*ids, *response]
  outcome = Outcome.SUCCESS if member == 1 else Outcome.FAILURE
  return Trajectory(f't{group}', 'kind', group, member, turns, outcome)


def _rows():
  random = np.random.default_rng(0)
  groups = [
    Group(i, Task(f't{i}', 'kind', '', {}, None), [])  # Members of a kind each.
    for i in range(2)
  ]
  for group in groups:
    members = [_episode(random, group.group_id, member) for member in range(3)]
    group.trajectories.extend(members)
  return rows_lib.rows(groups, invalid_penalty=0.1)


def _packing(layout):
  return packing.Packing(
    kind='sorted',
    minibatch_rows=18,
    microbatch_rows=18 if layout == 'turns' else 9,
    length_buckets=(32,),
    teacher_buckets=(40,),
    response_tokens=micro.RESPONSE,
    layout=layout,
    sequence_rows=1 if layout == 'turns' else 3,
  )


def _pass(method, layout, numbers):
  """A pass of the loop over the same episodes: what is known, the state, metrics."""
  learner = micro.learner(algorithm=method, **numbers)
  hyper, row = learner._hyper, learner._algorithm
  rows, how = _rows(), _packing(layout)
  student = rows_lib.make_sequences(rows, [r.turn.prompt_ids for r in rows], layout)
  privileged = [np.concatenate([[5, 6, 7], r.turn.prompt_ids]) for r in rows]
  teacher = rows_lib.make_sequences(rows, privileged, layout, within=student)
  compared = teacher if learner.reads_distributions else None
  order = np.arange(len(student))
  (sheets,) = packing.minibatches(rows, student, order, how, compared)
  taught = (
    packing.teacher_sheets(rows, teacher, how) if row.needs_teacher(hyper) else []
  )
  state, initial = (micro.params(seed) for seed in (0, 1))
  state = learner.init_state(state)
  found, scores = learner.score(state, initial, sheets, taught), {}
  for packed, part in zip((sheets, taught), found):
    scores |= rows_lib.gather(packed, part, len(rows), 5)
  data = interface.step_data(
    rows,
    scores,
    sees_skills=[row.sees_skills(r.trajectory.member) for r in rows],
    taught=np.ones(len(rows), bool),
    thought_ends=None,
    step=0,
  )
  known = {**scores, **assign_credit(row, hyper, data), 'turn_ids': data.turn_ids}
  batch = learner.to_device(sheets, known)
  state, metrics = learner.train_step(state, batch, initial)
  return len(student), known, jax.device_get((state.params, metrics))


def _close(got, want, what, least=1e-2):
  scale = max(float(np.max(np.abs(want), initial=0)), least)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * scale, err_msg=what)


def _compare(method):
  numbers = vars(cases.hyper_of(method))
  many, known, (params, metrics) = _pass(method, 'turns', numbers)
  few, joined, (same, measured) = _pass(method, 'conversation', numbers)
  assert (many, few) == (18, 10)  # Six episodes, four of which begin anew once.
  assert joined.keys() == known.keys() >= {'old_logprobs', 'advantages'}
  for name, want in known.items():
    _close(joined[name], want, name)
  assert measured.keys() == metrics.keys()
  for name, want in metrics.items():
    for got, part in zip(measured[name], want, strict=True):
      _close(got, part, name, least=1.0)  # Sums of some fifty that may cancel.
  moved = drawn.weights(micro.MODEL)
  for got, want, before in zip(
    *(jax.tree.leaves(tree) for tree in (same, params)),
    [*jax.tree.leaves(moved), *[None] * 9],
  ):
    change = np.abs(want - before).max() if before is not None else 1.0
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3 * change)


@pytest.mark.long
@pytest.mark.parametrize('method', QUICK)
def test_credit_and_gradient_do_not_know_the_layout(method):
  _compare(method)


@pytest.mark.slow
@pytest.mark.parametrize('method', sorted({*cases.ALGORITHMS, *cases.MIXED} - {*QUICK}))
def test_no_method_knows_the_layout(method):
  """Run with `pytest -m slow tests/batching`: five minutes of CPU."""
  _compare(method)
