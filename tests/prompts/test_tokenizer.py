"""Tokenizers and chat templates of others: read as they are, or one line why not."""

import json

import pytest
import tokenizers

from experiments.tiny import tokenizer as tiny
from sdar_jax import hub as hub_lib
from sdar_jax.prompts import chat, template
from sdar_jax.prompts.tokenizer import TokenizerError

TURNS = (
  "{% for m in messages %}<|im_start|>{{ m.role + '\n' + m.content }}<|im_end|>\n"
  '{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


@pytest.fixture(scope='module')
def trained():
  return tiny.train(['what a small tokenizer, a tokenizer'])


@pytest.fixture
def folder(trained, tmp_path):
  tiny.save(trained, tmp_path)
  return tmp_path


def edit(folder, name='tokenizer_config.json', remove=(), **changes):
  record = json.loads((folder / name).read_text()) | changes
  record = {key: value for key, value in record.items() if key not in remove}
  (folder / name).write_text(json.dumps(record))


def refused(folder, *words):
  with pytest.raises(TokenizerError) as caught:
    chat.Chat(folder)
  message = str(caught.value)
  assert '\n' not in message and str(folder) in message
  for word in words:
    assert word in message, message
  return message


def oracle(folder, messages):
  import transformers

  hub = transformers.AutoTokenizer.from_pretrained(
    folder, local_files_only=True, trust_remote_code=False
  )
  return hub.apply_chat_template(messages, add_generation_prompt=True)['input_ids']


# --- the ids are the file's --------------------------------------------------------


def without_words(record):
  """Words that no merge needs are gone; the control tokens keep their ids."""
  vocab = record['model']['vocab']
  used = {part for pair in record['model']['merges'] for part in pair}
  gone = [word for word in vocab if len(word) > 1 and word not in used][-4:]
  for word in gone:
    del vocab[word]
  record['model']['merges'] = [
    pair for pair in record['model']['merges'] if ''.join(pair) not in gone
  ]


def moved(record):
  record['added_tokens'][-1]['id'] += 1


def twice(record):
  record['added_tokens'].append({**record['added_tokens'][0], 'id': 10_000})


def same_id(record):
  words = list(record['model']['vocab'])
  record['model']['vocab'][words[-1]] = record['model']['vocab'][words[-2]]


def drops(record):
  record['model']['dropout'] = 0.1


@pytest.mark.parametrize(
  'change, words',
  [
    (without_words, ('loads as',)),
    (moved, ('</action>', 'loads as')),
    (twice, ('<|endoftext|>', '10000')),
    (same_id, ('one id',)),
    (drops, ('dropout', '0.1')),
  ],
)
def test_a_file_that_loads_as_another_tokenizer_is_refused(folder, change, words):
  record = json.loads((folder / 'tokenizer.json').read_text())
  change(record)
  (folder / 'tokenizer.json').write_text(json.dumps(record))
  refused(folder, 'tokenizer.json', *words)


def test_tokens_that_only_another_file_names_have_its_ids(folder):
  size = chat.Chat(folder).len_vocab
  entry = {'content': '<call>', 'special': False, 'normalized': False}
  edit(folder, added_tokens_decoder={str(size): entry})
  ours = chat.Chat(folder)
  assert ours.len_vocab == size + 1 and ours.decode([size]) == '<call>'
  assert ours.digest != chat.Chat(_bare(folder)).digest
  (folder / 'added_tokens.json').write_text(json.dumps({'<call>': size + 3}))
  refused(folder, '<call>', str(size + 3))
  (folder / 'added_tokens.json').unlink()
  edit(folder, added_tokens_decoder={str(size - 1): {**entry, 'content': '<|im_end|>'}})
  refused(folder, 'tokenizer_config.json', '<|im_end|>', str(size - 1))


def _bare(folder):
  edit(folder, remove=['added_tokens_decoder'])
  return folder


# --- nothing is run, nothing is asked ----------------------------------------------


def test_code_beside_a_tokenizer_is_never_run(folder, monkeypatch):
  """Neither from a directory nor from a hub id, whatever stands on the terminal."""
  monkeypatch.setattr('sys.stdin', None)
  mark = folder / 'CODE_RAN'
  (folder / 'own.py').write_text(f'open({str(mark)!r}, "w")')
  auto_map = {'AutoTokenizer': ['own.Own', None], 'AutoConfig': 'own.OwnConfig'}
  edit(folder, tokenizer_class='OwnTokenizer', auto_map=auto_map)
  (folder / 'config.json').write_text(json.dumps({'auto_map': auto_map}))
  want = chat.Chat(folder).render('hi').tolist()
  asked = []

  def download(name, revision, allow_patterns):
    asked.append((name, revision, allow_patterns))
    return str(folder)

  monkeypatch.setattr('huggingface_hub.snapshot_download', download)
  monkeypatch.setattr(hub_lib, '_commits', {})
  assert chat.Chat('owner/name@v1').render('hi').tolist() == want
  assert chat.Chat('owner/name@v1').render('hi').tolist() == want
  assert [revision for _, revision, _ in asked] == ['v1', folder.name]
  assert not any(pattern.endswith(('py', '*')) for pattern in asked[0][2])
  assert not mark.exists()


def test_a_hub_id_without_a_hub_is_one_line(monkeypatch):
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
  with pytest.raises(TokenizerError, match='nobody/nothing') as caught:
    chat.Chat('nobody/nothing')
  assert '\n' not in str(caught.value)


# --- templates, wherever they are kept ---------------------------------------------


@pytest.mark.parametrize('form', ['list', 'jinja', 'more', 'json'])
def test_templates_are_found_where_they_are_published(folder, form):
  text = TURNS
  other = TURNS.replace('<|im_end|>', '!')
  edit(folder, remove=['chat_template'])
  if form == 'list':
    pairs = (('tool_use', other), ('default', text))
    named = [{'name': name, 'template': value} for name, value in pairs]
    edit(folder, chat_template=named)
  elif form == 'json':
    (folder / 'chat_template.json').write_text(json.dumps({'chat_template': text}))
  else:
    (folder / 'chat_template.jinja').write_text(text)
    edit(folder, chat_template=other)
  if form == 'more':
    (folder / 'additional_chat_templates').mkdir()
    (folder / 'additional_chat_templates/tool_use.jinja').write_text(other)
  got = chat.Chat(folder).render(' hi\n').tolist()
  if form == 'json':
    edit(folder, chat_template=text)  # transformers reads that file for images only.
  assert got == oracle(folder, [{'role': 'user', 'content': ' hi\n'}])


def test_named_templates_without_a_default_are_named(folder):
  named = [{'name': name, 'template': TURNS} for name in ('rag', 'tool_use')]
  edit(folder, chat_template=named)
  refused(folder, 'rag', 'tool_use', 'chat_template.jinja')
  edit(folder, chat_template=named[:1])
  assert len(chat.Chat(folder).render('hi'))
  edit(folder, chat_template=[{'name': 3}])
  refused(folder, 'name and template')


# --- templates, whatever they do ---------------------------------------------------


def test_a_template_may_refuse_the_system_message_that_nobody_gives(folder):
  text = "{% if messages[0].role == 'system' %}{{ raise_exception('no\nsystem') }}"
  edit(folder, chat_template=text + '{% endif %}' + TURNS)
  ours = chat.Chat(folder)
  assert ours.render('hi').tolist() == oracle(
    folder, [{'role': 'user', 'content': 'hi'}]
  )
  with pytest.raises(TokenizerError, match='no system'):
    ours.render('hi', system='Be brief.')


def test_a_system_message_that_is_ignored_is_refused_when_there_is_one(folder):
  text = TURNS.replace('%}<|im_start|>', "if m.role != 'system' %}<|im_start|>", 1)
  edit(folder, chat_template=text)
  ours = chat.Chat(folder)
  want = oracle(folder, [{'role': 'user', 'content': 'hi'}])
  assert ours.render('hi').tolist() == want
  with pytest.raises(TokenizerError, match='with a system message'):
    ours.render('hi', system='Be brief.')
  with pytest.raises(TokenizerError, match='with a system message'):
    chat.Chat(folder, system='Be brief.').render('hi')


def test_a_system_message_inside_the_first_user_message(folder):
  text = (
    "{% set s = messages[0].content + '\\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}<|im_start|>{{ s + m.content }}"
    '<|im_end|>{% endfor %}'
  )
  edit(folder, chat_template=text)
  said = {'role': 'system', 'content': 'Brief.'}, {'role': 'user', 'content': ' hi '}
  ours = chat.Chat(folder)
  assert ours.render(' hi ').tolist() == oracle(folder, said[1:])
  assert ours.render(' hi ', system='Brief.').tolist() == oracle(folder, said)


@pytest.mark.parametrize('flag', ['lstrip', 'rstrip'])
def test_tokens_that_take_white_space_beside_them(folder, flag):
  """They would change a message; where they stand alone they do no harm."""
  record = json.loads((folder / 'tokenizer.json').read_text())
  for token in record['added_tokens'][:3]:
    token[flag] = True
  (folder / 'tokenizer.json').write_text(json.dumps(record))
  edit(folder, chat_template=TURNS.replace("m.role + '\\n' + ", "'U' + "))
  if flag == 'rstrip':
    refused(folder, 'white space beside them')
  edit(folder, chat_template='<|im_start|>:{{ messages[0].content }}.<|im_end|>A')
  assert chat.Chat(folder).render(' hi ').tolist() == oracle(
    folder, [{'role': 'user', 'content': ' hi '}]
  )


def test_nothing_is_cut_or_padded(folder):
  want = chat.Chat(folder).render('a small tokenizer, and more').tolist()
  record = json.loads((folder / 'tokenizer.json').read_text())
  record['truncation'] = {
    **{'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0},
    'direction': 'Right',
  }
  (folder / 'tokenizer.json').write_text(json.dumps(record))
  ours = chat.Chat(folder)
  assert ours.render('a small tokenizer, and more').tolist() == want


def test_a_template_that_strips_what_is_said(folder):
  edit(folder, chat_template=TURNS.replace('m.content', '(m.content | trim)'))
  ours = chat.Chat(folder, instruction='\nIn <think> </think>.\n')
  text = ' \n a room\nIn <think> </think>.\n'
  said = {'role': 'system', 'content': ' brief '}, {'role': 'user', 'content': text}
  assert ours.render(text).tolist() == oracle(folder, said[1:])
  assert ours.render(text, system=' brief ').tolist() == oracle(folder, said)


def test_a_template_of_another_family_ends_its_turns_in_its_own_way(folder):
  """No `<|im_end|>`; a default system message; the model's file names more ends."""
  names = {
    '<|im_start|>': '<|bos|>',
    '<|im_end|>': '<｜done｜>',
    '<|endoftext|>': '[E]',
  }
  for file in ('tokenizer.json', 'tokenizer_config.json'):
    text = (folder / file).read_text('utf-8')
    for old, new in names.items():
      text = text.replace(old, new)
    (folder / file).write_text(text, 'utf-8')
  system = (
    "{% if messages[0].role != 'system' %}Be kind.{% else %}"
    '{{ messages[0].content }}{% endif %}'
  )
  rest = (
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}"
    '<|bos|>U:{{ m.content }}<|bos|>A:{% else %}{% generation %}{{ m.content }}'
    '{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}'
  )
  edit(folder, chat_template='{{ bos_token }}' + system + rest, bos_token='<|bos|>')
  edit(folder, eos_token={'content': '<｜done｜>', '__type': 'AddedToken'})
  ours = chat.Chat(folder)
  assert ours.system == 'Be kind.'
  end = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json')).token_to_id
  assert ours.stop_ids == (end('<｜done｜>'),)
  assert ours.render('hi').tolist() == oracle(
    folder, [{'role': 'user', 'content': 'hi'}]
  )
  both = [end('[E]'), end('<｜done｜>')]
  (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': both}))
  assert chat.Chat(folder).stop_ids == (both[1], both[0])
  assert chat.Chat(folder).digest != ours.digest
  word = end('a')
  (folder / 'generation_config.json').write_text(json.dumps({'eos_token_id': word}))
  refused(folder, 'generation_config.json', str(word))


def test_a_base_model_ends_turns_as_its_template_does(folder):
  edit(folder, eos_token='<|endoftext|>')
  ours = chat.Chat(folder)
  name = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json')).id_to_token
  names = [name(index) for index in ours.stop_ids]
  assert names == ['<|im_end|>', '<|endoftext|>']


def test_today_is_the_day_that_the_config_says(folder):
  edit(folder, chat_template="{{ strftime_now('%d %B %Y') }}" + TURNS)
  ours = chat.Chat(folder, date='2024-07-26')
  assert ours.decode(ours.render('hi')).startswith('26 July 2024')
  assert ours.digest != chat.Chat(folder, date='2024-07-27').digest
  assert ours.digest == chat.Chat(folder, date='2024-07-26').digest


ENDLESS = (
  '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}'
)
DOUBLING = '{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}'


@pytest.mark.parametrize(
  'text, words',
  [
    (ENDLESS, 'does not end'),
    # Whichever bound a machine meets first.
    ("{% set ns = namespace(a='x') %}" + DOUBLING, 'MemoryError|does not end'),
    ('{% for i in range(9999) %}{{ "a" * 9999 }}{% endfor %}', 'characters'),
    ('{{ messages.__class__ }}', 'private name'),
    ("{% set ns = namespace(**{'__class__': 1}) %}", 'begins with _'),
    ('{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}', 'recursion'),
    ('{% include "/etc/passwd" %}', 'loader'),
    ('{{ 1 / 0 }}', 'division'),
  ],
)
def test_what_a_template_may_not_do_is_one_line(folder, text, words):
  edit(folder, chat_template=text + TURNS)
  message = refused(folder, 'chat_template')
  assert any(word in message for word in words.split('|')), message


def test_the_digest_is_of_what_matters(folder):
  first = chat.Chat(folder).digest
  (folder / 'README.md').write_text('x')
  edit(folder, model_max_length=7, chat_template=tiny.TEMPLATE + '{# remark #}')
  assert chat.Chat(folder).digest == first
  assert chat.Chat(folder, enable_thinking=True).digest != first
  assert chat.Chat(folder, system='Be brief.').digest != first
  assert chat.Chat(folder, instruction='Use <think>.').digest != first
  edit(folder, chat_template=tiny.TEMPLATE.replace("'\\n' + m", "' ' + m"))
  assert chat.Chat(folder).digest != first
  edit(folder, chat_template=tiny.TEMPLATE)
  edit(folder, 'tokenizer.json', normalizer=None)
  assert chat.Chat(folder).digest != first


def test_rendering_is_remembered():
  asked = template.Conversation(({'role': 'user', 'content': 'x'},), True)
  first = template.render(TURNS, [asked], {}, '2026-01-01')
  assert template.render(TURNS, [asked], {}, '2026-01-01')[0] is first[0]
