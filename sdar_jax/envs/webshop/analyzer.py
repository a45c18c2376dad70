"""Splits a text into the original search engine's terms, exactly.

The chain is Anserini's DefaultEnglishAnalyzer: Unicode word segmentation (UAX #29 of
Unicode 9 with the emoji rules of UTS #51), possessives, lower case, 33 stop words,
Porter's stemmer.

Every character is mapped to the letter of its class (`_CLASSES`); one regular
expression over the string of classes then finds the words.
"""

import functools
import re
import unicodedata

from sdar_jax.envs.webshop.stemmer import stem

_LONGEST = 255  # Longer words are cut: the engine's default.
_STOP_WORDS = frozenset(
  'a an and are as at be but by for if in into is it no not of on or such that the '
  'their then there these they this to was will with'.split()
)
_POSSESSIVE = re.compile("['\u2019\uff07][sS]$")

# Characters whose class is listed, not derived (Unicode 9, WordBreakProperty.txt).
_LISTED = {
  'm': ':\xb7\u02d7\u0387\u05f4\u2027\ufe13\ufe55\uff1a',  # between letters
  'n': (  # between digits
    ',;\u037e\u0589\u060c\u060d\u066c\u07f8\u2044\ufe10\ufe14\ufe50\ufe54\uff0c\uff1b'
  ),
  'b': '.\u2018\u2019\u2024\ufe52\uff07\uff0e',  # between either
  'q': "'",
  'w': '"',
  'E': '_\u202f\u203f\u2040\u2054\ufe33\ufe34\ufe4d\ufe4e\ufe4f\uff3f',
  'c': '#*',
  'k': '\u20e3',
  'V': '\ufe0f',
  'U': '\ufe0e',
  'Z': '\u200d',
  'o': '\u200b\u3006\u30fb\uff65',
  'X': '\u200c\uff9e\uff9f',
  'K': '\u3031\u3032\u3033\u3034\u3035\u309b\u309c\u30a0\u30fc\uff70',
  'D': '\u066b',
  'J': '\u3005\u3007\u303b',
  'F': '\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff',
  'L': '\u2139\u24c2\u05f3\U0001f170\U0001f171\U0001f17e\U0001f17f',
}
# Extended_Pictographic (Unicode 14, emoji-data.txt), first and last of each range.
_PICTOGRAPHS = """
A9 AE 203C 2049 2122 2194-2199 21A9-21AA 231A-231B 2328 2388 23CF 23E9-23F3 23F8-23FA
25AA-25AB 25B6 25C0 25FB-25FE 2600-2605 2607-2612 2614-2685 2690-2705 2708-2712 2714
2716 271D 2721 2728 2733-2734 2744 2747 274C 274E 2753-2755 2757 2763-2767 2795-2797
27A1 27B0 27BF 2934-2935 2B05-2B07 2B1B-2B1C 2B50 2B55 3030 303D 3297 3299 1F000-1F0FF
1F10D-1F10F 1F12F 1F16C-1F171 1F17E-1F17F 1F18E 1F191-1F19A 1F1AD-1F1E5 1F201-1F20F
1F21A 1F22F 1F232-1F23A 1F23C-1F23F 1F249-1F3FA 1F400-1F53D 1F546-1F64F 1F680-1F6FF
1F774-1F77F 1F7D5-1F7FF 1F80C-1F80F 1F848-1F84F 1F85A-1F85F 1F888-1F88F 1F8AE-1F8FF
1F90C-1F93A 1F93C-1F945 1F947-1FAFF 1FC00-1FFFD
"""
_SOUTH_EAST_ASIAN = (
  'THAI',
  'LAO',
  'MYANMAR',
  'KHMER',
  'TAI LE',
  'NEW TAI LUE',
  'TAI THAM',
  'TAI VIET',
  'AHOM',
)


def _ranges(text: str) -> list[range]:
  pairs = [entry.split('-') for entry in text.split()]
  return [range(int(pair[0], 16), int(pair[-1], 16) + 1) for pair in pairs]


