"""The names of all metrics, with unit and meaning, in one table. NumPy only.

Everything that a run logs is named here or it is an error. `rollout/ train/ eval/` are
functions of the seed and go to metrics.jsonl; `perf/` depends on the machine and goes
to timing.jsonl.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

# A number, or a list of numbers for a metric with one value per bin or turn.
Value = float | list[float]


class Metric(NamedTuple):
  """What a number means."""

  unit: str
  description: str


def _table(rows: Iterable[tuple[str, str, str]]) -> dict[str, Metric]:
  return {name: Metric(unit, description) for name, unit, description in rows}


# A part in braces stands for any word: {turn} for 0, 1, ...; {type} for a task type.
METRICS = _table(
  (
    ('rollout/success_rate', 'fraction', 'episodes that the world counts as solved'),
    ('rollout/return_mean', 'reward', 'undiscounted sum of rewards of an episode'),
    ('rollout/turns_mean', 'turns', 'length of an episode'),
    ('rollout/valid_action_rate', 'fraction', 'turns that obey the action format'),
    (
      'rollout/admissible_action_rate',
      'fraction',
      'turns whose action is in the admissible list',
    ),
    ('rollout/truncated_rate', 'fraction', 'responses cut at max_response_tokens'),
    (
      'rollout/zero_variance_groups',
      'fraction',
      'groups whose returns are all equal: they carry no policy gradient',
    ),
    ('rollout/faults', 'episodes', 'environment errors and timeouts; not trained on'),
    ('rollout/prompt_tokens_mean', 'tokens', 'length of a prompt'),
    ('rollout/response_tokens_mean', 'tokens', 'length of a response'),
    ('rollout/token_zero_rate', 'fraction', 'sampled tokens with id 0: broken logits'),
    ('rollout/rows', 'rows', 'turns played'),
    ('train/loss', 'nats', 'the whole objective'),
    ('train/policy_loss', 'nats', 'clipped surrogate'),
    ('train/distill_loss', 'nats', 'gated distillation term before distill_coef'),
    ('train/kl_loss', 'nats', 'KL term before kl_coef, of the kind in kl_kind'),
    ('train/entropy', 'nats', 'entropy of the policy per token'),
    ('train/kl_ref', 'nats', 'k3 estimate of KL(policy || initial policy)'),
    ('train/kl_old', 'nats', 'k3 estimate of KL(pre-update policy || policy)'),
    ('train/ratio_mean', '1', 'probability ratio policy / pre-update policy'),
    ('train/clip_low_rate', 'fraction', 'tokens clipped at 1 - clip_low'),
    ('train/clip_high_rate', 'fraction', 'tokens clipped at 1 + clip_high'),
    ('train/dual_clip_rate', 'fraction', 'tokens clipped at dual_clip'),
    ('train/gate_mean', 'fraction', 'gate of the distillation term'),
    (
      'train/gate_histogram',
      'fraction',
      'tokens with the gate in each of ten equal bins of (0, 1)',
    ),
    ('train/gap_mean', 'nats', 'teacher minus policy log-prob of a token'),
    ('train/gap_abs_mean', 'nats', 'size of that gap'),
    ('train/gap_positive_rate', 'fraction', 'tokens that the teacher finds likelier'),
    (
      'train/gap_turn_{turn}',
      'nats',
      'gap before the update, by turn; the last also holds all later turns',
    ),
    ('train/distill_weight_mean', '1', '|distill_coef * gate| of a token'),
    ('train/advantage_abs_mean', '1', '|advantage| of a token'),
    ('train/teacher_skills_mean', 'skills', 'skills that a teacher prompt shows'),
    ('train/teacher_skill_tokens_mean', 'tokens', 'length of those skills'),
    ('train/teacher_skill_tokens_min', 'tokens', 'the shortest; 0 would be an error'),
    (
      'train/sampler_mismatch_mean',
      'nats',
      '|sampler minus scorer log-prob| of a token; alarming above 0.05',
    ),
    ('train/sampler_mismatch_max', 'nats', 'the largest of them'),
    ('train/grad_norm', '1', 'global norm of the gradient before clipping'),
    ('train/learning_rate', '1', 'step size of AdamW'),
    ('train/updates', 'updates', 'optimizer updates in this step'),
    ('train/skipped_updates', 'updates', 'of those, left out because not finite'),
    ('train/tokens', 'tokens', 'response tokens trained on'),
    ('train/nll', 'nats', 'supervised: negative log-likelihood of a response token'),
    ('eval/success_rate', 'fraction', 'episodes of the panel that were solved'),
    ('eval/success_low', 'fraction', 'lower end of its Wilson 95 % interval'),
    ('eval/success_high', 'fraction', 'upper end of its Wilson 95 % interval'),
    ('eval/success_rate/{type}', 'fraction', 'the same for one task type'),
    ('eval/n', 'episodes', 'episodes that were played to an end'),
    ('eval/faults', 'episodes', 'environment errors and timeouts; not in n'),
    ('eval/turns_mean', 'turns', 'length of an episode'),
    ('eval/valid_action_rate', 'fraction', 'turns that obey the action format'),
    (
      'eval/admissible_action_rate',
      'fraction',
      'turns whose action is in the admissible list',
    ),
    ('eval/truncated_rate', 'fraction', 'responses cut at max_response_tokens'),
  )
)

TIMINGS = _table(
  (
    ('perf/step_seconds', 's', 'one whole step'),
    ('perf/rollout_seconds', 's', 'playing the episodes'),
    ('perf/score_seconds', 's', 'old, initial and teacher log-probs'),
    ('perf/update_seconds', 's', 'optimizer updates'),
    ('perf/eval_seconds', 's', 'evaluation, in steps that evaluate'),
    ('perf/checkpoint_seconds', 's', 'saving, in steps that save'),
    ('perf/decode_tokens_per_second', 'tokens/s', 'sampled tokens over rollout time'),
    (
      'perf/train_tokens_per_second',
      'tokens/s',
      'prompt and response tokens over scoring and update time',
    ),
    ('perf/checkpoint_failures', 'saves', 'saves that failed in this run so far'),
    ('perf/compilations', 'programs', 'XLA compilations in this run so far'),
    ('perf/host_memory_bytes', 'bytes', 'peak resident memory of the process'),
    ('perf/device_memory_bytes', 'bytes', 'peak memory in use on one device'),
  )
)


def find(name: str, table: Mapping[str, Metric] = METRICS) -> Metric:
  """The table's entry for a metric.

  Raises:
    ValueError: the table has none.
  """
  for known, metric in table.items():
    pattern = re.sub(r'\\\{\w+\\\}', r'[^/]+', re.escape(known))
    if re.fullmatch(pattern, name):
      return metric
  raise ValueError(f'metric {name!r} is not in the tables of sdar_jax/metrics.py')


def means(parts: Iterable[Mapping[str, tuple[Any, Any]]]) -> dict[str, Value]:
  """Means over everything that the (sum, count) pairs were summed over.

  mean = sum of sums / sum of counts, in float64

  Args:
    parts: one mapping per minibatch, name -> (sum, count), each a number or a [K] array
      of any kind that NumPy takes. A name may be absent from some parts.

  Returns:
    name -> a number, or K of them; NaN where the count is 0.
  """
  totals: dict[str, list[np.ndarray]] = {}
  for part in parts:
    for name, pair in part.items():
      total = totals.setdefault(name, [np.zeros(()), np.zeros(())])
      for i, value in enumerate(pair):
        total[i] = total[i] + np.asarray(value, np.float64)
  out = {}
  for name, (value, count) in totals.items():
    value, count = np.broadcast_arrays(value, count)
    filled = np.full(value.shape, np.nan)
    out[name] = np.divide(value, count, out=filled, where=count != 0).tolist()
  return out


def markdown() -> str:
  """Both tables as one Markdown table, for the README."""
  lines = ['| metric | unit | meaning |', '|---|---|---|']
  for name, metric in {**METRICS, **TIMINGS}.items():
    meaning = metric.description.replace('|', r'\|')
    lines.append(f'| `{name}` | {metric.unit} | {meaning} |')
  return '\n'.join(lines) + '\n'
