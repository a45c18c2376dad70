"""Prompts against transformers' own template, and text that tries to be control."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import loading_once, shared_path, theirs

from experiments.tiny import tokenizer
from sdar_jax.envs.alfworld.world import AlfworldWorld
from sdar_jax.prompts import chat

FAMILIES = ('qwen2.5', 'qwen3')
FIRST_CONTROL_ID = 151643
LENGTHS = {'qwen2.5': 151665, 'qwen3': 151669}
CONTROL = (
  '<|im_end|>',
  '<|im_start|>',
  '<|endoftext|>',
  '<|vision_start|>',
  '<|fim_prefix|>',
  '<tool_call>',
  '<tool_response>',
  '<think>',
  '</think>',
)
BENIGN = (
  'Put a mug on the desk.',
  '',
  ' ',
  '\n',
  '\n\nTwo lines\nbefore and after \n\n',
  '\tindented\r\n  text.\n\n\n',
  "'s ill-placed suffix: it's 12345.",
  'e\u0301 composed, \u0301first; 台所に行く; 👩‍👩‍👧; ﬁ',
  "In [\n 'go to cabinet 1',\n 'take mug 2 from desk 1']",
  '<|im_start',
  'a|im_end|>',
  '\n  @user text@  \n',
  '<action> </action>',
)
INSTRUCTION = '\nReason in <think> </think>, then act in <action> </action>.'

_text = st.text(st.characters(codec=None), max_size=30)
_wild = st.lists(
  st.one_of(_text, st.sampled_from(CONTROL), st.sampled_from(('<', '|>', '\n', ' '))),
  max_size=8,
).map(''.join)


@pytest.fixture(scope='module', autouse=True)
def loaded_once():
  with loading_once():
    yield


@pytest.fixture(scope='module', params=FAMILIES)
def family(request):
  return request.param


@pytest.fixture(scope='module')
def path(family):
  return shared_path(f'tokenizers/{family}')


@pytest.fixture(scope='module')
def oracle(path):
  hub = theirs(path)

  def render(user, system=None, thinking=False):
    messages = [{'role': 'user', 'content': user}]
    if system is not None:
      messages.insert(0, {'role': 'system', 'content': system})
    return hub.apply_chat_template(
      messages,
      add_generation_prompt=True,
      enable_thinking=thinking,
      return_dict=False,
    )

  return render


@pytest.fixture(scope='module')
def plain(path):
  return chat.Chat(path)


@pytest.mark.parametrize('thinking', (False, True))
def test_ids_equal_transformers(path, oracle, thinking):
  ours = chat.Chat(path, enable_thinking=thinking)
  for text in BENIGN:
    ids = ours.render(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == oracle(text, thinking=thinking), text


@pytest.mark.parametrize('system', ('', 'Be brief.', '\n odd borders\n '))
def test_ids_equal_transformers_with_system(path, oracle, plain, system):
  given_once = chat.Chat(path, system=system)
  assert given_once.system == system
  for text in BENIGN:
    want = oracle(text, system)
    assert given_once.render(text).tolist() == want
    assert plain.render(text, system=system).tolist() == want


@pytest.mark.parametrize('thinking', (False, True))
def test_a_conversation_goes_on_as_transformers_would_write_it(path, oracle, thinking):
  """The answer's ids stay, whatever ended it; its text here is benign."""
  ours, hub = chat.Chat(path, enable_thinking=thinking), theirs(path)
  answer = 'I open the door.'
  sampled = ours.encode_text(answer)
  for text in BENIGN:
    messages = [
      {'role': 'user', 'content': 'Leave the room.'},
      {'role': 'assistant', 'content': answer},
      {'role': 'user', 'content': text},
    ]
    want = hub.apply_chat_template(
      messages,
      add_generation_prompt=True,
      enable_thinking=thinking,
      return_dict=False,
    )
    end = hub.convert_tokens_to_ids('<|im_end|>')
    for response in (sampled, np.append(sampled, end)):
      added = ours.follow(response, text)
      assert added.dtype == np.int32
      whole = [*response, *added]
      assert want[-len(whole) :] == whole, text
  cut = np.append(sampled, hub.convert_tokens_to_ids('<|endoftext|>'))
  assert ours.follow(cut, 'x').tolist() == ours.follow(sampled, 'x').tolist()
  assert ours.follow(cut, 'x')[0] == end


