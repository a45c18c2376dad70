"""Updates on several meshes of 8 host devices, run and compiled; see test_mesh.py."""

import dataclasses
import math
import sys

import drawn
import jax
import micro
import numpy as np

from benchmarks import hlo, programs
from sdar_jax.models import sharding

MESHES = {
  'one': ((2, 2, 2),),  # All three axes at once.
  'others': ((8, 1, 1), (1, 8, 1), (1, 2, 4)),
}
DIFFERENCES = ('gap', 'approx_kl', 'log_ratio_abs', 'distill_loss')


def run(mesh):
  """Scores, gradient norm, loss and parameters after two updates, on the host."""
  learner = micro.learner(mesh)
  params, ref = drawn.weights(micro.MODEL), drawn.weights(micro.MODEL, 1)
  shardings = sharding.param_shardings(micro.MODEL.param_specs(), mesh)
  state = learner.init_state(jax.device_put(params, shardings))
  lanes = mesh.shape['data'] * mesh.shape['fsdp']
  parts = [micro.split(micro.minibatch(i), lanes=lanes) for i in (0, 1)]
  batch = micro.scored(learner, state, jax.device_put(ref, shardings), parts)
  out = {}
  for i, minibatch in enumerate(batch):
    for name in ('old_logprobs', 'ref_logprobs', 'teacher_logprobs'):
      out[f'{name}/{i}'] = micro.joined(minibatch, name)
    state, metrics = learner.train_step(state, minibatch)
    for name, (total, _) in metrics.items():
      out[f'{name}/{i}'] = total
  for path, leaf in jax.tree_util.tree_leaves_with_path(state.params):
    out['params' + jax.tree_util.keystr(path)] = leaf
  spread = max(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state))
  return jax.device_get(out), spread


def compiled(shape, rows=32, length=96):
  """The gradient of a deeper model on a mesh: bytes of temporaries, collectives."""
  deeper = {'hidden_size': 64, 'num_layers': 6, 'intermediate_size': 256}
  model = dataclasses.replace(micro.MODEL, **deeper, num_heads=8)
  mesh = sharding.make_mesh(*shape)
  learner = micro.learner(mesh, model=model)
  parts = programs.Parts(None, model, mesh, learner)
  arrays = parts.microbatch(rows, length, response=length // 4)
  call = programs.Call(learner._gradient, (parts.trained(), (), (), arrays))
  program = call.lower().compile()
  found = hlo.collectives(program.as_text())
  return program.memory_analysis().temp_size_in_bytes, found, model


def check_memory():
  """Fails where a mesh makes a device hold, or send, what others compute."""
  split, _, _ = compiled((8, 1, 1))
  sharded, found, model = compiled((1, 8, 1))
  print(f'temporaries {split} with data=8, {sharded} with fsdp=8')
  for line in hlo.summary(found):
    print(line)
  # Weights are gathered a layer at a time, the head once; no activation travels.
  shapes = jax.tree.leaves(model.param_specs())
  largest = max(math.prod(spec.shape[spec.axes[0] == 'layers' :]) for spec in shapes)
  if sharded > 1.3 * split or any(one.size > 4 * largest for one in found):
    sys.exit(1)


def main(which):
  if which == 'one':
    check_memory()
  one, _ = run(sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
  worst = 0.0
  for shape in MESHES[which]:
    many, spread = run(sharding.make_mesh(*shape))
    assert spread == 8, (shape, spread)
    for name, value in one.items():
      cancels = name.startswith(DIFFERENCES)
      # Sums over some sixty tokens of differences that cancel: their own size is no
      # scale for their rounding.
      scale = max(float(np.max(np.abs(value))), 1e-2 if cancels else 1e-3)
      error = float(np.max(np.abs(many[name] - value))) / scale
      if not cancels:
        worst = max(worst, error)
      if not error <= (1e-3 if cancels else 1e-5):
        print(f'{shape} {name}: relative error {error:.2e}')
        sys.exit(1)
  print(f'worst relative error {worst:.2e}')


if __name__ == '__main__':
  main(sys.argv[1])
