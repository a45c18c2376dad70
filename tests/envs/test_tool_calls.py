"""Calls of tools, strictly: whatever is no call is an error of one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdar_jax.envs.tool_calls import CLOSE, OPEN, ToolCall, ToolCallError, parse

_json = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(max_size=8),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner),
  max_leaves=5,
)


def _written(name, arguments):
  return f'{OPEN}\n{json.dumps({"name": name, "arguments": arguments})}\n{CLOSE}'


@given(
  st.lists(
    st.tuples(st.text(max_size=5), st.dictionaries(st.text(), _json)), max_size=3
  )
)
def test_what_is_written_is_read(calls):
  text = 'first' + ''.join(_written(*call) for call in calls) + ' then '
  if any(OPEN in part or CLOSE in part for call in calls for part in map(str, call)):
    return
  said, found = parse(text)
  assert said == 'first then' and found == [ToolCall(*call) for call in calls]


@pytest.mark.parametrize(
  'text, says',
  [
    (OPEN, 'do not stand in pairs'),
    (CLOSE + OPEN, 'do not stand in pairs'),
    (f'{OPEN}{OPEN}{{}}{CLOSE}', 'not JSON'),
    (f'{OPEN}{CLOSE}', 'empty'),
    (f'{OPEN}[]{CLOSE}', 'must be an object'),
    (f'{OPEN}{{"name": "add"}}{CLOSE}', 'must be name and arguments'),
    (
      f'{OPEN}{{"name": "add", "arguments": {{}}, "id": 1}}{CLOSE}',
      'must be name and arguments',
    ),
    (_written('sub', {}), "name 'sub': must be one of ['add']"),
    (_written(3, {}), "name '3'"),
    (_written('add', '{}'), "arguments of 'add' must be an object"),
    (_written('add', {}) + CLOSE, 'do not stand in pairs'),
    (f'{OPEN}{{"name": "add", "arguments": {{"a": NaN}}}}{CLOSE}', 'NaN'),
    (f'{OPEN}{_written("add", {})[11:-12]} and more{CLOSE}', 'not JSON'),
    (f'{OPEN}{"[" * 99999}{CLOSE}', 'not JSON'),
  ],
)
def test_what_is_no_call_is_one_line(text, says):
  with pytest.raises(ToolCallError) as error:
    parse(text, ['add'])
  assert says in str(error.value) and '\n' not in str(error.value)


@given(st.lists(st.sampled_from([OPEN, CLOSE, '{', '}', '"name"', ':', '\n', 'a'])))
def test_wild_text_is_calls_or_an_error(pieces):
  try:
    said, calls = parse(''.join(pieces))
  except ToolCallError:
    return
  assert OPEN not in said and not calls
