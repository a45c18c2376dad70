"""Nouns of product names, for the reward: spaCy's or by a rule.

The original tags names with spaCy's en_core_web_lg. Where that model is not installed,
a word is taken for a noun unless it is one of the function words below. Full marks do
not depend on the source for the goal's own product; partial marks do, so reports name
the source.
"""

import functools
import importlib.util
import re

from sdar_jax.envs.base import check_choice

SOURCES = ('auto', 'spacy', 'rule')
MODELS = ('en_core_web_lg', 'en_core_web_sm')
_FUNCTION_WORDS = frozenset(
  """
  a an the and or nor but of for with without to in on by at from into onto over under
  up down out off as than then so is are was were be been being am do does did has have
  had will would can could should may might must not no yes it its this that these those
  i you he she we they me my your our their his her them us if when while per via each
  all any more most other some such only own same too very just also new best
  """.split()
)


class NounSource:
  """Finds the nouns of a name. Picklable; loads a model at first use.

  Args:
    source: 'spacy', 'rule', or 'auto' for spaCy if one of `MODELS` is installed.

  Attributes:
    name: the source in use: 'rule', or the spaCy model's name.

  Raises:
    ValueError: 'spacy' was asked for and no model is installed.
  """

  def __init__(self, source: str = 'auto'):
    check_choice('noun_source', source, SOURCES)
    models = [name for name in MODELS if importlib.util.find_spec(name)]
    if source == 'spacy' and not models:
      raise ValueError(
        f"config.world.noun_source='spacy': install one of {MODELS}, or use 'rule'"
      )
    self.name = models[0] if models and source != 'rule' else 'rule'

  def __eq__(self, other: object) -> bool:
    return isinstance(other, NounSource) and self.name == other.name

  def __hash__(self) -> int:
    return hash(self.name)

  def __call__(self, text: str) -> tuple[str, ...]:
    """Lists the nouns of a text in lower case, with repetitions."""
    return _rule(text) if self.name == 'rule' else _tagged(self.name, text)


@functools.lru_cache(maxsize=1 << 16)
def _rule(text: str) -> tuple[str, ...]:
  found = (word.lower() for word in re.findall('[A-Za-z]+', text))
  return tuple(word for word in found if word not in _FUNCTION_WORDS)


@functools.cache
def _model(name: str):
  import spacy  # Heavy and optional.

  return spacy.load(name)


@functools.lru_cache(maxsize=1 << 16)
def _tagged(name: str, text: str) -> tuple[str, ...]:
  tokens = _model(name)(text)
  return tuple(
    token.text.lower() for token in tokens if token.pos_ in ('NOUN', 'PROPN')
  )
