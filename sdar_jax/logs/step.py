"""Measures a training step: numbers, records and times. NumPy only."""

import collections
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sdar_jax.batching import rows as rows_lib
from sdar_jax.batching.rows import Row
from sdar_jax.logs import metrics
from sdar_jax.prompts import cuts
from sdar_jax.prompts.skills import SkillView
from sdar_jax.prompts.teacher import PLAIN
from sdar_jax.rollout.request import SamplerCounts
from sdar_jax.trajectory import Group


class Clock:
  """Times the phases of a step: `with clock('rollout'): ...`.

  Args:
    show: takes the name of a phase that begins.
    span: makes a context of that name, such as a trace's.
    compiled: tells for how many s this process has compiled.
  """

  def __init__(
    self,
    show: Callable[[str], None] = lambda phase: None,
    span: Callable[[str], Any] = contextlib.nullcontext,
    compiled: Callable[[], float] = lambda: 0.0,
  ):
    self._seconds: dict[str, float] = {}
    self._busy = 0.0  # Processor time in those phases, s.
    self._compiled, self._compiled_before = compiled, 0.0
    self._show, self._span = show, span
    self._phase, self._start, self._busy_start = '', 0.0, 0.0

  def __call__(self, phase: str) -> 'Clock':
    self._phase = phase
    return self

  def __enter__(self) -> None:
    self._show(self._phase)
    self._inside = self._span(self._phase)
    self._inside.__enter__()
    self._start, self._busy_start = time.perf_counter(), time.process_time()

  def __exit__(self, *exc_info: object) -> None:
    spent = time.perf_counter() - self._start
    self._busy += time.process_time() - self._busy_start
    self._inside.__exit__(*exc_info)
    self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + spent

  def timings(
    self,
    played: Sequence[Group],
    rows: Sequence[Row],
    *,
    env_faults: int,
    failed_saves: int,
  ) -> dict[str, float]:
    """Returns the step's `perf/` metrics and begins anew.

    Args:
      played: all groups that were played, for the speed of sampling.
      rows: those that were trained on, for the speed of learning.
      env_faults: of environments.
      failed_saves: of the checkpoints.
    """
    turns = [turn for g in played for t in g.trajectories for turn in t.turns]
    sampled = sum(len(turn.response_ids) for turn in turns)
    trained = sum(len(r.turn.prompt_ids) + len(r.turn.response_ids) for r in rows)
    seconds, self._seconds = self._seconds, {}
    busy, self._busy = self._busy, 0.0
    compiled, self._compiled_before = self._compiled_before, self._compiled()
    learning = seconds['score'] + seconds['update']
    return {
      **{f'perf/{phase}_seconds': spent for phase, spent in seconds.items()},
      'perf/step_seconds': sum(seconds.values()),
      'perf/cpu_seconds': busy,
      'perf/compile_seconds': self._compiled_before - compiled,
      'perf/decode_tokens_per_second': sampled / seconds['rollout'],
      'perf/train_tokens_per_second': trained / learning,
      'perf/env_faults': float(env_faults),
      'perf/failed_saves': float(failed_saves),
    }


def step_metrics(
  played: Sequence[Group],
  rows: Sequence[Row],
  views: Sequence[SkillView] | None,
  known: Mapping[str, np.ndarray],
  sums: Sequence[Mapping[str, Any]],
  *,
  invalid_penalty: float,
  max_turns: int,
) -> dict[str, metrics.Value]:
  """Computes a step's `rollout/` and `train/` metrics.

  Args:
    played: all groups that were played.
    rows: those that were trained on.
    views: what their teachers saw, or None.
    known: [B, R] of the rows' tokens, as `mismatch` reads them.
    sums: the (sum, count) pairs of every update.
    invalid_penalty: what a malformed turn costs its row.
    max_turns: of an episode.
  """
  trained = {f'train/{name}': value for name, value in metrics.means(sums).items()}
  if 'train/gap_by_turn' in trained:
    trained['train/gap_by_turn'] = trained['train/gap_by_turn'][:max_turns]
  return {
    **rollout_metrics(played, invalid_penalty=invalid_penalty),
    'rollout/groups_kept': float(len({row.group_id for row in rows})),
    **skill_metrics(views),
    **mismatch(known),
    **trained,
    'train/rows': float(len(rows)),
    'train/updates': float(len(sums)),
  }


def rollout_metrics(
  groups: Sequence[Group], *, invalid_penalty: float
) -> dict[str, float]:
  """Measures success, returns, lengths and validity of episodes."""
  played = [t for g in groups for t in g.trajectories]
  sound = [t for t in played if not t.outcome.is_fault]
  turns = [turn for t in sound for turn in t.turns]
  whole = [g for g in groups if not any(t.outcome.is_fault for t in g.trajectories)]
  tokens = np.concatenate([np.zeros(0, np.int32), *(t.response_ids for t in turns)])
  return {
    'rollout/success_rate': _mean([t.success for t in sound]),
    'rollout/return_mean': _mean([t.episode_return for t in sound]),
    'rollout/turns_mean': _mean([len(t.turns) for t in sound]),
    'rollout/valid_action_rate': _mean([t.valid for t in turns]),
    'rollout/admissible_action_rate': _mean([t.admissible for t in turns]),
    'rollout/truncated_rate': _mean([t.stop_reason == 'length' for t in turns]),
    'rollout/repeated_action_rate': _mean(
      [now.action == before.action for t in sound for before, now in pairwise(t.turns)]
    ),
    'rollout/repeated_text_rate': _mean(
      [rate for t in turns if (rate := repetition(t.response_ids)) is not None]
    ),
    **{f'rollout/{name}': value for name, value in cuts.shares(sound).items()},
    'rollout/zero_variance_groups': _mean([_alike(g, invalid_penalty) for g in whole]),
    'rollout/groups_played': float(len(groups)),
    'rollout/faults': float(len(played) - len(sound)),
    'rollout/prompt_tokens_mean': _mean([len(t.prompt_ids) for t in turns]),
    'rollout/response_tokens_mean': _mean([len(t.response_ids) for t in turns]),
    'rollout/sampled_tokens': float(len(tokens)),
    'rollout/token_zero_rate': _mean(tokens == 0),
    'rollout/rows': float(len(turns)),
  }


