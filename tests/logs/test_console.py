"""What a person sees, on any terminal or none."""

import io
import logging
import math
import os
import pty
import re
import sys

import pytest
import rich.console
import run_cases

from sdar_jax.evaluation import display
from sdar_jax.logs import console
from sdar_jax.process import signals

WIDEST = {
  'rollout/success_rate': 1.0,
  'rollout/turns_mean': 49.9,
  'rollout/valid_action_rate': 1.0,
  'train/loss': -12.3456,
  'train/gate': 0.49,
  'train/gate_open': 1.0,
  'train/gate_shut': 0.999,
  'train/entropy': 11.931,
  'perf/step_seconds': 12345.6,
}


class _Terminal(io.StringIO):
  """A terminal of 80 columns, as far as a run uses one."""

  def __init__(self):
    super().__init__()
    self.rows, self.column, self.cursor = [''], 0, True

  def isatty(self):
    return True

  def write(self, text):
    for found in re.finditer(r'\x1b\[([?\d;]*)([A-Za-z])|([^\x1b])', text):
      argument, command, character = found.groups()
      if character == '\r' or character == '\n':
        self.column = 0
        self.rows += [''] * (character == '\n')
      elif character:
        if self.column == 80:
          self.rows, self.column = [*self.rows, ''], 0
        row = self.rows[-1].ljust(self.column)
        self.rows[-1] = row[: self.column] + character + row[self.column + 1 :]
        self.column += 1
      elif command == 'K':  # 2: the whole line; nothing: from here.
        self.rows[-1] = '' if argument == '2' else self.rows[-1][: self.column]
      elif command == 'A':
        assert argument == '1' and not self.rows.pop()
      elif argument == '?25':
        self.cursor = command == 'h'
      else:
        assert command == 'm', found.group()  # Colours.
    return len(text)


@pytest.fixture
def terminal(monkeypatch):
  monkeypatch.setenv('COLUMNS', '80')
  monkeypatch.setenv('TERM', 'xterm')
  for name in ('FORCE_COLOR', 'NO_COLOR', 'TTY_COMPATIBLE'):
    monkeypatch.delenv(name, raising=False)
  return _Terminal()


class _Time:
  now = 0.0

  def __call__(self):
    return self.now


def _live(screen, terminal):
  """The live line, its bar as one character."""
  screen._live.refresh()
  return re.sub('[━╸╺]+', '|', terminal.rows[-1])


def test_a_terminal_keeps_a_line_per_step_above_a_live_line(terminal):
  time = _Time()
  with console.Console(200, terminal, time) as screen:
    screen.resume(10)
    screen.phase('rollout')
    screen.episodes(45, 128)
    time.now = 75.0
    live = _live(screen, terminal)
    assert live == 'step 10/200 | ETA -:--:--  rollout 45/128 episodes 0:01:15'
    assert len(terminal.rows) == 1
    assert terminal.cursor  # Also where the process is killed now.
    screen.phase('update')
    screen.step(11, {'rollout/success_rate': 0.5, 'train/loss': 0.25})
    screen.phase('eval')
    screen.episodes(499, 500)
    live = _live(screen, terminal)
    assert live == 'step 11/200 | ETA 3:56:15  eval 499/500 episodes 0:00:00'
    assert terminal.rows[:-1] == ['step 11/200  success 50.0%  loss 0.2500']
  assert terminal.rows == ['step 11/200  success 50.0%  loss 0.2500', '']


@pytest.mark.parametrize('steps', [1, 20, 12345])
@pytest.mark.parametrize('name', ['rollout', 'score', 'update', 'eval', 'save'])
def test_nothing_wraps_or_is_cut_off_at_80_columns(terminal, steps, name):
  time = _Time()
  screen = console.Console(steps, terminal, time)
  shown = rich.console.Console(width=80, record=True, file=io.StringIO())
  for step in range(max(0, steps - 2), steps):
    screen.step(step, WIDEST)
    screen.phase(name)
    screen.episodes(*((12800, 12800) if name in ('rollout', 'eval') else (0, 0)))
    time.now += 35999
    shown.print(screen.status())
  lines = shown.export_text().splitlines()
  assert len(lines) == min(steps, 2)
  for line in lines:
    assert re.match(
      rf'step \d+/{steps} [━╸ ]{{4,20}} ETA (-|\d+):[-\d]+:[-\d]+  {name} ', line
    )
    assert len(line.rstrip()) <= 76  # A terminal adds ^C.
  assert all(
    re.fullmatch(r'step .*  success 100.0%  .*gate open 100.0%  shut 99.9%.*', line)
    for line in terminal.rows[:-1]
  )
  assert len(terminal.rows) == len(lines) + 1  # None went on in a second row.


@pytest.mark.parametrize('width', [20, 40, 60])
def test_a_narrow_terminal_has_one_live_line_too(terminal, monkeypatch, width):
  monkeypatch.setenv('COLUMNS', str(width))
  with console.Console(20, terminal, _Time()) as screen:
    screen.phase('rollout')
    screen.episodes(45, 128)
    assert len(_live(screen, terminal)) <= width - 4
    assert len(terminal.rows) == 1 and terminal.rows[0].startswith('step 0/20')


