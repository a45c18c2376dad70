"""A small study and what stands for training in it, for the tests of studies."""

import json
import sys

from experiments import cells as cells_lib
from sdar_jax import config as config_lib

METHODS, SEEDS = ('grpo', 'sdar'), (0, 1)
# Leaves what training leaves, counts its calls and does what it is told.
FAKE = """
import json, os, pathlib, signal, sys, time
workdir, spec, how = sys.argv[1:]
workdir, spec = pathlib.Path(workdir), json.loads(spec)
def stop(*_):
  if how != 'stubborn':
    time.sleep(1.0 if how == 'slow to stop' else 0.0)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(workdir / 'eval').mkdir(parents=True, exist_ok=True)
with (workdir / 'calls').open('a') as calls:
  calls.write('x')
first = (workdir / 'calls').read_text() == 'x'
(workdir / 'config.json').write_text(json.dumps(spec['config']))
digests = {f'{k}_digest': k[0] * 64 for k in ('config', 'model', 'world')}
identity = {'schema': 1, 'seed': spec['seed'], 'method': spec['method'], **digests}
(workdir / 'run.json').write_text(json.dumps({**identity, 'code_versions': ['1']}))
if hasattr(os, 'sched_getaffinity'):
  (workdir / 'cores').write_text(json.dumps(sorted(os.sched_getaffinity(0))))
(workdir / 'began').write_text(str(time.monotonic()))
print('step 1', flush=True)
if how == 'crash' or (how == 'crash once' and first):
  sys.exit('it broke')
if how == 'stop by itself':
  sys.exit(0)
if how in ('hang', 'slow to stop', 'stubborn'):
  time.sleep(600)
while how == 'meet' and len(list(workdir.parent.glob('*/began'))) < 2:
  time.sleep(0.05)  # Until another has begun, however busy the machine is.
time.sleep(0.3)
report = {'schema': 2, 'panel': 'p', 'panel_digest': 'p' * 64, 'temperature': 1.0,
          'composition': {'a': 6}, 'world_digest': 'w' * 64, 'top_p': 1.0, 'top_k': 0,
          'max_response_tokens': 9, 'with_skills': False,
          'attempts': 1, 'seed': 1, 'step': spec['config']['steps']}
report['tasks'] = [
  {'task_id': str(i), 'attempt': 0, 'type': 'a', 'turns': 1, 'outcome': 'success',
   'success': (i + spec['seed']) % 3 > 0 or spec['method'] == 'sdar'}
  for i in range(6)
]
name = f'{spec["config"]["steps"]:06d}.json'
(workdir / 'eval' / name).write_text(json.dumps(report))
(workdir / 'ended').write_text(str(time.monotonic()))
"""


def make_study(**changes):
  c = cells_lib.load('small')
  c.methods, c.seeds, c.cell_seconds = METHODS, SEEDS, 0.0
  c.overrides.update({'steps': 1})
  with c.ignore_type():
    for key, value in changes.items():
      c[key] = value
  return c


def fake_training(path, **how):
  """A command builder; `how` maps 'grpo_0' to what that cell does."""
  path.write_text(FAKE)

  def command(cell):
    config = json.loads(json.dumps(config_lib.flatten(cell.config)))
    spec = {'method': cell.method, 'seed': cell.seed, 'config': config}
    name = f'{cell.method}_{cell.seed}'
    arguments = str(cell.workdir), json.dumps(spec), how.get(name, 'fine')
    return [sys.executable, '-I', '-S', str(path), *arguments]

  return command
