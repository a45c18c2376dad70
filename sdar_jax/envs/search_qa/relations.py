"""Questions about the generated library, and its wording of facts.

Every relation has one key: the word that its passages use and that no question uses.
Whoever searches for an entity together with the right key finds the fact; the words of
the question lead to passages that only ask. That is what skills teach.
"""

import dataclasses
import re

KINDS = ('person', 'company', 'book', 'town')


@dataclasses.dataclass(frozen=True)
class Relation:
  """One kind of fact about entities of kind `subject`.

  Attributes:
    name: of the relation.
    subject: kind of the entity that the fact is about.
    object: kind of the fact's value.
    key: the word that its passages use.
    tells: the passage's words between subject and value.
    wordings: questions with {} for the subject; none if it is never asked.
    phrase: the value described by its subject, for questions of two hops.
  """

  name: str
  subject: str
  object: str
  key: str
  tells: str
  wordings: tuple[str, ...] = ()
  phrase: str = ''

  def sentence(self, subject: str, value: str) -> str:
    """Writes the fact in the library's words."""
    return f'{subject} {self.tells} {value}.'


_ALL = (
  Relation(
    *('birthplace', 'person', 'town', 'native', 'was a native of'),
    ('Where was {} born?', 'Which town is the birthplace of {}?'),
    'the birthplace of {}',
  ),
  Relation(
    *('deathplace', 'person', 'town', 'passed', 'passed away in'),
    ('Where did {} die?', 'In which town did the life of {} end?'),
  ),
  Relation('school', 'person', 'town', 'schooled', 'was schooled in'),
  Relation('home', 'person', 'town', 'settled', 'settled in'),
  Relation(
    *('teacher', 'person', 'person', 'pupil', 'was a pupil of'),
    ('Who taught {}?', 'Who was the teacher of {}?'),
    'the teacher of {}',
  ),
  Relation('spouse', 'person', 'person', 'wed', 'was wed to'),
  Relation(
    *('founder', 'company', 'person', 'established', 'was established by'),
    ('Who founded {}?', 'Who was the founder of {}?'),
    'the founder of {}',
  ),
  Relation('owner', 'company', 'person', 'purchased', 'was purchased by'),
  Relation('chair', 'company', 'person', 'chaired', 'was chaired by'),
  Relation('auditor', 'company', 'person', 'audited', 'was audited by'),
  Relation(
    *('seat', 'company', 'town', 'headquarters', 'keeps its headquarters in'),
    ('Where is {} based?', 'Which town is the seat of {}?'),
    'the seat of {}',
  ),
  Relation('plant', 'company', 'town', 'factory', 'runs a factory in'),
  Relation(
    *('author', 'book', 'person', 'penned', 'was penned by'),
    ('Who wrote {}?', 'Who was the author of {}?'),
    'the author of {}',
  ),
  Relation('translator', 'book', 'person', 'translated', 'was translated by'),
  Relation('illustrator', 'book', 'person', 'illustrated', 'was illustrated by'),
  Relation('honoree', 'book', 'person', 'dedicated', 'was dedicated to'),
  Relation(
    *('setting', 'book', 'town', 'unfolds', 'unfolds in'),
    ('Where does {} take place?', 'Which town is the setting of {}?'),
    'the setting of {}',
  ),
  Relation('printer', 'book', 'town', 'printed', 'was printed in'),
  Relation(
    *('river', 'town', 'river', 'banks', 'lies on the banks of the'),
    ('Which river flows through {}?', 'On which river does {} stand?'),
  ),
  Relation('regatta', 'town', 'river', 'regatta', 'holds a regatta on the'),
  Relation('fishery', 'town', 'river', 'fishing', 'owns fishing rights on the'),
  Relation('waterworks', 'town', 'river', 'water', 'draws its water from the'),
  Relation('market', 'town', 'town', 'market', 'shares a market with'),
  Relation('mayor', 'town', 'person', 'mayor', 'elected as mayor'),
)
KEYS = tuple(relation.key for relation in _ALL)
RELATIONS = {relation.name: relation for relation in _ALL}
# The task types: what is asked, hop by hop; the outermost relation comes last.
CHAINS = {
  '_'.join(names): tuple(RELATIONS[name] for name in names)
  for names in (
    ('birthplace',),
    ('founder', 'birthplace'),
    ('deathplace',),
    ('founder', 'teacher'),
    ('teacher',),
    ('author', 'birthplace'),
    ('founder',),
    ('author', 'deathplace'),
    ('seat',),
    ('teacher', 'deathplace'),
    ('author',),
    ('seat', 'river'),
    ('setting',),
    ('setting', 'river'),
    ('river',),
    ('birthplace', 'river'),
  )
}
WORDINGS = 2


def of_kind(kind: str) -> tuple[Relation, ...]:
  """Lists the relations about subjects of a kind."""
  return tuple(relation for relation in _ALL if relation.subject == kind)


def ask(chain: tuple[Relation, ...], subject: str, wording: int) -> str:
  """Writes the question for the end of a chain, seen from `subject`."""
  for relation in chain[:-1]:
    subject = relation.phrase.format(subject)
  return chain[-1].wordings[wording].format(subject)


def read(question: str) -> tuple[str, str] | None:
  """Reads (task type, lower-case subject): the inverse of `ask`.

  Args:
    question: in any case.

  Returns:
    None if it is not a question about the generated library.
  """
  for task_type, pattern in _PATTERNS:
    if match := pattern.fullmatch(question.lower()):
      return task_type, match[1]
  return None


def _pattern(chain: tuple[Relation, ...], wording: int) -> re.Pattern[str]:
  head, tail = ask(chain, '\0', wording).lower().split('\0')
  return re.compile(f'{re.escape(head)}(?!the )(.+){re.escape(tail)}')


_PATTERNS = tuple(
  (task_type, _pattern(chain, wording))
  for task_type, chain in CHAINS.items()
  for wording in range(WORDINGS)
)
