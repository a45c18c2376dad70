"""What a program says of its devices, on machines that are made up."""

from types import SimpleNamespace

import jax
import pytest

from sdar_jax import main
from sdar_jax.process import devices


def _device(platform, kind, limit=None):
  stats = None if limit is None else {'bytes_limit': limit}
  return SimpleNamespace(
    platform=platform, device_kind=kind, memory_stats=lambda: stats
  )


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch):
  monkeypatch.setenv('PATH', '')
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  monkeypatch.setattr(devices, '_cores', lambda: 2)


@pytest.mark.parametrize(
  'found, line',
  [
    ([_device('cpu', 'cpu')], '1 x cpu, 2 cores'),
    ([_device('cpu', 'cpu')] * 8, '8 x cpu, 2 cores'),
    (
      [_device('tpu', 'TPU v5 lite', 15 * 2**30)] * 4,
      '4 x TPU v5 lite (tpu), 15.0 GiB each',
    ),
    ([_device('gpu', 'NVIDIA H100', 60 * 2**30)], '1 x NVIDIA H100 (gpu), 60.0 GiB'),
    (
      [_device('gpu', 'A', 2**30), _device('gpu', 'B', 2**30)],
      '1 x A (gpu), 1 x B (gpu), 1.0 GiB each',
    ),
  ],
)
def test_devices_are_named(found, line):
  assert devices.summary(found) == f'devices: {line}'


def test_a_device_that_says_nothing_of_its_memory_is_named():
  def refuse():
    raise RuntimeError('not addressable')

  device = SimpleNamespace(platform='tpu', device_kind='TPU v4', memory_stats=refuse)
  assert devices.summary([device]) == 'devices: 1 x TPU v4 (tpu)'


def _card(root, slot, vendor, device):
  folder = root / 'sys/bus/pci/devices' / slot
  folder.mkdir(parents=True)
  (folder / 'vendor').write_text(f'{vendor}\n')
  (folder / 'device').write_text(f'{device}\n')


def test_an_accelerator_that_jax_cannot_use_is_warned_of(tmp_path, monkeypatch):
  cpu = [_device('cpu', 'cpu')]
  assert devices.warning(cpu, tmp_path) == ''
  _card(tmp_path, '0000:00:01.0', '0x1ae0', '0x0042')  # A network card.
  _card(tmp_path, '0000:00:02.0', '0x8086', '0x0063')
  assert devices.warning(cpu, tmp_path) == ''
  _card(tmp_path, '0000:00:03.0', '0x1ae0', '0x0063')
  assert 'sdar-jax[tpu]' in devices.warning(cpu, tmp_path)
  (tmp_path / 'dev').mkdir()
  (tmp_path / 'dev/nvidia0').touch()
  warning = devices.warning(cpu, tmp_path)
  assert 'sdar-jax[gpu]' in warning and '\n' not in warning
  assert devices.warning([_device('gpu', 'H100')], tmp_path) == ''
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')  # It was asked for.
  assert devices.warning(cpu, tmp_path) == ''


def test_a_driver_without_its_device_file_is_seen(tmp_path, monkeypatch):
  program = tmp_path / 'nvidia-smi'
  program.touch(mode=0o755)
  monkeypatch.setenv('PATH', str(tmp_path))
  root = tmp_path / 'root'
  assert 'sdar-jax[gpu]' in devices.warning([_device('cpu', 'cpu')], root)


def test_where_there_is_none_somebody_else_says_why(capsys, monkeypatch):
  def fails():
    raise AssertionError

  monkeypatch.setattr(jax, 'local_devices', fails)
  main._name_devices.cache_clear()
  assert main._load('files').__name__ == 'sdar_jax.files'
  main._name_devices.cache_clear()
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize('words', [['play'], ['--mode=describe']])
def test_a_device_that_is_full_is_one_line_in_tools_too(words, capsys, monkeypatch):
  def fails(*rest):
    raise MemoryError('no room')

  monkeypatch.setattr(main.tools, 'run', fails)
  monkeypatch.setattr(main.command_line, 'parse', fails)
  assert main.main(words) == 70
  said = capsys.readouterr().err
  assert 'no room; lower config.rollout.slots' in said and said.count('\n') == 1


def test_main_names_them_once_on_stderr(capsys):
  main._name_devices.cache_clear()
  for _ in range(2):
    assert main._load('files').__name__ == 'sdar_jax.files'
  said = capsys.readouterr()
  assert not said.out and said.err.count('devices: ') == 1
