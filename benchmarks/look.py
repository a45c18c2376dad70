"""Times how a run of many episodes opens: its index, its page, a browser.

python benchmarks/look.py [--episodes=1000]
"""

import argparse
import copy
import json
import pathlib
import shutil
import tempfile
import time

from sdar_jax.look import episode, folder, page
from sdar_jax.prompts.skills import SkillBank

_RECORD = pathlib.Path(__file__).parents[1] / 'docs' / 'tokens.jsonl'
_TURNS = 12


def write(path: pathlib.Path, episodes: int) -> None:
  """Writes a run whose episodes have turns like recorded ones."""
  (path / 'trajectories').mkdir()
  lines = _RECORD.read_text().splitlines()
  records = [json.loads(line) for line in lines]
  per_step = 128
  for step in range(-(-episodes // per_step)):
    with open(path / 'trajectories' / f'{step + 1:06d}.jsonl', 'w') as file:
      for i in range(min(per_step, episodes - step * per_step)):
        record = copy.deepcopy(records[i % len(records)])
        turns = record.pop('turns') * _TURNS
        record |= {'group_id': i // 8, 'member': i % 8, 'length': _TURNS}
        record |= {'recorded': _TURNS, 'turns': turns}
        file.write(json.dumps(record) + '\n')


def browse(path: pathlib.Path) -> float | None:
  """Seconds until a page is drawn; None without chromium and selenium."""
  try:
    from selenium import webdriver
  except ImportError:
    return None
  binary, driver = shutil.which('chromium'), shutil.which('chromedriver')
  if not (binary and driver):
    return None
  options = webdriver.ChromeOptions()
  options.binary_location = binary
  for word in ('--headless=new', '--no-sandbox'):
    options.add_argument(word)
  browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
  try:
    browser.get('about:blank')
    start = time.perf_counter()
    browser.get(path.as_uri())
    assert browser.execute_script('return document.body.dataset.ready') == 'yes'
    return time.perf_counter() - start
  finally:
    browser.quit()


def main() -> None:
  """Prints the times."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--episodes', type=int, default=1000)
  count = parser.parse_args().episodes
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name)
    write(path, count)
    size = sum(p.stat().st_size for p in path.rglob('*.jsonl')) / 2**20
    start = time.perf_counter()
    run = folder.read(path)
    print(f'{len(run.episodes)} episodes, {size:.0f} MiB')
    print(f'  index           {time.perf_counter() - start:.2f} s')
    start = time.perf_counter()
    episode.load(run.episodes[-1], SkillBank.empty(''))
    print(f'  one episode     {time.perf_counter() - start:.3f} s')
    start = time.perf_counter()
    shown = [(0, head) for head in run.episodes]
    text = page.page([run], shown, limit=count)
    out = path / 'page.html'
    blocks = text.count('type="application/json"') - 1
    out.write_text(text)
    print(f'  write the page  {time.perf_counter() - start:.2f} s, ', end='')
    print(f'{len(text) / 2**20:.0f} MiB, {blocks} episodes')
    seconds = browse(out)
    said = 'no chromium' if seconds is None else f'{seconds:.2f} s'
    print(f'  open the page   {said}')


if __name__ == '__main__':
  main()
