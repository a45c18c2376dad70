"""The shipped sizes of rows fit what is played: little of a step is padding."""

import numpy as np
import pytest
import shared

from benchmarks import padding
from experiments.sources import WORLDS


def test_the_share_is_counted_by_microbatches():
  # Two microbatches of two: padded to 8 and 16; the fifth row is of none.
  rows = np.array([9, 3, 5, 16, 20])
  assert padding.share(rows, (8, 16, 32), 2) == (3 + 5 + 9 + 16) / (16 + 32)


@pytest.mark.parametrize('world', WORLDS)
def test_most_tokens_of_real_prompts_are_real(world):
  tokenizer = shared.shared_path('tokenizers/qwen2.5')
  rows = padding.lengths(world, tokenizer, 600, 110)
  c = WORLDS[world].get_config('model=qwen2.5-3b').train
  own, teacher = c.length_buckets, c.teacher_buckets
  assert padding.share(rows[:, 0], own, c.microbatch_rows) > 0.88
  assert padding.share(rows[:, 1], teacher, c.microbatch_rows) > 0.9
