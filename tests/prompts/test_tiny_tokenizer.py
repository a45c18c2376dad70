"""The small model's tokenizer, built here from a few games."""

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from shared import shared_path

from experiments.tiny import tokenizer as builder
from sdar_jax.envs import base
from sdar_jax.envs.alfworld.world import AlfworldWorld
from sdar_jax.prompts import bank_file, chat, retrieval, skills

TAGS = builder.SPELLINGS['alfworld'].tags
BANK = Path(builder.__file__).with_name('alfworld') / 'skills.json'
FILES = ('tokenizer.json', 'tokenizer_config.json')


@pytest.fixture(scope='module')
def world():
  return AlfworldWorld(size='small', prompt_style='compact', max_turns=12)


@pytest.fixture(scope='module')
def bank():
  return bank_file.load(BANK)


@pytest.fixture(scope='module')
def path(world, bank, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tiny')
  texts = [text for turn in builder.corpus(world, games=40) for text in turn]
  builder.save(builder.train(texts, builder.names(bank)), folder)
  (folder / 'config.json').write_text(json.dumps({'model_type': 'qwen3'}))
  return folder


@pytest.fixture(scope='module')
def tiny(path):
  return chat.Chat(path, enable_thinking=True)


def test_size_and_ids(tiny):
  assert 600 <= tiny.len_vocab <= 1200
  first = tiny.len_vocab - len(builder.CONTROL) - len(TAGS)
  assert tiny.control_ids == frozenset(range(first, tiny.len_vocab))
  assert tiny.stop_ids == (first + 2, first)


def test_same_prompts_give_the_same_files(world, bank, path, tmp_path):
  texts = [text for turn in builder.corpus(world, games=40) for text in turn]
  builder.save(builder.train(texts, builder.names(bank)), tmp_path)
  for name in FILES:
    assert (tmp_path / name).read_bytes() == (path / name).read_bytes()


@pytest.mark.parametrize(
  'text', (' cabinet 3', ' mug 1', ' winebottle 4', ' bathtubbasin', '\nold', '\nput')
)
def test_entities_and_words_are_one_token(tiny, text):
  assert len(tiny.encode_text(text)) == 1
  assert tiny.decode(tiny.encode_text(text)) == text


def test_every_object_class_is_one_token(tiny, bank):
  for name in bank.objects:
    for number in ('', ' 1', ' 2', ' 3', ' 4'):
      assert len(tiny.encode_text(f' {name}{number}')) == 1, name + number


def test_expert_responses(tiny):
  text = '<think>find mug</think><action>go to cabinet 3</action>'
  ids = tiny.encode_response(text)
  assert len(ids) == 2 + 2 + 2 + 3 + 1 and tiny.decode(ids) == text


def test_unknown_entities_are_spelled(tiny):
  text = 'take cabinet 137 from wardrobe 2, Ωmega ’é 台所'
  ids = tiny.encode_text(text)
  assert tiny.decode(ids) == text
  assert ids.max() < min(tiny.control_ids)


@settings(max_examples=150, deadline=None)
@given(
  st.lists(
    st.text(st.characters(codec='utf-8'), max_size=20)
    | st.sampled_from((*builder.CONTROL, *TAGS, ' cabinet 1', '\n')),
    max_size=6,
  ).map(''.join)
)
def test_any_text_is_written_and_none_is_control(tiny, text):
  import unicodedata

  ids = tiny.encode_text(text)
  assert tiny.decode(ids) == unicodedata.normalize('NFC', text)
  assert not len(ids) or ids.max() < min(tiny.control_ids)


@pytest.mark.parametrize('thinking', (False, True))
def test_layout_is_that_of_qwen3(path, thinking):
  ours = transformers.AutoTokenizer.from_pretrained(path)
  theirs = transformers.AutoTokenizer.from_pretrained(shared_path('tokenizers/qwen3'))
  chats = (
    [{'role': 'user', 'content': 'go on'}],
    [{'role': 'system', 'content': 'be'}, {'role': 'user', 'content': ' go\n'}],
  )
  for messages in chats:
    texts = [
      tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
      )
      for tokenizer in (ours, theirs)
    ]
    assert texts[0] == texts[1]
    ids = ours(texts[0], add_special_tokens=False)['input_ids']
    rendered = chat.Chat(path, enable_thinking=thinking).render(
      messages[-1]['content'],
      system=messages[0]['content'] if len(messages) == 2 else None,
    )
    assert rendered.tolist() == ids


def test_prompts_are_short_and_skills_cost_what_is_said(tiny, world, bank):
  teacher = skills.TeacherContext(
    retrieval.Retriever(bank, 'task+object'), tiny, token_budget=48
  )
  tasks = world.tasks('valid_unseen')
  for index in range(20):
    env = world.make_env()
    observation = env.reset(tasks[index])
    history = []
    for action in ('go to fridge 1', 'look', 'go to bed 1'):
      text = world.render(tasks[index], history, observation)
      plain = tiny.render(text)
      ids, view = teacher.prompt(text, tasks[index])
      assert len(plain) <= 80 and len(ids) - len(plain) == view.tokens
      assert not view.left_out and f'place_{tasks[index].metadata["object"]}' in (
        view.skill_ids
      )
      assert tiny.decode(plain).startswith('user\n' + text)
      history.append(base.Exchange(observation.text, action))
      observation = env.step(action).observation
