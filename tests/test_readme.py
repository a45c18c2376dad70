"""What README quotes from the code is what the code says."""

import inspect
import pathlib
import re

import pytest

from benchmarks import core_path
from sdar_jax import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()


def test_the_training_step_is_quoted_word_for_word():
  assert f'```python\n{inspect.getsource(train.loop)}```' in README


def test_the_map_of_files_is_complete_and_true():
  table = README.partition('## Map of files')[2].partition('##')[0]
  named = re.findall(r'`([\w/]+(?:\.py|/))`', table)
  for name in named:
    assert any((ROOT / base / name).exists() for base in ('sdar_jax', '.')), name
  folders = [name for name in named if name.endswith('/')]
  for file in (ROOT / 'sdar_jax').rglob('*.py'):
    path = file.relative_to(ROOT / 'sdar_jax').as_posix()
    known = path in named or any(path.startswith(folder) for folder in folders)
    assert known or path == '__init__.py', path


def test_the_size_that_is_said_is_about_the_true_one():
  said = re.search(r'is (\d+) files, ([\d,]+)\s+lines, ([\d,]+) of them code', README)
  numbers = [int(text.replace(',', '')) for text in said.groups()]
  assert numbers == pytest.approx(core_path.count(core_path.files()), rel=0.05)