def test_the_time_left_is_that_of_the_latest_steps_without_the_first():
  """Steps of minutes have one, too, and it falls while a step goes on."""
  time = _Time()
  screen = console.Console(100, io.StringIO(), time)
  shown = []
  lengths = [900, *[60] * 20, *[120] * 10]
  screen.phase('eval')
  for step, seconds in enumerate(lengths, start=1):
    time.now += seconds
    screen.step(step, {})
    shown.append(screen._left())
  assert shown[0] == 99 * 900  # There is nothing better to say.
  assert shown[1:21] == [60 * (100 - step) for step in range(2, 22)]
  assert shown[-1] == 69 * 120
  time.now += 100
  assert screen._left() == 69 * 120 - 100
  time.now += 1e9
  assert screen._left() == 0


def test_an_evaluation_alone_shows_its_episodes(terminal):
  time = _Time()
  with console.Console(0, terminal, time) as screen:
    screen.phase('eval')
    screen.episodes(100, 500)
    time.now = 60.0
    live = _live(screen, terminal)
    assert live == '| ETA 0:04:00  eval 100/500 episodes 0:01:00'
    assert re.match('━{4}[╸╺]?━', terminal.rows[0])


def test_the_answer_to_a_signal_and_the_log_stand_above_the_live_line(
  terminal, monkeypatch
):
  monkeypatch.setattr(sys, 'stderr', terminal)
  handler = logging.StreamHandler(terminal)
  monkeypatch.setattr(logging.getLogger(), 'handlers', [handler])
  controller, descriptor = pty.openpty()
  with console.Console(20, terminal, _Time()) as screen:
    screen.phase('rollout')
    _live(screen, terminal)
    terminal.write('^C')  # What the terminal itself echoes.
    signals.StopSignal(descriptor)._acknowledge()
    terminal.write(os.read(controller, 1000).decode())
    _live(screen, terminal)
    logging.warning('not written yet')
    print('said')
    screen.step(1, {'train/loss': 0.25})
    live = terminal.rows[-1]
  for end in (controller, descriptor):
    os.close(end)
  assert terminal.rows == [
    signals.ACKNOWLEDGED,
    'not written yet',
    'said',
    'step 1/20  loss 0.2500',
    '',
  ]
  assert live.startswith('step 1/20 ') and '^C' not in live
  assert handler.stream is terminal and sys.stdout is not terminal


@pytest.mark.parametrize('name', ['FORCE_COLOR', 'TTY_COMPATIBLE'])
def test_a_pipe_gets_one_line_per_step(monkeypatch, name):
  monkeypatch.setenv(name, '1')
  stream, time = io.StringIO(), _Time()
  with console.Console(10, stream, time) as screen:
    screen.phase('rollout')
    screen.episodes(3, 8)
    time.now = 5.0
    screen.step(3, {'train/loss': 0.25, 'rollout/success_rate': 0.5})
    time.now = 10.0
    screen.step(4, WIDEST)
    screen.line('say \x1b[31m[red]\nnow')
  assert stream.getvalue().splitlines() == [
    'step 3/10  success 50.0%  loss 0.2500  left 0:00:35',
    'step 4/10  success 100.0%  turns 49.9  valid 100.0%  loss -12.3456  gate open'
    ' 100.0%  shut 99.9%  entropy 11.931  12345.6 s  left 0:00:30',
    r'say \x1b[31m[red]\nnow',
  ]


def test_a_terminal_without_controls_gets_the_same(terminal, monkeypatch):
  monkeypatch.setenv('TERM', 'dumb')
  with console.Console(10, terminal, _Time()) as screen:
    screen.phase('rollout')
    screen.step(3, {'train/loss': 0.25})
  assert terminal.rows == ['step 3/10  loss 0.2500  left 0:00:00', '']


def test_the_gate_is_shown_by_what_it_opens_and_shuts():
  """Its mean stays near one half whatever single tokens do."""
  values = {'train/gate': 0.49, 'train/gate_open': 0.031, 'train/gate_shut': 0.02}
  assert console.summary(values) == 'gate open 3.1%  shut 2.0%'
  assert console.summary(values, 0) == 'gate open 3.1%  shut 2.0%'
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
  assert '30.0% [20.0, 40.0]' in text and 'put_something' in text
  assert '…' not in text and '\\u2026' not in text  # Nothing is cut off.


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
  words = ' '.join(text.split())
  assert 'look 20, put 30; none of heat' in words and 'without skills' in words
  cells = [line.partition('  ') for line in text.splitlines()]
  lines = {label: ' '.join(rest.split()) for label, _, rest in cells}
  assert lines['tasks'] == 'before n after n'
  assert lines['all'] == '30.0% [20.0, 40.0] 50 50.0% [40.0, 60.0] 50'
  assert lines['look'] == '30.0% [20.0, 40.0] 50 -'
  assert 'heat' not in lines  # The panel has none.
  assert lines['lost to faults'] == '3 3'
  assert display.line(_report(0.3, ['look'])) == (
    'success 30.0% [20.0, 40.0] n=50, alfworld/valid/50 of 99; 3 episodes lost to'
    ' faults'
  )


def test_reports_side_by_side_fit_80_columns():
  types = ['pick_clean_then_place_in_recep', 'pick_cool_then_place_in_recep']
  report = _report(1.0, types, composition=dict.fromkeys(types, 50), n=500)
  text = _shown({'before': report, 'after': report}, width=80)
  lines = text.splitlines()
  assert max(map(len, lines)) == 80
  for name in ('all', *types):
    (line,) = [line for line in lines if re.match(rf'{name} +1', line)]
    assert line.count('100.0% [90.0, 110.0]') == 2 and line.count(' 50') == 2
  report = {**report, 'panel': 'alfworld/valid_unseen/500 of 2000', 'faults': 0}
  assert len(f'step 1000: {display.line(report)}') <= 80


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
