"""The world of messages in docs/python.md: cut out of the page, it is played."""

import pathlib
import re
import sys

import pytest

from sdar_jax.envs import worlds
from sdar_jax.envs.pool import pool

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.fixture
def name(tmp_path, monkeypatch):
  """The listing as a module of its own."""
  listings = re.findall(
    r'^```python\n(.*?)^```$', (ROOT / 'docs/python.md').read_text(), re.M | re.S
  )
  (listing,) = [text for text in listings if 'class SumWorld' in text]
  (tmp_path / 'listed_sums.py').write_text(listing)
  monkeypatch.syspath_prepend(tmp_path)
  yield 'listed_sums:SumWorld'
  sys.modules.pop('listed_sums', None)


def test_it_is_a_world_that_calls_and_answers(name):
  world = worlds.make(name, {})
  assert [len(world.tasks(split)) for split in world.splits] == [1000, 100]
  with pool.make(world, workers=0, deadline=60, retries=0) as environments:
    seen = environments.reset({0: world.tasks('valid_seen')[99]})[0]
    said = environments.step({0: world.parse(CALL, seen).action})[0]
    assert (said.observation.text, said.done) == ('3', False)
    said = environments.step({0: world.parse('It is 3.', said.observation).action})[0]
    assert (said.reward, said.done, said.success) == (1.0, True, True)
