"""Questions and corpora read from files that the user names.

Questions: JSON lines {id, question, golden_answers, data_source} as the public sets
have them, or a JSON list of {question, answer}. Corpora: JSON lines {id, contents} with
contents 'title\\ntext', or {title, text}; or a JSON list of either. Any of them may be
compressed (.gz, .xz).
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Question:
  """A question and what counts as its answer.

  Attributes:
    question_id: unique within its data set.
    question: as the data set words it.
    golden_answers: any of them is right.
    data_source: the name of its data set.
  """

  question_id: str
  question: str
  golden_answers: tuple[str, ...]
  data_source: str
