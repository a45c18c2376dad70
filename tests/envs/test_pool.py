"""Environments that hang, die, raise and lie: what is delivered, counted and kept."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import fakes
import faulty
import pytest

from sdar_jax.envs import base
from sdar_jax.envs.alfworld.world import AlfworldWorld
from sdar_jax.envs.pool import pool
from sdar_jax.logs import trajectories
from sdar_jax.rollout import episodes

DEADLINE = 60.0  # Longer than what does end takes on a busy machine.
SHORT = 5.0  # Where something does hang, which takes as long as this.
KINDS = {'crash': 4, 'hang': 1, 'error': 3, 'garbage': 2, 'wire': 1}


def make(world, workers, retries=2, deadline=DEADLINE):
  return pool.make(world, workers=workers, deadline=deadline, retries=retries)


def play(environments, tasks, shuffle=0, group_size=2):
  """Trajectories as JSON; what is sampled is a function of the request's identity."""

  def script(identity):
    return ('left', 'right', 'wait')[int(3 * faulty.number(identity))]

  sampler = fakes.ScriptedSampler(script, shuffle)
  groups = episodes.collect(
    environments,
    tasks,
    sampler,
    fakes.agent(100_000),
    group_size=group_size,
    identity=(0, 1),
  )
  return [json.dumps(trajectories.to_json(t)) for g in groups for t in g.trajectories]


@pytest.fixture(scope='module')
def sound():
  with make(faulty.World(), workers=0) as environments:
    return play(environments, faulty.tasks(12))


@pytest.mark.parametrize('workers, shuffle', [(0, 3), (1, 4), (4, 5), (8, 6)])
def test_what_is_played_depends_neither_on_workers_nor_on_order(
  sound, workers, shuffle
):
  with make(faulty.World(), workers) as environments:
    assert play(environments, faulty.tasks(12), shuffle) == sound
    assert environments.faults() == {}


@pytest.mark.parametrize(
  'workers, rate',
  [
    (2, 0.01),
    pytest.param(2, 0.05, marks=pytest.mark.slow),  # Between the other two.
    (2, 0.2),
    (0, 0.2),
  ],
)
def test_every_episode_is_delivered_whatever_befalls_it(sound, tmp_path, workers, rate):
  """Run the slow rate with `pytest -m slow tests/envs/test_pool.py`."""
  kinds = KINDS if workers else {'error': 1, 'garbage': 1}
  faults = faulty.Faults(tmp_path, rate, kinds)
  with make(faulty.World(faults), workers, deadline=SHORT) as environments:
    played = play(environments, faulty.tasks(12), shuffle=1)
    counts = environments.faults()
  assert played == sound
  assert counts == faults.injected()
  assert set(counts) > {'hang'} if workers else counts
  if rate == 0.2:
    assert set(counts) == set(kinds) - {'wire'}


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('wrong', range(len(faulty.GARBAGE)))
def test_garbage_is_never_delivered(workers, wrong):
  if workers and wrong % 4:
    pytest.skip('a process for each kind of garbage would take long')
  special = {'bad': (faulty.GARBAGE[wrong],), 'good': 'fine'}
  with make(faulty.World(special=special), workers, retries=1) as environments:
    environments.reset({name: faulty.task(name) for name in special})
    answers = environments.step({'bad': 'left', 'good': 'left'})
    assert environments.faults() == {'garbage': 2}
  assert answers['bad'].kind == 'garbage' and 'task bad' in str(answers['bad'])
  assert answers['good'].observation.text == '["good", "left"]'


def test_garbage_and_death_replace_the_worker_an_exception_does_not():
  special = {'garbage': (None,), 'dead': 'crash', 'error': 'own deadline', 'ok': 'ok'}
  with make(faulty.World(special=special), workers=1, retries=0) as environments:
    environments.reset({name: faulty.task(name) for name in special})
    pids = [environments._workers[0]._process.pid]
    for name in ('error', 'garbage', 'dead'):
      environments.step({name: 'left'})
      answer = environments.step({'ok': name})['ok']
      pids.append(environments._workers[0]._process.pid)
  assert answer.observation.text == '["ok", "error", "garbage", "dead"]'
  assert pids[0] == pids[1] and len(set(pids)) == 3