def _classify(code: int) -> str:
  """Finds the class of a character outside `_LISTED`."""
  if any(code in pictographs for pictographs in _ranges(_PICTOGRAPHS)):
    return 'P'
  if 0x1F1E6 <= code <= 0x1F1FF:
    return 'r'
  letter = chr(code)
  category, name = unicodedata.category(letter), unicodedata.name(letter, '')
  if name.startswith(_SOUTH_EAST_ASIAN) and category[0] in 'LM':
    return 'T'
  if category[0] == 'M' or category == 'Cf':
    return 'X'
  if category == 'Nd':
    return 'D'
  if name.startswith(('CJK UNIFIED', 'CJK COMPATIBILITY IDEO', 'CJK RADICAL')):
    return 'J'
  if name.startswith(('KANGXI RADICAL', 'HANGZHOU NUMERAL')):
    return 'J'
  if name.startswith(('KATAKANA', 'HALFWIDTH KATAKANA', 'CIRCLED KATAKANA')):
    return 'K'
  if 0x3300 <= code <= 0x3357:  # Squared Katakana words.
    return 'K'
  if name.startswith('HIRAGANA'):
    return 'R'
  if name.startswith('HEBREW LETTER'):
    return 'H'
  if category[0] == 'L' or category == 'Nl' or 0x24B6 <= code <= 0x24E9:
    return 'L'
  return 'o'


class _Classes(dict):
  """Code point -> letter of its class, filled in as characters turn up."""

  def __missing__(self, code: int) -> str:
    self[code] = result = _classify(code)
    return result


_CLASSES = _Classes(
  (ord(letter), name) for name, letters in _LISTED.items() for letter in letters
)


def _pattern() -> re.Pattern:
  """Compiles the pattern of words over the string of classes."""
  extend = '[XZkVUF]*+'  # Marks that belong to the character before them.
  letter, digit = f'[LH]{extend}', f'D{extend}'
  kana, joiner = f'K{extend}', f'E{extend}'
  quoted = f'(?:(?<=H)q{extend}|(?<=H)w{extend}(?=H))?'
  letters = f'{letter}(?:(?:(?:{joiner})*|[mbq]{extend}){letter})*{quoted}'
  digits = f'{digit}(?:(?:(?:{joiner})*|[nbq]{extend}){digit})*'
  core = f'(?:{kana}(?:(?:{joiner})*{kana})*|(?:{digits}|{letters})+)'
  word = f'(?:(?<!E)(?:{joiner})+)?{core}(?:(?:{joiner})+{core})*(?:{joiner})*'
  # A zero-width joiner that leads to another pictograph starts the next element.
  marks = '(?:[Xk]|Z(?!Z*[PF]))*'
  element = f'(?:Z*P{marks}(?:F{marks})?V?|F{marks})'
  emoji = f'{element}(?:Z{element})*|c{marks}V?k{marks}|r{extend}r{extend}'
  return re.compile(f'{word}|{emoji}|[JR]{extend}|(?:T{extend})+')


_WORD = _pattern()


def words(text: str) -> list[str]:
  """Splits a text into its words, unchanged."""
  classes = text.translate(_CLASSES)
  found = []
  for match in _WORD.finditer(classes):
    start, end = match.span()
    while end - start > _LONGEST:
      cut = _WORD.match(classes, start, start + _LONGEST).end()
      found.append(text[start:cut])
      start = cut
    found.append(text[start:end])
  return found


@functools.lru_cache(maxsize=1 << 18)
def _term(word: str) -> str:
  """Gives the search term of a word; '' for none."""
  word = _POSSESSIVE.sub('', word)
  # One letter for one, as Java does it: 'İ' becomes 'i'.
  word = word.lower() if word.isascii() else ''.join(c.lower()[0] for c in word)
  return '' if word in _STOP_WORDS else stem(word)


@functools.lru_cache(maxsize=1 << 18)
def _terms(chunk: str) -> tuple[str, ...]:
  """Lists the terms between two spaces; most chunks come up often."""
  return tuple(term for word in words(chunk) if (term := _term(word)))


def analyze(text: str) -> list[str]:
  """Lists the search terms of a text, in order, with repetitions."""
  return [term for chunk in text.split(' ') for term in _terms(chunk)]
