"""The results that README shows are those of the raw files that lie beside them."""

import csv
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / 'README.md').read_text()
RESULTS = ROOT / 'experiments' / 'results'
NAMES = sorted(path.name for path in RESULTS.iterdir() if path.is_dir())


def episodes(name):
  """{(method, seed): {(task, attempt): solved}}, all at one step."""
  runs = {}
  with (RESULTS / name / 'results.csv').open() as file:
    for row in csv.DictReader(file):
      run = runs.setdefault((row['method'], row['seed']), {})
      task = row['task_id'], row['attempt']
      assert task not in run, task
      run[task] = int(row['success'])
  return runs


def table(text):
  """{method: its row's cells} of the table of success in `text`."""
  body = text.partition('| method (seeds) | success |')[2].partition('\n\n')[0]
  rows = [line[2:-2].split(' | ') for line in body.splitlines()[2:]]
  return {row[0].split(' ')[0]: row for row in rows}


@pytest.mark.parametrize('name', NAMES)
def test_means_follow_from_the_raw_results(name):
  runs = episodes(name)
  shown = table((RESULTS / name / 'comparison.md').read_text())
  assert shown.keys() == {method for method, _ in runs}
  for method, row in shown.items():
    rates = [np.mean(list(run.values())) for (m, _), run in runs.items() if m == method]
    assert len(rates) == int(row[0].split('(')[1].rstrip(')')) >= 3
    assert float(row[1].split(' ')[0]) == pytest.approx(100 * np.mean(rates), abs=0.051)


@pytest.mark.parametrize('name', NAMES)
def test_all_runs_met_the_same_tasks(name):
  tasks, *others = (run.keys() for run in episodes(name).values())
  assert len(tasks) >= 300
  assert all(other == tasks for other in others)


@pytest.mark.parametrize('name', NAMES)
def test_readme_shows_them_and_leads_to_them(name):
  assert f'experiments/results/{name}/' in README
  for row in table((RESULTS / name / 'comparison.md').read_text()).values():
    assert f'| {" | ".join(row)} |\n' in README
