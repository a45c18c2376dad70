"""Rooms of the package: who may import whom, and where JAX may be imported."""

import ast
import functools
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'sdar_jax'

# Lowest first: a room imports from itself and from those above it in this table. Host
# rooms import no JAX, nor do their imports.
ROOMS = {
  'files': 'host',
  'process': 'host',
  'keys': 'host',
  'gguf': 'host',
  'hub': 'host',
  'trajectory': 'host',
  'envs': 'host',
  'envs/pool': 'host',
  'envs/adapters': 'host',
  'envs/alfworld': 'host',
  'envs/webshop': 'host',
  'envs/search_qa/retrieval': 'host',
  'envs/search_qa': 'host',
  'batching': 'host',
  'prompts': 'host',
  'advantages': 'host',
  'methods': 'host',
  'relations': 'host',
  'config': 'host',
  'storage': 'host',
  'rollout': 'host',
  'logs': 'host',
  'evaluation': 'host',
  'look': 'host',
  'numerics': 'device',
  'losses': 'device',
  'models': 'device',
  'hosts': 'device',
  'learner': 'device',
  'sampler': 'device',
  'cli': 'host',
  'compare': 'host',
  'build': 'device',
  'parts': 'device',
  'sft': 'device',
  'train': 'device',
  'play': 'device',
  'modes': 'device',
  'api': 'device',
  'serve': 'device',
  'main': 'host',
}
_MOST_FLAT_FILES = 15  # `api` is what one finds first in `sdar_jax`.
_JAX = {'jax', 'flax', 'optax', 'orbax', 'chex'}


def _room(path: str) -> str:
  """The folder of a module, or the module itself where it lies flat."""
  return path.rpartition('/')[0] or path


@functools.cache
def _modules():
  """(path, syntax tree) of each module."""
  files = sorted(PACKAGE.rglob('*.py'))
  paths = [file.relative_to(PACKAGE).with_suffix('').as_posix() for file in files]
  return [
    (path, ast.parse(file.read_text()))
    for path, file in zip(paths, files)
    if not path.endswith('__init__')
  ]


def _imports(tree: ast.AST):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'imports are absolute'
      for alias in node.names:
        yield f'{node.module}.{alias.name}'


def _own(name: str) -> str | None:
  """The module of this package that a dotted name refers to."""
  package, *parts = name.split('.')
  if package != 'sdar_jax':
    return None
  for end in range(len(parts), 0, -1):
    path = '/'.join(parts[:end])
    if (PACKAGE / path).with_suffix('.py').exists():
      return path
  return None


def test_rooms_import_from_lower_rooms_only():
  order = list(ROOMS)
  for path, tree in _modules():
    for target in filter(None, map(_own, _imports(tree))):
      room, other = _room(path), _room(target)
      assert order.index(other) <= order.index(room), f'{path} imports {target}'


def test_modules_import_each_other_in_no_circle():
  imports = {path: {*filter(None, map(_own, _imports(t)))} for path, t in _modules()}
  graphlib.TopologicalSorter(imports).prepare()  # Raises CycleError, naming it.


def test_host_rooms_import_no_jax():
  lazy = {'main': 'jax'}  # Inside a function, after the command line was read.
  for path, tree in _modules():
    if ROOMS[_room(path)] == 'host':
      roots = {name.split('.')[0] for name in _imports(tree)} & _JAX
      assert roots <= {lazy.get(path)}, path


def test_every_room_says_host_or_device():
  for room in ROOMS:
    if (PACKAGE / room).is_dir():
      text = (PACKAGE / room / '__init__.py').read_text().lower()
      assert ROOMS[room] in text, room


def test_few_files_lie_flat():
  flat = {path for path, _ in _modules() if '/' not in path}
  assert flat == {room for room in ROOMS if not (PACKAGE / room).is_dir()}
  assert len(flat) <= _MOST_FLAT_FILES


def test_tests_import_no_other_tests():
  for file in (ROOT / 'tests').rglob('*.py'):
    names = {name.split('.')[0] for name in _imports(ast.parse(file.read_text()))}
    assert not [name for name in names if name.startswith('test_')], file


def test_losses_know_no_model():
  for path, tree in _modules():
    if path.startswith('losses/'):
      own = {_own(n) for n in _imports(tree) if n.startswith('sdar_jax')} - {None}
      assert all(_room(target) in ('losses', 'methods') for target in own), path


def test_files_and_functions_are_short():
  long = []
  for path, tree in _modules():
    lines = len((PACKAGE / f'{path}.py').read_text().splitlines())
    if lines > 400:
      long.append(f'{path}: {lines} lines')
    for node in ast.walk(tree):
      if isinstance(node, ast.FunctionDef):
        size = node.end_lineno - node.lineno + 1
        if size > 60:
          long.append(f'{path}.{node.name}: {size} lines')
  assert not long


def test_first_lines_of_docstrings_are_short():
  for path, tree in _modules():
    for node in ast.walk(tree):
      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        first = (ast.get_docstring(node) or '').partition('\n')[0]
        assert len(first) <= 70, f'{path}.{getattr(node, "name", "")}: {first}'


def test_names_of_classes_mean_one_thing():
  places = {}
  for path, tree in _modules():
    for node in ast.walk(tree):
      if isinstance(node, ast.ClassDef):
        places.setdefault(node.name, []).append(path)
  assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_nothing_is_evaluated_or_unpickled():
  for path, tree in _modules():
    for node in ast.walk(tree):
      if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        assert name not in ('eval', 'exec', 'pickle.load', 'pickle.loads'), path
        for keyword in node.keywords:
          flag = (keyword.arg, ast.unparse(keyword.value))
          assert flag not in (
            ('shell', 'True'),
            ('trust_remote_code', 'True'),
            ('allow_pickle', 'True'),
          ), path
