"""Loads a model onto meshes of 8 host devices and runs it; see test_sharding.py."""

import pathlib
import tempfile

import golden_models
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sdar_jax.models import attention, attention_blocks, decoder, hf, sharding

MESHES = ((8, 1, 1), (1, 8, 1), (1, 2, 4), (2, 2, 2))


def check(name, sizes, config, want, tokens, expected):
  """Values, sharding and hidden states of one mesh."""
  mesh = sharding.make_mesh(*sizes)
  _, params = hf.load(str(golden_models.FOLDER / name), mesh, jnp.float32)
  jax.tree.map(np.testing.assert_array_equal, params, want)
  shardings = sharding.param_shardings(config.param_specs(), mesh)
  for leaf, place in zip(jax.tree.leaves(params), jax.tree.leaves(shardings)):
    assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
  table = params['embed']['embedding']
  part = table.addressable_shards[0].data.size
  assert part * sizes[1] * sizes[2] == table.size
  with jax.set_mesh(mesh):
    tokens = jax.device_put(
      tokens, NamedSharding(mesh, PartitionSpec(sharding.RULES.batch))
    )
    positions = golden_models.positions_of(tokens)
    step = jax.jit(lambda p, t, q: decoder.forward(config, p, t, q)[0])
    hidden = step(params, tokens, positions)
  scale = float(np.abs(expected).max())
  np.testing.assert_allclose(hidden, expected, rtol=0, atol=1e-5 * scale)
  with tempfile.TemporaryDirectory() as folder:
    hf.save(folder, config, params, jnp.float32)
    _, back = hf.load(folder, None, jnp.float32)
  jax.tree.map(np.testing.assert_array_equal, back, want)
  print(f'{name} {sizes}: equal')


def check_attention(sizes, form, kv_heads, queries, keys):
  """Output and gradients of a back end on a mesh, against the dense one on a device."""
  rng, heads, width = np.random.default_rng(0), 8, 16
  shapes = ((8, queries, heads, width), (8, kv_heads, width, keys))
  shapes += ((8, kv_heads, keys, width), (8, queries, heads, width))
  *arrays, mix = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
  key_positions = jnp.broadcast_to(jnp.arange(keys), (8, keys))
  positions = key_positions if queries == keys else jnp.arange(8)[:, None] * 12

  def run(back_end, arrays):
    def loss(query, keys, values):
      out = attention.attend(query, keys, values, positions, key_positions, back_end)
      return (out * mix).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return out, *gradients

  want = run('dense', arrays)
  mesh = sharding.make_mesh(*sizes)
  axes = [('batch', None, 'heads'), ('batch', 'kv_heads'), ('batch', 'kv_heads')]
  with jax.set_mesh(mesh):
    placed = [
      jax.device_put(
        array,
        NamedSharding(
          mesh, sharding.partition_spec(names, array.shape[: len(names)], mesh)
        ),
      )
      for array, names in zip(arrays, axes)
    ]
    got = run(form, placed)
  for one, other in zip(got, want):
    scale = float(np.abs(other).max())
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6 * scale)
  print(f'{form} of {queries} queries, {kv_heads} key heads on {sizes}: equal')


def main():
  assert jax.device_count() == 8
  attention_blocks.QUERIES, attention_blocks.KEYS = 16, 32
  # Key heads that the mesh divides, and that it does not.
  for sizes, kv_heads in (((2, 1, 4), 4), ((1, 2, 4), 2)):
    check_attention(sizes, 'chunked', kv_heads, 50, 50)
    check_attention(sizes, 'splash', kv_heads, 128, 128)
  check_attention((1, 2, 4), 'chunked', 2, 1, 90)
  assert pathlib.Path(golden_models.FOLDER).is_dir()
  for name, meshes in (('qwen2_untied_bf16', MESHES[:2]), ('qwen3_tied', MESHES[2:])):
    config, want, record = golden_models.load(name)
    tokens = jnp.asarray(np.tile(record['tokens'], (8, 1))[:16])
    positions = golden_models.positions_of(tokens)
    whole = jax.jit(lambda p, t, q, c=config: decoder.forward(c, p, t, q)[0])
    expected = whole(want, tokens, positions)
    for sizes in meshes:
      check(name, sizes, config, want, tokens, np.asarray(expected))


if __name__ == '__main__':
  main()
