"""The table: what its rows are, and which combinations are found."""

import dataclasses

import pytest
from algorithm_cases import MIXED, PLAIN_POLICIES, TEACHERS, hyper_of

from experiments import alfworld, arguments
from sdar_jax import config as config_lib
from sdar_jax.methods.table import ALGORITHMS, find
from sdar_jax.prompts import teacher as teacher_lib


@pytest.mark.parametrize('name', ALGORITHMS)
def test_a_row_says_what_it_is_and_is_found(name):
  row = ALGORITHMS[name]
  assert find(name) is row
  assert row.summary and row.source
  summaries = [other.summary for other in ALGORITHMS.values()]
  assert summaries.count(row.summary) == 1
  assert row.distillation is None or row.distillation.context in teacher_lib.CONTEXTS


@pytest.mark.parametrize('name', [*ALGORITHMS, *MIXED])
def test_settings_are_config_keys_and_arrive(name):
  settings = find(name).all_settings
  assert set(settings) <= set(config_lib.flatten(config_lib.default('alfworld')))
  config = alfworld.get_config(f'model=tiny,algo={name}')
  config_lib.validate(config)
  values = config_lib.flatten(config)
  assert values['algorithm.name'] == name
  own = {**settings, **arguments.tiny_settings(name)}
  assert {key: values[key] for key in own} == own


def test_any_plain_policy_is_found_with_any_teacher():
  for policy in PLAIN_POLICIES:
    for teacher in TEACHERS:
      if f'{policy}+{teacher}' not in ALGORITHMS:
        row, base = find(f'{policy}+{teacher}'), ALGORITHMS[policy]
        seeing = ALGORITHMS[teacher].student_sees_skills
        assert row == dataclasses.replace(
          base,
          summary=f'{base.summary}; {ALGORITHMS[teacher].summary}',
          source=f'{base.source}; {ALGORITHMS[teacher].source}',
          distillation=ALGORITHMS[teacher].distillation,
          teacher_settings=ALGORITHMS[teacher].teacher_settings,
          student_sees_skills=seeing,
        )


def test_a_combination_takes_numbers_from_both_sides():
  assert find('gigpo+sdar').all_settings == {
    'algorithm.gamma': 0.95,
    'algorithm.step_weight': 1.0,
    'algorithm.distill_coef': 0.01,
    'algorithm.gate': 'gap',
    'algorithm.gate_beta': 5.0,
  }
  both = find('reinforce++-baseline+rlsd')
  assert both.advantages is ALGORITHMS['reinforce++-baseline'].advantages
  assert both.all_settings == {
    'algorithm.credit_mix': 0.5,
    'algorithm.credit_clip': 0.2,
    'algorithm.warmdown_steps': 100,
  }
  assert hyper_of('opsd').policy_coef == 0
  assert hyper_of('grpo+opsd').policy_coef == 1
  assert hyper_of('grpo+opsd').divergence == 'forward_kl'
  assert hyper_of('grpo+opsd-released').gate_beta == 0  # A row of its own.
  assert hyper_of('opsd-released').gate_beta == 5


@pytest.mark.parametrize(
  ('name', 'numbers'),
  [
    ('sdar', {'distill_coef': 0.01, 'gate_beta': 5.0, 'gap_clip': 0.0}),
    ('opsd', {'distill_coef': 1.0, 'token_clip': 0.05, 'teacher_weights': 'initial'}),
    ('opsd-sampled', {'distill_coef': 1.0, 'gap_clip': 5.0, 'policy_coef': 0.0}),
    ('sdpg', {'distill_coef': 0.01, 'divergence': 'reverse_kl', 'topk': 0}),
    ('sdpo', {'distill_coef': 1.0, 'topk': 20, 'teacher_weights': 'ema'}),
    ('rlsd', {'credit_mix': 0.5, 'credit_clip': 0.2, 'warmdown_steps': 100}),
    ('skill-sd', {'distill_coef': 0.001, 'warmdown_steps': 100}),
    ('agent-opsd', {'credit_mix': 0.5, 'credit_clip': 0.2, 'warmdown_steps': 0}),
    ('opid', {'gap_coef': 0.001, 'gap_clip': 0.0}),
    ('grsd', {'credit_mix': 0.5, 'signal_clip': 3.0}),
    ('adrs', {'shaping_coef': 0.05, 'gate_scale': 2.0}),
    ('ucob', {'distill_coef': 0.1, 'view_gamma': 0.95, 'action_weight': 2.0}),
  ],
)
def test_teachers_bring_their_papers_numbers(name, numbers):
  hyper = hyper_of(name)
  assert {key: getattr(hyper, key) for key in numbers} == numbers


@pytest.mark.parametrize(
  ('name', 'seeing'),
  [
    ('grpo', [False, False, False, False]),
    ('gigpo+sdar', [False, False, False, False]),
    ('skill-grpo', [True, True, True, True]),
    ('ucob', [False, True, False, True]),
    ('gigpo+ucob', [False, True, False, True]),
  ],
)
def test_whose_prompts_show_skills(name, seeing):
  assert [find(name).sees_skills(member) for member in range(4)] == seeing


@pytest.mark.parametrize(
  'name',
  [
    '',
    '+',
    'GRPO',
    'grpo+',
    '+sdar',
    'grpo+dpo',
    'dpo+sdar',
    'sdar+grpo',
    'sdar+rlsd',  # Two teachers.
    'opsd+rlsd',
    'gigpo+skill-grpo',
    'gigpo+sdar+rlsd',
  ],
)
def test_an_unknown_name_is_one_line_with_what_there_is(name):
  with pytest.raises(KeyError) as caught:
    find(name)
  (message,) = caught.value.args
  assert '\n' not in message
  assert message.startswith(f'{name!r}: must be one of ')
  listed = message.split('one of ')[1].split(', or')[0].split(', ')
  assert listed == list(ALGORITHMS)
