"""Porter's stemmer with its author's two later departures.

Source: M. F. Porter, 'An algorithm for suffix stripping', Program 14(3), 1980; the
departures are 'bli' and 'logi' in step 2. Anything but a, e, i, o, u, y counts as a
consonant, so numbers and foreign letters pass through the same rules.
"""

_STEP_2 = {
  'ational': 'ate',
  'tional': 'tion',
  'enci': 'ence',
  'anci': 'ance',
  'izer': 'ize',
  'bli': 'ble',
  'alli': 'al',
  'entli': 'ent',
  'eli': 'e',
  'ousli': 'ous',
  'ization': 'ize',
  'ation': 'ate',
  'ator': 'ate',
  'alism': 'al',
  'iveness': 'ive',
  'fulness': 'ful',
  'ousness': 'ous',
  'aliti': 'al',
  'iviti': 'ive',
  'biliti': 'ble',
  'logi': 'log',
}
_STEP_3 = {
  'icate': 'ic',
  'ative': '',
  'alize': 'al',
  'iciti': 'ic',
  'ical': 'ic',
  'ful': '',
  'ness': '',
}
_STEP_4 = dict.fromkeys(
  (
    'ement ance ence able ible ment ant ent ion ism ate iti ous ive ize al er ic ou'
  ).split(),
  '',
)


def _shape(word: str) -> str:
  """Maps a word to a string of 'c' (consonants) and 'v' (vowels)."""
  shape = ''
  for letter in word:
    if letter in 'aeiou' or (letter == 'y' and shape[-1:] == 'c'):
      shape += 'v'
    else:
      shape += 'c'
  return shape


def _measure(stem: str) -> int:
  """Counts vowels followed by a consonant."""
  return _shape(stem).count('vc')


def _ends_short(word: str) -> bool:
  """Ends consonant, vowel, consonant, the last one not w, x or y."""
  return _shape(word)[-3:] == 'cvc' and word[-1] not in 'wxy'


def _ends_double(word: str) -> bool:
  """Ends in the same consonant twice."""
  return len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == 'c'


def _step_1(word: str) -> str:
  """Strips plurals, -ed and -ing, and turns a final y into i."""
  if word.endswith(('sses', 'ies')):
    word = word[:-2]
  elif word.endswith('s') and not word.endswith('ss'):
    word = word[:-1]
  if word.endswith('eed'):
    if _measure(word[:-3]):
      word = word[:-1]
  else:
    for suffix in ('ed', 'ing'):
      stem = word.removesuffix(suffix)
      if stem != word and 'v' in _shape(stem):
        word = _mend(stem)
        break
  if word.endswith('y') and 'v' in _shape(word[:-1]):
    word = word[:-1] + 'i'
  return word


def _mend(stem: str) -> str:
  """Mends a word stripped of its -ed or -ing."""
  if stem.endswith(('at', 'bl', 'iz')):
    return stem + 'e'
  if _ends_double(stem):
    return stem if stem[-1] in 'lsz' else stem[:-1]
  if _measure(stem) == 1 and _ends_short(stem):
    return stem + 'e'
  return stem


def _strip(word: str, suffixes: dict[str, str], least: int) -> str:
  """Replaces the longest suffix of a stem with measure >= `least`."""
  for size in range(min(7, len(word)), 1, -1):
    suffix = word[-size:]
    if suffix in suffixes:
      stem = word[:-size]
      if suffix == 'ion' and stem[-1:] not in ('s', 't'):
        return word
      return stem + suffixes[suffix] if _measure(stem) >= least else word
  return word


def stem(word: str) -> str:
  """Stems a lower-case word of at least three letters."""
  if len(word) < 3:
    return word
  word = _step_1(word)
  word = _strip(word, _STEP_2, 1)
  word = _strip(word, _STEP_3, 1)
  word = _strip(word, _STEP_4, 2)
  measure = _measure(word)
  if word.endswith('e') and (
    measure > 1 or (measure == 1 and not _ends_short(word[:-1]))
  ):
    word = word[:-1]
  if measure > 1 and word.endswith('ll'):
    word = word[:-1]
  return word
