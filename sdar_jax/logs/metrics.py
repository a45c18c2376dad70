"""Defines all metrics: name, unit and meaning. NumPy only.

Everything that a run logs is named here or it is an error. `rollout/` and `train/`
are functions of the seed and go to metrics.jsonl; `perf/` depends on the machine and
goes to timing.jsonl. Evaluation reports are files of their own, eval/<step>.json.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

# A number, or a list of numbers for a metric with one value per bin or turn.
Value = float | list[float]


class Metric(NamedTuple):
  """Describes a number."""

  unit: str
  description: str


def _table(rows: Iterable[tuple[str, str, str]]) -> dict[str, Metric]:
  return {name: Metric(unit, description) for name, unit, description in rows}


# What is said of episodes is of all that were played without a fault, those of groups
# that a refill replaced too; what is said of tokens is the mean over all response
# tokens of the rows that were trained on. A mean over nothing is null.
METRICS = _table(
  (
    ('rollout/success_rate', 'fraction', 'episodes that the world counts as solved'),
    ('rollout/return_mean', 'reward', 'undiscounted sum of rewards of an episode'),
    ('rollout/turns_mean', 'turns', 'length of an episode'),
    ('rollout/valid_action_rate', 'fraction', 'turns that obey the action format'),
    (
      'rollout/admissible_action_rate',
      'fraction',
      'turns whose action can do something there',
    ),
    ('rollout/truncated_rate', 'fraction', 'responses cut at max_response_tokens'),
    (
      'rollout/repeated_action_rate',
      'fraction',
      'turns after the first with the action of the turn before',
    ),
    (
      'rollout/repeated_text_rate',
      'fraction',
      '4-grams of a response that it had before, mean over responses',
    ),
    (
      'rollout/history_dropped',
      'fraction',
      'turns whose prompt had no room for the oldest exchanges',
    ),
    (
      'rollout/observations_cut',
      'fraction',
      'turns whose prompt shows the observation shortened',
    ),
    (
      'rollout/prompt_too_long',
      'episodes',
      'ended because no prompt of the next turn fits; unsolved, and trained on',
    ),
    (
      'rollout/zero_variance_groups',
      'fraction',
      'groups whose turns all score alike (return less invalid_penalty): nothing to'
      ' compare',
    ),
    ('rollout/groups_played', 'groups', 'groups played, refills included'),
    ('rollout/groups_kept', 'groups', 'of those, the ones trained on'),
    ('rollout/faults', 'episodes', 'environment errors and timeouts; not trained on'),
    ('rollout/prompt_tokens_mean', 'tokens', 'length of a prompt'),
    ('rollout/response_tokens_mean', 'tokens', 'length of a response'),
    ('rollout/sampled_tokens', 'tokens', 'response tokens of all turns played'),
    ('rollout/token_zero_rate', 'fraction', 'sampled tokens with id 0: broken logits'),
    ('rollout/rows', 'rows', 'turns played'),
    ('train/rows', 'rows', 'turns trained on'),
    ('train/loss', '1', 'the whole objective'),
    ('train/policy_loss', '1', 'clipped surrogate before policy_coef'),
    ('train/distill_loss', 'nats', 'distillation term before distill_coef'),
    ('train/value_loss', 'reward²', 'value loss before value_coef'),
    (
      'train/taught',
      'fraction',
      'tokens that the method lets the teacher act on: of rows where it was shown'
      " something ('none': the plain prompt); a warm-down does not lower it",
    ),
    (
      'train/kl',
      'nats',
      'KL to the initial policy before kl_coef, as kl_kind says, if it is in the loss',
    ),
    ('train/entropy', 'nats', 'entropy of the policy'),
    ('train/approx_kl', 'nats', 'k1 estimate of KL(pre-update policy || policy)'),
    (
      'train/ratio',
      '1',
      'probability ratio policy / pre-update policy; with GSPO that of the response',
    ),
    ('train/log_ratio_abs', 'nats', '|log ratio| of a token'),
    (
      'train/log_ratio_clamped',
      'fraction',
      'tokens whose |log ratio| exceeds 20 nats; with GSPO whose response exceeds 10',
    ),
    (
      'train/clip_low',
      'fraction',
      'tokens whose gradient the clip at 1 - clip_low stops',
    ),
    ('train/clip_high', 'fraction', 'the same at 1 + clip_high'),
    ('train/clip_dual', 'fraction', 'the same at dual_clip; GSPO has none'),
    ('train/gate', 'fraction', 'gate of a taught token, before centring'),
    ('train/gate_open', 'fraction', 'taught tokens whose gate is above 0.6'),
    ('train/gate_shut', 'fraction', 'taught tokens whose gate is below 0.4'),
    (
      'train/gate_histogram',
      'fraction',
      'taught tokens by gate, in equal bins of (0, 1)',
    ),
    ('train/gap', 'nats', 'teacher minus policy log-prob of a taught token'),
    ('train/gap_positive', 'fraction', 'taught tokens that the teacher finds likelier'),
    (
      'train/gap_by_turn',
      'nats',
      'gap by turn, up to max_turns; the 50th holds all later ones too',
    ),
    ('train/distill_abs', '1', '|distill_coef * gate| of a taught token'),
    (
      'train/advantage_abs',
      '1',
      "|advantage| before distill_form 'advantage' adds to it",
    ),
    (
      'train/teacher_skills_mean',
      'skills',
      'skills, or other lessons, that a teacher prompt shows; a plain one counts 0',
    ),
    ('train/teacher_skill_tokens_mean', 'tokens', 'length of what it shows'),
    (
      'train/teacher_skill_tokens_min',
      'tokens',
      'the shortest; 0: some teacher was shown nothing',
    ),
    (
      'train/sampler_mismatch_mean',
      'nats',
      '|sampler minus scorer log-prob| of a token; alarming above 0.05',
    ),
    ('train/sampler_mismatch_max', 'nats', 'the largest of them'),
    ('train/grad_norm', '1', 'global norm of the gradient before clipping'),
    ('train/learning_rate', '1', 'step size of AdamW'),
    ('train/updates', 'updates', 'optimizer updates in this step'),
    (
      'train/updates_skipped',
      'fraction',
      'of those, left out: loss, gradient, weights or moments would not be finite',
    ),
  )
)

TIMINGS = _table(
  (
    ('perf/step_seconds', 's', 'one whole step'),
    (
      'perf/cpu_seconds',
      's',
      'of that, on processors, added up: all threads, without worker processes',
    ),
    ('perf/rollout_seconds', 's', 'playing the episodes'),
    ('perf/batch_seconds', 's', 'rows, teacher prompts, arrays'),
    ('perf/score_seconds', 's', 'old, initial and teacher log-probs'),
    ('perf/update_seconds', 's', 'optimizer updates'),
    ('perf/eval_seconds', 's', 'evaluation, in steps that begin with one'),
    (
      'perf/compile_seconds',
      's',
      'compiling, or reading what was compiled before, side by side added up; in the'
      ' first step since the start',
    ),
    (
      'perf/failed_saves',
      'saves',
      'that the disk refused since the run was started',
    ),
    ('perf/env_faults', 'faults', 'of environments, also those that a retry mended'),
    ('perf/decode_tokens_per_second', 'tokens/s', 'sampled tokens over rollout time'),
    ('perf/cached_share', 'fraction', 'prompt tokens that the sampler had computed'),
    (
      'perf/prefill_padding',
      'fraction',
      'positions computed for prompts that held no token',
    ),
    ('perf/occupancy', 'fraction', 'decoded tokens over steps times slots'),
    (
      'perf/train_tokens_per_second',
      'tokens/s',
      'prompt and response tokens over scoring and update time',
    ),
  )
)


def find(name: str, table: Mapping[str, Metric] = METRICS) -> Metric:
  """Looks up a metric by name.

  Raises:
    ValueError: the table has none.
  """
  if name not in table:
    raise ValueError(
      f'metric {name!r} is not in the tables of sdar_jax/logs/metrics.py'
    )
  return table[name]


def means(parts: Iterable[Mapping[str, tuple[Any, Any]]]) -> dict[str, Value]:
  """Computes means from (sum, count) pairs.

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
  """Formats both tables as one in Markdown, for docs/metrics.md."""
  lines = ['| metric | unit | meaning |', '|---|---|---|']
  for name, metric in {**METRICS, **TIMINGS}.items():
    meaning = metric.description.replace('|', r'\|')
    lines.append(f'| `{name}` | {metric.unit} | {meaning} |')
  return '\n'.join(lines) + '\n'
