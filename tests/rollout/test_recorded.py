"""Demonstrations in a file: what is read, what is refused, what ids come of it."""

import itertools
import json

import numpy as np
import pytest

from sdar_jax.rollout import recorded
from sdar_jax.rollout.recorded import DemonstrationError, RecordedTurn

TURNS = [RecordedTurn('ab', 'c'), RecordedTurn('d', 'ef')]
GOOD = {
  'schema': 1,
  'world': 'w',
  'task_id': 't',
  'turns': [{'prompt': 'a', 'response': 'b'}],
}


def ids(text):
  return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def imitated(episodes, follow=None, most=9, seed=0):
  return recorded.imitate(
    episodes,
    render=lambda text: ids(f'<{text}>'),
    follow=follow,
    encode=lambda text: ids(f'{text}.'),
    most=most,
    seed=seed,
  )


def test_what_is_written_is_read(tmp_path):
  path = tmp_path / 'demos.jsonl'
  odd = [RecordedTurn('line\u2028one\nto "quote" \x1b[31m', 'é', False)]
  path.write_text(recorded.line('w', 't', TURNS) + recorded.line('w', 'u', odd))
  assert recorded.read(path, 'w') == [TURNS, odd]


def test_each_pass_has_every_turn_once_in_an_order_of_its_own():
  episodes = [[RecordedTurn(str(i), 'x'), RecordedTurn(f'{i}b', 'y')] for i in range(9)]
  drawn = list(itertools.islice(imitated(episodes), 36))
  said = [bytes(d.prompt_ids.tolist()).decode() for d in drawn]
  first, second = said[:18], said[18:]
  assert sorted(first) == sorted(second) and first != second and len({*first}) == 18
  assert all(first[i + 1] == first[i][:-1] + 'b>' for i in range(0, 18, 2))
  again = list(itertools.islice(imitated(episodes), 36))
  assert [d.prompt_ids.tolist() for d in again] == [
    d.prompt_ids.tolist() for d in drawn
  ]
  assert bytes(drawn[0].response_ids.tolist()) == b'x.'


def test_a_conversation_goes_on_behind_its_answer():
  episode = [TURNS[0], RecordedTurn('d', 'ef', goes_on=True), RecordedTurn('g', 'h')]
  follow = lambda answer, text: ids(f'({len(answer)}{text})')
  got = list(itertools.islice(imitated([episode], follow, most=11), 3))
  said = [bytes(d.prompt_ids.tolist()) for d in got]
  assert said == [b'<ab>', b'<ab>c.(2d)', b'<g>']  # The last begins anew.
  with pytest.raises(DemonstrationError, match=r'line 1, turn 2 goes on'):
    list(itertools.islice(imitated([episode]), 3))
  with pytest.raises(DemonstrationError, match=r'turn 2: a prompt of 10 tokens'):
    list(itertools.islice(imitated([episode], follow, most=9), 3))


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('', 'line 1: Expecting value'),
    ('{', 'line 1'),
    ('[1]', 'a list: must be an object'),
    ('{"schema": 2}', 'schema 2: this version reads 1'),
    ('{"world": "w"}', "there is no 'schema'"),
    (json.dumps({**GOOD, 'world': 'v'}), "of world 'v': config.world.name is 'w'"),
    (json.dumps({**GOOD, 'turns': []}), 'must have turns'),
    (json.dumps({**GOOD, 'turns': 3}), 'not iterable'),
    (json.dumps({**GOOD, 'turns': [{'prompt': 'a'}]}), 'response'),
    (json.dumps({**GOOD, 'turns': [{'prompt': 'a', 'response': ''}]}), 'not empty'),
    (json.dumps({**GOOD, 'turns': [{'prompt': 1, 'response': 'b'}]}), 'must be texts'),
    (
      json.dumps({**GOOD, 'turns': [{'prompt': 'a', 'response': 'b', 'goes_on': 1}]}),
      'goes_on=1',
    ),
    (
      json.dumps(
        {**GOOD, 'turns': [{'prompt': 'a', 'response': 'b', 'goes_on': True}]}
      ),
      'goes on from no other',
    ),
    (json.dumps(GOOD) + '\n\n' + json.dumps(GOOD), 'line 2: Expecting value'),
    ('[' * 100_000, 'line 1'),
  ],
)
def test_wrong_files_are_named_with_their_line(tmp_path, text, says):
  path = tmp_path / 'demos.jsonl'
  path.write_text(text)
  with pytest.raises(DemonstrationError) as error:
    recorded.read(path, 'w')
  assert says in str(error.value) and str(path) in str(error.value)
  assert '\n' not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(DemonstrationError, match='No such file'):
    recorded.read(tmp_path / 'no.jsonl', 'w')
  (tmp_path / 'bytes').write_bytes(b'\xff')
  with pytest.raises(DemonstrationError, match='decode'):
    recorded.read(tmp_path / 'bytes', 'w')
