"""The table of methods: a method is one row of choices and nothing else.

A row names pure functions and constants; the loop, the learner and the rollout read
them and never ask which method runs. Numbers live in `LossConfig`; where a method wants
others than the defaults its row says so in `settings`, which an experiment's `algo=`
argument writes into the config. Any policy whose own prompts are plain combines with
any teacher: `find('gigpo+sdar')` is GiGPO with SDAR's distillation.
"""

import dataclasses

from sdar_jax.losses import policy
from sdar_jax.methods import estimators, teachers
from sdar_jax.methods.hyperparameters import LossConfig, reads
from sdar_jax.methods.interface import Algorithm, LossInputs
from sdar_jax.methods.teachers import numbers


def _clips(hyper: LossConfig) -> dict[str, float]:
  names = ('clip_low', 'clip_high', 'dual_clip')
  return {name: getattr(hyper, name) for name in names}


@reads('clip_low', 'clip_high', 'dual_clip')
def _clipped_surrogate(inputs: LossInputs, credit, hyper: LossConfig):
  return policy.clipped_surrogate(
    inputs.logprobs, inputs.old_logprobs, credit, inputs.response_mask, **_clips(hyper)
  )


@reads('clip_low', 'clip_high')
def _sequence_surrogate(inputs: LossInputs, credit, hyper: LossConfig):
  return _sequence(policy.gspo, inputs, credit, hyper)


def _sequence_metrics(inputs: LossInputs, credit, hyper: LossConfig):
  return _sequence(policy.gspo_metrics, inputs, credit, hyper)


def _sequence(function, inputs: LossInputs, credit, hyper: LossConfig):
  return function(
    inputs.logprobs,
    inputs.old_logprobs,
    credit,
    inputs.response_mask,
    clip_low=hyper.clip_low,
    clip_high=hyper.clip_high,
  )


def _surrogate_metrics(inputs: LossInputs, credit, hyper: LossConfig):
  return policy.surrogate_metrics(
    inputs.logprobs, inputs.old_logprobs, credit, inputs.response_mask, **_clips(hyper)
  )


GRPO = Algorithm(
  summary='group-relative advantages, clipped surrogate',
  source='DeepSeekMath, arXiv 2402.03300',
  advantages=estimators.group_relative,
  policy_loss=_clipped_surrogate,
  policy_metrics=_surrogate_metrics,
)


def _policy(summary: str, source: str, settings=None, **changes) -> Algorithm:
  """A row that differs from GRPO in the policy's side."""
  return dataclasses.replace(
    GRPO, summary=summary, source=source, settings=settings or {}, **changes
  )


def _taught(
  summary: str, source: str, distillation, settings=None, sees: str = 'none'
) -> Algorithm:
  """GRPO with a teacher."""
  return dataclasses.replace(
    GRPO,
    summary=summary,
    source=source,
    distillation=distillation,
    settings=settings or {},
    student_sees_skills=sees,
  )


_NO_POLICY = numbers(policy_coef=0.0)
_SHOWN = {'eval.with_skills': True}

