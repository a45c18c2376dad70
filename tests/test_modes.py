"""The other modes: what they play, print and write, also where its place fails."""

import json
import re
from types import SimpleNamespace

import fakes
import optax
import pytest
from ml_collections import ConfigDict

from experiments import alfworld
from sdar_jax import files, modes, parts, sft
from sdar_jax.evaluation import evaluate, panels
from sdar_jax.learner import memory
from sdar_jax.models import export
from sdar_jax.process import shipped, terminal


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
  def stopped(params, opt_state, base, batch, i):
    if batch == 'third':
      raise terminal.Stopped(15)
    return params, opt_state, {'nll': 0.0}

  monkeypatch.setattr(sft, 'make_step', lambda *args, **kwargs: stopped)
  learned = SimpleNamespace(
    config=alfworld.get_config(),
    params={},
    adapters=None,
    mesh=None,
    model=None,
    tx=optax.identity(),
    scoring=None,
  )
  batches = ['first', 'second', 'third']
  with pytest.raises(terminal.Stopped, match='SIGTERM: 2 of 9 steps of imitation'):
    sft._fit(learned, batches, 9)


def test_a_warm_up_longer_than_the_imitation_is_one_line(tmp_path):
  config = alfworld.get_config('model=tiny')
  config.sft.rows, config.sft.copy_rows = 100, 20
  config.optimizer.warmup_steps = 4
  with pytest.raises(ValueError, match=r'warmup_steps=4: .* the 4 updates of 120 rows'):
    sft.run_sft(config, None, tmp_path / 'out')


class _Tasks(tuple):
  digest = 'tasks'


@pytest.fixture
def player(monkeypatch):
  """A policy that plays `fakes.World` and says '2'."""
  world = fakes.World()
  world.tasks = lambda split: _Tasks(fakes.tasks())
  made = SimpleNamespace(
    world=world,
    plan=evaluate.Plan(
      panels.make_panel(world, 'valid', 0), fakes.agent(), 2, 5, False, 'w' * 64
    ),
    pool=fakes.in_process(world),
    sampler=fakes.ScriptedSampler(lambda identity: '2', 0),
    weights={'step': 4, 'model_digest': 'm'},
  )
  asked = []
  monkeypatch.setattr(parts, 'player', lambda *args: asked.append(args) or made)
  made.asked = asked
  return made


def test_eval_plays_the_panel_and_writes_what_it_prints(player, tmp_path, capsys):
  config = ConfigDict({'seed': 3, 'eval': {'split': 'valid'}})
  output = tmp_path / 'new' / 'report.json'
  modes.MODES['eval'](config, checkpoint='runs/x', output=output)
  assert player.asked == [(config, 'runs/x')]
  report = files.read_json(output)
  assert report['n'] == 6 and report['successes'] == 2 and report['step'] == 4
  assert {r.identity[:2] for r in player.sampler.requests} == {(-1, 5)}
  assert '33.3%' in capsys.readouterr().out


def test_play_prints_one_episode_of_the_first_task(player, capsys):
  config = ConfigDict({'seed': 3, 'eval': {'split': 'valid'}})
  modes.MODES['play'](config, checkpoint=None, output=None)
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == 'task 1: say 1'
  assert [line for line in lines if line.startswith('[')] == [
    '[1] start',
    '[2] said 2',
    '[3] said 2',
  ]
  assert lines.count('> 2') == 3 and lines[-1] == 'max_turns after 3 turns'
  assert {r.identity[:2] for r in player.sampler.requests} == {(3, 0)}


@pytest.mark.parametrize('mode', ['sft', 'export'])
def test_a_mode_that_writes_needs_a_place_before_anything_else(mode, tmp_path):
  config = alfworld.get_config('model=tiny')
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/other').write_text('')
  for output, said in ((None, '--output is missing'), (tmp_path / 'full', 'other')):
    with pytest.raises(ValueError, match=said) as error:
      modes.MODES[mode](config, checkpoint=None, output=output)
    assert '\n' not in str(error.value)


def test_export_writes_the_policy_that_the_config_names(tmp_path, monkeypatch, capsys):
  policy = SimpleNamespace(params='weights')
  monkeypatch.setattr(parts, 'policy', lambda *args: (policy, args)[0])
  monkeypatch.setattr(parts, 'exported', lambda policy: policy.params)
  kept = []
  monkeypatch.setattr(export, 'write', lambda *args: kept.append(args) or 'bfloat16')
  config = alfworld.get_config('model=tiny')
  modes.MODES['export'](config, checkpoint=None, output=tmp_path / 'out')
  assert kept == [(tmp_path / 'out', 'weights')]
  said = capsys.readouterr().out
  assert f'wrote {tmp_path / "out"} (bfloat16; config.export.dtype=float32' in said


def test_memory_is_printed_and_too_little_of_it_is_an_error(monkeypatch, capsys):
  config = alfworld.get_config('model=tiny')
  modes.run_memory(config, None, None)  # Of a CPU it is not known how much there is.
  said = capsys.readouterr().out
  (trained,) = re.findall(r'^trained +([\d.]+) +\1 +\1$', said, re.M)
  stored = shipped.find(config.model.path) / 'model.safetensors'  # In float32, too.
  assert float(trained) == pytest.approx(stored.stat().st_size / 2**20, rel=0.01)
  monkeypatch.setattr(memory, 'limit', lambda mesh: 2.0**20)
  with pytest.raises(ValueError, match=r'needs about .* config'):
    modes.run_memory(config, None, None)
  assert 'it has' in capsys.readouterr().out
