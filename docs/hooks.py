"""Adds to the site what does not lie in docs/: root pages, API pages, files."""

import ast
import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'sdar_jax'
FILES = ('experiments/results/**/*.svg', 'experiments/notebooks/*.ipynb')
# Pages that lie in the root of the repository, and their names on the site.
PAGES = {
  'README.md': 'index.md',
  'CONTRIBUTING.md': 'contributing.md',
  'AGENTS.md': 'agents.md',
  'CHANGELOG.md': 'changelog.md',
}


def on_config(config):
  """Appends the API pages to the navigation."""
  config['nav'] = [*config['nav'], {'API': [*api_pages()]}]
  return config


def on_files(files, config):
  """Adds root pages, API pages, the figures of the studies and the notebooks."""
  for source, name in PAGES.items():
    text = (ROOT / source).read_text(encoding='utf-8')
    files.append(File.generated(config, name, content=_linked(text)))
  for name, text in api_pages().items():
    files.append(File.generated(config, name, content=text))
  for path in sorted(path for pattern in FILES for path in ROOT.glob(pattern)):
    name = path.relative_to(ROOT).as_posix()
    files.append(File.generated(config, name, abs_src_path=str(path)))
  return files


def on_page_markdown(markdown, page, config, files):
  """Points links that leave docs/ at what `on_files` has added."""
  return markdown.replace('](../experiments/', '](experiments/')


def api_pages() -> dict[str, str]:
  """{path: Markdown}: a page for each room, and one for the files beside them."""
  rooms: dict[str, list[pathlib.Path]] = {}
  for path in sorted(PACKAGE.rglob('*.py')):
    rooms.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(path)
  pages = {}
  for room, paths in rooms.items():
    parts = [f'# {room.replace("/", ".")}', '']
    for path in paths:
      if path.name == '__init__.py':
        parts += [ast.get_docstring(ast.parse(path.read_text('utf-8'))) or '', '']
      else:
        module = path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.')
        parts += [f'::: {module}', '']
    pages[f'api/{room.removeprefix("sdar_jax/")}.md'] = '\n'.join(parts)
  return pages


def _linked(text: str) -> str:
  """The text of a root page with its links as they are on the site."""
  for source, name in PAGES.items():
    text = text.replace(f']({source}', f']({name}')
  return re.sub(r'\]\(docs/', '](', text)
