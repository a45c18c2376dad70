"""What the pages say of the code is what the code says."""

import ast
import functools
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib

import jax.numpy as jnp
import numpy as np
import pytest
import quick

import sdar_jax
from benchmarks import core_path
from docs import generate
from experiments import arguments
from sdar_jax import train
from sdar_jax.cli import command_line, tools
from sdar_jax.learner import scoring
from sdar_jax.methods import table
from sdar_jax.models import hf
from sdar_jax.prompts import bank_file
from sdar_jax.prompts.chat import Chat
from sdar_jax.prompts.retrieval import Retriever
from sdar_jax.prompts.skills import TeacherContext

ROOT = generate.ROOT
ROOT_PAGES = ('README.md', 'CONTRIBUTING.md', 'AGENTS.md', 'CHANGELOG.md')
NAMES = (*ROOT_PAGES, *(f'docs/{path.name}' for path in (ROOT / 'docs').glob('*.md')))
PAGES = {name: (ROOT / name).read_text(encoding='utf-8') for name in sorted(NAMES)}
TRUE_TODAY = {name: text for name, text in PAGES.items() if name != 'CHANGELOG.md'}
README = PAGES['README.md']
# What a run, a build or a reader makes, and the three kinds of metrics.
RUN_FOLDERS = ('runs/', 'eval/', 'trajectories/', 'checkpoints/', 'build/', 'aside-1/')
RUN_FOLDERS += ('guess/', 'rollout/', 'train/', 'perf/', 'sdar_jax/_shipped/')
RUN_FILES = ('config.json', 'run.json', 'ledger.json', 'study.json', 'results.json')
RUN_FILES += ('generation_config.json', 'skills.json', 'sweep.json')
TINY = ROOT / 'experiments' / 'tiny' / 'alfworld'


def commands():
  """(page, command) of every fenced line that begins with a program of ours."""
  out = []
  for name, text in TRUE_TODAY.items():
    for language, block in re.findall(r'^```(\w*)\n(.*?)^```$', text, re.M | re.S):
      if language:
        continue
      for line in block.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        if words and re.fullmatch(r'(\S*/)?python|sdar|make', words[0]):
          out.append((name, words))
  return out


def of_main():
  """The words behind `sdar` or `python -m sdar_jax.main` in every such command."""
  for name, words in commands():
    if name == 'docs/adding_a_world.md':  # Its own test has the files that they name.
      continue
    behind = words[1:] if words[0] == 'sdar' else words[3:]
    is_main = words[0] == 'sdar' or words[1:3] == ['-m', 'sdar_jax.main']
    if is_main and behind[:1] not in [[tool] for tool in tools.TOOLS]:
      yield name, behind


def anchors(text):
  """The anchors of a page's headings, as a browser names them."""
  headings = re.findall(
    r'^#+ (.+)$', re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S), re.M
  )
  plain = (re.sub(r'[^\w\- ]', '', heading.lower()) for heading in headings)
  return {'-'.join(heading.split()) for heading in plain}


@pytest.mark.parametrize('name', generate.BLOCKS)
def test_a_block_is_what_the_code_says(name):
  text = generate.BLOCKS[name]()
  block = f'<!-- begin {name} -->\n{text}<!-- end {name} -->'
  pages = [page for page, text in PAGES.items() if name in generate.names(text)]
  assert pages
  for page in pages:
    assert block in PAGES[page], f'{page}: run python -m docs.generate'


def test_every_block_has_a_name_that_is_known():
  for page, text in PAGES.items():
    names = re.findall(r'<!-- (?:begin|end) ([a-z]+) -->', text)
    assert names == [n for n in generate.names(text) for _ in range(2)], page


def test_blocks_are_filled_and_what_stands_between_them_is_kept():
  page = 'a\n<!-- begin metrics -->\nSTALE\n<!-- end metrics -->\nb\n'
  filled = generate.filled(page)
  assert 'STALE' not in filled and filled.startswith('a\n') and filled.endswith('\nb\n')
  assert '`train/gap`' in filled and generate.filled(filled) == filled


def test_the_training_step_is_quoted_word_for_word():
  assert f'```python\n{inspect.getsource(train.loop)}```' in README


def test_the_readme_is_short():
  assert len(README.split()) <= 2500


def test_the_number_of_methods_and_the_size_are_the_true_ones():
  assert int(re.search(r'(\d+) methods', README)[1]) == len(table.ALGORITHMS)
  said = re.search(r'is (\d+)\s+files, ([\d,]+) lines, ([\d,]+) of them code', README)
  numbers = [int(text.replace(',', '')) for text in said.groups()]
  counted = core_path.count(core_path.named(core_path.CORE))
  assert numbers == pytest.approx(counted, rel=0.05)
  files, _, code = counted
  assert files <= 32 and code <= 4000  # What can be read in days, not weeks.


