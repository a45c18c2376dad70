"""Episodes in a terminal of 80 columns."""

import re
import subprocess
import sys

import look_cases
import pytest

from sdar_jax.look import episode, folder, page, screen, view

_COLOUR = re.compile(r'\x1b\[[\d;]*m')


def _shown(*words, width=80, colours=False, monkeypatch=None, capsys=None):
  monkeypatch.setenv('COLUMNS', str(width))
  if colours:
    monkeypatch.setattr(
      screen,
      'console',
      lambda: screen.rich.console.Console(
        markup=False, highlight=False, force_terminal=True, color_system='truecolor'
      ),
    )
  assert view.main([*map(str, words)]) == 0
  return capsys.readouterr().out


@pytest.fixture
def shown(monkeypatch, capsys):
  return lambda *words, **settings: _shown(
    *words, **settings, monkeypatch=monkeypatch, capsys=capsys
  )


def test_an_episode_is_told_in_80_columns(tmp_path, shown):
  path = look_cases.write(tmp_path / 'run')
  out = shown(path)
  assert max(map(len, out.splitlines())) <= 80
  record = look_cases.lines(path)[0]
  said = record['turns'][0]['tokens']
  for text in (record['goal'], record['task_id'], 'max_turns', 'plan: a room first'):
    assert text in out
  assert out.count('plan: a room first') == 1  # Said once, while it stays the same.
  assert '0: 0 (-0.50)' in out and '1: 10 (+0.50)' in out
  assert re.search(r'<think> go◌€↵ *\n *</think><\|im_end\|>', out)
  for i, text in enumerate(look_cases.TEXTS):
    if abs(2 * said['gate'][i] - 1) > 0.95 and text.strip():
      row = next(
        line for line in out.splitlines() if line.split()[:1] == [text.strip()]
      )
      assert f'{said["gate"][i]:.2f}' in row and f'{said["gap"][i]:z.2f}' in row


def test_turns_that_are_not_shown_are_counted(tmp_path, shown, monkeypatch):
  monkeypatch.setattr(episode, '_MOST_TURNS', 1)
  path = look_cases.write(tmp_path / 'run', steps=[1], count=1)
  assert '1 more turns, which are not shown' in shown(path)
  runs = [folder.read(path)]
  text = page.page(
    runs, [(0, h) for h in runs[0].episodes], start=0, beside=None, limit=9
  )
  assert text.count('its last 1 turns are not shown') == 2  # An episode each.


@pytest.mark.parametrize('by', ['gate', 'gap', 'advantage', 'entropy', 'student'])
def test_a_token_has_the_colour_of_its_value(tmp_path, shown, by):
  path = look_cases.write(tmp_path / 'run')
  out = shown(path, f'--by={by}', colours=True)
  said = look_cases.lines(path)[0]['turns'][0]['tokens']
  name, lean = screen.BY[by]
  found = re.search(r'\x1b\[([\d;]*)m?<think>', out) or re.search('()<think>', out)
  share = max(-1.0, min(1.0, lean(said[name][0])))
  end = screen._PLUS if share > 0 else screen._MINUS
  wanted = [
    round(g + abs(share) * (c - g)) for g, c in zip(screen._GROUND, end, strict=True)
  ]
  behind = re.search(r'48;2;(\d+);(\d+);(\d+)', found[1])
  got = None if behind is None else [*map(int, behind.groups())]
  assert got == (wanted if abs(share) > 0.03 else None)


def test_nothing_that_was_said_reaches_the_terminal_as_a_command(tmp_path, shown):
  wild = look_cases.HOSTILE + '[red]\x9b2J\r\x08'
  path = look_cases.write(tmp_path / 'run', text=wild, task=wild)
  for words in ((path,), (path, '--list'), (path, path)):
    out = _COLOUR.sub('', shown(*words, colours=True))
    assert all(c.isprintable() or c == '\n' for c in out), words
  assert '[red]' in shown(path)  # Nor is it taken for a style.


def test_episodes_are_listed_in_80_columns(tmp_path, shown):
  path = look_cases.write(tmp_path / 'run', count=40)
  out = shown(path, '--list', '--best', '--limit=5')
  lines = out.splitlines()
  assert max(map(len, lines)) <= 80 and '155 more' in lines[-1]
  assert lines[1].split()[:7] == [
    '1',
    'generated/train/0',
    '1',
    'success',
    '10',
    '2',
    '1',
  ]


def test_two_runs_stand_side_by_side_where_there_is_room(tmp_path, shown):
  one = look_cases.write(tmp_path / 'one')
  two = look_cases.write(tmp_path / 'two', steps=[2])
  wide, narrow = shown(one, two, width=140), shown(one, two)
  heading = [line for line in wide.splitlines() if line.startswith('put a clean')]
  assert heading[0].count('put a clean cloth') == 2
  assert not any(line.count('put a clean') > 1 for line in narrow.splitlines())
  for out in (wide, narrow):
    assert '/one' in out and '/two' in out
  assert max(map(len, narrow.splitlines())) <= 80


def test_help_is_quick_and_loads_nothing_heavy():
  code = (
    'import sys; from sdar_jax.look import view\n'
    'try: view.main(["--help"])\n'
    'except SystemExit: pass\n'
    'print(*sorted({"jax", "numpy", "rich", "tokenizers"} & {*sys.modules}))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert 'usage: sdar view' in done.stdout and done.stdout.endswith('\n\n')
