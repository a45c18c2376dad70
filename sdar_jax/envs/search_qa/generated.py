"""A library of our own: invented people, companies, books and towns.

Everything derives from VERSION. The entities live on two sides that never mention each
other: questions of valid_unseen are about people, places and things that no question of
train or valid_seen leads to. All passages are in one library, so either side's are
distractors of the other's.
"""

import dataclasses
import functools
import random
from collections.abc import Mapping

from sdar_jax.envs import base
from sdar_jax.envs.search_qa import relations
from sdar_jax.envs.search_qa.datasets import Question
from sdar_jax.envs.search_qa.relations import CHAINS, RELATIONS
from sdar_jax.envs.search_qa.retrieval.base import Passage, corpus_digest

VERSION = 1
SPLITS = ('train', 'valid_seen', 'valid_unseen')
SIDES = ('seen', 'unseen')
ENTITIES = {'seen': 260, 'unseen': 40}  # Of each kind, by side.
RIVERS = {'seen': 60, 'unseen': 20}
HELD_OUT = 32  # Subjects of each task type that valid_seen asks about.
LETTERS = 2  # Passages per entity that ask what they do not answer.

_CONSONANTS = 'bdfgklmnprstvz'
_VOWELS = 'aeiou'
_ENDS = 'klnrsx'
_FIRST = {  # First words of names; people, companies and rivers have invented ones.
  'town': 'Port Fort Mount Lake Great East West Saint',
  'river': 'Upper Lower Little Black White',
  'book': (
    'Silver Broken Hidden Golden Silent Burning Frozen Crooked Hollow Crimson'
    ' Wandering Forgotten Iron Paper Painted Borrowed Sleeping Scarlet Empty Distant'
  ),
}
_LAST = {
  'company': 'Works Mills Bank Press Foundry Lines Stores Brewery Mines Glass',
  'book': (
    'Lantern Orchard Mirror Harbour Letter Bridge Garden Compass Window Violin'
    ' Staircase Island Carpet Winter Candle Ladder Anchor Feather Kettle Meadow'
  ),
}
_INVENTED = {'given': 40, 'family': 60, 'town': 60, 'company': 40, 'river': 16}
_FILLERS = (
  'Little else is recorded.',
  'No picture has survived.',
  'The archive keeps a copy of the record.',
  'Later accounts agree on this.',
  'It caused some talk at the time.',
)


@dataclasses.dataclass(frozen=True)
class Library:
  """Everything there is to know.

  Attributes:
    entities: (side, kind) -> names.
    facts: (relation, subject) -> value.
    passages: the library's texts in order.
    digest: hex SHA-256 over the passages.
  """

  entities: Mapping[tuple[str, str], tuple[str, ...]]
  facts: Mapping[tuple[str, str], str]
  passages: tuple[Passage, ...]
  digest: str

  def answer(self, task_type: str, subject: str) -> str:
    """Follows a task type's chain from `subject` to its end."""
    for relation in CHAINS[task_type]:
      subject = self.facts[relation.name, subject]
    return subject


def _word(rng: random.Random, ending: bool) -> str:
  """Invents two syllables: 'Velka', or 'Velkar' with an ending."""
  text = rng.choice(_CONSONANTS) + rng.choice(_VOWELS) + rng.choice('lnrs')
  text += rng.choice(_CONSONANTS) + rng.choice(_VOWELS)
  return (text + rng.choice(_ENDS) * ending).capitalize()


def _invented(rng: random.Random) -> dict[str, list[str]]:
  """Invents words by use; none serves two uses."""
  used: set[str] = set()
  words: dict[str, list[str]] = {}
  for use, count in _INVENTED.items():
    words[use] = []
    while len(words[use]) < count:
      word = _word(rng, ending=use in ('family', 'town'))
      if word not in used:
        used.add(word)
        words[use].append(word)
  return words


def _names(rng: random.Random) -> dict[tuple[str, str], tuple[str, ...]]:
  """Makes (side, kind) -> names of two words each, no name twice."""
  words = _invented(rng)
  parts = {
    'person': (words['given'], words['family']),
    'company': (words['company'], _LAST['company'].split()),
    'book': (_FIRST['book'].split(), _LAST['book'].split()),
    'town': (_FIRST['town'].split(), words['town']),
    'river': (_FIRST['river'].split(), words['river']),
  }
  names = {}
  for kind, (firsts, lasts) in parts.items():
    every = [f'{first} {last}' for first in firsts for last in lasts]
    rng.shuffle(every)
    for side in SIDES:
      count = (RIVERS if kind == 'river' else ENTITIES)[side]
      names[side, kind] = tuple(every[:count])
      every = every[count:]
  return names