def test_every_method_has_a_paragraph():
  text = PAGES['docs/methods.md'].partition('## Policies')[2]
  assert set(table.ALGORITHMS) == set(re.findall(r'\*\*`([^`]+)`\*\*', text))


def test_the_rooms_are_complete_and_true():
  rooms = PAGES['docs/architecture.md'].partition('## Rooms')[2].partition('\n## ')[0]
  named = re.findall(r'`([\w/]+(?:\.py|/))`', rooms)
  folders = [name for name in named if name.endswith('/')]
  for file in (ROOT / 'sdar_jax').rglob('*.py'):
    path = file.relative_to(ROOT / 'sdar_jax').as_posix()
    known = path in named or any(path.startswith(folder) for folder in folders)
    assert known or path == '__init__.py', path


@pytest.mark.parametrize('page', TRUE_TODAY)
def test_files_that_are_named_exist(page):
  name = r'`([\w.-]+(?:/[\w.-]+)*(?:\.(?:py|md|json|yml|cff)|/))`'
  for path in re.findall(name, PAGES[page]):
    if path.startswith(RUN_FOLDERS) or path in RUN_FILES:
      continue
    bases = ('', 'sdar_jax', 'experiments')
    assert any((ROOT / base / path).exists() for base in bases), path


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
  folder = (ROOT / page).parent
  for target in re.findall(r'\]\(([^)\s]+)\)', PAGES[page]):
    if '://' in target:
      continue
    path, _, anchor = target.partition('#')
    file = (folder / path).resolve() if path else ROOT / page
    assert file.exists(), target
    assert not anchor or anchor in anchors(file.read_text()), target


def test_every_page_is_in_the_navigation():
  text = (ROOT / 'mkdocs.yml').read_text()
  nav = re.findall(r'([\w/]+\.md)$', text.partition('\nnav:')[2], re.M)
  ours = {name.removeprefix('docs/') for name in PAGES if name.startswith('docs/')}
  assert sorted(nav) == sorted(
    ours | {'index.md', 'contributing.md', 'agents.md', 'changelog.md'}
  )


@pytest.mark.parametrize('number', range(len([*of_main()])))
def test_commands_of_main_are_accepted(number, tmp_path, monkeypatch):
  """Every flag and key of the pages, by the parser that main itself uses."""
  page, words = [*of_main()][number]
  monkeypatch.chdir(ROOT)
  assert page
  given = [word.partition('=') for word in words]
  if '--help' in words:
    return
  out = ('--workdir', '--output')
  words = [f'{k}={tmp_path / "x" if k in out else v}' if v else k for k, _, v in given]
  command = command_line.parse(words)
  assert command.config.model.path


def test_commands_of_tools_are_accepted():
  """Every flag of the pages, by the parser that the tool itself uses."""
  seen = set()
  for page, words in commands():
    if words[0] == 'sdar' and words[1] in tools.TOOLS:
      module = importlib.import_module(tools.TOOLS[words[1]].module)
      read = getattr(module, 'arguments', None)
      if read is not None and '--help' not in words:
        assert read(words[2:]), (page, words)
        seen.add(words[1])
  assert seen >= {'view'}


def test_other_commands_name_programs_and_targets_that_are_there():
  makefile = (ROOT / 'Makefile').read_text()
  for page, words in commands():
    if words[0] == 'make':
      assert re.search(rf'^{words[1]}:', makefile, re.M), (page, words)
    elif words[1:2] == ['-m'] and words[2] not in ('pip', 'pytest', 'spacy'):
      assert importlib.util.find_spec(words[2]), (page, words)
    elif len(words) > 1 and words[1].endswith('.py'):
      assert (ROOT / words[1]).exists(), (page, words)


def test_make_help_names_every_target():
  # Within `make test` a make speaks of the folders that it enters, too.
  command = ['make', '--no-print-directory', 'help']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  targets = re.search(r'^\.PHONY: (.*)$', (ROOT / 'Makefile').read_text(), re.M)[1]
  told = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
  assert sorted(name for name, _ in told) == sorted(targets.split())
  assert all(what.endswith('.') for _, what in told)


@pytest.mark.parametrize('page', TRUE_TODAY)
def test_tables_have_one_head_and_as_many_cells_in_each_line(page):
  text = re.sub(r'^```.*?^```$', '', PAGES[page], flags=re.M | re.S)
  for table_ in re.findall(r'(?:^\|.*\n)+', text, re.M):
    lines = table_.splitlines()
    assert re.fullmatch(r'[|: -]+', lines[1]), lines[0]
    assert len({len(re.findall(r'(?<!\\)\|', line)) for line in lines}) == 1, lines[0]


