"""The parts of each mode: made without a device where none is needed, as configured."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
import types

import jax
import numpy as np
import pytest

from experiments import alfworld, search_qa, webshop
from sdar_jax import build, files, parts
from sdar_jax.cli import command_line
from sdar_jax.learner import checkpoint
from sdar_jax.models import decoder, hf
from sdar_jax.process import shipped
from sdar_jax.storage import identity
from sdar_jax.storage.workdir import Workdir

EXPERIMENTS = {'alfworld': alfworld, 'webshop': webshop, 'search_qa': search_qa}


class _Device(AssertionError):
  """Device work was begun."""


@pytest.fixture
def no_device(monkeypatch):
  """Weights and the mesh cannot be had; nothing may become a device array."""

  def refuse(*args, **kwargs):
    raise _Device

  monkeypatch.setattr(hf, 'load', refuse)
  monkeypatch.setattr(build, 'make_mesh', refuse)
  before = jax.live_arrays()  # Held: those of other tests are not collected meanwhile.
  yield
  assert len(jax.live_arrays()) == len(before)


def _config(world='alfworld', argument='', **changes):
  config = EXPERIMENTS[world].get_config(f'model=tiny{argument}')
  config.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return config


@pytest.mark.parametrize('world', EXPERIMENTS)
def test_host_parts_of_every_experiment_need_no_device(world, no_device):
  host = parts.host_parts(_config(world))
  assert host.world.name == world and len(host.tasks) > 0
  assert host.plan.panel.tasks and host.plan.world_digest == host.world.digest
  with pytest.raises(dataclasses.FrozenInstanceError):
    host.world = None
  text = host.world.instruction
  plain, shown = (agent.prompt(text, host.tasks[0], 0)[1] for agent in _agents(host))
  assert not plain.skill_ids and not shown.skill_ids  # SDAR's student, and evaluation.
  assert host.teacher.prompt(text, host.tasks[0])[1].skill_ids


def _agents(host):
  return host.agent, host.plan.agent


WRONG = {
  'split': ({'eval__split': 'nowhere'}, "config.eval.split='nowhere': must be"),
  'panel': ({'eval__tasks': 10**7}, 'config.eval.tasks=10000000'),
  'group': ({'rollout__group_size': 1}, 'config.rollout.group_size=1'),
  'method': ({'algorithm__name': 'none'}, "config.algorithm.name='none'"),
  'context': ({'rollout__max_prompt_tokens': 10**5}, 'max_prompt_tokens=100000'),
  'budget': ({'skills__token_budget': 1}, 'config.skills.token_budget=1: skill '),
  'bank': ({'skills__path': 'no/such.json'}, 'no/such.json'),
  'tokenizer': ({'model__tokenizer': 'experiments'}, 'experiments'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_input_is_one_line_before_any_device_work(name, no_device):
  changes, said = WRONG[name]
  with pytest.raises(ValueError) as error:
    parts.host_parts(_config(**changes))
  assert said in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['split', 'panel', 'context', 'bank', 'tokenizer'])
def test_a_player_with_wrong_input_is_one_line_likewise(name, no_device):
  changes, said = WRONG[name]
  with pytest.raises(ValueError) as error:
    parts.player(_config(**changes), None)
  assert said in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('back_end, needed', [('cudnn', 'gpu'), ('splash', 'tpu')])
@pytest.mark.parametrize('platform', ['cpu', 'gpu', 'tpu'])
def test_a_kernel_of_another_device_is_one_line_before_weights_are_loaded(
  back_end, needed, platform, no_device
):
  config = _config(model__attention=back_end, model__dtype='bfloat16')
  device = types.SimpleNamespace(platform=platform)
  mesh = types.SimpleNamespace(devices=np.array([[[device]]]))
  if platform == needed:
    build.read_model(config, mesh, types.SimpleNamespace(len_vocab=1))
    return
  with pytest.raises(ValueError) as error:
    build.read_model(config, mesh, None)
  said = (
    f'config.model.attention={back_end!r} is for {needed}, the devices are {platform}'
  )
  assert said in str(error.value) and '\n' not in str(error.value)


def test_imitation_counts_skills_only_where_some_prompts_show_them(no_device):
  with pytest.raises(ValueError, match='token_budget=100000 is'):
    parts.imitation(_config(skills__token_budget=10**5), None)
  none = _config(skills__token_budget=10**5, sft__skilled_fraction=0.0)
  with pytest.raises(_Device):
    parts.imitation(none, None)


# Key, a value that is none of the experiment's, and where it must be found.
REACHES = [
  ('rollout.temperature', 0.7, lambda p: p.agent.sampling.temperature),
  ('eval.temperature', 0.8, lambda p: p.plan.agent.sampling.temperature),
  ('rollout.top_p', 0.9, lambda p: p.agent.sampling.top_p),
  ('rollout.top_p', 0.9, lambda p: p.plan.agent.sampling.top_p),
  ('rollout.top_k', 7, lambda p: p.agent.sampling.top_k),
  ('rollout.max_response_tokens', 11, lambda p: p.agent.sampling.max_tokens),
  ('rollout.max_prompt_tokens', 99, lambda p: p.agent.max_prompt_tokens),
  ('rollout.max_prompt_tokens', 99, lambda p: p.plan.agent.max_prompt_tokens),
  ('eval.tasks', 3, lambda p: len(p.plan.panel.tasks)),
  ('eval.attempts', 2, lambda p: p.plan.attempts),
  ('eval.seed', 5, lambda p: p.plan.seed),
  ('eval.with_skills', True, lambda p: p.plan.with_skills),
  ('eval.with_skills', True, lambda p: bool(_shown(p, p.plan.agent))),
  ('algorithm.name', 'skill-grpo', lambda p: _shown(p, p.agent) and 'skill-grpo'),
  ('algorithm.clip_high', 0.3, lambda p: p.hyper.clip_high),
  ('world.max_turns', 3, lambda p: p.world.max_turns),
  ('train.packing', 'in order', lambda p: p.packing.kind),
  ('train.minibatch_rows', 512, lambda p: p.packing.minibatch_rows),
  ('train.microbatch_rows', 8, lambda p: p.packing.microbatch_rows),
  ('train.length_buckets', (300, 301), lambda p: p.packing.length_buckets),
  ('train.teacher_buckets', (400, 401), lambda p: p.packing.teacher_buckets),
]


def _shown(host, agent):
  """Skills in an agent's prompt of the first training task."""
  return agent.prompt('anything', host.tasks[0], 0)[1].skill_ids