@pytest.mark.parametrize('workers', [0, 1])
def test_a_replay_that_answers_otherwise_is_a_fault(workers):
  world = faulty.World(special={'c': 'clock'})
  with make(world, workers, retries=0) as environments:
    environments.reset({'c': faulty.task('c')})
    environments.step({'c': 'left'})
    environments._live['c'].home = None  # As if its worker were gone.
    assert environments.step({'c': 'left'})['c'].kind == 'diverged'


def test_a_worker_that_dies_at_rest_is_replaced():
  special = {'a': 'fine', 'b': 'fine'}
  with make(faulty.World(special=special), workers=2) as environments:
    environments.reset({name: faulty.task(name) for name in special})
    first = environments.step({'a': 'left', 'b': 'right'})
    os.kill(environments._workers[0]._process.pid, signal.SIGKILL)
    second = environments.step({'a': 'left', 'b': 'right'})
    assert first['a'].observation.text == '["a", "left"]'
    assert second['a'].observation.text == '["a", "left", "left"]'
    assert second['b'].observation.text == '["b", "right", "right"]'
    assert environments.faults() == {'crash': 1} and environments.faults() == {}


@pytest.mark.parametrize('workers', [0, 1])
def test_the_worlds_own_faults_are_its_last_word(workers):
  special = {'no': 'refuse', 'slow': 'late'}
  with make(faulty.World(special=special), workers) as environments:
    environments.reset({name: faulty.task(name) for name in special})
    answers = environments.step({'no': 'left', 'slow': 'left'})
    assert environments.faults() == {'refused': 1, 'slow': 1}
    assert environments.quarantine == []
  assert type(answers['no']) is base.EnvironmentFault
  assert type(answers['slow']) is base.EnvironmentTimeout
  assert answers['no'].message == 'the server said no'


@pytest.mark.parametrize('what', ['hang', 'hang at reset'])
def test_a_task_that_hangs_twice_is_quarantined_for_good(what):
  tasks = [faulty.task('stuck'), faulty.task('fine')]
  world = faulty.World(special={'stuck': what})
  with make(world, workers=2, deadline=SHORT / 2) as environments:
    played = [json.loads(line) for line in play(environments, tasks)]
    assert environments.faults() == {'hang': 2, 'quarantined': 2}
    assert [t['outcome'] for t in played[:2]] == ['timeout', 'timeout']
    assert len(played[0]['turns']) == (what == 'hang')
    assert not {t['outcome'] for t in played[2:]} & {'timeout', 'env_error'}
    host = json.dumps({'quarantine': environments.quarantine})
  for workers in (0, 2):
    with make(world, workers) as environments:
      environments.quarantine = json.loads(host)['quarantine']
      assert environments.quarantine == ['stuck']
      again = [json.loads(line) for line in play(environments, tasks)]
      assert environments.faults() == {'quarantined': 2}
    assert [t['outcome'] for t in again[:2]] == ['timeout', 'timeout']
    assert again[2:] == played[2:]


def test_an_environment_that_keeps_its_own_deadline_is_quarantined_likewise():
  with make(faulty.World(special={'slow': 'own deadline'}), workers=0) as environments:
    environments.reset({0: faulty.task('slow')})
    answer = environments.step({0: 'left'})[0]
    assert type(answer) is base.EnvironmentTimeout and answer.kind == 'quarantined'
    assert environments.faults() == {'hang': 2, 'quarantined': 1}


def test_two_hangs_at_two_places_are_no_quarantine(tmp_path):
  faults = faulty.Faults(tmp_path, 1.0, {'hang': 1}, deepest=1)
  with make(faulty.World(faults), workers=1, deadline=SHORT / 2) as environments:
    environments.reset({0: faulty.task('t')})
    assert isinstance(environments.step({0: 'left'})[0], base.StepResult)
    assert environments.faults() == {'hang': 2} and environments.quarantine == []


@pytest.mark.parametrize('workers', [1, 2])
def test_one_bad_task_is_given_up_and_the_others_are_played(workers):
  special = {'bad': 'crash'}
  with make(faulty.World(special=special), workers) as environments:
    environments.reset({name: faulty.task(name) for name in ('bad', 'good')})
    answers = environments.step({'bad': 'left', 'good': 'left'})
    assert environments.faults() == {'crash': 3}
    assert answers['bad'].kind == 'crash' and 'status -9' in str(answers['bad'])
    assert answers['good'].observation.text == '["good", "left"]'
    with pytest.raises(KeyError):
      environments.step({'bad': 'left'})


