"""The sharding table, its errors, and weights read straight onto eight devices."""

import dataclasses

import eight
import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from sdar_jax.models import presets, sharding


def abstract_mesh(*sizes):
  return AbstractMesh(sizes, sharding.AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize('sizes', [(2, 1, 7), (0, 1, 1), (-1, -1, 1)])
def test_a_mesh_that_is_not_the_devices(sizes):
  with pytest.raises(ValueError, match=f'data={sizes[0]} fsdp={sizes[1]}') as caught:
    sharding.make_mesh(*sizes, devices=jax.devices()[:1])
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'owners, boxes',
  [
    ([[0, 0], [1, 1]], True),
    ([[0, 1], [0, 1]], True),
    ([[0, 1], [1, 0]], False),
    ([[0, 0, 0, 1], [1, 1, 2, 2]], False),
    ([[0, 0], [0, 0], [1, 2], [1, 2]], False),  # Boxes, but not alike.
    ([[0, 0], [0, 0], [1, 1], [1, 1]], True),
  ],
)
def test_devices_of_a_process_are_a_box(owners, boxes):
  assert sharding._in_boxes(np.asarray(owners)) is boxes


@dataclasses.dataclass(frozen=True)
class _Device:
  id: int
  process_index: int


def test_where_wiring_crosses_processes_their_order_decides(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  devices = [_Device(i, i // 2 % 2 + i // 8 * 2) for i in range(16)]
  crossed = jax.sharding.Mesh(np.reshape(devices, (1, 4, 4)), sharding.AXES)
  boxed = sharding._boxed(crossed)
  assert [[d.process_index for d in row] for row in boxed.devices[0]] == (
    [[0] * 4, [1] * 4, [2] * 4, [3] * 4]
  )
  odd = jax.sharding.Mesh(np.reshape(devices[:12], (1, 4, 3)), sharding.AXES)
  with pytest.raises(ValueError, match=r'fsdp=4 tensor=3: the .* no box') as error:
    sharding._boxed(odd)
  assert '\n' not in str(error.value)


def test_the_first_devices_are_used_and_none_is_one_line(monkeypatch):
  four = [*jax.devices()[:1], *'bcd']  # Only the first is ever touched.
  monkeypatch.setattr(jax, 'devices', lambda: four)
  assert sharding.make_mesh(1, 1, 1).devices.item() == four[0]
  with pytest.raises(ValueError, match=r'config.mesh data=5 .* wants 5 .* are 4'):
    sharding.make_mesh(5, 1, 1)

  def fails():
    raise AssertionError

  for name in ('devices', 'process_count'):
    monkeypatch.setattr(jax, name, fails)
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
  with pytest.raises(ValueError, match="no device with JAX_PLATFORMS='cuda'") as caught:
    sharding.make_mesh(1, 1, 1)
  assert '\n' not in str(caught.value)


def test_parameters_are_split_as_the_table_says():
  mesh = abstract_mesh(2, 4, 2)
  found = sharding.param_shardings(presets.PRESETS['qwen2.5-7b'].param_specs(), mesh)
  attention = found['layers']['attention']
  for got, want in [
    (found['embed']['embedding'], ('tensor', 'fsdp')),
    (found['lm_head']['embedding'], ('tensor', 'fsdp')),
    (attention['query']['kernel'], (None, 'fsdp', 'tensor', None)),
    (attention['key']['bias'], (None, 'tensor', None)),
    (attention['out']['kernel'], (None, 'tensor', None, 'fsdp')),
    (found['layers']['mlp']['gate']['kernel'], (None, 'fsdp', 'tensor')),
    (found['layers']['mlp']['down']['kernel'], (None, 'tensor', 'fsdp')),
    (found['layers']['mlp_norm']['scale'], (None, None)),
  ]:
    assert got == NamedSharding(mesh, PartitionSpec(*want))


def test_few_key_heads_and_an_odd_vocabulary_are_replicated():
  config = dataclasses.replace(presets.PRESETS['qwen2.5-3b'], vocab_size=1001)
  found = sharding.param_shardings(config.param_specs(), abstract_mesh(1, 1, 4))
  assert found['layers']['attention']['key']['kernel'].spec == PartitionSpec(
    None, 'fsdp', None, None
  )
  assert found['embed']['embedding'].spec == PartitionSpec(None, 'fsdp')
  query = found['layers']['attention']['query']['kernel']
  assert query.spec == PartitionSpec(None, 'fsdp', 'tensor', None)


@pytest.mark.parametrize(
  'name, sizes, words',
  [
    ('qwen2.5-0.5b', (1, 1, 4), 'heads=14 does not divide by mesh tensor=4'),
    ('qwen2.5-0.5b', (1, 3, 1), 'embed=896 does not divide by mesh fsdp=3'),
  ],
)
def test_other_sizes_must_divide(name, sizes, words):
  with pytest.raises(ValueError, match=words) as caught:
    sharding.param_shardings(presets.PRESETS[name].param_specs(), abstract_mesh(*sizes))
  assert '\n' not in str(caught.value)


@pytest.mark.long
def test_eight_devices_hold_and_compute_what_one_does():
  assert eight.run('models/eight_devices.py').count('equal') == 9