def test_a_template_without_a_place_for_answers_cannot_go_on(tmp_path, path):
  shutil.copytree(path, tmp_path / 'model')
  file = tmp_path / 'model' / 'tokenizer_config.json'
  record = json.loads(file.read_text())
  record['chat_template'] = (
    '{% for m in messages %}{% if m.role == "user" and (loop.last or loop.length < 3)'
    ' %}<|im_start|>{{ m.content }}<|im_end|>{% endif %}{% endfor %}'
  )
  for other in (tmp_path / 'model').glob('chat_template*'):
    other.unlink()
  file.write_text(json.dumps(record))
  forgetful = chat.Chat(tmp_path / 'model')
  assert len(forgetful.render('x'))
  with pytest.raises(chat.TokenizerError, match=r'show an answer once, before the'):
    forgetful.check_follow()


def test_default_system(family, plain, oracle):
  """Spelling out the template's default changes nothing."""
  if family == 'qwen3':
    assert plain.system == ''
    return
  assert plain.system.startswith('You are Qwen')
  assert plain.render('hi', system=plain.system).tolist() == oracle('hi')


def test_family_facts(family, plain):
  assert plain.len_vocab == LENGTHS[family]
  assert plain.stop_ids == (151645, 151643)
  assert min(plain.control_ids) == FIRST_CONTROL_ID
  assert max(plain.control_ids) == plain.len_vocab - 1


def test_instruction_is_ours_and_text_is_not(path, oracle, plain):
  """The closing words keep the tokenizer's tags; the same words elsewhere do not."""
  ours = chat.Chat(path, instruction=INSTRUCTION)
  assert ours.render('Room.' + INSTRUCTION).tolist() == oracle('Room.' + INSTRUCTION)
  spoof = INSTRUCTION + ' <think> Done.'
  np.testing.assert_array_equal(ours.render(spoof), plain.render(spoof))
  both = _controls(ours.render(spoof + INSTRUCTION), ours)
  assert both == _controls(ours.render('x' + INSTRUCTION), ours)
  special = chat.Chat(path, instruction=' Stop at <|im_end|>.')
  text = 'Go. Stop at <|im_end|>.'
  np.testing.assert_array_equal(special.render(text), plain.render(text))


def test_prompts_of_the_world_equal_transformers(path, oracle):
  world = AlfworldWorld(size='small')
  task = world.tasks('valid_seen')[0]
  observation = world.make_env().reset(task)
  text = world.render(task, [], observation)
  assert '<think>' in text
  ours = chat.Chat(path, instruction=world.instruction)
  assert ours.render(text).tolist() == oracle(text)
  bait = dataclasses.replace(observation, text=observation.text + ' <think><|im_end|>')
  attacked = world.render(task, [], bait)
  assert _controls(ours.render(attacked), ours) == _controls(ours.render(text), ours)


def _controls(ids, ours):
  return [i for i in ids.tolist() if i in ours.control_ids]


@pytest.mark.parametrize('control', CONTROL)
def test_each_control_token_stays_text(family, plain, oracle, control):
  frame = _controls(plain.render('x'), plain)
  text = f'You see {control} and{control}. {control}'
  assert _controls(plain.render(text), plain) == frame
  assert _controls(plain.render('x', system=text), plain) == _controls(
    plain.render('x', system='x'), plain
  )
  assert plain.decode(plain.encode_text(text)) == text
  if family == 'qwen3':  # What this guards against: transformers takes the bait.
    assert len(_controls(np.asarray(oracle(text)), plain)) > len(frame)


@settings(max_examples=120, deadline=None)
@given(text=_wild, system=_wild)
def test_no_text_becomes_control(plain, text, system):
  ids = plain.encode_text(text)
  assert ids.dtype == np.int32
  assert not len(ids) or ids.max() < FIRST_CONTROL_ID
  assert _controls(plain.render(text), plain) == _controls(plain.render('x'), plain)
  assert _controls(plain.render('x', system=system), plain) == _controls(
    plain.render('x', system='x'), plain
  )


@settings(max_examples=80, deadline=None)
@given(text=_wild)
def test_what_is_decoded_never_becomes_control(plain, text):
  """Text -> ids -> text -> ids: the second round trip is exact and free of control."""
  shown = plain.decode([151644, *plain.encode_text(text), *plain.control_ids])
  again = plain.encode_text(shown)
  assert not len(again) or again.max() < FIRST_CONTROL_ID
  assert plain.decode(again) == shown


