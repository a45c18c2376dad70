"""Builds the small model's tokenizer from the prompts that the model will read.

A byte-level BPE with Qwen3's control tokens and message layout, so that any text can be
written, in which every entity is one token (' cabinet 3') and so is every common word,
be it the first of its line ('\\nold') or not, and every price; a product's number is
three ('b0', 'manu', 'negi'). Tags of the answer format are one token each. The same
prompts give the same files, byte for byte.
"""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from sdar_jax.envs import base
from sdar_jax.prompts.skills import SkillBank

CONTROL = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
# Qwen3's layout for messages without tools, written anew.
TEMPLATE = (
  '{%- for message in messages %}'
  "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
  '{%- endfor %}'
  '{%- if add_generation_prompt %}'
  "{{- '<|im_start|>assistant\\n' }}"
  '{%- if enable_thinking is defined and enable_thinking is false %}'
  "{{- '<think>\\n\\n</think>\\n\\n' }}"
  '{%- endif %}{%- endif %}'
)
_BYTES = 256
_MAX_TOKENS = 1200  # In all; the most frequent words first.
_GAMES = 400  # Training games whose prompts are read.
_NUMBERS = range(1, 5)  # ALFWorld's entity numbers that are always one token.

_WORD = r'[ \n]?\p{L}+'
_REST = r' ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+'
ACTION = ('<think>', '</think>', '<action>', '</action>')


@dataclasses.dataclass(frozen=True)
class Spelling:
  """How a world's text is cut.

  Attributes:
    tags: of the answer format; one token each.
    whole: a pattern of what is one piece beside words, or ''.
    min_count: a word or entity seen this often is one token.
    merges: learned byte pairs, for words that are not tokens of their own.
    acted_words: every word of an action is one token, also where no space precedes it.
  """

  tags: tuple[str, ...]
  whole: str
  min_count: int = 20
  merges: int = 160
  acted_words: bool = False


SPELLINGS = {
  'alfworld': Spelling(ACTION, r'[ \n]?[a-z]+ [1-9]\d?(?!\d)|'),
  'webshop': Spelling(
    ACTION,
    r' ?[1-9]\d(?!\d)|[ \n]?b0(?=[a-z]{8})|(?<=b0)[a-z]{4}|(?<=b0[a-z]{4})[a-z]{4}|',
    acted_words=True,
  ),
  'search_qa': Spelling(
    ('<think>', '</think>', '<search>', '</search>', '<answer>', '</answer>'),
    '',
    min_count=3,
  ),
}


def train(
  texts: Iterable[str],
  names: Iterable[str] = (),
  spelling: Spelling = SPELLINGS['alfworld'],
) -> tokenizers.Tokenizer:
  """A tokenizer for `texts`.

  Args:
    texts: what the model will read and write, without control tokens and tags.
    names: text of which every word and entity is to be one token, however rare.
    spelling: what else is one token.

  Returns:
    A tokenizer: byte-level BPE, whole words and entities first, NFC like Qwen's.
  """
  texts = list(texts)
  learner = tokenizers.Tokenizer(models.BPE())
  learner.pre_tokenizer = _pre_tokenizer(f'{_WORD}|{_REST}')
  trainer = trainers.BpeTrainer(
    vocab_size=_BYTES + spelling.merges,
    min_frequency=2,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  learner.train_from_iterator(texts, trainer)
  model = json.loads(learner.to_str())['model']
  whole = _pre_tokenizer(f'{spelling.whole}{_WORD}|{_REST}')
  vocab = model['vocab']
  pieces = _pieces(whole, texts, names, spelling.min_count)
  for piece in pieces[: _MAX_TOKENS - len(vocab)]:
    vocab.setdefault(piece, len(vocab))
  merges = [tuple(pair) for pair in model['merges']]
  # With ignore_merges a piece that is in the vocabulary is one token at once.
  built = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=True))
  built.normalizer = normalizers.NFC()
  built.pre_tokenizer = whole
  built.decoder = decoders.ByteLevel()
  built.add_special_tokens([_token(name, special=True) for name in CONTROL])
  built.add_tokens([_token(name, special=False) for name in spelling.tags])
  return built


def save(tokenizer: tokenizers.Tokenizer, output: pathlib.Path) -> None:
  """Writes tokenizer.json and tokenizer_config.json as transformers reads them."""
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': '<|im_end|>',
    'pad_token': '<|endoftext|>',
    'bos_token': None,
    'unk_token': None,
    'model_max_length': 4096,
    'clean_up_tokenization_spaces': False,
    'chat_template': TEMPLATE,
  }
  output.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(output / 'tokenizer.json'))
  text = json.dumps(config, indent=2) + '\n'
  (output / 'tokenizer_config.json').write_text(text)


def corpus(world: base.World, games: int = _GAMES) -> Iterator[tuple[str, str, str]]:
  """Prompt, thought and action of every turn of `games` training games."""
  tasks = world.tasks('train')
  for index in range(games):
    task = tasks[index]
    expert = world.expert(world.demonstrators[index // 2 % 2], seed=index)
    env = world.make_env()
    observation = env.reset(task)
    expert.reset(task, observation)
    history: list[base.Exchange] = []
    for _ in range(world.max_turns):
      thought, action = expert.plan(observation)
      yield 'user\n' + world.render(task, history, observation), thought, action
      result = env.step(action)
      history.append(base.Exchange(observation.text, action))
      observation = result.observation
      expert.observe(action, observation)
      if result.done:
        break


def names(bank: SkillBank) -> Iterator[str]:
  """What is to be one token: roles, the bank's words, entities alone and numbered."""
  yield from ('user', 'assistant', 'system')
  classes = {*bank.objects}
  for skill in bank.everything():
    yield f'\n{skill.text}'
  if bank.world != 'alfworld':
    return
  for skill in bank.objects.values():
    classes.update(skill.principle.split())
  for name in sorted(classes):
    yield f' {name}'
    yield from (f' {name} {number}' for number in _NUMBERS)


def build(world: base.World, bank: SkillBank, output: pathlib.Path) -> None:
  """Reads `world`'s prompts and writes the tokenizer's files to `output`."""
  spelling = SPELLINGS[world.name]
  turns = list(corpus(world))
  texts = [text for turn in turns for text in turn]
  known = list(names(bank))
  if spelling.acted_words:
    known += sorted({word for *_, action in turns for word in _bare_words(action)})
    known += sorted(
      {word for skill in bank.everything() for word in skill.text.split()}
    )
  save(train(texts, known, spelling), output)


def _bare_words(action: str) -> list[str]:
  """The words of an action that follow a bracket."""
  return re.findall(r'(?<=\[)[a-z]+', action)


def _pieces(
  splitter: pre_tokenizers.PreTokenizer,
  texts: list[str],
  names: Iterable[str],
  min_count: int,
) -> list[str]:
  """Byte-level spellings to add: all names, then frequent pieces of the texts."""
  counts: collections.Counter[str] = collections.Counter()
  for text in texts:
    counts.update(piece for piece, _ in splitter.pre_tokenize_str(text))
  common = [piece for piece, count in counts.items() if count >= min_count]
  common.sort(key=lambda piece: (-counts[piece], piece))
  named = [piece for name in names for piece, _ in splitter.pre_tokenize_str(name)]
  return list(dict.fromkeys(named + common))


def _pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(pattern), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )


def _token(name: str, special: bool) -> tokenizers.AddedToken:
  return tokenizers.AddedToken(name, special=special, normalized=False)
