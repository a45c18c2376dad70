"""Old log-probs from the sampler instead of a scoring pass."""

import json

import micro_run
import pytest

from benchmarks import programs
from sdar_jax.config import ConfigError
from sdar_jax.learner.learner import Learner
from sdar_jax.models import sharding

SAMPLED = {'train_old_logprobs': 'sampled'}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return micro_run.write_model(tmp_path_factory.mktemp('model') / 'micro')


def test_what_the_sampler_says_trains_alike_without_the_pass(
  model, tmp_path, monkeypatch
):
  lines, scored = {}, []
  score = Learner._score
  monkeypatch.setattr(
    Learner,
    '_score',
    lambda self, *args: scored.append(score(self, *args)) or scored[-1],
  )
  with micro_run.compiling():
    for name, changes in (('scored', {}), ('sampled', SAMPLED)):
      config = micro_run.config(model, 'sdar', 1, **changes)
      assert not micro_run.start(config, tmp_path / name).error
      lines[name] = json.loads((tmp_path / name / 'metrics.jsonl').read_text())
      assert {('old_logprobs' in scores) for scores in scored} == {name == 'scored'}
      scored.clear()
  gone = lines['scored'].keys() - lines['sampled'].keys()
  assert gone == {'train/sampler_mismatch_mean', 'train/sampler_mismatch_max'}
  gap = lines['scored']['train/sampler_mismatch_max']
  assert 0 < gap < 1e-4
  for name in ('train/loss', 'train/gap', 'train/grad_norm'):
    assert lines['sampled'][name] == pytest.approx(lines['scored'][name], abs=100 * gap)


@pytest.mark.parametrize(
  ('method', 'changes'),
  [
    ('ppo', {}),
    ('sdar', {'algorithm_gate': 'entropy'}),
    ('grpo', {'algorithm_kl_in': 'reward', 'algorithm_kl_coef': 0.01}),
  ],
)
def test_a_method_that_reads_more_of_the_pass_keeps_it(model, method, changes):
  config = micro_run.config(model, method, 1, **changes, **SAMPLED)
  with pytest.raises(ConfigError, match=r"config\.train\.old_logprobs='sampled'"):
    programs.make(config, micro_run.MODEL, sharding.make_mesh(1, 1, 1))
