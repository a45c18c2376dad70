"""Answers and their format where templates open or close the thought themselves."""

import itertools
import json

import numpy as np
import pytest
from shared import loading_once, shared_path

from experiments.tiny import tokenizer as tiny
from sdar_jax import build
from sdar_jax import config as config_lib
from sdar_jax.envs import base, worlds
from sdar_jax.envs.worlds import make
from sdar_jax.prompts import chat, tags
from sdar_jax.rollout import episodes

HEAD = tiny.TEMPLATE.partition('{%- if add_generation_prompt %}')[0]
# What the generation prompt says after the speaker's name.
OPENINGS = {
  'plain': '',
  'opened': '<think>\\n',  # Qwen3-*-Thinking-2507.
  'opened at once': '<think>',
  'emptied': '<think>\\n\\n</think>\\n\\n',  # Qwen3 with thinking off.
  'begun': '<think>\\nLet me see. ',
}
WORLDS = ('alfworld', 'webshop', 'search_qa')


def _write(folder, opening, special=()):
  """A tokenizer whose template opens responses so; `special` tokens leave no text."""
  tiny.save(tiny.train(['go to desk 1 click search answer paris any text']), folder)
  file = folder / 'tokenizer.json'
  record = json.loads(file.read_text())
  for token in record['added_tokens']:
    token['special'] |= token['content'] in special
  file.write_text(json.dumps(record))
  file = folder / 'tokenizer_config.json'
  record = json.loads(file.read_text())
  start = f"{{{{- '<|im_start|>assistant\\n{opening}' }}}}"
  record['chat_template'] = (
    f'{HEAD}{{%- if add_generation_prompt %}}{start}{{%- endif %}}'
  )
  file.write_text(json.dumps(record))
  return folder


@pytest.fixture(scope='module')
def chats(tmp_path_factory):
  root = tmp_path_factory.mktemp('chats')
  tag_tokens = ('<think>', '</think>', '<action>', '</action>')
  made = {}
  for name, special in itertools.product(OPENINGS, (False, True)):
    folder = root / f'{name} {special}'
    folder.mkdir()
    _write(folder, OPENINGS[name], tag_tokens if special else ())
    made[name, special] = chat.Chat(folder)
  return made


def _action(world):
  task = world.tasks('train')[0]
  observation = world.make_env().reset(task)
  if world.name == 'search_qa':
    return '<answer>paris</answer>', observation
  return observation.admissible[0].replace('<your query>', 'desk'), observation


def _parse(world, chat_, ids, observation):
  opened = tags.unclosed(chat_.opening)
  return episodes.parse(world, opened, chat_.decode(ids), observation)


@pytest.mark.parametrize('parser', ('reference', 'strict'))
@pytest.mark.parametrize('name', WORLDS)
def test_well_formed_answers_are_valid_after_any_opening(chats, name, parser):
  world = make(name, {'parser': parser})
  action, observation = _action(world)
  body = world.response('any text', action).partition('<think>')[2]
  answer = body.partition('</think>')[2]
  for (opening, _), chat_ in chats.items():
    opened = opening not in ('plain', 'emptied')
    forms = {  # Whether the response is well formed, alone or after what is open.
      f'<think>{body}': True,
      body: opened,
      answer: False,  # Also where the template has closed an empty thought itself.
      f'any text {answer}': False,
      'any text': False,
      '': False,
      body.replace('</think>', ''): False,
    }
    for text, valid in forms.items():
      parsed = _parse(world, chat_, chat_.encode_text(text), observation)
      if parser == 'reference' and name == 'search_qa' and answer.strip() in text:
        valid = True  # That parser asks for no thought.
      assert parsed.valid == valid, (opening, text)
      if valid:
        assert parsed.action.split() == action.split()


