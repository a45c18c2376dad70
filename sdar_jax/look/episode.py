"""Reads an episode as it is shown: checked and bounded. No JAX."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdar_jax.look.folder import Head, LookError, number_of
from sdar_jax.prompts.skills import SkillBank

LONGEST_TEXT = 20_000  # Characters of a text that are shown.
_MOST_TURNS = 1000
# What is known of tokens, in the order in which people are told: name in a record, name
# for people, unit.
COLUMNS = {
  'gate': ('gate', 'fraction'),
  'gap': ('gap', 'nats'),
  'advantages': ('advantage', '1'),
  'old_logprobs': ('student log-prob', 'nats'),
  'teacher_logprobs': ('teacher log-prob', 'nats'),
  'contrast_logprobs': ('contrast log-prob', 'nats'),
  'ref_logprobs': ('initial log-prob', 'nats'),
  'sampler_logprobs': ('sampler log-prob', 'nats'),
  'old_entropy': ('entropy', 'nats'),
  'old_values': ('value', 'reward'),
  'action_mask': ('mask', '0 or 1'),
}
_WORD = re.compile(r'\s+|[^\s]+')


@dataclasses.dataclass(frozen=True)
class Seen:
  """Holds a student's prompt beside its teacher's.

  The student's is before + student + after, the teacher's before + teacher + after.
  """

  before: str
  student: str
  teacher: str
  after: str


@dataclasses.dataclass(frozen=True)
class Tokens:
  """Holds the recorded tokens of a turn.

  Attributes:
    columns: name -> a value, or None, for each token.
    teacher: what its teacher was shown by name; None where it had none.
    teaching: the weight of the turn's teacher, or None.
  """

  texts: tuple[str, ...]
  ids: tuple[int, ...]
  columns: dict[str, tuple[float | None, ...]]
  teacher: tuple[str, ...] | None
  teaching: float | None


@dataclasses.dataclass(frozen=True)
class TurnView:
  """Holds a turn as it is shown."""

  seen: Seen
  has_teacher: bool
  observation: str
  response: str
  action: str
  valid: bool
  admissible: bool
  reward: float
  stop_reason: str
  history_dropped: bool
  observation_cut: bool
  skills: tuple[str, ...]
  means: dict[str, float]
  tokens: Tokens | None


@dataclasses.dataclass(frozen=True)
class EpisodeView:
  """Holds an episode with its turns.

  Attributes:
    left: how many further turns it has, which are not shown.
  """

  head: Head
  turns: tuple[TurnView, ...]
  left: int = 0


def load(head: Head, bank: SkillBank) -> EpisodeView:
  """Reads an episode.

  Args:
    head: of it.
    bank: the run's skills, for records without their teachers' prompts.

  Raises:
    LookError: its record is damaged.
  """
  record = head.record()
  where = f'{head.path} line {head.line}'
  try:
    turns = _list(record['turns'], 'turns')
    shown = tuple(_turn(turn, bank) for turn in turns[:_MOST_TURNS])
    return EpisodeView(head, shown, len(turns) - len(shown))
  except KeyError as error:
    raise LookError(f'{where}: a turn has no {error}') from None
  except (TypeError, ValueError, AttributeError) as error:
    raise LookError(f'{where}: {error}') from None


def _turn(record: Mapping[str, Any], bank: SkillBank) -> TurnView:
  said = record.get('tokens')
  tokens = None if said is None else _tokens(record, said)
  means = {k: number_of(v) for k, v in record.get('means', {}).items()}
  return TurnView(
    seen=_seen(record, said or {}, bank),
    has_teacher=tokens is not None and tokens.teacher is not None,
    observation=_cut(record['observation']),
    response=_cut(record['response']),
    action=_cut(record['action']),
    valid=bool(record['valid']),
    admissible=bool(record['admissible']),
    reward=number_of(record['reward']) or 0.0,
    stop_reason=_cut(record['stop_reason']),
    history_dropped=bool(record.get('history_dropped')),
    observation_cut=bool(record.get('observation_cut')),
    skills=_names(record.get('skills', [])),
    means={k: v for k, v in means.items() if v is not None},
    tokens=tokens,
  )


def _tokens(turn: Mapping[str, Any], said: Mapping[str, Any]) -> Tokens:
  texts = tuple(_cut(text) for text in _list(said['token_texts'], 'token_texts'))
  ids = tuple(_list(turn['response_ids'], 'response_ids'))
  arrays = {'sampler_logprobs': turn.get('sampler_logprobs'), **said}
  columns = {
    name: tuple(map(number_of, _list(arrays[name], name)))
    for name in COLUMNS
    if arrays.get(name) is not None
  }
  if 'action_mask' in columns:
    columns['action_mask'] = tuple(float(bool(v)) for v in said['action_mask'])
  elif 'advantages' in columns:  # Of a method that trains on all tokens.
    columns['action_mask'] = (1.0,) * len(texts)
  for name, values in {'response_ids': ids, **columns}.items():
    if len(values) != len(texts):
      raise ValueError(f'{len(texts)} token_texts, but {len(values)} {name}')
  teacher = said.get('teacher_skills')
  return Tokens(
    texts=texts,
    ids=ids,
    columns=columns,
    teacher=None if teacher is None else _names(teacher),
    teaching=number_of(said.get('teaching')),
  )


def _seen(turn: Mapping[str, Any], said: Mapping[str, Any], bank: SkillBank) -> Seen:
  student = _cut(said.get('student_prompt', turn['prompt_text']))
  if 'teacher_prompt' in said:
    return aligned(student, _cut(said['teacher_prompt']))
  advice = _advice(_names(said.get('teacher_skills') or []), bank)
  return Seen('', '', f'{advice}\n\n' if advice else '', student)


def _advice(names: Sequence[str], bank: SkillBank) -> str:
  """Writes skills as a prompt shows them; of unknown ones the names."""
  skills = {skill.id: skill for skill in bank.everything()}
  known = [skills[name] for name in names if name in skills]
  other = ', '.join(name for name in names if name not in skills)
  return (bank.block(known) if known else '') + other


def aligned(student: str, teacher: str) -> Seen:
  """Splits two prompts, by words, into what they share and the rest."""
  one, two = _WORD.findall(student), _WORD.findall(teacher)
  shorter = min(len(one), len(two))
  same = lambda i, j: one[i] == two[j]
  start = next((i for i in range(shorter) if not same(i, i)), shorter)
  rest = range(1, shorter - start + 1)
  end = next((i - 1 for i in rest if not same(-i, -i)), shorter - start)
  middle = lambda words: ''.join(words[start : len(words) - end])
  after = ''.join(one[len(one) - end :])
  return Seen(''.join(one[:start]), middle(one), middle(two), after)


def _cut(text: Any) -> str:
  """Cuts a text at `LONGEST_TEXT`; half characters are replaced."""
  if not isinstance(text, str):
    raise TypeError(f'{str(text)[:40]!r} is no text')
  if len(text) > LONGEST_TEXT:
    text = f'{text[:LONGEST_TEXT]}\n[{len(text) - LONGEST_TEXT} characters more]'
  return text.encode('utf-8', 'replace').decode() if not text.isascii() else text


def _list(value: Any, name: str) -> list[Any]:
  if not isinstance(value, list):
    raise TypeError(f'{name} is no list')
  return value


def _names(value: Any) -> tuple[str, ...]:
  return tuple(_cut(name) for name in _list(value, 'a list of names'))
