"""Every cell of the printed tables of results follows from the raw files."""

import csv
import functools
import json
import pathlib
import re

import numpy as np
import pytest

from experiments import tables
from sdar_jax.evaluation import presentation, statistics

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = ('README.md', 'docs/results.md', 'docs/studies.md')
TEXT = '\n'.join((ROOT / page).read_text() for page in PAGES)
RESULTS = ROOT / 'experiments' / 'results'
# Of three seeds and more.
NAMES = ('alfworld', 'collapse', 'controls', 'search_qa', 'small', 'tuned', 'webshop')
FOLDERS = {heading: name for name, heading in tables.WORLDS.items()}


def episodes(name):
  """{(method, seed): {step: {(task, attempt): solved}}}."""
  runs = {}
  with (RESULTS / name / 'results.csv').open() as file:
    for row in csv.DictReader(file):
      run = runs.setdefault((row['method'], row['seed']), {})
      step = run.setdefault(int(row['step']), {})
      task = row['task_id'], row['attempt']
      assert task not in step, task
      step[task] = int(row['success'])
  return runs


def printed(text):
  """Tables of results in Markdown: [(rows as {heading: cell}, the text after it)]."""
  out = []
  for match in re.finditer(r'(?:^\|.*\n)+', text, re.MULTILINE):
    lines = [line.strip('|').split('|') for line in match[0].splitlines()]
    head, _, *body = [[cell.strip(' `') for cell in line] for line in lines]
    if 'method (seeds)' in head or {'method', 'seed'} <= set(head):
      rows = [dict(zip(head, row, strict=True)) for row in body]
      out.append((rows, text[match.end() :]))
  return out


def folder_of(row, after):
  """Where a row's numbers come from: its world's, or what the text leads to next."""
  if 'world' in row:
    return FOLDERS[row['world']]
  return re.search(r'experiments/results/(\w+)/', after)[1]


@functools.cache
def recomputed(name, baseline=None):
  """{(method, seed or None): {heading: cell}} from the raw file alone."""
  got, out = tables.compared(RESULTS / name, baseline), {}
  for row in got.rows:
    if row.metric == 'success':
      cells = dict(
        zip(presentation.headings('success'), presentation.cells(row), strict=True)
      )
      out[row.method, None] = cells
  for line in presentation.run_cells(got):
    cells = dict(zip(presentation.run_headings(got), line, strict=True))
    out[cells['method'], cells['seed']] = cells
  return out


@pytest.mark.parametrize('number', range(len(printed(TEXT))))
def test_every_printed_cell_follows_from_the_raw_results(number):
  rows, after = printed(TEXT)[number]
  folders = {folder_of(row, after) for row in rows}
  # Of one study the baseline is the method without a difference.
  alone = len(folders) == 1 and 'method (seeds)' in rows[0]
  (baseline,) = (
    {row['method (seeds)'].split(' (')[0] for row in rows if not row['difference']}
    if alone
    else (None,)
  )
  known = {name: recomputed(name, baseline) for name in folders}
  shown = set()
  for row in rows:
    name = folder_of(row, after)
    method = (row['method'] if 'method' in row else row['method (seeds)']).split(' (')[
      0
    ]
    key = method, row.get('seed')
    shown.add((name, key))
    for heading, cell in row.items():
      if heading == 'world':
        continue
      assert known[name][key][heading] == cell, (name, key, heading)
  kind = 'seed' in rows[0]
  expected = {
    (n, key) for n in known for key in known[n] if (key[1] is not None) == kind
  }
  assert shown == expected  # No run and no method is left out.


def test_the_pages_have_tables_of_methods_and_runs_and_of_the_study():
  headings = [tuple(rows[0])[:2] for rows, _ in printed(TEXT)]
  assert headings == [
    ('world', 'method (seeds)'),
    ('world', 'method'),
    ('world', 'method (seeds)'),
    ('method (seeds)', 'success'),
    ('method (seeds)', 'success'),
    ('method (seeds)', 'success'),
    ('method (seeds)', 'success'),
  ]


