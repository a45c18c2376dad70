"""The endpoint: by the official client, and by clients that mean no good."""

import concurrent.futures
import json
import pathlib
import socket
import time

import numpy as np
import pytest

starlette = pytest.importorskip('starlette', reason="needs 'sdar-jax[serve]'")
pytest.importorskip('uvicorn', reason="needs 'sdar-jax[serve]'")
httpx = pytest.importorskip('httpx', reason='needs httpx')
from serve_cases import Scripted  # noqa: E402
from starlette import responses  # noqa: E402

from experiments.tiny import tokenizer  # noqa: E402
from sdar_jax import files  # noqa: E402
from sdar_jax.logs import trajectories  # noqa: E402
from sdar_jax.prompts.chat import Chat  # noqa: E402
from sdar_jax.rollout.request import SamplingParams  # noqa: E402
from sdar_jax.serve import app, command, protocol, server, sessions  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOL = {
  'type': 'function',
  'function': {
    'name': 'add',
    'description': 'Adds.',
    'parameters': {'type': 'object', 'properties': {'a': {'type': 'number'}}},
  },
}
TEMPLATE = (
  '{% if tools %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}'
  "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content }}"
  '{%- for c in m.tool_calls %}{{ c.function.name }}({{ c.function.arguments | tojson'
  " }}){% endfor %}{{ '<|im_end|>\\n' }}{%- endfor %}"
  "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LIMITS = protocol.Bounds(body_bytes=20_000, queue=6, choices=4, seconds=20)


@pytest.fixture(scope='module')
def chat(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  texts = ['a small tokenizer', 'it is 3', '<tool_call> add']
  tokenizer.save(tokenizer.train(texts), folder)
  record = json.loads((folder / 'tokenizer_config.json').read_text())
  record['chat_template'] = TEMPLATE
  (folder / 'tokenizer_config.json').write_text(json.dumps(record))
  return Chat(folder)


class Place:
  """A server, its sampler, and clients of it."""

  def __init__(self, chat, script, **options):
    self.sampler = Scripted(chat, script)
    self.chat = chat
    defaults = SamplingParams(max_tokens=200, stop_ids=chat.stop_ids)
    options = {'limits': LIMITS, 'longest': 900, **options}
    self.server = server.Endpoint(self.sampler, chat, defaults, **options)

  def __enter__(self):
    self.server.__enter__()
    self.http = httpx.Client(base_url=self.server.url, timeout=30)
    return self

  def __exit__(self, *exc_info):
    self.http.close()
    self.server.__exit__(*exc_info)

  def openai(self, key='none'):
    openai = pytest.importorskip('openai', reason='needs openai')
    return openai.OpenAI(base_url=self.server.url, api_key=key, max_retries=0)

  def say(self, text='hi', **more):
    return self.http.post('/chat/completions', json={'messages': [_user(text)], **more})


def _user(text):
  return {'role': 'user', 'content': text}


def _script(prompt, request):
  if 'slowly' in prompt:
    return 'it is ' * 60
  if 'call' in prompt:
    call = {'name': 'add', 'arguments': {'a': 1}}
    said = f'so: <tool_call>\n{json.dumps(call)}\n</tool_call>'
    return f'\n\n{said} and so on' if 'go on' in prompt else said
  return f'it is {request.identity[-1]} é 台 <b> stop here'


@pytest.fixture(scope='module')
def place(chat):
  with Place(chat, _script) as made:
    yield made


def test_the_official_client_is_answered(place):
  client = place.openai()
  assert [model.id for model in client.models.list()] == ['policy']
  assert client.models.retrieve('policy').owned_by == 'sdar-jax'
  done = client.chat.completions.create(
    model='policy',
    messages=[_user('hi')],
    n=2,
    seed=7,
    logprobs=True,
    extra_body={'return_token_ids': True},
  )
  texts = [choice.message.content for choice in done.choices]
  assert texts == [f'it is {i} é 台 <b> stop here' for i in (0, 1)]
  ids = done.choices[1].token_ids
  assert place.chat.decode(ids) == texts[1] and ids[-1] == place.chat.stop_ids[0]
  wanted = place.chat.render_messages([_user('hi')]).tolist()
  assert done.prompt_token_ids == wanted
  logprobs = [entry.logprob for entry in done.choices[1].logprobs.content]
  assert logprobs == pytest.approx([i / -1000 for i in ids], abs=1e-5)
  assert done.usage.prompt_tokens == len(wanted)
  assert done.usage.completion_tokens == 2 * len(ids)
  assert place.sampler.requests[-1].identity == (7, 1)
  text = client.completions.create(model='policy', prompt='hi', logprobs=0, stop='stop')
  assert text.choices[0].text.endswith('<b> ')
  assert len(text.choices[0].logprobs.token_logprobs) > 3
  raw = client.completions.create(model='policy', prompt=wanted, max_tokens=4)
  assert raw.choices[0].finish_reason == 'length' and raw.usage.completion_tokens == 4


@pytest.mark.parametrize('stop', [None, ['stop', 'xx']])
def test_a_stream_is_the_same_answer(place, stop):
  client = place.openai()
  body = dict(model='policy', messages=[_user('hi')], n=2, seed=7, stop=stop)
  whole = client.chat.completions.create(**body)
  pieces = list(
    client.chat.completions.create(
      **body,
      stream=True,
      logprobs=True,
      stream_options={'include_usage': True},
      extra_body={'return_token_ids': True},
    )
  )
  assert pieces[-1].usage == whole.usage and len(pieces) > 8
  for index, choice in enumerate(whole.choices):
    mine = [p.choices[0] for p in pieces[:-1] if p.choices[0].index == index]
    said = [p.delta.content or '' for p in mine]
    assert ''.join(said) == choice.message.content and len(said) > 3
    assert '\ufffd' not in ''.join(said)
    assert mine[-1].finish_reason == choice.finish_reason == 'stop'
    ids = [i for p in mine for i in getattr(p, 'token_ids', None) or ()]
    entries = [e for p in mine if p.logprobs for e in p.logprobs.content]
    assert len(ids) == len(entries) and place.chat.decode(ids).startswith('it is')
    assert whole.usage.completion_tokens == 2 * len(ids)
  texts = client.completions.create(
    model='policy', prompt='hi', stream=True, extra_body={'return_token_ids': True}
  )
  pieces = list(texts)
  assert ''.join(piece.choices[0].text for piece in pieces).endswith('stop here')
  wanted = place.chat.encode_text('hi').tolist()
  assert [
    p.prompt_token_ids for p in pieces if 'prompt_token_ids' in p.model_extra
  ] == [wanted]


def test_the_bytes_of_tokens_make_the_text(place):
  reply = place.say(seed=1, logprobs=True).json()['choices'][0]
  entries = reply['logprobs']['content'][:-1]  # The last one is the stop token.
  assert any('\ufffd' in entry['token'] for entry in entries)
  together = bytes(byte for entry in entries for byte in entry['bytes'])
  assert together.decode() == reply['message']['content']


def test_a_stream_of_wrong_ids_says_what_a_whole_reply_does(place):
  body = {'prompt': [5], 'max_tokens': 3, 'stream': True}
  place.sampler.submit, submit = _refuse, place.sampler.submit
  try:
    told = place.http.post('/completions', json=body).text
    whole = place.http.post('/completions', json={**body, 'stream': False}).json()
  finally:
    place.sampler.submit = submit
  assert json.loads(told.partition('data: ')[2]) == whole
  assert whole['error']['type'] == 'invalid_request_error'


def _refuse(requests):
  raise ValueError('prompt ids from 5 to 5')


def test_calls_of_tools(place):
  client = place.openai()
  body = dict(model='policy', messages=[_user('call')], tools=[TOOL])
  done = client.chat.completions.create(**body).choices[0]
  assert (done.finish_reason, done.message.content) == ('tool_calls', 'so:')
  (call,) = done.message.tool_calls
  assert (call.function.name, call.function.arguments) == ('add', '{"a": 1}')
  pieces = [p.choices[0] for p in client.chat.completions.create(**body, stream=True)]
  assert ''.join(p.delta.content or '' for p in pieces) == 'so:'
  streamed = [c for p in pieces for c in p.delta.tool_calls or ()]
  assert [c.function.arguments for c in streamed] == ['{"a": 1}']
  assert pieces[-1].finish_reason == 'tool_calls'
  more = {**body, 'messages': [_user('call and go on')]}
  whole = client.chat.completions.create(**more).choices[0].message.content
  pieces = [p.choices[0] for p in client.chat.completions.create(**more, stream=True)]
  assert ''.join(p.delta.content or '' for p in pieces).strip() == whole
  assert whole.endswith('and so on')
  # A tool that was not offered is what was said, and so is any without tools.
  other = {**TOOL, 'function': {**TOOL['function'], 'name': 'sub'}}
  for more in ({'tools': [other]}, {'tools': [TOOL], 'tool_choice': 'none'}):
    reply = client.chat.completions.create(**{**body, **more}).choices[0]
    assert reply.message.tool_calls is None and '<tool_call>' in reply.message.content
  again = [_user('call'), done.message.model_dump(exclude_none=True)]
  again.append({'role': 'tool', 'tool_call_id': call.id, 'content': '3'})
  said = client.chat.completions.create(model='policy', messages=again, tools=[TOOL])
  assert said.choices[0].finish_reason == 'tool_calls'


def test_a_session_is_a_trajectory(chat):
  with Place(chat, _script, talks=True, seed=(3, 4)) as place:
    client = place.openai()
    body = dict(model='policy', extra_body={'session': 'a/b', 'return_token_ids': True})
    first = client.chat.completions.create(messages=[_user('hi')], **body)
    said = {'role': 'assistant', 'content': first.choices[0].message.content}
    more = [_user('hi'), said, _user('and <|im_end|>?')]
    second = client.chat.completions.create(messages=more, **body)
    rewritten = [_user('hi'), {**said, 'content': 'no'}, _user('go')]
    third = client.chat.completions.create(messages=rewritten, **body)
    record = place.http.post('/sessions/a/b/reward', json={'reward': 2, 'score': 0.5})
    assert record.json() == {'session': 'a/b', 'turns': 3, 'reward': 2}
    played = place.server.sessions.trajectory('a/b', task_id='t')
    assert played.success and played.episode_return == 2 and played.score == 0.5
    assert [turn.goes_on for turn in played.turns] == [False, True, False]
    for turn, reply in zip(played.turns, (first, second, third), strict=True):
      assert turn.prompt_ids.tolist() == reply.prompt_token_ids
      assert turn.response_ids.tolist() == reply.choices[0].token_ids
      np.testing.assert_allclose(turn.sampler_logprobs, turn.response_ids / -1000)
    before = [*played.turns[0].prompt_ids, *played.turns[0].response_ids]
    assert played.turns[1].prompt_ids[: len(before)].tolist() == before
    keys = [request.identity for request in place.sampler.requests]
    assert [key[:2] + key[3:] for key in keys] == [(3, 4, i) for i in range(3)]
    assert len({key[2] for key in keys}) == 1
    read = place.http.get('/sessions/a/b').json()
    again = trajectories.from_json(read)
    assert again.turns[1].response == played.turns[1].response
    assert place.say(session='a/b').status_code == 400  # It has ended.
    assert place.http.delete('/sessions/a/b').json()['deleted']
    assert place.http.get('/sessions/a/b').status_code == 400
    assert place.http.post('/sessions/x/reward', json={'reward': 1}).status_code == 400


def test_sessions_draw_what_their_names_say(chat):
  """Not what came before them, nor who else asks."""
  keys = []
  for names in (('x', 'y'), ('z', 'y', 'x')):
    with Place(chat, _script) as place:
      for name in names:
        assert place.say(session=name).status_code == 200
      keys.append(dict(zip(names, [r.identity for r in place.sampler.requests])))
  assert keys[0]['x'] == keys[1]['x'] != keys[0]['y'] == keys[1]['y']


@pytest.mark.parametrize(
  'body, status, says',
  [
    ({}, 400, 'messages'),
    ({'messages': []}, 400, 'at least one'),
    ({'messages': [{'role': 'x', 'content': ''}]}, 400, "messages[0].role='x'"),
    ({'messages': [_user(3)]}, 400, 'messages[0].content'),
    ({'temperature': -1}, 400, 'temperature'),
    ({'temperature': True}, 400, 'temperature'),
    ({'temperature': 1e-9}, 400, 'temperature'),
    ({'top_p': 0}, 400, 'top_p'),
    ({'n': 5}, 400, 'n: must be'),
    ({'n': 2, 'session': 'x'}, 400, 'n: 1 in a session'),
    ({'max_tokens': 201}, 400, 'max_tokens: must be a whole number from 1 to 200'),
    ({'max_completion_tokens': 0}, 400, 'max_completion_tokens'),
    ({'seed': 2**70}, 400, 'seed'),
    ({'stop': ['']}, 400, 'stop'),
    ({'stop': 'x' * 300}, 400, 'stop'),
    ({'top_logprobs': 3, 'logprobs': True}, 400, 'top_logprobs'),
    ({'tools': [{}]}, 400, 'tools[0].function'),
    ({'tool_choice': 'required'}, 400, 'tool_choice'),
    ({'frequency_penalty': 1}, 400, 'frequency_penalty'),
    ({'response_format': {'type': 'json_object'}}, 400, 'response_format'),
    ({'messages': [_user('a ' * 2000)]}, 400, 'tokens: this server takes 900'),
    ({'nonsense': 1}, 400, "'nonsense': no such parameter"),
    ({'model': 'gpt'}, 404, "model 'gpt'"),
    ({'messages': [_user('x' * 30_000)]}, 413, 'more than 20000 bytes'),
  ],
)
def test_a_wrong_request_is_told_what_is_wrong(place, body, status, says):
  reply = place.http.post('/chat/completions', json={'messages': [_user('')], **body})
  if body == {}:
    reply = place.http.post('/chat/completions', json={})
  assert reply.status_code == status, reply.text
  error = reply.json()['error']
  assert says in error['message'] and '\n' not in error['message']
  assert error['type'] == 'invalid_request_error'


@pytest.mark.parametrize(
  'data, headers, status',
  [
    (b'\xff\xfe{', {}, 400),
    (b'{"messages": NaN}', {}, 400),
    (b'[' * 15_000, {}, 400),
    (b'{"a": ' * 3000, {}, 400),
    (b'', {}, 400),
    (b'[]', {}, 400),
    (b'{"n": 1e999}', {}, 400),
    (b'{"n": ' + b'9' * 9999 + b'}', {}, 400),
    (b'{}', {'content-type': 'text/plain'}, 415),
    (b'{}', {'host': 'evil.example'}, 403),
    (b'{}', {'host': '127.0.0.1.evil.example:80'}, 403),
    (b'\0' * 30_000, {}, 413),
  ],
)
def test_garbage_is_refused(place, data, headers, status):
  headers = {'content-type': 'application/json', **headers}
  for path in ('/chat/completions', '/completions', '/sessions/x/reward'):
    reply = place.http.post(path, content=data, headers=headers)
    assert reply.status_code == status, reply.text
    assert reply.json()['error']['message']
  assert place.say().status_code == 200


def test_json_that_is_deep_but_whole_is_a_wrong_request(place):
  deep = '{"x": ' * 700 + '1' + '}' * 700
  tool = f'{{"type": "function", "function": {{"name": "f", "parameters": {deep}}}}}'
  said = '[{"role": "user", "content": "hi"}]'
  reply = place.http.post(
    '/chat/completions',
    content=f'{{"messages": {said}, "tools": [{tool}]}}',
    headers={'content-type': 'application/json'},
  )
  assert reply.status_code in (200, 400), reply.text
  assert place.say().status_code == 200


@pytest.mark.parametrize(
  'body', [{'reward': 1e300}, {'reward': True}, {'reward': 1, 'score': 2}, {'a': 1}, {}]
)
def test_a_reward_is_a_number(place, body):
  assert place.http.post('/sessions/x/reward', json=body).status_code == 400
  data = b'{"reward": 1e999}'
  headers = {'content-type': 'application/json'}
  reply = place.http.post('/sessions/x/reward', content=data, headers=headers)
  assert reply.status_code == 400 and 'reward' in reply.json()['error']['message']


def test_no_such_path_is_json(place):
  assert place.http.get('/nothing').json()['error']['message'] == 'no such path'
  assert place.http.put('/models').status_code == 405
  assert place.http.get('/models/gpt').status_code == 404


def test_clients_that_hang_or_send_no_http(place):
  address = place.server._socket.getsockname()
  hanging = []
  for data in (b'', b'POST /v1/chat', b'\0\xff' * 999, b'GET / HTTP/1.1\r\nA: ' * 99):
    made = socket.create_connection(address)
    made.sendall(data)
    hanging.append(made)
  head = b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n'
  head += b'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{"mess'
  hanging.append(socket.create_connection(address))
  hanging[-1].sendall(head)
  assert place.say().status_code == 200
  for made in hanging:
    made.close()
  assert place.say().status_code == 200


def _until(happened):
  for _ in range(200):
    if happened():
      return True
    time.sleep(0.05)
  return False


def test_a_flood_is_told_to_come_again_and_who_leaves_frees_a_slot(chat):
  with Place(chat, _script) as place:
    place.sampler.pace = 0  # Nothing ends.
    with httpx.Client(base_url=place.server.url, timeout=1) as client:
      body = {'messages': [_user('slowly')]}
      with pytest.raises(httpx.ReadTimeout):
        client.post('/chat/completions', json={**body, 'n': 4})
      assert _until(lambda: len(place.sampler.cancelled) == 4)
      with client.stream('POST', '/chat/completions', json={**body, 'stream': True}):
        assert _until(lambda: len(place.sampler.live) == 1)
      assert _until(lambda: len(place.sampler.cancelled) == 5)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      asked = [pool.submit(place.say, 'slowly', session=str(i)) for i in range(6)]
      assert _until(lambda: len(place.sampler.live) == 6)
      reply = place.say()
      assert reply.status_code == 429 and reply.headers['retry-after'] == '1'
      assert reply.json()['error']['type'] == 'rate_limit_error'
      assert place.say(session='0').status_code == 400  # It waits for an answer.
      place.sampler.pace = 50
      assert [future.result().status_code for future in asked] == [200] * 6
    assert place.say().status_code == 200


def test_what_breaks_in_the_sampler_is_told_and_the_next_is_answered(chat):
  def script(prompt, request):
    if 'boom' in prompt:
      raise FloatingPointError('a log-probability is not finite')
    return 'fine'

  with Place(chat, script) as place:
    for stream in (False, True):
      reply = place.say('boom', stream=stream, session='s')
      assert reply.status_code == (200 if stream else 503)
      assert 'not finite' in reply.text
    assert place.say(session='s').status_code == 200
    assert place.sampler.clears == 2


def test_who_reads_of_an_error_may_ask_again_at_once(chat, monkeypatch):
  drops, drop = [], sessions.Sessions.drop

  def slowly(self, scope, receive, send):  # It has not ended when the client goes on.
    return responses.StreamingResponse.__call__(self, scope, receive, send)

  def count(self, name):
    drops.append(name)
    drop(self, name)

  def script(prompt, request):
    if 'boom' in prompt:
      raise FloatingPointError('a log-probability is not finite')
    return 'fine'

  monkeypatch.setattr(sessions.Sessions, 'drop', count)
  with Place(chat, script) as place:
    place.say('boom', stream=True, session='a')
    with monkeypatch.context() as patch:
      patch.setattr(app._Streamed, '__call__', slowly)
      place.say('boom', stream=True, session='b')
      assert place.say(session='b').status_code == 200
  assert drops == ['a', 'b']  # Once each: the next turn may have begun.


def test_who_waits_when_it_ends_is_told(chat):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    with Place(chat, _script) as place:
      place.sampler.pace = 0
      http = httpx.Client(base_url=place.server.url, timeout=30)
      asked = pool.submit(
        http.post, '/chat/completions', json={'messages': [_user('slowly')]}
      )
      assert _until(lambda: place.sampler.live)
    assert asked.result().status_code == 503
    http.close()


def test_a_key_is_needed_where_others_can_reach_it(chat):
  for host in ('0.0.0.0', '::', '192.0.2.1', 'example.org'):
    with pytest.raises(ValueError, match='api-key-file'):
      server.check_key(host, '')
  with Place(chat, _script, key='s3cret') as place:
    for given in (None, 'Bearer wrong', 'Bearer', 's3cret', 'Bearer s3cret\xe9'):
      headers = {} if given is None else {'authorization': given.encode('latin-1')}
      reply = place.http.get('/models', headers=headers)
      assert reply.status_code == 401
      assert reply.json()['error']['code'] == 'invalid_api_key'
    assert place.openai('s3cret').models.list().data


@pytest.mark.parametrize(
  'words, says',
  [
    ([], 'name what is served'),
    (['--model=x', '--config=y.py'], 'name what is served'),
    (['--model=x', '--queue=0'], 'must be positive'),
    (['--model=x', '--timeout=nan'], 'must be positive'),
    (['--model=x', '--port=65536'], '--port=65536: must be in'),
    (['--model=x', '--host=0.0.0.0'], 'give --api-key-file'),
    (['--model=x', '--api-key-file=/nowhere/key'], '/nowhere/key'),
    (['--checkpoint=/nowhere'], 'nowhere'),
    (['--model=/nowhere/x', '--port=x'], 'invalid int'),
    (['--model=/nowhere/x'], 'config.model.path'),
  ],
)
def test_a_wrong_command_line_is_one_line(words, says, capsys, monkeypatch):
  monkeypatch.delenv('SDAR_API_KEY', raising=False)
  assert command.main(words) == 2
  said = capsys.readouterr().err
  assert says in said and said.count('\n') == 1


def test_a_port_that_is_taken_is_one_line(place, chat):
  port = place.server._socket.getsockname()[1]
  with pytest.raises(ValueError, match=f'--port={port}'):
    Place(chat, _script, port=port)
  assert files  # Nothing was started.
