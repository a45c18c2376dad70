"""The page in a real browser: shades, values, lists, colours, and nothing loaded."""

import json
import os
import pathlib
import shutil

import look_cases
import pytest

from sdar_jax.look import view

selenium = pytest.importorskip('selenium', reason='needs selenium')
from selenium import webdriver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select  # noqa: E402

BROWSER = shutil.which('chromium') or shutil.which('google-chrome')
DRIVER = shutil.which('chromedriver')
pytestmark = pytest.mark.skipif(
  not (BROWSER and DRIVER), reason='needs chromium and chromedriver'
)


@pytest.fixture(scope='module')
def browser():
  options = webdriver.ChromeOptions()
  options.binary_location = BROWSER
  for word in ('--headless=new', '--no-sandbox', '--window-size=1300,900'):
    options.add_argument(word)
  logs = {'browser': 'ALL', 'performance': 'ALL'}
  options.set_capability('goog:loggingPrefs', logs)
  service = webdriver.ChromeService(DRIVER)
  found = webdriver.Chrome(options=options, service=service)
  yield found
  found.quit()


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp('runs')
  return (
    look_cases.write(root / 'one', count=3, members=3),
    look_cases.write(root / 'two', steps=[2], count=2),
    look_cases.write(root / 'wild', text=look_cases.HOSTILE, task=look_cases.HOSTILE),
  )


@pytest.fixture
def opened(browser, tmp_path):
  """Opens a page of runs; what it said and asked for is looked at in the end."""

  def open_page(*paths, fragment='', words=()):
    page = tmp_path / 'page.html'
    assert view.main([*map(str, paths), f'--html={page}', *words]) == 0
    browser.get(f'{page.as_uri()}{fragment}')
    assert browser.execute_script('return document.body.dataset.ready') == 'yes'
    return page

  browser.get_log('performance')
  browser.get_log('browser')
  yield open_page
  assert browser.get_log('browser') == []
  events = [json.loads(e['message'])['message'] for e in browser.get_log('performance')]
  asked = [
    event['params']['request']['url']
    for event in events
    if event['method'] == 'Network.requestWillBeSent'
  ]
  outside = [url for url in asked if not url.startswith(('file:', 'data:'))]
  assert not outside and {u for u in asked if u.startswith('file:')} <= {
    pathlib.Path(tmp_path / 'page.html').as_uri()
  }


def _all(browser, selector):
  return browser.find_elements(By.CSS_SELECTOR, selector)


def _one(browser, selector):
  return browser.find_element(By.CSS_SELECTOR, selector)


def _texts(browser, selector):
  script = 'return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)'
  return browser.execute_script(script, selector)


def _colour(browser, element):
  """A background as red, green, blue and opacity, as the screen has it."""
  script = """
    const c = document.createElement('canvas').getContext('2d');
    c.fillStyle = getComputedStyle(arguments[0]).backgroundColor;
    c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data];"""
  return browser.execute_script(script, element)


def test_tokens_are_shaded_and_hovering_tells_their_records(browser, runs, opened):
  opened(runs[0])
  turn = look_cases.lines(runs[0])[0]['turns'][0]
  said = turn['tokens']
  spans = _all(browser, '.turn:first-of-type .tokens span')
  texts = [text.replace('\n', '↵\n') or '◌' for text in look_cases.TEXTS]
  assert [span.get_property('textContent') for span in spans] == texts
  for span, gate in zip(spans, said['gate'], strict=True):
    red, green, blue, opacity = _colour(browser, span)
    assert abs(opacity / 255 - 0.62 * abs(2 * gate - 1)) < 0.02
    if opacity > 40:
      assert (blue > red) == (gate > 0.5) and green >= 0
  assert _one(browser, '#shade [aria-checked=true]').text == 'gate'
  script = (
    'return +arguments[0].querySelector(`[data-key=${arguments[1]}] td`).textContent'
  )
  for i, span in enumerate(spans):
    ActionChains(browser).move_to_element(span).perform()
    card = _one(browser, '#card')
    assert card.is_displayed() and f'token {turn["response_ids"][i]}, ' in card.text
    for name in ('gate', 'gap', 'advantages', 'old_logprobs', 'old_entropy'):
      assert browser.execute_script(script, card, name) == said[name][i]
    got = browser.execute_script(script, card, 'sampler_logprobs')
    assert got == turn['sampler_logprobs'][i]
  ActionChains(browser).move_to_element(_one(browser, '#main h2')).perform()
  assert not _one(browser, '#card').is_displayed()