@pytest.mark.parametrize('name', NAMES)
def test_means_follow_from_the_raw_results(name):
  """By the csv module and a mean, without the code that printed them."""
  runs = episodes(name)
  last = max(step for run in runs.values() for step in run)
  (rows, _), *_ = printed((RESULTS / name / 'comparison.md').read_text())
  assert len(rows) == len({method for method, _ in runs})
  for row in rows:
    method, _, seeds = row['method (seeds)'].partition(' (')
    rates = [
      np.mean(list(r[last].values())) for (m, _), r in runs.items() if m == method
    ]
    assert len(rates) == int(seeds.rstrip(')')) >= 3
    shown = float(row['success'].split(' ')[0])
    assert shown == pytest.approx(100 * np.mean(rates), abs=0.051)


@pytest.mark.parametrize('name', NAMES)
def test_all_runs_met_the_same_tasks(name):
  runs = episodes(name).values()
  steps, *other_steps = (run.keys() for run in runs)
  assert all(other == steps for other in other_steps)
  assert 0 in steps and len(steps) > 2
  tasks, *others = (step.keys() for run in runs for step in run.values())
  assert len(tasks) >= 300
  assert all(other == tasks for other in others)


@pytest.mark.parametrize('name', NAMES)
def test_what_was_written_is_what_is_computed(name):
  assert f'experiments/results/{name}/' in TEXT
  text = (RESULTS / name / 'comparison.md').read_text()
  assert presentation.markdown(tables.compared(RESULTS / name)) == text


@pytest.mark.parametrize('page', ['README.md', 'docs/studies.md'])
def test_what_is_said_of_the_tuned_study_follows_from_the_raw_results(page):
  words = ' '.join((ROOT / page).read_text().replace(' points', '').split())
  against = recomputed('tuned', 'grpo')
  better, none, worse = (
    against[method, None]['difference'].replace('+', '')
    for method in ('sdar', 'grpo+opsd-released', 'sdar-none')
  )
  assert better in words and none in words
  size, low, high = re.findall(r'-([\d.]+)', worse)
  assert f'{size} [{high}, {low}]' in words


def test_each_seed_of_the_tuned_study_has_sdar_ahead():
  last = {
    run: np.mean(list(steps[max(steps)].values()))
    for run, steps in episodes('tuned').items()
  }
  seeds = {seed for _, seed in last}
  assert len(seeds) == 10
  assert all(last['sdar', seed] > last['grpo', seed] for seed in seeds)


def test_the_tables_are_printed_by_one_command(capsys):
  assert tables.main([]) == 0
  (runs, _), (methods, _) = printed(capsys.readouterr().out)
  assert len(runs) == 27 and len(methods) == 9
  assert tables.main(['--study', str(RESULTS / 'small')]) == 0
  ((study, _),) = printed(capsys.readouterr().out)
  assert len(study) == 9
  assert tables.main([str(ROOT / 'tests')]) == 2
  assert 'config.json' in capsys.readouterr().err


def test_what_is_said_of_smollm2_follows_from_the_raw_results():
  """Each cell of its table, and of the sentences below it two figures."""
  text = (ROOT / 'docs' / 'results.md').read_text()
  section = text.split('## A real language model')[1].split('\n## ')[0]
  small = {
    (method, step): [np.mean(list(solved.values())), len(solved)]
    for (method, _), run in episodes('smollm2').items()
    for step, solved in run.items()
  }
  large, kinds = {}, {}
  for name in ('teacher', 'grpo', 'sdar'):
    report = json.loads((RESULTS / 'smollm2' / f'{name}-1000.json').read_text())
    assert report['with_skills'] == (name == 'teacher')
    assert report['panel_digest'].startswith('0181b35fdf04')
    tasks = report['tasks']
    large[name] = [np.mean([task['success'] for task in tasks]), len(tasks)]
    twice = [t['success'] for t in tasks if t['type'] == 'pick_two_obj_and_place']
    kinds[name] = f'{100 * np.mean(twice):.0f} %'

  def cell(rate, count):
    interval = statistics.wilson_interval(rate, count)
    low, high = (f'{100 * bound:.1f}' for bound in interval)
    return f'{100 * rate:.1f} % [{low}, {high}]'

  lines = [line for line in section.splitlines() if line.startswith('| ')]
  rows = [[word.strip() for word in line.strip('|').split('|')] for line in lines]
  said = {name: (few, many) for name, few, many in rows}
  report = json.loads((RESULTS / 'smollm2' / 'sdar-256.json').read_text())
  small['sdar', 20] = [np.mean([t['success'] for t in report['tasks']]), 256]
  assert small['grpo', 0] == small['sdar', 0]
  assert cell(*small['grpo', 0]) == said['warm start'][0]
  assert cell(*small['grpo', 10]) == said['GRPO, step 10'][0]
  assert cell(*small['sdar', 10]) == said['SDAR, step 10'][0]
  assert cell(*small['sdar', 20]) == said['SDAR, step 20'][0]
  assert cell(*large['teacher']) == said['warm start, shown skills'][-1]
  assert cell(*large['grpo']) == said['GRPO, step 20'][-1]
  assert cell(*large['sdar']) == said['SDAR, step 20'][-1]
  words = ' '.join(section.split())
  assert f'it solved {kinds["sdar"]} of `pick_two_obj_and_place`' in words
  assert f'and GRPO {kinds["grpo"]}.' in words