@pytest.mark.parametrize('name', WORLDS)
def test_demonstrations_go_on_where_the_template_stops(chats, name):
  world = make(name, {'parser': 'strict'})
  action, observation = _action(world)
  text = world.response('any text', action)
  for (opening, _), chat_ in chats.items():
    ids = chat_.encode_response(text)
    shown = chat_.decode(chat_.render('x'))
    assert shown.endswith(chat_.opening)
    assert _parse(world, chat_, ids, observation).valid, opening
    assert chat_.decode(ids).count('<think>') == (opening in ('plain', 'emptied'))
    assert ids[-1] in chat_.stop_ids


def test_special_tags_are_text_and_tokens(chats):
  text = '<think>any</think><action>go to desk 1</action>'
  for (opening, special), chat_ in chats.items():
    ids = chat_.encode_response(text)
    same = chats[opening, not special].encode_response(text)
    np.testing.assert_array_equal(ids, same)
    assert text.endswith(chat_.decode(ids)) and '</action>' in chat_.decode(ids)
    assert chat_.decode([*ids, *chat_.stop_ids]) == chat_.decode(ids)


def test_what_is_played_of_a_malformed_answer_is_the_models_own(chats):
  """The fallback is the end of the response, never the template's words."""
  world = make('alfworld', {'parser': 'reference'})
  for chat_ in chats.values():
    parsed = _parse(world, chat_, chat_.encode_text('go'), base.Observation('', ()))
    assert parsed == base.ParsedAction('go', False)


def test_real_templates():
  qwen3 = shared_path('tokenizers/qwen3')
  with loading_once():
    assert chat.Chat(qwen3).opening == '<think>\n\n</think>\n\n'
    assert chat.Chat(qwen3, enable_thinking=True).opening == ''
  assert chat.Chat(shared_path('tokenizers/qwen2.5')).opening == ''


@pytest.mark.parametrize(
  'tail, controls, want',
  [
    ('<|e|>\n<|b|>assistant\n<think>\n', ('<|e|>', '<|b|>'), '<think>\n'),
    ('<|User|>x<|Assistant|><think>\n', ('<|User|>', '<|Assistant|>'), '<think>\n'),
    ('<|end|>assistant<|end|>\n\n', ('<|end|>',), ''),
    ('<|im_start|>assistant\n', ('<|im_start|>',), ''),
    ('<|im_start|>assistant', ('<|im_start|>',), ''),
    ('<|im_start|>assistant\n{"thought": "', ('<|im_start|>',), '{"thought": "'),
    ('', ('<|im_start|>',), ''),
  ],
)
def test_openings(tail, controls, want):
  assert tags.opening(tail, controls) == want


def test_pairs():
  tokens = ('<think>', '</think>', '<s>', '</s>', '<pad>', '<|a|>', '</tool_call>')
  assert tags.paired(tokens) == {'<think>', '</think>'}
  assert tags.unclosed('<a>x</a><b>') == '<b>'
  assert tags.unclosed('<think>\n\n</think>\n\n') == tags.unclosed('a < b') == ''


def test_a_tokenizer_that_cannot_spell_the_format_is_refused(tmp_path):
  folder = _write(tmp_path, '')
  file = folder / 'tokenizer.json'
  record = json.loads(file.read_text())
  record['normalizer'] = {'type': 'Replace', 'pattern': {'String': '<'}, 'content': '('}
  kept = [t for t in record['added_tokens'] if 'action' not in t['content']]
  record['added_tokens'] = kept
  file.write_text(json.dumps(record))
  config = config_lib.default('alfworld')
  config.model.path = str(folder)
  for style in ('paper', 'compact'):
    world = worlds.make('alfworld', {'prompt_style': style})
    with pytest.raises(config_lib.ConfigError, match='cannot spell <action>') as error:
      build.make_chat(config, world)
    assert '\n' not in str(error.value)


def test_where_the_template_closed_the_thought_all_is_action(chats):
  """Up to where a response is thought, which an action's own weight needs."""
  for (opening, _), chat_ in chats.items():
    for text in ('any text</think><action>go', '<action>go'):
      ids = chat_.encode_text(text)
      end = chat_.thought_end(ids, chat_.decode(ids))
      if '</think>' in text:
        assert chat_.decode(ids[:end]).endswith('</think>')
      else:
        assert end == (0 if opening == 'emptied' else len(ids))
