"""Memory by arithmetic against arrays that exist and compiled programs."""

import dataclasses
import math

import jax
import micro
import pytest
import quick
from jax.sharding import AbstractMesh

from benchmarks import fits, programs
from experiments import alfworld, search_qa, webshop
from sdar_jax import build
from sdar_jax import config as config_lib
from sdar_jax.learner import memory
from sdar_jax.models import lora, presets, sharding

GIB = memory.GIB
SIZES = memory.Sizes(
  rows=32,
  length=2560,
  teacher_length=3584,
  several=True,
  scored_share=0.25,
  logit_positions=2048,
  remat='full',
  slots=128,
  positions=2560,
  prefill_rows=64,
  prefill_chunk=64,
  dtype='bfloat16',
  moments=2,
  moments_at='device',
  needs_initial=True,
  keeps_teacher=False,
)
SMALL = presets.PRESETS['qwen2.5-0.5b']


def mesh(data=1, fsdp=1, tensor=1):
  return AbstractMesh((data, fsdp, tensor), sharding.AXES)


def weights(model):
  return sum(math.prod(spec.shape) for spec in jax.tree.leaves(model.param_specs()))


def test_what_is_kept_is_counted_exactly():
  count = weights(SMALL)
  phases = memory.plan(SMALL, mesh(), SIZES)
  for parts in phases.values():
    assert parts['trained'] == 4 * count and parts['moments'] == 8 * count
    assert parts['initial'] == 2 * count and not parts['teacher']
  assert phases['update']['gradients'] == 8 * count
  # Keys and values: 24 layers of 2 heads of 64, in 2 bytes.
  assert phases['rollout']['cache'] == 128 * 2560 * 2 * 24 * 2 * 64 * 2
  alone = dataclasses.replace(SIZES, several=False, needs_initial=False, moments=1)
  parts = memory.plan(SMALL, mesh(), alone)['update']
  assert parts['gradients'] == parts['trained'] == parts['moments']
  assert not parts['initial']


def test_of_several_processes_each_holds_a_copy_that_samples():
  whole, here = mesh(fsdp=8, tensor=2), mesh(fsdp=2, tensor=2)
  one = memory.plan(SMALL, whole, SIZES)
  several = memory.plan(SMALL, whole, SIZES, here)
  copy = {parts.pop('copy that samples') for parts in several.values()}
  (size,) = copy
  assert size == pytest.approx(2 * weights(SMALL) / 4, rel=0.01)  # Norms are whole.
  for phase in ('scoring', 'update'):
    assert several[phase] == one[phase]
  # It decodes its own slots, on a quarter of the devices.
  assert several['rollout']['cache'] == 4 * one['rollout']['cache']
  assert several['rollout']['weights to decode'] == one['rollout']['weights to decode']


def test_a_mesh_splits_what_its_rules_split():
  whole, split = (memory.plan(SMALL, m, SIZES) for m in (mesh(), mesh(fsdp=8)))
  for part in ('trained', 'moments', 'gradients'):
    share = split['update'][part] / whole['update'][part]
    assert 1 / 8 <= share < 0.13  # Norms are everywhere.
  assert split['rollout']['cache'] == whole['rollout']['cache'] / 8
  decoded = 'weights to decode'
  assert split['rollout'][decoded] == whole['rollout'][decoded]
  activations = [plan['update']['activations'] for plan in (whole, split)]
  assert activations[1] < 0.3 * activations[0]  # The head is on each device.


def test_adapters_leave_the_model_as_the_only_copy():
  model = dataclasses.replace(SMALL, lora=lora.Lora(16, 32.0))
  sizes = dataclasses.replace(SIZES, needs_initial=False)
  parts = memory.plan(model, mesh(), sizes)['update']
  assert parts['initial'] == 2 * weights(SMALL)
  assert parts['trained'] < 0.05 * parts['initial'] * 2


@pytest.mark.long
@pytest.mark.parametrize('rows', [2, 8])
def test_temporaries_are_those_of_the_compiled_gradient(rows):
  config = alfworld.get_config('model=qwen2.5-0.5b')
  config.train.microbatch_rows = config.train.minibatch_rows = rows
  config.train.length_buckets, config.train.teacher_buckets = (640,), (896,)
  model = dataclasses.replace(SMALL, attention='chunked', num_layers=6)
  one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  made = programs.make(config, model, one)
  lowered = programs.of_learner(made)['gradient'].lower()
  compiled = fits.need(quick.lowered(lowered)).temporaries * GIB - 4 * weights(model)
  sizes = dataclasses.replace(SIZES, rows=rows, length=640, teacher_length=896)
  guess = memory.plan(model, one, sizes)['update']['activations']
  assert 0.5 * compiled < guess < 2 * compiled


@pytest.mark.parametrize(('rows', 'chunk', 'prompt'), [(16, 64, 1024), (64, 16, 256)])
def test_temporaries_are_those_of_the_compiled_prefill(rows, chunk, prompt):
  config = alfworld.get_config('model=qwen2.5-0.5b')
  config.model.dtype = 'float32'  # XLA for CPU computes 16 bits in 32.
  config.rollout.slots, config.rollout.max_prompt_tokens = 16, prompt
  config.rollout.prefill_chunk, config.rollout.prefill_tokens = chunk, rows * chunk
  model = dataclasses.replace(SMALL, num_layers=4)
  one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  lowered = programs.of_sampler(programs.make(config, model, one))['prefill'].lower()
  compiled = fits.need(quick.lowered(lowered)).temporaries * GIB
  sizes = dataclasses.replace(
    SIZES,
    slots=16,
    positions=prompt + config.rollout.max_response_tokens,
    prefill_rows=rows,
    prefill_chunk=chunk,
    dtype='float32',
  )
  guess = memory.plan(model, one, sizes)['rollout']['prefill']
  assert 0.5 * compiled < guess < 2 * compiled


