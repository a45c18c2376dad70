"""Results of the other modes: kept somewhere though their place fails."""

import json
import re
from types import SimpleNamespace

import optax
import pytest

from experiments import alfworld
from sdar_jax import files, modes, sft
from sdar_jax.models import export
from sdar_jax.process import terminal


def _spare(error):
  return re.search(r'in (\S+)$', str(error.value))[1]


def test_a_report_whose_place_fails_is_kept_elsewhere(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  (tmp_path / 'taken').write_text('')  # By another program, while episodes were played.
  output, report = tmp_path / 'taken' / 'report.json', json.dumps({'success': 1})
  with pytest.raises(files.OutputError, match='the report is in') as error:
    modes._keep(output, report)
  assert files.read_json(_spare(error)) == {'success': 1}
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'taken'))
  with pytest.raises(files.OutputError, match='is printed above'):
    modes._keep(output, report)
  assert json.loads(capsys.readouterr().out) == {'success': 1}


def test_a_model_whose_place_fails_is_kept_elsewhere(tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))

  def write(output, policy):
    if output == tmp_path / 'full':
      raise OSError(28, 'No space left on device')
    output.mkdir()
    (output / 'weights').write_text(policy)
    return 'float32'

  monkeypatch.setattr(export, 'write', write)
  with pytest.raises(files.OutputError, match='No space left') as error:
    export.keep(tmp_path / 'full', 'weights')
  assert files.local_path(_spare(error), 'x').joinpath('weights').is_file()


def test_a_stopped_imitation_says_what_is_lost(monkeypatch):
  def stopped(params, opt_state, batch, i):
    if batch == 'third':
      raise terminal.Stopped(15)
    return params, opt_state, {'nll': 0.0}

  monkeypatch.setattr(sft, 'make_step', lambda *args, **kwargs: stopped)
  parts = SimpleNamespace(
    config=alfworld.get_config(),
    params={},
    model=None,
    tx=optax.identity(),
    scoring=None,
  )
  batches = ['first', 'second', 'third']
  with pytest.raises(terminal.Stopped, match='SIGTERM: 2 of 9 steps of imitation'):
    sft._fit(parts, batches, 9)
