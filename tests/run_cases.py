"""Run directories written by hand, and studies drawn from a seed."""

import json

import numpy as np

from sdar_jax.evaluation import comparison, runs
from sdar_jax.logs import writers

DIGESTS = {
  'config_digest': 'c' * 64,
  'model_digest': 'm' * 64,
  'world_digest': 'w' * 64,
  'tokenizer_digest': 't' * 64,
  'skills_digest': 's' * 64,
  'numerics': 'jax_enable_x64=False',
}
SETTINGS = {
  'schema': 2,
  'panel': 'world/valid/4',
  'panel_digest': 'p' * 64,
  'composition': {'a': 2, 'b': 2},
  'world_digest': 'w' * 64,
  'with_skills': False,
  'temperature': 0.4,
  'top_p': 1.0,
  'top_k': 0,
  'max_prompt_tokens': 100,
  'max_response_tokens': 10,
  'attempts': 1,
  'seed': 1000,
}


def episode(index, success, attempt=0, outcome=None, **extra):
  return {
    'task_id': f'task {index}',
    'attempt': attempt,
    'type': 'ab'[index % 2],
    'success': bool(success),
    'outcome': outcome or ('success' if success else 'max_turns'),
    'turns': 3,
    **extra,
  }


def make_run(root, name, seed, curve, config=None, report=None, identity=None):
  """A run directory; `curve` maps a step to the successes of its tasks."""
  path = root / f'{name}-{seed}'
  (path / 'eval').mkdir(parents=True)
  settings = {'seed': seed, 'steps': max(curve), 'algorithm.name': name}
  settings |= {'algorithm.gate_beta': 5.0, 'optimizer.learning_rate': 0.1}
  (path / 'config.json').write_text(json.dumps({**settings, **(config or {})}))
  writers.write_run(path, method=name, seed=seed, **DIGESTS)
  record = json.loads((path / 'run.json').read_text())
  (path / 'run.json').write_text(json.dumps({**record, **(identity or {})}))
  for step, row in curve.items():
    records = [r if isinstance(r, dict) else episode(i, r) for i, r in enumerate(row)]
    values = {**SETTINGS, 'step': step, 'tasks': records}
    text = json.dumps({**values, **(report or {})})
    (path / 'eval' / f'{step:06d}.json').write_text(text)
  return path


def study(root, *, seeds=3, tasks=40, gains=(('grpo', 0.0), ('sdar', 0.2)), **kwargs):
  """Runs of each method, drawn; two evaluations each."""
  paths = []
  for number, (name, gain) in enumerate(gains):
    for seed in range(seeds):
      random = np.random.default_rng([number, seed])
      curve = {0: np.arange(tasks) % 2, 10: random.random(tasks) < 0.4 + gain}
      paths.append(make_run(root, name, seed, curve, **kwargs))
  return paths


def compared(paths, *args, **kwargs):
  return comparison.compare([runs.read(path) for path in paths], *args, **kwargs)
