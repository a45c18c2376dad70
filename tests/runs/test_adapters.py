"""A run that trains adapters: what it keeps, plays, resumes and writes."""

import jax
import micro_run
import numpy as np
import pytest

from sdar_jax import modes, parts, sft
from sdar_jax.learner import checkpoint
from sdar_jax.models import adapter_files, hf, lora

CHANGES = {
  'model_lora_rank': 2,
  'model_lora_alpha': 8.0,
  'optimizer_learning_rate': 0.02,
}


@pytest.fixture(scope='module', autouse=True)
def compiling():
  with micro_run.compiling():
    yield


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('model') / 'm')


@pytest.fixture(scope='module')
def run(model, tmp_path_factory):
  """A finished run of two steps, its config and what it left."""
  path = tmp_path_factory.mktemp('runs') / 'whole'
  config = micro_run.config(model, 'sdar', 2, **CHANGES)
  outcome = micro_run.start(config, path)
  assert not outcome.error, outcome.error
  return path, config, outcome


def kernels(tree):
  return jax.tree.leaves(tree['layers']['mlp'])


def test_only_adapters_are_kept(run):
  path, config, _ = run
  made = parts.policy(config, str(path))
  whole = sum(leaf.size for leaf in jax.tree.leaves(made.params))
  few = sum(leaf.size for leaf in jax.tree.leaves(made.adapters))
  stored = checkpoint.load(path / 'checkpoints', {'params': made.adapters}, subset=True)
  assert stored.step == 2 and few < whole / 5
  fresh = parts.policy(config, None)
  jax.tree.map(np.testing.assert_array_equal, made.params, fresh.params)
  moved = [
    not np.array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves(made.adapters), jax.tree.leaves(fresh.adapters), strict=True
    )
  ]
  assert all(moved)


def test_a_run_that_stopped_goes_on_as_if_it_had_not(run, model, tmp_path):
  _, _, whole = run
  first = micro_run.config(model, 'sdar', 1, **CHANGES)
  assert not micro_run.start(first, tmp_path / 'half').error
  later = micro_run.start(
    micro_run.config(model, 'sdar', 2, **CHANGES), tmp_path / 'half'
  )
  assert later.saved[1] == whole.saved[1]
  name = 'metrics.jsonl'
  assert later.files[name] == whole.files[name]


def test_exports_are_the_model_with_its_adapters_or_the_adapters(run, tmp_path):
  path, config, _ = run
  config.export.dtype = 'float32'
  modes.run_export(config, str(path), tmp_path / 'merged')
  config.export.adapter = True
  modes.run_export(config, str(path), tmp_path / 'adapter')
  made = parts.policy(config, str(path))
  _, merged = hf.load(tmp_path / 'merged', None, np.float32)
  again = adapter_files.merge_into(made.params, made.model, str(tmp_path / 'adapter'))
  added = jax.jit(lora.merged)(made.joined)
  for one in (merged, again):
    for got, want, base in zip(kernels(one), kernels(added), kernels(made.params)):
      np.testing.assert_allclose(got, want, atol=1e-6)
      assert np.abs(np.asarray(want) - base).max() > 1e-4
  # A run that begins with the adapter plays as the merged model does.
  config.model.adapter, config.model.lora_rank = str(tmp_path / 'adapter'), 0
  config.export.adapter = False
  begun = parts.policy(config, None)
  assert begun.weights['model_digest'] != hf.digest(config.model.path)
  for got, want in zip(kernels(begun.params), kernels(merged)):
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_adapters_alone_need_adapters(model, tmp_path, monkeypatch):
  config = micro_run.config(model, 'sdar', 1)
  config.export.adapter = True
  config.sft.rows, config.optimizer.warmup_steps = 64, 0
  monkeypatch.setattr(parts, 'policy', lambda *rest: pytest.fail('it was loaded'))
  for run in (modes.run_export, sft.run_sft):  # Before anything is learned.
    with pytest.raises(ValueError, match=r'config\.model\.lora_rank is 0'):
      run(config, None, tmp_path / 'out')
  # Those that are merged are in no file of the new ones: nobody could load them.
  config.model.lora_rank, config.model.adapter = 4, 'experiments/smollm2/adapters'
  for run in (modes.run_export, sft.run_sft):
    with pytest.raises(ValueError, match=r'config\.model\.adapter=.* is merged'):
      run(config, None, tmp_path / 'out')
