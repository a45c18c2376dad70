"""The table of methods: one row each, with all its numbers. No JAX.

A row names pure functions; the loop, the learner and the rollout read them and never
ask which method runs. Its numbers are keys of `methods.hyperparameters` (units and
bounds stand there) where they differ from the defaults or are the method's own; an
experiment's `algo=` argument writes them into the config. Any policy whose own prompts
are plain combines with any teacher: `find('gigpo+sdar')` is GiGPO with SDAR's
distillation.
"""

import dataclasses

from sdar_jax.methods import crediting, estimators, follow_ups, teachers
from sdar_jax.methods.interface import Algorithm, on_device
from sdar_jax.methods.sdar import (
  GATE_NUMBERS,
  GATED,
  GRPO,
  NO_REWARD,
  SDAR,
  numbers,
  policy,
  taught,
)

_ACTOR_CRITIC = {
  'advantages': estimators.actor_critic,
  'value_targets': estimators.value_targets,
  'compares_members': False,
  'rewards_tokens': True,
}

ALGORITHMS: dict[str, Algorithm] = {
  'grpo': GRPO,
  'dr-grpo': policy(
    'GRPO without the divisions by deviation and by length',
    'arXiv 2503.20783',
    numbers(divide_by_std=False, aggregation='seq-mean-token-sum-norm'),
  ),
  'dapo': policy(
    'GRPO with a higher upper clip, groups without contrast sampled anew',
    'arXiv 2503.14476',
    {**numbers(clip_high=0.28), 'rollout.refills': 9},
  ),
  'gspo': policy(
    'ratio and clip of the whole response',
    'arXiv 2507.18071',
    numbers(clip_low=3e-4, clip_high=4e-4, aggregation='seq-mean-token-mean'),
    policy_loss=on_device('sequence_surrogate', 'clip_low', 'clip_high'),
    policy_metrics=on_device('sequence_metrics', 'clip_low', 'clip_high'),
  ),
  'rloo': policy(
    'leave-one-out baseline', 'arXiv 2402.14740', advantages=estimators.leave_one_out
  ),
  'reinforce++': policy(
    'returns whitened over the batch',
    'arXiv 2501.03262',
    numbers(gamma=1.0),
    advantages=estimators.whitened,
    compares_members=False,
    rewards_tokens=True,
  ),
  'reinforce++-baseline': policy(
    "the group's mean as baseline, then whitened",
    'arXiv 2501.03262',
    advantages=estimators.whitened_baseline,
  ),
  'grpo-passk': policy(
    'only the best of a group, by its lead',
    'arXiv 2503.19595',
    # Among rows two turns of one episode would compete.
    numbers(statistics_over='trajectories'),
    advantages=estimators.pass_at_k,
  ),
  'gigpo': policy(
    'advantages among episodes and among equal states',
    'arXiv 2505.10978',
    numbers(gamma=0.95, step_weight=1.0),
    advantages=estimators.anchored,
  ),
  'ppo': policy(
    "a value head on the policy's trunk, GAE; KL in the loss",
    'arXiv 1707.06347',
    numbers(gamma=1.0, gae_lambda=1.0),
    **_ACTOR_CRITIC,
  ),
  'ppo-kl-reward': policy(
    'the same with the KL taken off the rewards',
    'arXiv 1909.08593',
    numbers(gamma=1.0, gae_lambda=1.0, kl_in='reward', kl_kind='k1'),
    **_ACTOR_CRITIC,
  ),
  'sdar': SDAR,
  'sdar-advantage': taught(
    'the same gate inside the advantages',
    'ours, after arXiv 2605.15155',
    GATED,
    {**GATE_NUMBERS, **numbers(distill_form='advantage')},
  ),
  'sdar-centred': taught(
    'SDAR with a clipped gap, gates less their mean, importance ratio',
    'ours, after arXiv 2605.15155',
    GATED,
    {**GATE_NUMBERS, **numbers(gate_centred=True, gap_clip=1.0, ratio_limit=2.0)},
  ),
  'sdar-sibling': taught(
    "SDAR whose teacher sees a sibling's solution: for worlds without skills",
    'ours, after arXiv 2605.15155',
    teachers.SIBLING_GATED,
    GATE_NUMBERS,
  ),
  'sdar-feedback': taught(
    'SDAR whose teacher sees how the episode ended: for worlds without skills',
    'ours, after arXiv 2605.15155',
    teachers.FEEDBACK_GATED,
    GATE_NUMBERS,
  ),
  'opsd': taught(
    'exact, clipped divergence to the initial policy that sees skills; no reward',
    'arXiv 2601.18734',
    teachers.DIVERGENCE,
    numbers(
      distill_coef=1.0,
      divergence='forward_kl',
      token_clip=0.05,
      teacher_weights='initial',
    ),
    policy_settings=NO_REWARD,
  ),
  'opsd-sampled': taught(
    'the gap as signed credit of sampled tokens; no reward',
    'arXiv 2601.18734',
    teachers.SAMPLED,
    numbers(distill_coef=1.0, gap_clip=5.0),
    policy_settings=NO_REWARD,
  ),
  'opsd-released': taught(
    "SDAR's term alone, which the released code calls OPSD",
    'ZJU-REAL/SDAR@8b85c23',
    GATED,
    GATE_NUMBERS,
    policy_settings=NO_REWARD,
  ),
  'grpo+opsd-released': taught(
    'gate_beta 0: every gate is 1/2, the teacher has no effect',
    'ZJU-REAL/SDAR@8b85c23',
    teachers.UNGATED,
    numbers(distill_coef=0.01, gate_beta=0.0),
  ),
  'sdpg': taught(
    'GRPO and exact reverse KL to the teacher',
    'arXiv 2606.04036',
    teachers.DIVERGENCE,
    numbers(distill_coef=0.01, divergence='reverse_kl'),
  ),
  'sdpo': taught(
    'top-20 divergence to an averaged self that saw a sibling succeed; no reward',
    'arXiv 2601.20802',
    teachers.SIBLING,
    numbers(
      distill_coef=1.0,
      divergence='reverse_kl',
      topk=20,
      teacher_weights='ema',
      ema_decay=0.99,
    ),
    policy_settings=NO_REWARD,
  ),
  'skill-grpo': taught(
    'GRPO with skills in training prompts, evaluated without',
    'ZJU-REAL/SDAR@8b85c23',
    None,
    {},
    sees='all',
  ),
  'skill-grpo*': taught(
    'the same, evaluated with skills',
    'ZJU-REAL/SDAR@8b85c23',
    None,
    {},
    policy_settings={'eval.with_skills': True},
    sees='all',
  ),
  'rlsd': taught(
    'the teacher redistributes the advantage over tokens, warmed down',
    'arXiv 2604.03128',
    crediting.REDISTRIBUTED,
    numbers(credit_mix=0.5, credit_clip=0.2, warmdown_steps=100),
  ),
  'skill-sd': taught(
    'importance-weighted k3 to the teacher, warmed down',
    'arXiv 2604.10674',
    teachers.K3,
    numbers(distill_coef=0.001, warmdown_steps=100),
  ),
  'agent-opsd': taught(
    'turns that moved the belief in success count more',
    'arXiv 2608.05987',
    crediting.BELIEF,
    numbers(credit_mix=0.5, credit_clip=0.2),
  ),
  'opid': taught(
    'the gap under hindsight added to the advantage',
    'arXiv 2606.26790',
    crediting.HINDSIGHT,
    numbers(gap_coef=0.001),
  ),
  'grsd': taught(
    'turns that what to do and to avoid agrees with count more',
    'arXiv 2607.28076',
    crediting.CONTRAST,
    numbers(credit_mix=0.5, signal_clip=3.0),
  ),
  'adrs': taught(
    'gated log-probs of the teacher as token rewards',
    'arXiv 2608.03223',
    crediting.REWARDED,
    numbers(shaping_coef=0.05, gate_scale=2.0),
  ),
  'ucob': taught(
    'prompts with and without skills; the better view teaches the other',
    'arXiv 2606.29502',
    teachers.TWO_VIEWS,
    # Margin and temperature follow rollout.success_reward: `config.default`.
    numbers(
      distill_coef=0.1,
      gate_beta=5.0,
      view_gamma=0.95,
      view_weight_cap=2.0,
      action_weight=2.0,
    ),
    sees='half',
  ),
  **follow_ups.ROWS,
}