def repetition(ids: np.ndarray) -> float | None:
  """Computes the share of a text's runs of four tokens that came before.

  1 - (different runs) / (runs)

  Args:
    ids: [R] token ids; with fewer than four there is no run, and None.

  Source: seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319).
  """
  ids = ids.tolist()
  runs = [*zip(ids, ids[1:], ids[2:], ids[3:])]
  return 1 - len({*runs}) / len(runs) if runs else None


def _alike(group: Group, invalid_penalty: float) -> bool:
  """Tells whether all rows of a group score alike."""
  rows = rows_lib.rows([group], invalid_penalty=invalid_penalty)
  return len({row.score for row in rows}) < 2


def sampler_shares(counts: SamplerCounts) -> dict[str, float]:
  """Tells how much of a sampler's work was new, or of use.

  `perf/` metrics: calls are cut by the mesh, and a step that is played again counts
  twice.

  Args:
    counts: of the step.
  """
  cached = counts.kept_tokens + counts.copied_tokens
  empty = counts.prefill_positions - counts.prefilled_tokens
  return {
    'perf/cached_share': _share(cached, counts.prompt_tokens),
    'perf/prefill_padding': _share(empty, counts.prefill_positions),
    'perf/occupancy': _share(counts.decoded_tokens, counts.decode_positions),
  }


def hint(
  values: Mapping[str, metrics.Value], views: Sequence[SkillView] | None
) -> str | None:
  """Explains why a step had nothing to learn from; None where it had.

  Args:
    values: its metrics.
    views: what its teachers saw, or None.
  """
  if values['rollout/valid_action_rate'] == 0:
    cut = values['rollout/truncated_rate']
    why = f'{cut:.0%} were cut at config.rollout.max_response_tokens'
    return f'no response obeyed the action format; {why}'
  if views and not any(v.skill_ids for v in views) and any(v.left_out for v in views):
    return (
      'nothing was taught: lessons exceed config.skills.token_budget, and no row had'
      ' a shorter one'
    )
  if 'train/policy_loss' in values and values['train/advantage_abs'] == 0:
    success = values['rollout/success_rate']
    return (
      'no policy gradient: the episodes of every group scored alike'
      f' ({success:.0%} succeeded)'
    )
  return None


def skill_metrics(views: Sequence[SkillView] | None) -> dict[str, float]:
  """Measures the privileged text of a step; {} without a teacher."""
  if not views:
    return {}
  shown = [sum(name != PLAIN for name in view.skill_ids) for view in views]
  return {
    'train/teacher_skills_mean': _mean(shown),
    'train/teacher_skill_tokens_mean': _mean([view.tokens for view in views]),
    'train/teacher_skill_tokens_min': float(min(view.tokens for view in views)),
  }


def skills_seen(views: Sequence[SkillView]) -> dict[str, int]:
  """Counts the rows of each skill shown, the most frequent first."""
  counts = collections.Counter(skill for view in views for skill in view.skill_ids)
  return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def skill_counts(
  views: Sequence[SkillView], own: Sequence[SkillView]
) -> dict[str, dict[str, int]]:
  """Counts the skills that teachers' and students' prompts showed."""
  seen = {'rows_per_skill': views, 'rows_per_skill_of_students': own}
  counts = {name: skills_seen(shown) for name, shown in seen.items()}
  return {name: count for name, count in counts.items() if count}


def shown_by_episode(
  rows: Sequence[Row], *views: Sequence[SkillView]
) -> list[tuple[tuple[str, ...], bool]]:
  """Lists each episode's skills, shown to whomever, and its success."""
  shown: dict[int, tuple[dict[str, None], bool]] = {}
  for row, *seen in zip(rows, *views, strict=True):
    ids, _ = shown.setdefault(row.trajectory_id, ({}, row.trajectory.success))
    for view in seen:
      ids.update(dict.fromkeys(view.skill_ids))
  return [(tuple(ids), success) for ids, success in shown.values()]


def mismatch(known: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Compares sampled and scored log-probs under the same weights.

  Args:
    known: `response_mask`, `sampler_logprobs` and `old_logprobs`, [B, R]; the latter
      two are one array where nothing was scored, and nothing is compared.
  """
  if known['old_logprobs'] is known['sampler_logprobs']:
    return {}
  gaps = known['sampler_logprobs'] - known['old_logprobs']
  gaps = np.abs(gaps[known['response_mask']])
  return {
    'train/sampler_mismatch_mean': float(np.mean(gaps)),
    'train/sampler_mismatch_max': float(np.max(gaps)),
  }


def _share(part: int, whole: int) -> float:
  return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
  return float(np.mean(values)) if len(values) else math.nan
