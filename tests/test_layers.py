"""The house's layers: a file imports only from lower ones, and rooms 0 to 3 no JAX."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'sdar_jax'

# Longest prefix wins. A file may import from its own room and from lower layers.
LAYERS = {
  'trajectory': 0,
  'clock': 3,
  'averages': 0,
  'keys': 0,
  'config': 2,
  'files': 0,
  'statistics': 0,
  'losses': 0,
  'envs/base': 0,
  'envs/records': 0,
  'envs/action_parser': 0,
  'hyperparameters': 0,
  'interface': 1,
  'objective': 1,
  'teaching': 1,
  'algorithms': 2,
  'estimators': 1,
  'validity': 2,
  'envs/worlds': 1,
  'envs/alfworld': 1,
  'envs/webshop': 1,
  'envs/search_qa': 1,
  'envs/episode': 0,
  'envs/worker': 1,
  'envs/watch': 0,
  'envs/pool': 2,
  'models': 1,
  'sources': 1,
  'template': 0,
  'tokenizer': 1,
  'chat': 1,
  'skills': 1,
  'retrieval': 1,
  'request': 0,
  'sampling': 1,
  'workdir': 3,
  'decoding': 2,
  'sampler': 2,
  'batching': 2,
  'contexts': 3,
  'fitting': 2,
  'tags': 0,
  'scoring': 2,
  'optimizer': 2,
  'rollout': 3,
  'learner': 4,
  'panels': 1,
  'evaluations': 1,
  'evaluator': 5,
  'evaluate': 4,
  'checkpoint': 4,
  'lines': 1,
  'recovery': 5,
  'manifest': 1,
  'ledger': 1,
  'signals': 0,
  'patience': 4,
  'metrics': 4,
  'writers': 4,
  'sinks': 4,
  'console': 4,
  'report': 4,
  'sft': 4,
  'identity': 0,
  'numerics': 4,
  'export': 4,
  'parts': 5,
  'train': 6,
  'modes': 6,
  'command_line': 3,
  'terminal': 0,
  'flags': 1,
  'describe': 3,
  'main': 7,
  'runs': 2,
  'results': 3,
  'comparison': 3,
  'plot': 4,
  'compare': 5,
}
WITHOUT_JAX = (
  'trajectory',
  'clock',
  'hyperparameters',
  'losses/gates',
  'config',
  'keys',
  'files',
  'statistics',
  'averages',
  'envs',
  'identity',
  'sources',
  'template',
  'tokenizer',
  'chat',
  'skills',
  'retrieval',
  'workdir',
  'request',
  'rollout',
  'batching',
  'contexts',
  'fitting',
  'lines',
  'manifest',
  'ledger',
  'signals',
  'patience',
  'tags',
  'metrics',
  'writers',
  'sinks',
  'console',
  'report',
  'panels',
  'evaluate',
  'evaluations',
  'command_line',
  'terminal',
  'flags',
  'describe',
  'runs',
  'results',
  'comparison',
  'plot',
  'compare',
)


def _room(path: str) -> str:
  rooms = [r for r in LAYERS if path == r or path.startswith(r + '/')]
  assert rooms, f'{path}: give it a layer in this test'
  return max(rooms, key=len)


def _modules():
  for file in sorted(PACKAGE.rglob('*.py')):
    path = file.relative_to(PACKAGE).with_suffix('').as_posix()
    if not path.endswith('__init__'):
      yield path, ast.parse(file.read_text())


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
  parts = name.split('.')[1:]
  for end in range(len(parts), 0, -1):
    path = '/'.join(parts[:end])
    if (PACKAGE / path).with_suffix('.py').exists():
      return path
  return None


def test_files_import_from_lower_layers_only():
  wrong = []
  for path, tree in _modules():
    room = _room(path)
    for name in _imports(tree):
      target = _own(name) if name.startswith('sdar_jax') else None
      if target is None or _room(target) == room:
        continue
      if LAYERS[_room(target)] > LAYERS[room]:
        wrong.append(f'{path} ({LAYERS[room]}) imports {target}')
  assert not wrong


def test_environments_and_logging_know_no_jax():
  for path, tree in _modules():
    if path.startswith(WITHOUT_JAX):
      roots = {name.split('.')[0] for name in _imports(tree)}
      assert not roots & {'jax', 'flax', 'optax', 'orbax'}, path


def test_tests_import_no_other_tests():
  for file in (ROOT / 'tests').rglob('*.py'):
    names = {name.split('.')[0] for name in _imports(ast.parse(file.read_text()))}
    assert not [name for name in names if name.startswith('test_')], file


def test_losses_know_no_model():
  for path, tree in _modules():
    if path.startswith('losses/'):
      own = {_own(n) for n in _imports(tree) if n.startswith('sdar_jax')} - {None}
      assert all(target.startswith('losses/') for target in own), path


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