def find(name: str) -> Algorithm:
  """Finds a row, or combines a policy with the teacher of another row.

  Args:
    name: of a row, or 'POLICY+TEACHER' of two: one without a teacher and one with.

  Raises:
    KeyError: one line naming what is unknown and what there is, or why the two do not
      go together.
  """
  if name in ALGORITHMS:
    return ALGORITHMS[name]
  for place, letter in enumerate(name):
    base, teacher = ALGORITHMS.get(name[:place]), ALGORITHMS.get(name[place + 1 :])
    if not (letter == '+' and base and teacher):
      continue
    if teacher.distillation and not base.distillation:
      return _combined(name, base, teacher)
  raise KeyError(
    f'{name!r}: must be one of {", ".join(ALGORITHMS)}, or one without a teacher and'
    ' one with, as gigpo+sdar'
  )


def _combined(name: str, base: Algorithm, teacher: Algorithm) -> Algorithm:
  """Joins two rows; KeyError in one line where they contradict."""
  seeing = {base.student_sees_skills, teacher.student_sees_skills} - {'none'}
  if len(seeing) > 1:
    raise KeyError(
      f'{name!r}: both say whose prompts show skills, {" and ".join(sorted(seeing))} of'
      ' a group: take a policy whose own prompts are plain'
    )
  try:
    return dataclasses.replace(
      base,
      summary=f'{base.summary}; {teacher.summary}',
      source=f'{base.source}; {teacher.source}',
      distillation=teacher.distillation,
      teacher_settings=teacher.teacher_settings,
      student_sees_skills=seeing.pop() if seeing else 'none',
    )
  except ValueError as error:
    raise KeyError(f'{name!r}: {error}') from None


def markdown() -> str:
  """Formats the table of methods."""
  lines = ['| method | what it is | teacher sees | settings | source |']
  lines += ['|---|---|---|---|---|']
  for name, row in ALGORITHMS.items():
    context = row.distillation.context if row.distillation else ''
    settings = ', '.join(
      f'{key.removeprefix("algorithm.")} {value}'
      for key, value in row.all_settings.items()
    )
    cells = (f'`{name}`', row.summary, context, settings, row.source)
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines) + '\n'
