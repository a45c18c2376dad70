"""Rows of a step, and what their teachers see, shared by tests."""

import numpy as np
from skill_cases import HEAT_MUG, TINY, ByteChat, spell

from sdar_jax.batching import rows as rows_lib
from sdar_jax.envs import base
from sdar_jax.prompts import bank_file, retrieval, skills
from sdar_jax.prompts import teacher as teacher_lib
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

BANK = bank_file.load(TINY)
WON, LOST, SLOW = Outcome.SUCCESS, Outcome.FAILURE, Outcome.MAX_TURNS


def teacher(budget=10_000, kind='task+object', placement='user'):
  retriever = retrieval.Retriever(BANK, kind)
  return skills.TeacherContext(retriever, ByteChat('S'), placement, token_budget=budget)


def turn(member, number, action, observation=None):
  seen = f'seen {member}.{number}' if observation is None else observation
  ids = np.zeros(1, np.int32)
  return Turn(
    prompt_text=f'user {member}.{number}',
    prompt_ids=ids,
    response_ids=ids,
    sampler_logprobs=np.zeros(1, np.float32),
    observation=seen,
    response='',
    action=action.removeprefix('-'),
    valid=True,
    admissible=not action.startswith('-'),  # '-' marks an action that does nothing.
    reward=0.0,
    stop_reason='stop',
  )


def rows(*groups):
  """Rows of groups of (outcome, actions)."""
  out = []
  for group_id, members in enumerate(groups):
    task = base.Task(f'task {group_id}', 'kind', 'goal', HEAT_MUG, None)
    trajectories = [
      Trajectory(
        task.task_id,
        'kind',
        group_id,
        member,
        [turn(member, i, action) for i, action in enumerate(actions)],
        outcome,
      )
      for member, (outcome, actions) in enumerate(members)
    ]
    out.append(Group(group_id, task, trajectories))
  return rows_lib.rows(out, invalid_penalty=0.1)


def see(kind, rows, shown_by=None, sees_skills=None, **more):
  sees_skills = [False] * len(rows) if sees_skills is None else sees_skills
  shown_by = shown_by or teacher()
  return teacher_lib.teacher_rows(kind, shown_by, rows, sees_skills=sees_skills, **more)


def blocks(prompts, rows):
  """What stands before the user's text; '' in a plain prompt."""
  out = []
  for ids, row in zip(prompts, rows, strict=True):
    head, tail = spell(ids).split(row.turn.prompt_text)
    assert (head[:4], tail) == ('\x01S\x02\x01', '\x02\x01')
    out.append(head[4:].removesuffix('\n\n'))
  return out


MIXED = (
  (LOST, ['go a', '-fly', 'go b', 'go a']),
  (WON, ['go a', 'take x', 'put x']),
  (WON, ['-dance', 'put x']),
  (WON, ['take x', 'put  x\nnow']),
)
