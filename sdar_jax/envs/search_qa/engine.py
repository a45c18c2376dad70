"""The multi-turn search world: search, read, answer.

An action is what the parser cuts out of a response, in the one form that the parsers'
records have: `<search>query</search>` or `<answer>text</answer>`. Any other text is a
wasted turn. What comes back is a block of documents, two lines each:

  <information>
  Doc 1: title
  text
  Doc 2: title
  text
  </information>
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from sdar_jax.envs import base, texts
from sdar_jax.envs.search_qa import answers
from sdar_jax.envs.search_qa.retrieval.base import Passage, Searcher

MAX_TURNS = 4  # ref: the reference's search scripts
MAX_QUERY = 1024  # characters; longer queries are cut
MAX_OBSERVATION = 2000  # characters, about the reference's 500 tokens
NO_DOCUMENTS = 'No document matches this query.'
NO_ACTION = (
  'Nothing was searched or answered: write <search>a query</search> to look something'
  ' up, or <answer>a short answer</answer> to finish.'
)
SEARCH, ANSWER = 'search', 'answer'
_SENTENCE_END = re.compile(r'[.?!](?= |$)')
_MAX_WORDS = 16  # Of a document in the compact style.


class SearchQAEnv:
  """One question; implements `envs.base.TextEnv`. Picklable.

  The task's payload is a `datasets.Question`. The first observation is the question
  itself, with a question mark where it lacks one. An answer ends the episode; it pays 1
  if it exactly matches any gold answer. A search on the last turn is not executed: no
  one would read the result.

  Args:
    searcher: shared by all environments of the world.
    max_turns: turns per episode.
    max_characters: of a block of documents, titles and texts.
  """

  def __init__(
    self,
    searcher: Searcher,
    max_turns: int = MAX_TURNS,
    max_characters: int = MAX_OBSERVATION,
  ):
    self._searcher = searcher
    self._max_turns = max_turns
    self._max_characters = max_characters
    self._golden: tuple[str, ...] = ()
    self._turn = 0

  def reset(self, task: base.Task) -> base.Observation:
    """Starts a question."""
    self._golden = task.payload.golden_answers
    self._turn = 0
    return base.Observation(question_text(task.payload.question))

  def step(self, action: str) -> base.StepResult:
    """Searches or answers.

    Raises:
      EnvironmentFault: the retriever failed on this query.
    """
    self._turn += 1
    kind, text = read_action(action)
    if kind == ANSWER:
      success = answers.exact_match(text, self._golden)
      return base.StepResult(base.Observation(''), float(success), True, success)
    if kind == SEARCH and self._turn < self._max_turns:
      found = self._searcher.search(text)
      observed = format_documents(found, self._max_characters)
    else:
      observed = '' if kind == SEARCH else NO_ACTION
    return base.StepResult(base.Observation(observed), 0.0, False, False)


def question_text(question: str) -> str:
  """Strips a question and ends it in a question mark."""
  question = question.strip()
  return question if question.endswith('?') else f'{question}?'


def read_action(action: str) -> tuple[str, str]:
  """Reads an action as ('search', query), ('answer', text), ('', '').

  An empty query does nothing; an empty answer is an answer.
  """
  for kind in (SEARCH, ANSWER):
    start, end = f'<{kind}>', f'</{kind}>'
    if action.startswith(start) and action.endswith(end):
      text = action[len(start) : -len(end)].strip()
      if kind == SEARCH:
        text = text[:MAX_QUERY].strip()
      return (kind, text) if text or kind == ANSWER else ('', '')
  return '', ''


def write_action(kind: str, text: str) -> str:
  """Writes the action of a kind: the inverse of `read_action`."""
  return f'<{kind}>{text}</{kind}>'


def queries(actions: Iterable[str]) -> Iterator[str]:
  """Yields the queries among actions, for `Searcher.prefetch`."""
  for action in actions:
    kind, text = read_action(action)
    if kind == SEARCH:
      yield text


def format_documents(
  passages: Sequence[Passage], max_characters: int = MAX_OBSERVATION
) -> str:
  """Writes the block of documents for the agent.

  White space within a title or text becomes single spaces, so each is one line. Where
  all of it exceeds `max_characters`, the longest documents are cut first.
  """
  if not passages:
    return f'<information>\n{NO_DOCUMENTS}\n</information>'
  one_line = lambda text: texts.encodable(' '.join(text.split()))
  found = [(one_line(passage.title), one_line(passage.text)) for passage in passages]
  lengths = [len(title) + len(text) for title, text in found]
  limit = texts.fair_limit(lengths, max_characters)
  lines = []
  for number, (title, text) in enumerate(found, start=1):
    title = title[:limit]
    lines += [f'Doc {number}: {title}', text[: limit - len(title)]]
  return '\n'.join(['<information>', *lines, '</information>'])


def read_documents(observation: str) -> list[Passage]:
  """Reads an observation: the inverse of `format_documents`."""
  lines = observation.split('\n')[1:-1]
  return [
    Passage(head.partition(': ')[2], text)
    for head, text in zip(lines[::2], lines[1::2])
  ]


def sentences(observation: str) -> list[str]:
  """Writes the compact style's line for each document.

  The first sentence in lower case, without its final mark and without what lies beyond
  its sixteenth word, headed by the document's title where it does not name it.
  """
  out = []
  for passage in read_documents(observation):
    first = _SENTENCE_END.split(passage.text, maxsplit=1)[0].lower()
    title = passage.title.lower()
    told = first if title in first else f'{title} {first}'
    out.append(' '.join(told.split()[:_MAX_WORDS]))
  return out