def test_what_is_said_of_a_hundred_steps_follows_from_every_step():
  """By the csv module and plain loops, without the code that printed it."""
  courses = {}
  with (RESULTS / 'collapse' / 'metrics.csv').open() as file:
    for row in csv.DictReader(file):
      run = courses.setdefault(row['method'], {}).setdefault(row['seed'], [])
      assert int(row['step']) == len(run) + 1
      run.append({name: float(row[name]) for name in list(row)[3:]})
  assert {len(run) for runs in courses.values() for run in runs.values()} == {100}
  success = 'rollout/success_rate'

  def fives(run, name):
    return [sum(line[name] for line in run[i : i + 5]) / 5 for i in range(96)]

  def fall(run):
    means = fives(run, success)
    fallen = (i + 1 for i in range(5, 96) if means[i] < max(means[: i - 4]) / 2)
    return str(next(fallen, 'never'))

  def cell(values, scale, digits):
    mean, low, high = sum(values) / len(values), min(values), max(values)
    unit = ' %' if scale == 100 else ''
    low, high = (f'{scale * value:.{digits}f}' for value in (low, high))
    return f'{scale * mean:.{digits}f}{unit} [{low}, {high}]'

  text = (ROOT / 'docs' / 'studies.md').read_text()
  block = text.split('<!-- begin ends -->\n')[1].split('<!-- end ends -->')[0]
  head, _, *lines = [
    [word.strip() for word in line.strip('|').split('|')] for line in block.splitlines()
  ]
  assert head == ['', 'grpo (3)', 'sdar (3)']
  assert lines[0] == ['collapsed at step'] + [
    ', '.join(fall(run) for run in runs.values()) for runs in courses.values()
  ]
  assert lines[1][0] == 'success in training, best five steps'
  names = {success: 'success in training', 'train/entropy': 'entropy'}
  names |= {'rollout/valid_action_rate': 'valid actions'}
  names |= {'rollout/repeated_action_rate': 'repeated actions'}
  names |= {'rollout/repeated_text_rate': 'repeated text'}
  titles = [
    f'{t}, {end} five steps' for t in names.values() for end in ('first', 'last')
  ]
  assert [line[0] for line in lines[2:]] == titles
  for place, runs in enumerate(courses.values(), 1):
    best = [max(fives(run, success)) for run in runs.values()]
    assert lines[1][place] == cell(best, 100, 1)
    shown = iter(lines[2:])
    for name in names:
      scale, digits = (1, 3) if name == 'train/entropy' else (100, 1)
      for where in (0, -1):
        values = [fives(run, name)[where] for run in runs.values()]
        assert next(shown)[place] == cell(values, scale, digits)
  said, by_seed = ' '.join(text.split()), {}
  for method, runs in courses.items():
    by_seed[method] = [[line[success] for line in run] for run in runs.values()]
  lead = 100 * (np.mean(by_seed['sdar'], 0) - np.mean(by_seed['grpo'], 0))
  one, two, three = (f'{part.mean():+.1f}' for part in np.split(lead, (20, 65)))
  ahead = f'{one} points in steps 1 to 20, {two} in 21 to 65, {three} in 66 to 100'
  assert ahead in said
  means = [fives(run, success) for runs in courses.values() for run in runs.values()]
  lowest = min(m[i] / max(m[: i - 4]) for m in means for i in range(5, 96))
  assert f'the lowest five steps of any were at {lowest:.2f} of the best' in said
  every = [run for (_, _), run in episodes('collapse').items()]
  rates = [
    [np.mean(list(run[step].values())) for step in sorted(run) if step >= 20]
    for run in every
  ]
  apart = max(max(run) - min(run) for run in rates)
  assert f'lie up to {100 * apart:.0f} points apart' in said