def test_what_does_not_fit_is_said_in_a_line_with_what_to_change():
  phases = memory.plan(presets.PRESETS['qwen2.5-3b'], mesh(), SIZES)
  said = memory.complaint(phases, 75.2 * GIB)
  assert said.startswith('update needs about ') and '\n' not in said
  assert 'of each device, which has 75.2 (' in said
  assert said.endswith('; or config.optimizer.moments or config.mesh.fsdp')
  assert not memory.complaint(phases, 0) and not memory.complaint(phases, float('inf'))
  many = dataclasses.replace(SIZES, slots=4096)
  said = memory.complaint(memory.plan(SMALL, mesh(), many), 15.75 * GIB)
  assert said.startswith('rollout') and 'config.rollout.slots' in said
  for name in {part for parts in phases.values() for part in parts}:
    assert name in memory._CURES


def test_a_table_adds_up_each_phase_and_says_what_there_is():
  phases = memory.plan(SMALL, mesh(), SIZES)
  head, *lines = memory.table(phases, 75.2 * GIB).splitlines()
  assert head.split() == ['GiB', 'of', 'each', 'device', 'rollout', 'scoring', 'update']
  columns = [head.index(name) + len(name) for name in phases]
  numbers = {  # By part: what ends under the end of each heading.
    line[:20].strip(): [line[end - 10 : end].strip() for end in columns]
    for line in lines
  }
  assert numbers.pop('it has') == ['', '', '75.20']
  together = [float(text) for text in numbers.pop('together')]
  for i, (phase, parts) in enumerate(phases.items()):
    said = [float(row[i]) for row in numbers.values() if row[i]]
    assert len(said) == sum(size > 0 for size in parts.values()), phase
    assert sum(said) == pytest.approx(together[i], abs=0.005 * (len(said) + 1))
    assert together[i] == pytest.approx(sum(parts.values()) / GIB, abs=0.005)
  assert 'teacher' not in numbers  # Of this method there is none.
  for unknown in (0, math.inf):
    assert 'it has' not in memory.table(phases, unknown)


def test_a_table_of_a_small_model_is_in_smaller_units():
  said = memory.table({'rollout': {'trained': 2**20, 'cache': 0.0}}, GIB)
  assert said.splitlines()[1:] == [
    'trained                   1.00',
    'together                  1.00',
    'it has                 1024.00',
  ]


@pytest.mark.parametrize(
  ('experiment', 'name', 'rank'),
  [
    (alfworld, 'qwen2.5-0.5b', 0),
    (webshop, 'qwen2.5-0.5b', 0),
    (search_qa, 'qwen2.5-0.5b', 0),
    (alfworld, 'qwen2.5-1.5b', 16),
  ],
)
def test_the_demo_fits_a_chip_of_sixteen_gigabytes(experiment, name, rank):
  config = experiment.get_config(f'model={name},scale=demo')
  config.model.lora_rank = rank
  config_lib.validate(config)
  model = dataclasses.replace(
    presets.PRESETS[name], attention='splash', lora=build.make_lora(config.model)
  )
  one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  learner = programs.make(config, model, one).learner
  sizes = build.make_sizes(config, learner, config.train, with_skills=False)
  # No row is longer than the buckets, which are the same in every world.
  c = config.rollout
  longest = c.max_prompt_tokens + c.max_response_tokens
  assert sizes.length == longest
  assert sizes.teacher_length == longest + config.skills.token_budget
  assert not memory.complaint(memory.plan(model, one, sizes), 15 * GIB)


def test_moments_on_the_host_leave_room_for_activations():
  one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
  model = presets.PRESETS['qwen2.5-0.5b']
  plans = [
    memory.plan(model, one, dataclasses.replace(SIZES, moments_at=where))
    for where in ('device', 'host')
  ]
  for phase in plans[0]:
    here, away = (sum(plan[phase].values()) for plan in plans)
    assert here - away == pytest.approx(plans[0][phase]['moments'])
  # Without activations to speak of, what comes back for the update is all there is.
  small = dataclasses.replace(SIZES, rows=1, length=8, moments_at='host')
  least = memory.plan(model, one, small)['update']['activations']
  assert least == 1.5 * plans[0]['update']['moments']


@pytest.mark.long
@pytest.mark.parametrize('remat', ['none', 'dots', 'full'])
def test_what_a_layer_keeps_is_near_what_is_compiled(remat):
  """The difference that eight layers more make to a gradient's temporaries."""
  sizes = dataclasses.replace(SIZES, remat=remat, rows=4, length=256, dtype='float32')
  found, said = [], []
  for count in (8, 16):
    model = dataclasses.replace(micro.MODEL, num_layers=count, hidden_size=64)
    config = config_lib.default()
    config.algorithm.update({'name': 'grpo', 'kl_coef': 0.0})
    config.model.remat = remat
    config.train.update({'microbatch_rows': 4, 'length_buckets': (256,)})
    one = sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    call = programs.of_learner(programs.make(config, model, one))['gradient']
    memory_of = quick.lowered(call.lower()).compile().memory_analysis()
    found.append(memory_of.temp_size_in_bytes)
    said.append(memory.plan(model, one, sizes)['update']['activations'])
  grown, expected = found[1] - found[0], said[1] - said[0]
  assert 0.5 < grown / expected < 2.0
