"""The first update of a step is exactly on policy: no ratio but 1."""

import json

import micro
import micro_run
import numpy as np
import pytest


@pytest.mark.parametrize('method', ['grpo', 'sdar'])
def test_every_ratio_is_one_and_no_clip_binds(method):
  """Scoring and the gradient are two programs, which must agree to the last bit."""
  learner = micro.learner(algorithm=method)
  params, initial = (micro.params(seed) for seed in (0, 1))
  state, rows = learner.init_state(params), micro.minibatch()
  (scored,) = micro.scored(learner, state, initial, [micro.split(rows)])
  state, first = learner.train_step(state, scored)
  tokens = rows.response_mask.sum()
  assert first['ratio'] == (tokens, tokens)
  for name in ('log_ratio_abs', 'approx_kl', 'clip_low', 'clip_high', 'clip_dual'):
    assert first[name] == (0, tokens), name
  _, second = learner.train_step(state, scored)  # The same rows, off policy now.
  assert second['ratio'][0] != tokens and second['log_ratio_abs'][0] > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('method', ['grpo', 'sdar'])
def test_the_first_step_of_a_run_is_on_policy(method, tmp_path):
  """Run with `pytest -m slow tests/learner/test_first_update.py`: a minute of CPU."""
  model = micro_run.write_model(tmp_path / 'model')
  config = micro_run.config(model, method, 1)
  config.train.minibatch_rows = 8  # One update, of four microbatches.
  assert not micro_run.start(config, tmp_path / 'run').error
  (line,) = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  values = json.loads(line)
  assert values['train/updates'] == 1 and values['train/ratio'] == 1
  for name in ('log_ratio_abs', 'approx_kl', 'clip_low', 'clip_high', 'clip_dual'):
    assert values[f'train/{name}'] == 0
  assert np.isfinite(values['train/loss']) and values['train/grad_norm'] > 0
