"""What a person sees, on any terminal or none."""

import io
import math

import pytest
import run_cases

from sdar_jax.evaluation import display
from sdar_jax.logs import console


def test_console_prints_one_line_per_step_when_not_a_terminal():
  stream = io.StringIO()
  with console.Console(10, stream) as screen:
    screen.step(3, {'train/loss': 0.25, 'rollout/success_rate': 0.5})
    screen.line('say \x1b[31m[red]\nnow')
  assert stream.getvalue().splitlines() == [
    'step 3/10  success 50.0%  loss 0.2500',
    r'say \x1b[31m[red]\nnow',
  ]


def test_the_gate_is_shown_by_what_it_opens_and_shuts():
  """Its mean stays near one half whatever single tokens do."""
  values = {'train/gate': 0.49, 'train/gate_open': 0.031, 'train/gate_shut': 0.02}
  assert console.summary(values) == 'gate open 3.1%  shut 2.0%'
  nothing_taught = dict.fromkeys(values, math.nan) | {'train/loss': 0.5}
  assert console.summary(nothing_taught) == 'loss 0.5000'


class _Gone(io.StringIO):
  """A terminal that was closed, a pipe without a reader, a disk that is full."""

  def __init__(self, error):
    super().__init__()
    self.error = error

  def write(self, text):
    raise self.error

  flush = fileno = lambda self: self.write('')


@pytest.mark.parametrize(
  'error',
  [BrokenPipeError(32, 'pipe'), OSError(5, 'gone'), OSError(28, 'full'), ValueError()],
)
def test_a_console_that_is_gone_does_not_end_the_work(error):
  _show_everything(_Gone(error))


def test_a_console_that_never_was_does_not_either():
  _show_everything(None)


@pytest.mark.parametrize('encoding', ['ascii', 'latin-1', 'cp1252', 'utf-8'])
def test_a_console_escapes_what_its_encoding_lacks(encoding):
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
  _show_everything(stream)
  text = raw.getvalue().decode(encoding)
  assert ('grün → 🎲' if encoding == 'utf-8' else '\\u2192 \\U0001f3b2') in text
  assert 'n=50' in text and 'put_something' in text


def _show_everything(stream):
  with console.Console(2, stream) as screen:
    screen.line('grün → 🎲 \ud800')
    screen.step(1, {'train/loss': 0.25})
  long = 'put_something_that_is_far_too_long_for_a_table' * 3
  panel = {'composition': {long: 50}}
  reports = {name: _report(0.3, [long], **panel) for name in ('before', 'after')}
  screen.table(display.table(reports))


def _shown(reports, width=100):
  stream = io.StringIO()
  screen = console.Console(1, stream)
  screen._console.width = width
  screen.table(display.table(reports))
  return stream.getvalue()


def _report(rate, types_, **changes):
  success = {'n': 50, 'success_rate': rate, 'interval': [rate - 0.1, rate + 0.1]}
  by_type = {name: success for name in types_}
  numbers = {'mean_turns': 12.5, 'valid_action_rate': 0.9, 'faults': 3}
  names = {'panel': 'alfworld/valid/50 of 99', 'panel_digest': 'abc' * 20}
  names['composition'] = {'look': 20, 'put': 30, 'heat': 0}
  settings = {**run_cases.SETTINGS, **names, **success, **numbers}
  return {**settings, 'by_type': by_type, **changes}


def test_console_shows_reports_side_by_side_with_their_panel():
  text = _shown({'before': _report(0.3, ['look']), 'after': _report(0.5, ['put'])})
  assert 'before' in text and 'after' in text
  assert 'alfworld/valid/50 of 99  abcabcabcabc' in text
  assert 'look 20, put 30; none of heat' in text and 'without skills' in text
  cells = [line.split('│') for line in text.splitlines() if '│' in line]
  lines = {line[1].strip(): '│'.join(line[2:]) for line in cells}
  assert '30.0% [20.0%, 40.0%] n=50' in lines['all']
  assert '50.0% [40.0%, 60.0%] n=50' in lines['all']
  assert lines['look'].count('n=50') == 1 and ' - ' in lines['look']
  assert 'heat' not in lines  # The panel has none.
  assert lines['lost to faults'].count('3') == 2
  line = display.line(_report(0.3, ['look']))
  assert line == (
    'alfworld/valid/50 of 99  abcabcabcabc: success 30.0% [20.0%, 40.0%] n=50, 3'
    ' episodes lost to faults'
  )


@pytest.mark.parametrize(
  'change', [{'panel_digest': 'x' * 64}, {'temperature': 0.9}, {'with_skills': True}]
)
def test_console_puts_no_two_panels_or_settings_under_one_heading(change):
  with pytest.raises(ValueError, match='before, after'):
    _shown({'before': _report(0.3, []), 'after': _report(0.5, [], **change)})


def test_console_shows_what_was_not_measured_as_such():
  nothing = {'n': 0, 'success_rate': None, 'interval': None, 'mean_turns': None}
  text = _shown({'success': _report(0.3, ['look'])})  # Faults took all of 'put'.
  assert any('put' in line and ' - ' in line for line in text.splitlines())
  text = _shown({'success': _report(0.3, ['look'], **nothing)})
  assert 'None' not in text and ' 0.0' not in text
