"""Anchor states: turns of a group's episodes with one observation.

Numbers for texts, as `baselines.gigpo` and `two_views` compare them.
"""

import difflib
import itertools
from collections.abc import Sequence

import numpy as np


def anchor_ids(
  observations: Sequence[str],
  group_ids: np.ndarray,
  *,
  similarity: float | None = None,
) -> np.ndarray:
  """Numbers the anchor states.

    aᵢ = aⱼ iff gᵢ = gⱼ and oᵢ = oⱼ

  or, with `similarity` s, greedy first fit: in row order, a row joins the first anchor
  of its group whose founding observation o has ratio(o_i, o) >= s, else founds its own.
  The ratio is difflib's Ratcliff-Obershelp 2M / (len + len).

  Args:
    observations: [B] strings: o, the environment's text without history.
    group_ids: [B] int: g.
    similarity: s in (0, 1]; None asks for equality (and costs one hash a row).

  Returns:
    [B] int, numbered from 0 in order of first appearance over the whole batch.

  Raises:
    ValueError: lengths differ, or `similarity` is out of range.

  Source: GiGPO (arXiv 2505.10978) eq. 6; build_step_group in gigpo/core_gigpo.py of
    ZJU-REAL/SDAR@8b85c23 (threshold 0.95 by default, 0.9 for Search).
  """
  if len(observations) != len(group_ids):
    raise ValueError(
      f'{len(observations)} observations for {len(group_ids)} group_ids: '
      'expected one per row'
    )
  if similarity is not None and not 0 < similarity <= 1:
    raise ValueError(f'similarity={similarity}: expected None or a number in (0, 1]')
  known, founders, numbers = {}, {}, itertools.count()
  ids = np.empty(len(observations), np.int64)
  for row, (group, observation) in enumerate(zip(group_ids.tolist(), observations)):
    key = (group, observation)
    if key not in known:
      anchors = founders.setdefault(group, [])
      found = None
      if similarity is not None:
        found = _first_similar(observation, anchors, similarity)
      if found is None:
        found = next(numbers)
        anchors.append((found, difflib.SequenceMatcher(None, '', observation)))
      known[key] = found
    ids[row] = known[key]
  return ids


def _first_similar(observation, anchors, similarity) -> int | None:
  """Finds the first anchor with a similar founder."""
  for number, matcher in anchors:
    matcher.set_seq1(observation)
    # Two upper bounds of the ratio spare most of the work; the decision is the same.
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    if all(bound() >= similarity for bound in bounds):
      return number
  return None