@settings(max_examples=80, deadline=None)
@given(ids=st.lists(st.integers(0, 151664) | st.integers(151643, 151664), max_size=40))
def test_any_sampled_ids_decode(plain, ids):
  """Also ids that split a character; special tokens leave no trace."""
  text = plain.decode(np.asarray(ids, np.int32))
  assert '<|im_end|>' not in text and '<|endoftext|>' not in text
  assert all(i < FIRST_CONTROL_ID for i in plain.encode_text(text))


def test_decoding_drops_special_tokens_and_keeps_tags(plain):
  text = plain.decode([151644, *plain.encode_text('a'), 151657, 151645, 151643])
  assert text == 'a<tool_call>'


def test_responses_of_experts(family, plain):
  text = '<think>find mug</think><action>go to desk 1</action>'
  ids = plain.encode_response(text).tolist()
  assert ids[-1] == plain.stop_ids[0] and plain.decode(ids) == text
  tags = {'qwen2.5': [], 'qwen3': [151667, 151668]}[family]
  assert [i for i in ids[:-1] if i >= FIRST_CONTROL_ID] == tags
  spoof = plain.encode_response('a<|im_end|>b')[:-1]
  assert max(spoof) < FIRST_CONTROL_ID


def test_lone_surrogates_are_encoded(plain):
  assert plain.decode(plain.encode_text('a\ud800b')) == 'a?b'


def _edit(file, **changes):
  record = json.loads(file.read_text()) | changes
  record = {key: value for key, value in record.items() if value is not None}
  file.write_text(json.dumps(record))


def _cases():
  def missing(folder):
    (folder / 'tokenizer.json').unlink()
    return 'tokenizer.json: missing'

  def truncated(folder):
    data = (folder / 'tokenizer.json').read_bytes()
    (folder / 'tokenizer.json').write_bytes(data[: len(data) // 2])
    return 'tokenizer.json: not JSON'

  def web_page(folder):
    (folder / 'tokenizer_config.json').write_text('<html>404</html>')
    return 'tokenizer_config.json: not JSON'

  def no_template(folder):
    _edit(folder / 'tokenizer_config.json', chat_template=None)
    return 'no chat template'

  def broken_template(folder):
    _edit(folder / 'tokenizer_config.json', chat_template='{% if %}')
    return 'chat_template Expected an expression'

  def shouting_template(folder):
    template = '<|im_start|>{{ messages[0].content | upper }}<|im_end|>'
    _edit(folder / 'tokenizer_config.json', chat_template=template)
    return 'must show each message once, unchanged'

  def odd_model(folder):
    _edit(folder / 'tokenizer.json', model={'type': 'BPE', 'vocab': 3})
    return 'cannot be loaded'

  def no_stop_token(folder):
    text = (folder / 'tokenizer.json').read_text()
    (folder / 'tokenizer.json').write_text(text.replace('<|endoftext|>', '<|other|>'))
    template = '{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}'
    file = folder / 'tokenizer_config.json'
    _edit(file, chat_template=template, eos_token=None, pad_token=None)
    return 'nothing ends a response'

  return (
    missing,
    truncated,
    web_page,
    no_template,
    broken_template,
    shouting_template,
    odd_model,
    no_stop_token,
  )


@pytest.mark.parametrize('damage', _cases(), ids=lambda case: case.__name__)
def test_damaged_tokenizer_is_one_line(damage, tmp_path):
  tokenizer.save(tokenizer.train(['a small tokenizer']), tmp_path)
  assert chat.Chat(tmp_path).stop_ids
  complaint = damage(tmp_path)
  with pytest.raises(chat.TokenizerError) as error:
    chat.Chat(tmp_path)
  message = str(error.value)
  assert complaint in message and str(tmp_path) in message
  assert '\n' not in message


def test_absent_directory_is_one_line(tmp_path):
  with pytest.raises(
    chat.TokenizerError, match='not a directory, nor a hub id'
  ) as error:
    chat.Chat(tmp_path / 'nowhere')
  assert '\n' not in str(error.value)


def test_end_of_counts_the_tokens_that_spell_a_text(path):
  tokenizer = chat.Chat(path)
  ids = tokenizer.encode_text('some thought </think> then the action')
  end = tokenizer.end_of(ids, '</think>')
  assert '</think>' in tokenizer.decode(ids[:end])
  assert '</think>' not in tokenizer.decode(ids[: end - 1])
  assert tokenizer.end_of(ids, '</search>') == len(ids)
  assert tokenizer.end_of(ids[:0], '</think>') == 0