ALGORITHMS: dict[str, Algorithm] = {
  'grpo': GRPO,
  'dr-grpo': _policy(
    'GRPO without the divisions by deviation and by length',
    'arXiv 2503.20783',
    numbers(divide_by_std=False, aggregation='seq-mean-token-sum-norm'),
  ),
  'dapo': _policy(
    'GRPO with a higher upper clip, groups without contrast sampled anew',
    'arXiv 2503.14476',
    {**numbers(clip_high=0.28), 'rollout.refills': 9},
  ),
  'gspo': _policy(
    'ratio and clip of the whole response',
    'arXiv 2507.18071',
    numbers(clip_low=3e-4, clip_high=4e-4, aggregation='seq-mean-token-mean'),
    policy_loss=_sequence_surrogate,
    policy_metrics=_sequence_metrics,
  ),
  'rloo': _policy(
    'leave-one-out baseline', 'arXiv 2402.14740', advantages=estimators.leave_one_out
  ),
  'reinforce++': _policy(
    'returns whitened over the batch',
    'arXiv 2501.03262',
    advantages=estimators.whitened,
    compares_members=False,
    rewards_tokens=True,
  ),
  'reinforce++-baseline': _policy(
    "the group's mean as baseline, then whitened",
    'arXiv 2501.03262',
    advantages=estimators.whitened_baseline,
  ),
  'grpo-passk': _policy(
    'only the best of a group, by its lead',
    'arXiv 2503.19595',
    # Among rows two turns of one episode would compete.
    numbers(statistics_over='trajectories'),
    advantages=estimators.pass_at_k,
  ),
  'gigpo': _policy(
    'advantages among episodes and among equal states',
    'arXiv 2505.10978',
    numbers(gamma=0.95),
    advantages=estimators.anchored,
  ),
  'ppo': _policy(
    "a value head on the policy's trunk, GAE; KL in the loss",
    'arXiv 1707.06347',
    advantages=estimators.actor_critic,
    compares_members=False,
    value_targets=estimators.value_targets,
    rewards_tokens=True,
  ),
  'ppo-kl-reward': _policy(
    'the same with the KL taken off the rewards',
    'arXiv 1909.08593',
    numbers(kl_in='reward', kl_kind='k1'),
    advantages=estimators.actor_critic,
    compares_members=False,
    value_targets=estimators.value_targets,
    rewards_tokens=True,
  ),
  'sdar': _taught(
    'GRPO and gated self-distillation, as a loss',
    'arXiv 2605.15155',
    teachers.SDAR,
  ),
  'sdar-advantage': _taught(
    'the same gate inside the advantages',
    'ours, after arXiv 2605.15155',
    teachers.SDAR_ADVANTAGE,
  ),
  'sdar-centred': _taught(
    'SDAR with a clipped gap, gates less their mean, importance ratio',
    'ours, after arXiv 2605.15155',
    teachers.SDAR_CENTRED,
  ),
  'opsd': _taught(
    'exact, clipped divergence to the initial policy that sees skills; no reward',
    'arXiv 2601.18734',
    teachers.OPSD,
    _NO_POLICY,
  ),
  'opsd-sampled': _taught(
    'the gap as signed credit of sampled tokens; no reward',
    'arXiv 2601.18734',
    teachers.OPSD_SAMPLED,
    _NO_POLICY,
  ),
  'opsd-released': _taught(
    "SDAR's term alone, which the released code calls OPSD",
    'ZJU-REAL/SDAR@8b85c23',
    teachers.SDAR,
    _NO_POLICY,
  ),
  'grpo+opsd-released': _taught(
    'gate_beta 0: every gate is 1/2, the teacher has no effect',
    'ZJU-REAL/SDAR@8b85c23',
    teachers.UNGATED,
  ),
  'sdpg': _taught(
    'GRPO and exact reverse KL to the teacher',
    'arXiv 2606.04036',
    teachers.SDPG,
  ),
  'sdpo': _taught(
    'top-20 divergence to an averaged self that saw a sibling succeed; no reward',
    'arXiv 2601.20802',
    teachers.SDPO,
    _NO_POLICY,
  ),
  'skill-grpo': _taught(
    'GRPO with skills in training prompts, evaluated without',
    'ZJU-REAL/SDAR@8b85c23',
    None,
    sees='all',
  ),
  'skill-grpo*': _taught(
    'the same, evaluated with skills',
    'ZJU-REAL/SDAR@8b85c23',
    None,
    _SHOWN,
    sees='all',
  ),
  'rlsd': _taught(
    'the teacher redistributes the advantage over tokens, warmed down',
    'arXiv 2604.03128',
    teachers.RLSD,
  ),
  'skill-sd': _taught(
    'importance-weighted k3 to the teacher, warmed down',
    'arXiv 2604.10674',
    teachers.SKILL_SD,
  ),
  'agent-opsd': _taught(
    'turns that moved the belief in success count more',
    'arXiv 2608.05987',
    teachers.AGENT_OPSD,
  ),
  'opid': _taught(
    'the gap under hindsight added to the advantage',
    'arXiv 2606.26790',
    teachers.OPID,
  ),
  'grsd': _taught(
    'turns that what to do and to avoid agrees with count more',
    'arXiv 2607.28076',
    teachers.GRSD,
  ),
  'adrs': _taught(
    'gated log-probs of the teacher as token rewards',
    'arXiv 2608.03223',
    teachers.ADRS,
  ),
  'ucob': _taught(
    'prompts with and without skills; the better view teaches the other',
    'arXiv 2606.29502',
    teachers.UCOB,
    sees='half',
  ),
}


def find(name: str) -> Algorithm:
  """The row of this name, or the policy of one row with the teacher of another.

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
      student_sees_skills=seeing.pop() if seeing else 'none',
    )
  except ValueError as error:
    raise KeyError(f'{name!r}: {error}') from None


def markdown() -> str:
  """The table of methods, for the README."""
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
