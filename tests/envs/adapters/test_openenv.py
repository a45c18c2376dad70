"""The OpenEnv client against a small server of the same protocol, honest and not."""

import http
import json
import random
import threading
import time

import pytest

from sdar_jax.envs import base, worlds

server_lib = pytest.importorskip('websockets.sync.server')


def answer(text, reward=None, done=False):
  data = {'observation': {'text': text, 'log': [{'said': 'x'}, {'said': text}]}}
  return {'type': 'observation', 'data': {**data, 'reward': reward, 'done': done}}


def play(socket, honest):
  """One session: a number is hidden; some actions make the server misbehave."""
  number = 0
  for raw in socket:
    message = json.loads(raw)
    if message['type'] == 'reset':
      draw = random.Random(message['data']['seed']) if honest else random.SystemRandom()
      number = draw.randint(1, 10**6)
      reply = answer('hidden')
    else:
      said = message['data']['message']
      assert message['data'].get('kind', 'guess') == 'guess'
      if said == 'hang':
        time.sleep(5)
      if said == 'hang up':
        return
      if said == 'flood':
        socket.send('x' * 2**25)
      won = said == str(number)
      reply = {
        'garbage': [1],
        'error': {'type': 'error', 'data': {'message': 'a\nb', 'code': 'FULL'}},
        'odd': {'type': 'observation', 'data': {'observation': {}}},
        'reveal': answer(str(number)),
      }.get(said, answer('yes' if won else 'no', float(won), won))
    socket.send(json.dumps(reply))


@pytest.fixture
def serve():
  servers = []

  def start(honest=True):
    def schema(connection, request):
      if request.path == '/schema':
        return connection.respond(http.HTTPStatus.OK, '{"action": {}}')
      return None

    server = server_lib.serve(
      lambda socket: play(socket, honest), '127.0.0.1', 0, process_request=schema
    )
    servers.append(server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.socket.getsockname()[1]
    return f'http://127.0.0.1:{port}'

  yield start
  for server in servers:
    server.shutdown()


def world(url, **settings):
  return worlds.make('openenv', {'url': url, 'shown': 'text', **settings})


def test_an_episode_is_the_servers(serve):
  made = world(serve(), probe=('reveal',), action_json='{"kind": "guess"}')
  task = made.tasks('train')[4]
  number = str(random.Random(task.payload['seed']).randint(1, 10**6))
  env = made.make_env()
  assert env.reset(task).text == 'hidden'
  lost, won = env.step('0'), env.step(number)
  assert lost == base.StepResult(base.Observation('no'), 0.0, False, False)
  assert won == base.StepResult(base.Observation('yes'), 1.0, True, True)


def test_a_seed_that_is_dropped_is_found_by_a_probe(serve):
  with pytest.raises(
    ValueError, match=r'two resets of task openenv//train/000000 differ'
  ):
    world(serve(honest=False), probe=('reveal',)).tasks('train')


def test_what_is_shown_is_the_users(serve):
  url = serve()
  task = world(url).task('train', 0)
  assert (
    world(url, shown='log.-1.said,nothing.0').make_env().reset(task).text == 'hidden'
  )
  assert json.loads(world(url, shown='').make_env().reset(task).text)['log'][0]
  split = world(url, start='split').task('valid_seen', 7)
  assert split.payload == {'split': 'valid_seen', 'index': 7}


@pytest.mark.parametrize(
  ('action', 'kind'),
  [
    ('garbage', 'garbage'),
    ('odd', 'garbage'),
    ('error', 'full'),
    ('hang', 'timeout'),
    ('hang up', 'connection'),
    ('flood', 'connection'),
  ],
)
def test_a_server_that_misbehaves_is_a_fault_of_a_kind(serve, action, kind):
  # What is no timeout has the time that a busy machine takes.
  made = world(serve(), timeout_seconds=1 if kind == 'timeout' else 60)
  env = made.make_env()
  env.reset(made.task('train', 0))
  with pytest.raises(base.EnvironmentFault) as error:
    env.step(action)
  assert error.value.kind == kind and '\n' not in str(error.value)
  assert isinstance(error.value, base.EnvironmentTimeout) == (kind == 'timeout')


def test_a_server_that_is_not_there_is_one_line():
  with pytest.raises(ValueError, match='start the server') as error:
    world('http://127.0.0.1:9').tasks('train')
  assert '\n' not in str(error.value)
  made = world('http://127.0.0.1:9')
  with pytest.raises(base.EnvironmentFault, match='connection'):
    made.make_env().reset(made.task('train', 0))