def test_every_quantity_can_be_the_shade(browser, runs, opened):
  opened(runs[0])
  said = look_cases.lines(runs[0])[0]['turns'][0]['tokens']
  names = [b.text for b in _all(browser, '#shade button')]
  assert names[:3] == ['gate', 'gap', 'advantage'] and 'entropy' in names
  seen = set()
  for place, name in enumerate(names, 1):
    _one(browser, 'body').send_keys(str(place))
    assert _one(browser, '#shade [aria-checked=true]').text == name
    spans = _all(browser, '.turn:first-of-type .tokens span')
    seen.add(tuple(tuple(_colour(browser, span)) for span in spans))
    if name == 'mask':
      out = [span.get_attribute('class') == 'plus out' for span in spans]
      assert out == [not inside for inside in said['action_mask']]
    if name == 'entropy':
      shares = [_colour(browser, span)[3] / 255 for span in spans]
      wanted = [0.62 * min(1, v / 2.5) for v in said['old_entropy']]
      assert shares == pytest.approx(wanted, abs=0.02)
  assert len(seen) == len(names)


def test_what_the_teacher_saw_stands_beside_what_the_student_saw(browser, runs, opened):
  opened(runs[0])
  student, teacher = _texts(browser, '.turn:first-of-type .prompt')
  said = look_cases.lines(runs[0])[0]['turns'][0]['tokens']
  assert (student, teacher) == (said['student_prompt'], said['teacher_prompt'])
  assert _texts(browser, '.turn:first-of-type mark') == ['plan: a room first']
  boxes = [box.rect for box in _all(browser, '.turn:first-of-type .seen section')]
  assert boxes[0]['y'] == boxes[1]['y'] and boxes[0]['x'] < boxes[1]['x']


def _listed(browser):
  return [int(b.get_attribute('data-id')) for b in _all(browser, '#list button')]