def test_each_finding_on_published_numbers_names_tests_that_are_there():
  rows = re.findall(r'^\| (?!finding|-).*$', PAGES['docs/published.md'], re.M)
  assert len(rows) == 9
  for row in rows:
    named = re.findall(r'`(tests/[\w/]+\.py) -k (\w+)`', row.rpartition(' | ')[2])
    assert named, row
    for file, word in named:
      functions = re.findall(r'^def (test_\w+)', (ROOT / file).read_text(), re.M)
      assert any(word in name for name in functions), (file, word)


@pytest.mark.parametrize(
  'module',
  ['sdar_jax.compare', 'experiments.study', 'experiments.tables', 'sdar_jax.look.view'],
)
def test_programs_say_what_they_take(module):
  done = subprocess.run(
    [sys.executable, '-m', module, '--help'], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0 and 'usage' in done.stdout.lower()


def test_commands_in_docstrings_can_be_copied():
  """A lone backslash at a line's end would join it with the next."""
  for folder in ('sdar_jax', 'experiments', 'benchmarks', 'examples'):
    for file in (ROOT / folder).rglob('*.py'):
      said = ast.get_docstring(ast.parse(file.read_text(encoding='utf-8'))) or ''
      assert not re.search(r'\S {3,}\[?--', said), file


def test_every_extra_and_every_argument_is_explained():
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  install = PAGES['docs/installation.md']
  for extra in project['optional-dependencies']:
    assert f'| `{extra}` |' in install, extra
  for name in arguments.parse(''):
    assert f'| `{name}` |' in PAGES['docs/configuration.md'], name
  said = re.search(r'^version: (\S+)$', (ROOT / 'CITATION.cff').read_text(), re.M)[1]
  assert said == project.get('version', getattr(sdar_jax, '__version__', None))


def test_the_picture_is_what_the_small_model_says():
  """The first of its turns, of step 1: log-probs by the weights that ship here."""
  lines = (ROOT / 'docs' / 'tokens.jsonl').read_text().splitlines()
  record = json.loads(lines[0])
  turn, chat = record['turns'][0], Chat(TINY, enable_thinking=True)
  said = turn['tokens']
  bank = bank_file.load(TINY / 'skills.json')
  known = {skill.id: skill for skill in bank.everything()}
  block = bank.block([known[name] for name in said['teacher_skills']])
  teacher = TeacherContext(Retriever(bank, 'task+object'), chat, token_budget=64)
  prompts = [
    np.asarray(turn['prompt_ids']),
    teacher.with_block(turn['prompt_text'], block)[0],
  ]
  np.testing.assert_array_equal(chat.render(turn['prompt_text']), prompts[0])
  assert len(prompts[1]) - len(prompts[0]) == said['teacher_skill_tokens']
  got = _logprobs(prompts, np.asarray(turn['response_ids']), chat.len_vocab)
  for logprobs, name in zip(got, ('old_logprobs', 'teacher_logprobs'), strict=True):
    np.testing.assert_allclose(logprobs, said[name], atol=1e-4)
  np.testing.assert_allclose(said['gap'], got[1] - got[0], atol=2e-4)
  np.testing.assert_allclose(
    said['gate'], 1 / (1 + np.exp(-5.0 * np.asarray(said['gap']))), atol=1e-6
  )
  assert said['teacher_prompt'] == chat.spell(prompts[1])
  assert said['student_prompt'] == chat.spell(prompts[0])
  (most,) = [i for i, gate in enumerate(said['gate']) if abs(gate - 0.5) > 0.2]
  names = ('old_logprobs', 'teacher_logprobs', 'gap', 'gate')
  numbers = [f'{said[name][most]:.2f}' for name in names]
  told = 'student {}, teacher {}, gap {}, gate {}'.format(*numbers)
  shown = (ROOT / 'docs' / 'images' / 'tokens.svg').read_text()
  assert told in README and told.replace('-', '&#8722;') in shown
  assert f'"{said["token_texts"][most].strip()}"' in ' '.join(README.split())


def _logprobs(prompts, response, valid_vocab):
  """Of one response under several prompts, by the small model."""
  model, params = hf.load(str(TINY), None, jnp.float32)
  rows = np.zeros((len(prompts), 96), np.int32)
  for row, prompt in zip(rows, prompts, strict=True):
    row[: len(prompt) + len(response)] = [*prompt, *response]
  score = quick.jit(
    functools.partial(
      scoring.token_logprobs,
      model,
      scoring=scoring.Scoring(1.0, valid_vocab, jnp.float32, remat='none', chunk=96),
    )
  )
  positions = np.broadcast_to(np.arange(96), rows.shape)
  logprobs = np.asarray(score(params, rows, positions)[0])
  return [
    row[len(prompt) :][: len(response)]
    for row, prompt in zip(logprobs, prompts, strict=True)
  ]