def test_some_bad_tasks_in_a_row_do_not_end_the_run():
  special = {f'bad {i}': 'crash' for i in range(4)} | {'good': 'fine'}
  with make(faulty.World(special=special), workers=1) as environments:
    environments.reset({name: faulty.task(name) for name in special})
    answers = environments.step(dict.fromkeys(special, 'left'))
    assert environments.faults() == {'crash': 12}
  assert isinstance(answers['good'], base.StepResult)


def test_a_large_group_of_a_bad_task_does_not_end_the_run():
  with make(faulty.World(special={'bad': 'crash at reset'}), 1, 0) as environments:
    starts = {i: faulty.task('bad') for i in range(11)} | {'good': faulty.task('good')}
    answers = environments.reset(starts)
    assert environments.faults() == {'crash': 11}
  assert isinstance(answers['good'], base.Observation)


@pytest.mark.timeout(300)
def test_what_a_dead_worker_started_does_not_hide_its_death():
  world = faulty.World(special={'a': 'child'})
  with make(world, workers=1, retries=0, deadline=600) as environments:
    environments.reset({0: faulty.task('a')})
    assert 'status 3' in str(environments.step({0: 'left'})[0])


@pytest.mark.timeout(300)
@pytest.mark.parametrize('workers', [1, 2])
def test_nothing_works_is_one_clear_error(workers):
  names = [f'task {i}' for i in range(40)]
  special = {name: 'crash at reset' for name in names}
  with make(faulty.World(special=special), workers) as environments:
    with pytest.raises(pool.PoolError, match='failed one after another') as caught:
      environments.reset({name: faulty.task(name) for name in names})
    assert str(caught.value).startswith('10 environment workers')
    assert '\n' not in str(caught.value) and 'config.pool.workers' in str(caught.value)


class Unloadable(faulty.World):
  def __setstate__(self, state):
    raise OSError('no data here')


@pytest.mark.timeout(300)
def test_a_world_that_does_not_load_in_a_worker_is_one_clear_error(capfd):
  with make(Unloadable(), workers=1) as environments:
    with pytest.raises(pool.PoolError, match='crash, its process ended with status 1'):
      environments.reset({0: faulty.task('a')})
  assert 'no data here' in capfd.readouterr().err


@pytest.mark.timeout(300)
def test_a_prefetch_that_kills_workers_is_one_clear_error():
  with make(faulty.World(special={'a': 'fine'}), workers=1) as environments:
    environments.reset({0: faulty.task('a')})
    with pytest.raises(pool.PoolError):
      environments.step({0: 'die'})


def test_a_world_that_workers_cannot_have_is_refused():
  with pytest.raises(
    ValueError, match=r'World does not pickle .*config\.pool\.workers'
  ):
    make(faulty.World(special={'a': lambda: 0}), workers=1)
  local = type('Local', (faulty.World,), {'__module__': '__main__'})
  with pytest.raises(ValueError, match='put it in a module'):
    make(local(), workers=1)


@pytest.mark.parametrize('workers', [0, 1])
def test_worlds_are_told_all_that_is_about_to_be_played(workers):
  special = {'a': 'prefetch', 'b': 'prefetch', 'prefetch': True}
  with make(faulty.World(special=special), workers) as environments:
    environments.reset({name: faulty.task(name) for name in 'ab'})
    answers = environments.step({'a': 'left', 'b': 'right'})
  assert [json.loads(r.observation.text) for r in answers.values()] == [
    ['left', 'right']
  ] * 2


def test_workers_know_no_jax_and_use_one_thread():
  with make(faulty.World(special={'p': 'process'}), workers=1) as environments:
    environments.reset({0: faulty.task('p')})
    text = environments.step({0: 'left'})[0].observation.text
  pid, modules, environ = json.loads(text)
  assert pid != os.getpid() and os.getsid(0) != pid
  assert 'sdar_jax.envs.pool.worker' in modules
  assert not set(modules) & {'jax', 'jaxlib', 'flax', 'pytest', 'transformers'}
  assert environ['OMP_NUM_THREADS'] == environ['OPENBLAS_NUM_THREADS'] == '1'


