"""What all tests share: programs are compiled once, and long files begin first."""

import os
import pathlib
import signal

from sdar_jax.process import memory

_CACHE = pathlib.Path(__file__).resolve().parents[1] / '.pytest_cache' / 'jax'
# Before JAX is imported; processes that tests start inherit it. Even what compiles fast
# is kept: other workers want the same small operations, by the thousand.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Whatever the machine has: workers beside each other would each take a whole GPU.
# docs/hardware.md says which tests are for one, and how they are run there.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
memory.keep()  # As programs do.

# What a shell's background job or nohup ignores, its children would ignore, too, and
# those that tests interrupt would never end. With a handler they begin as usual.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
  if signal.getsignal(_number) is signal.SIG_IGN:
    signal.signal(_number, lambda *_: None)

# The longest files, longest first. One that began last would keep one worker busy
# when all others had ended.
_LONG = (
  'test_learner',
  'test_resume',
  'test_distributions',
  'test_decoder',
  'test_mesh',
  'test_sampler',
  'test_golden',
  'test_scoring',
  'test_study',
  'test_validity',
  'test_objective_gradients',
  'test_fuzz',
  'test_sharding',
  'test_pool',
)


def pytest_configure(config):
  # Workers of xdist get files as they are ordered here, not those of most tests first.
  config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
  places = {name: place for place, name in enumerate(_LONG)}
  items.sort(key=lambda item: places.get(item.path.stem, len(_LONG)))
