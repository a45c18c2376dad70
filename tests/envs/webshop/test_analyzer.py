"""The analyzer against the original's own tokens, and against the standards' rules."""

import pytest
import webshop_records as records
from hypothesis import given, settings
from hypothesis import strategies as st

from sdar_jax.envs.webshop.analyzer import analyze, words
from sdar_jax.envs.webshop.stemmer import stem


def test_all_recorded_products_have_the_recorded_terms():
  texts = {row['id']: row['contents'] for row in records.documents()}
  recorded = records.read('doc_tokens')
  wrong = [
    r['asin'] for r in recorded if analyze(texts[r['asin']]) != r['tokens'].split()
  ]
  assert len(recorded) == 500
  assert not wrong


def test_all_recorded_queries_have_the_recorded_terms():
  recorded = records.read('search')
  wrong = [r['query'] for r in recorded if analyze(r['query']) != r['tokens']]
  assert len(recorded) == 751
  assert not wrong


# Each line follows from a rule of UAX #29 (words) or UTS #51 (emoji).
WORDS = {
  "can't stop": ["can't", 'stop'],
  '3.14 and 1,000.5': ['3.14', 'and', '1,000.5'],
  'end.of:line': ['end.of:line'],
  'a,b 1:2': ['a', 'b', '1', '2'],
  'x_1 __ _y_': ['x_1', '_y_'],
  '20cm*30cm': ['20cm', '30cm'],
  'a-b/c+d': ['a', 'b', 'c', 'd'],
  '.5 5. .a': ['5', '5', 'a'],
  'na\u00efve cafe\u0301': ['na\u00efve', 'cafe\u0301'],
  'co\u00adop': ['co\u00adop'],
  '\u5929\u6c17': ['\u5929', '\u6c17'],
  '\u3072\u3089': ['\u3072', '\u3089'],
  '\u30ab\u30bf\u30ab\u30ca a\u30ab': ['\u30ab\u30bf\u30ab\u30ca', 'a', '\u30ab'],
  '\ud55c\uad6d\uc5b4 x': ['\ud55c\uad6d\uc5b4', 'x'],
  '\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 x': [
    '\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35',
    'x',
  ],
  '\u05d0\u05d1" \u05d0"\u05d1 \u05d0\'': ['\u05d0\u05d1', '\u05d0"\u05d1', "\u05d0'"],
  'a\ufe0eb \u2764\ufe0ex': ['a\ufe0eb', '\u2764', 'x'],
  '\u2764\ufe0f\u2728': ['\u2764\ufe0f', '\u2728'],
  '\U0001f468\u200d\U0001f4bb!': ['\U0001f468\u200d\U0001f4bb'],
  '\U0001f44d\U0001f3fd\U0001f44d': ['\U0001f44d\U0001f3fd', '\U0001f44d'],
  '\U0001f1e9\U0001f1ea\U0001f1eb': ['\U0001f1e9\U0001f1ea'],
  '#\ufe0f\u20e3 # 1\ufe0f\u20e3': ['#\ufe0f\u20e3', '1\ufe0f\u20e3'],
  '\u221a2 \u27a4 \u273f \u2605': ['2', '\u2605'],
  'x' * 300: ['x' * 255, 'x' * 45],
}


@pytest.mark.parametrize('text', WORDS)
def test_words_end_where_the_standard_says(text):
  assert words(text) == WORDS[text]


def test_possessives_stop_words_and_short_words():
  assert analyze("the Men's dog’s s's x") == ['men', 'dog', 's', 'x']
  assert analyze('this is not for them') == ['them']
  assert analyze('') == analyze('   \t\n') == []


def test_capitals_become_one_letter_each():
  assert analyze('\u0130STANBUL') == ['istanbul']


# Input and output of Porter's paper and of its author's sample vocabulary.
STEMS = (
  'caresses caress ponies poni ties ti caress caress cats cat feed feed agreed agre '
  'plastered plaster bled bled motoring motor sing sing conflated conflat troubled '
  'troubl sized size hopping hop tanned tan falling fall hissing hiss fizzed fizz '
  'failing fail filing file happy happi sky sky relational relat conditional condit '
  'rational ration valenci valenc hesitanci hesit digitizer digit conformabli '
  'conform radicalli radic differentli differ vileli vile analogousli analog '
  'vietnamization vietnam predication predic operator oper feudalism feudal '
  'decisiveness decis hopefulness hope callousness callous formaliti formal '
  'sensitiviti sensit sensibiliti sensibl triplicate triplic formative form '
  'formalize formal electriciti electr electrical electr hopeful hope goodness good '
  'revival reviv allowance allow inference infer airliner airlin gyroscopic '
  'gyroscop adjustable adjust defensible defens irritant irrit replacement replac '
  'adjustment adjust dependent depend adoption adopt homologou homolog communism '
  'commun activate activ angulariti angular homologous homolog effective effect '
  'bowdlerize bowdler probate probat rate rate cease ceas controll control roll '
  'roll geology geologi archaeologi archaeolog as as is is yes ye oyster oyster '
  'eyed ei syzygy syzygi '
).split()


@pytest.mark.parametrize('word, expected', list(zip(STEMS[::2], STEMS[1::2])))
def test_stems_are_those_of_the_paper(word, expected):
  assert stem(word) == expected


@settings(deadline=None)
@given(st.text())
def test_words_stand_in_the_text_in_order(text):
  place = 0
  for word in words(text):
    place = text.index(word, place) + len(word)


@settings(deadline=None)
@given(st.text(), st.text())
def test_spaces_separate(first, second):
  assert words(f'{first} {second}') == words(first) + words(second)
  assert analyze(f'{first} {second}') == analyze(first) + analyze(second)