def test_a_real_world_in_workers():
  world = AlfworldWorld(size='small', max_turns=4, parser='strict')
  tasks = [world.tasks('valid_unseen')[i] for i in range(4)]
  with make(world, workers=0) as here, make(world, workers=2) as there:
    assert play(here, tasks) == play(there, tasks, shuffle=1)


def _held():
  """Descriptors, threads and children of this process."""
  tasks = pathlib.Path('/proc/self/task')
  children = [(task / 'children').read_text().split() for task in tasks.iterdir()]
  threads = threading.active_count()
  return len(os.listdir('/proc/self/fd')), threads, sum(map(len, children))


def test_a_closed_pool_leaves_nothing_behind(tmp_path):
  before = _held()
  faults = faulty.Faults(tmp_path, 0.05, {'crash': 1, 'garbage': 1})
  for round_ in range(3):
    with make(faulty.World(faults), workers=2) as environments:
      play(environments, faulty.tasks(50), shuffle=round_)
      assert _held()[2] == before[2] + 2
      assert not environments._live
      pids = [each._process.pid for each in environments._workers]
    # Fewer are possible: threads of an earlier test may have been about to end.
    held = _held()
    assert all(now <= then for now, then in zip(held, before)), (held, before)
    before = held
    assert not any(pathlib.Path(f'/proc/{pid}').exists() for pid in pids)
  assert faults.injected()['crash'] > 3


def test_an_environment_that_hangs_in_this_process_is_named_once(caplog):
  class Slow(fakes.CountingEnv):
    def step(self, action):
      while 'no answer' not in caplog.text:  # Ends when it has been named.
        time.sleep(0.01)
      return super().step(action)

  world = fakes.World()
  world.make_env = Slow
  with pool.InProcessPool(world, retries=0, deadline=0.05) as environments:
    environments.reset({0: fakes.tasks()[0]})
    result = environments.step({0: 'look\n'})
  assert isinstance(result[0], base.StepResult)  # It is waited for.
  (record,) = caplog.records
  assert "task task 1, action 'look\\n': no answer" in record.getMessage()
  assert 'config.pool.workers' in record.getMessage()


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path('/proc/self/statm').exists(), reason='no /proc')
def test_five_thousand_episodes_leave_nothing():
  """Run with `pytest -m slow tests/envs/test_pool.py -k thousand`: under a minute."""
  pages = lambda: int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  with make(faulty.World(), workers=2) as environments:
    play(environments, faulty.tasks(500))  # Warm-up: 1,000 episodes.
    before, size = _held(), pages()
    for round_ in range(4):
      play(environments, faulty.tasks(500), shuffle=round_)
    grown = (pages() - size) * os.sysconf('SC_PAGE_SIZE') / 2**20
    assert grown / 4 < 1.0  # MiB per 1,000 episodes.
    assert all(abs(a - b) <= 2 for a, b in zip(_held(), before))


def test_released_environments_are_dropped_everywhere():
  with make(faulty.World(), workers=0) as environments:
    play(environments, faulty.tasks(5))
    assert not environments._stage._envs
  with make(faulty.World(), workers=1) as environments:
    for i in range(3):
      environments.reset({i: faulty.task('a')})
      environments.release([i])
    assert len(environments._forgotten[0]) == 1  # The worker was told of the others.


def _parent(how):
  here = pathlib.Path(__file__).parent
  return subprocess.Popen(
    [sys.executable, here / 'pool_parent.py', how],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(p or '.' for p in sys.path)},
  )


@pytest.mark.timeout(300)
def test_workers_die_with_their_parent_even_those_that_hang():
  parent = _parent('hang')
  pids = json.loads(parent.stdout.readline())
  assert len(pids) == 3
  time.sleep(0.2)  # The third is now in its step.
  parent.kill()
  parent.communicate()
  while any(_runs(pid) for pid in pids):
    time.sleep(0.05)


def _runs(pid):
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().split(')')[1].split()[0] != 'Z'
  except FileNotFoundError:
    return False


def test_an_interrupt_from_the_terminal_is_the_parents_to_handle():
  parent = _parent('wait')
  parent.stdout.readline()
  os.killpg(parent.pid, signal.SIGINT)
  out, err = parent.communicate(timeout=300)
  assert json.loads(out) == [True, {}], err