def test_values_reach_their_parts():
  usual = parts.host_parts(_config())
  changes = {key.replace('.', '__'): value for key, value, _ in REACHES}
  changed = parts.host_parts(_config(**changes))
  for key, value, found in REACHES:
    assert (found(usual) != value, found(changed)) == (True, value), key


TINY = 'experiments/tiny/alfworld'


def test_training_parts_say_what_the_run_is_made_of(tmp_path):
  config = _config(optimizer__learning_rate=0.25)
  with Workdir(tmp_path, config) as workdir:
    host = parts.host_parts(config)
    made, state = parts.training_parts(host, workdir.path, workdir.digest)
    # No method of the config is given a teacher.
    assert made.inputs.keys() == identity.INPUTS.keys() - {'teacher_digest'}
    assert made.inputs['config_digest'] == workdir.digest
  assert made.inputs['model_digest'] == hf.digest(TINY)
  assert made.world is host.world and made.pool is host.pool
  assert made.learner._config.learning_rate == 0.25 and int(state.step) == 0
  want = hf.load(TINY, None, np.float32)[1]
  for have in (made.initial, state.policy):  # SDAR's KL reads the initial policy.
    jax.tree.map(np.testing.assert_array_equal, have, want)
  first = jax.tree.leaves(made.initial)[0]
  assert first is not jax.tree.leaves(state.policy)[0]  # An update gives that away.


def _installed(prefix, monkeypatch):
  """Stands for an installation at `prefix`, the only one that there is."""
  source = shipped.root() / 'experiments'
  shutil.copytree(source, prefix / '_shipped' / 'experiments')
  monkeypatch.setattr(shipped, '_INSTALLED', prefix / '_shipped')
  elsewhere = [
    place for place in sys.path if not os.path.exists(f'{place}/experiments')
  ]
  monkeypatch.setattr(sys, 'path', elsewhere)


def _start(directory):
  """Makes the parts of a run in a directory; returns what it is made of."""
  words = ['--config=experiments/alfworld.py:model=tiny', f'--workdir={directory}']
  config = command_line.parse(words).config
  with Workdir(directory, config) as workdir:
    host = parts.host_parts(config)
    made, _ = parts.training_parts(host, workdir.path, workdir.digest)
    workdir.record()
  return made.inputs


def test_a_run_goes_on_in_another_installation(tmp_path, monkeypatch):
  for name in ('run', 'here'):
    (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path / 'here')
  _installed(tmp_path / 'a', monkeypatch)
  before = _start(tmp_path / 'run')
  assert str(tmp_path) not in (tmp_path / 'run/config.json').read_text()
  _installed(tmp_path / 'b', monkeypatch)
  shutil.rmtree(tmp_path / 'a')
  assert _start(tmp_path / 'run') == before
  # What identifies the model and the skills is their content.
  folder = tmp_path / 'b/_shipped/experiments/tiny/alfworld'
  bank = files.read_json(folder / 'skills.json')
  (folder / 'skills.json').write_text(json.dumps({**bank, 'version': 'another'}))
  weights = bytearray((folder / hf.SINGLE).read_bytes())
  weights[-1] ^= 0x80  # The sign of the last weight.
  (folder / hf.SINGLE).write_bytes(weights)
  after = _start(tmp_path / 'run')
  changed = {key for key in before if before[key] != after[key]}
  assert changed == {'model_digest', 'skills_digest'}


def test_initial_weights_are_kept_only_where_something_reads_them(tmp_path):
  config = _config(algorithm__kl_coef=0.0)
  made, _ = parts.training_parts(parts.host_parts(config), tmp_path, '')
  assert made.initial is None


def test_a_policy_is_the_configs_or_a_checkpoints(tmp_path):
  config = _config()
  plain = parts.policy(config, None)
  assert plain.weights == {'step': 0, 'model_digest': hf.digest(TINY)}
  host = parts.host_parts(config)
  made, state = parts.training_parts(host, tmp_path, 'c' * 64)
  state = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
  retrieval = {**host.teacher.retriever.state()}
  assert checkpoint.CheckpointStore(tmp_path / 'checkpoints', 2).save(
    3, state, {'retrieval': retrieval, **made.inputs}
  )
  later = parts.policy(config, str(tmp_path))
  assert later.weights['step'] == 3 and later.weights['config_digest'] == 'c' * 64
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(np.asarray(a) + 1, b),
    plain.params,
    later.params,
  )
  with pytest.raises(checkpoint.CheckpointError, match='no checkpoint there'):
    parts.policy(config, str(tmp_path / 'empty'))


def test_an_export_names_what_the_policy_came_from():
  policy = parts.policy(_config(export__dtype='float16'), None)
  written = parts.exported(policy)
  assert written.source == written.tokenizer == TINY
  assert written.dtype == 'float16' and written.chat is policy.chat
  assert written.load_chat(pathlib.Path(TINY)).digest == policy.chat.digest
  assert isinstance(written.model, decoder.ModelConfig)