def test_episodes_are_filtered_sorted_and_opened(browser, runs, opened):
  opened(runs[0])
  heads = [r for step in (1, 2) for r in look_cases.lines(runs[0], step)]
  assert _listed(browser) == list(range(len(heads)))
  Select(_one(browser, '#outcome')).select_by_value('success')
  solved = [i for i, r in enumerate(heads) if r['outcome'] == 'success']
  assert _listed(browser) == solved
  assert _one(browser, '#count').text == f'{len(solved)} of {len(heads)}'
  Select(_one(browser, '#outcome')).select_by_value('')
  Select(_one(browser, '#step')).select_by_value('2')
  _one(browser, '#find').send_keys('TRAIN/1')
  of_task = [i for i, r in enumerate(heads) if r['task_id'].endswith('/1')]
  assert _listed(browser) == [i for i in of_task if i >= len(heads) // 2]
  _one(browser, '#find').send_keys(Keys.CONTROL, 'a')
  _one(browser, '#find').send_keys(Keys.DELETE)
  Select(_one(browser, '#step')).select_by_value('')
  for order, key in (
    ('best first', lambda r: -r['return']),
    ('highest advantage', lambda r: -r['means']['advantage']),
    ('most tokens recorded', lambda r: -r['recorded']),
  ):
    Select(_one(browser, '#sort')).select_by_value(order)
    wanted = sorted(range(len(heads)), key=lambda i: (key(heads[i]), i))
    assert _listed(browser) == wanted
  _all(browser, '#list button')[-1].click()
  last = heads[wanted[-1]]
  assert f'#e={wanted[-1]}' in browser.current_url
  assert _one(browser, '#main h2').text == last['goal']
  assert last['task_id'] in _one(browser, '#main').text
  _one(browser, '#main').send_keys(Keys.ARROW_LEFT)
  assert f'#e={wanted[-2]}' in browser.current_url


def test_members_of_a_group_stand_side_by_side(browser, runs, opened):
  opened(runs[0])
  cards = _texts(browser, '.group button')
  assert len(cards) == 3 and 'return 10' in cards[1] and 'adv. +0.5' in cards[1]
  assert 'adv. −0.5' in cards[0]
  _one(browser, '#matrix').click()
  assert len(_all(browser, '.matrix thead th')) == 4
  rows = _texts(browser, '.matrix tbody tr')
  assert rows == ['1' + 'a room' * 3, '2' + 'a room' * 3]
  _all(browser, '.group button')[2].click()
  current = _one(browser, '.group [aria-current=true]')
  assert 'member 2' in current.text and '#e=2' in browser.current_url


def test_two_runs_stand_side_by_side_on_one_task(browser, runs, opened):
  opened(runs[0], runs[1])
  left, right = _all(browser, '.columns article')
  assert left.rect['y'] == right.rect['y'] and left.rect['x'] < right.rect['x']
  task = look_cases.lines(runs[0])[0]['task_id']
  assert task in left.text and task in right.text and 'run' in right.text
  names = _texts(browser, '#runs span')
  assert names[0].endswith('/onesdar') and names[1].endswith('/twosdar')
  Select(_one(browser, '#run')).select_by_value('1')
  assert len(_listed(browser)) == 4
  Select(_one(browser, '#beside')).select_by_index(0)
  assert not _all(browser, '.columns')


def test_a_link_opens_the_same_place(browser, runs, opened):
  opened(runs[0], fragment='#e=1&by=gap&group')
  assert _one(browser, '#shade [aria-checked=true]').text == 'gap'
  assert 'member 1' in _one(browser, '.group [aria-current=true]').text
  assert _all(browser, '.matrix')
  opened(runs[0], fragment='#e=99999999&by=__proto__&beside=-1')
  assert _one(browser, '#main h2').text  # What names nothing opens the first.


def test_hostile_text_is_shown_and_does_nothing(browser, runs, opened):
  opened(runs[2])
  known = look_cases.HOSTILE.replace('\ud800', '\ufffd')
  assert 'owned' not in browser.title
  assert not _all(browser, 'img')
  shown = _texts(browser, '.did dd')
  assert any(known.replace('\x00', '') in text.replace('\x00', '') for text in shown)
  assert browser.execute_script(
    'return document.querySelectorAll("script").length'
  ) == (2 + 8)


def test_it_is_dark_where_the_reader_is(browser, runs, opened):
  opened(runs[0])

  def ground():
    return sum(_colour(browser, _one(browser, 'body'))[:3])

  light = ground()
  feature = {'name': 'prefers-color-scheme', 'value': 'dark'}
  browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [feature]})
  try:
    assert ground() < 150 < 600 < light
  finally:
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': []})


def test_nothing_runs_out_of_a_telephone(browser, runs, opened):
  size = {'width': 375, 'height': 700, 'deviceScaleFactor': 1, 'mobile': True}
  browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
  try:
    for paths in (runs[:1], runs[:2], runs[2:]):
      opened(*paths)
      script = 'return document.documentElement.scrollWidth'
      assert browser.execute_script(script) <= 375
      student, teacher = _all(browser, '.turn:first-of-type .seen section')[:2]
      assert student.rect['y'] < teacher.rect['y']
  finally:
    browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


def test_episodes_that_a_page_does_not_hold_name_their_command(browser, runs, opened):
  opened(runs[0], words=['--limit=1'])
  _all(browser, '#list button')[-1].click()
  said = _one(browser, '#main .note code').text
  assert said.startswith(f'sdar view {runs[0]}') and '--step 2' in said
  assert os.path.isdir(said.split()[2])