@functools.cache
def words() -> tuple[tuple[str, ...], ...]:
  """Lists the words of names in lower case, one set for each place."""
  places: dict[tuple[str, int], list[str]] = {}
  for (_, kind), every in library().entities.items():
    for name in every:
      for place, word in enumerate(name.lower().split()):
        places.setdefault((kind, place), []).append(word)
  return tuple(tuple(sorted(set(found))) for found in places.values())


def _facts(
  rng: random.Random, names: Mapping[tuple[str, str], tuple[str, ...]]
) -> dict[tuple[str, str], str]:
  """Draws a value for every relation of every entity, no value twice."""
  facts = {}
  for side in SIDES:
    for kind in relations.KINDS:
      for subject in names[side, kind]:
        taken = {subject}
        for relation in relations.of_kind(kind):
          value = rng.choice(names[side, relation.object])
          while value in taken:
            value = rng.choice(names[side, relation.object])
          taken.add(value)
          facts[relation.name, subject] = value
  return facts


def _letters(rng: random.Random, subject: str, kind: str) -> list[Passage]:
  """Writes passages with a question's words about `subject` only."""
  asked = [relation for relation in relations.of_kind(kind) if relation.wordings]
  out = []
  for relation in rng.sample(asked, min(LETTERS, len(asked))):
    question = relation.wordings[rng.randrange(relations.WORDINGS)].format(subject)
    out.append(Passage(subject, f'{question} No one has replied.'))
  return out


@functools.cache
def library() -> Library:
  """Makes the library, once per process."""
  rng = random.Random(f'search_qa/{VERSION}')
  names = _names(rng)
  facts = _facts(rng, names)
  passages = []
  for (name, subject), value in facts.items():
    more = rng.sample(_FILLERS, rng.choice((0, 1, 1, 2)))
    text = ' '.join([RELATIONS[name].sentence(subject, value), *more])
    passages.append(Passage(subject, text))
  for (_, kind), subjects in names.items():
    for subject in subjects:
      passages += _letters(rng, subject, kind)
  rng.shuffle(passages)
  return Library(names, facts, tuple(passages), corpus_digest(passages))


def passages() -> tuple[Passage, ...]:
  """Gives the passages of the library."""
  return library().passages


@functools.cache
def _asked(split: str) -> tuple[tuple[tuple[str, int], ...], ...]:
  """Lists (subject, wording) of a split's questions by task type."""
  side = 'unseen' if split == 'valid_unseen' else 'seen'
  columns = []
  for task_type, chain in CHAINS.items():
    subjects = list(library().entities[side, chain[0].subject])
    random.Random(f'search_qa/{VERSION}/{side}/{task_type}').shuffle(subjects)
    if side == 'seen':
      held_out = split == 'valid_seen'
      subjects = subjects[:HELD_OUT] if held_out else subjects[HELD_OUT:]
    column = [(name, way) for name in subjects for way in range(relations.WORDINGS)]
    random.Random(f'search_qa/{VERSION}/{split}/{task_type}').shuffle(column)
    columns.append(tuple(column))
  return tuple(columns)


def hops(task_type: str) -> str:
  """Names a task type's kind of question as the public sets do."""
  return 'single_hop' if len(CHAINS[task_type]) == 1 else 'multi_hop'


class GeneratedQuestions(base.Tasks):
  """The questions of one split; task types take turns.

  Args:
    split: 'train', 'valid_seen' or 'valid_unseen'.
  """

  def __init__(self, split: str):
    base.check_split(split, SPLITS)
    asked = _asked(split)
    truth = ['generated', VERSION, library().digest, split, asked]
    make = functools.partial(make_task, split)
    super().__init__(split, sum(map(len, asked)), make, truth)


def make_task(split: str, index: int) -> base.Task:
  """Makes one question of a split."""
  row, column = divmod(index, len(CHAINS))
  task_type = list(CHAINS)[column]
  subject, wording = _asked(split)[column][row]
  task_id = f'generated/{split}/{index:06d}'
  question = relations.ask(CHAINS[task_type], subject, wording)
  golden = (library().answer(task_type, subject),)
  return base.Task(
    task_id=task_id,
    task_type=task_type,
    goal=question,
    metadata={'task_type': hops(task_type), 'object': task_type},
    payload=Question(task_id, question, golden, 'generated'),
  )
