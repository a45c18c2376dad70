"""Run directories to look at, written as a run writes them."""

import json
import pathlib

import numpy as np

from sdar_jax.logs import trajectories, writers
from sdar_jax.trajectory import Group, Outcome, Trajectory, Turn

# Tags, attributes, what ends a script or a comment, bidirectional and half characters,
# commands to a terminal, separators that JavaScript once took for line ends.
HOSTILE = (
  '</script></span><script>document.title="owned"</script><img src=x onerror=alert(1)>'
  '<!--&lt;"\'`{{data}}${1}\u2028\u2029\u202e\ud800\x1b[31;1mred\x1b]0;title\x07\x00 é'
)
TEXTS = ('<think>', ' go', '', '€', '\n', '</think>', '<|im_end|>')


def turn(text='a room', response='go', reward=0.0):
  """A turn of as many tokens as TEXTS."""
  return Turn(
    prompt_text=text,
    prompt_ids=np.arange(3, dtype=np.int32),
    response_ids=np.arange(10, 10 + len(TEXTS), dtype=np.int32),
    sampler_logprobs=np.linspace(-1, -0.1, len(TEXTS), dtype=np.float32),
    observation=text,
    response=response,
    action=response,
    valid=True,
    admissible=True,
    reward=reward,
    stop_reason='stop',
  )


class Task:
  """Of a group, as far as records read it."""

  goal = 'put a clean cloth in shelf'


def groups(count=2, members=2, turns=2, text='a room', task='generated/train/'):
  """Groups of which every second member solves the task."""
  made = []
  for g in range(count):
    played = [
      Trajectory(
        f'{task}{g}',
        f'type_{g % 2}',
        g,
        m,
        [turn(text, text, 10.0 * (m % 2) * (i == turns - 1)) for i in range(turns)],
        Outcome.SUCCESS if m % 2 else Outcome.MAX_TURNS,
      )
      for m in range(members)
    ]
    made.append(Group(g, Task(), played))
  return made


def tokens(identity, turn_id, text='a room', texts=TEXTS, **changes):
  """What is recorded of a turn's tokens; each value is another one."""
  rng = np.random.default_rng([identity, turn_id])
  draw = lambda low, high: (
    rng.uniform(low, high, len(texts)).astype(np.float32).tolist()
  )
  return {
    'trajectory_id': identity,
    'turn_id': turn_id,
    'token_texts': list(texts),
    'student_prompt': f'<|im_start|>user\n{text}<|im_end|>',
    'teacher_prompt': f'<|im_start|>user\nplan: {text} first\n\n{text}<|im_end|>',
    'teacher_skills': ['plan_clean'],
    'teacher_skill_tokens': 4,
    'teaching': 1.0,
    'gate': draw(0, 1),
    'gap': draw(-4, 4),
    'advantages': draw(-2, 2),
    'old_logprobs': draw(-5, 0),
    'teacher_logprobs': draw(-5, 0),
    'old_entropy': draw(0, 3),
    'action_mask': [i > 1 for i in range(len(texts))],
  } | changes


def write(path, steps=(1, 2), config=None, recorded=((0, 0), (0, 1), (1, 0)), **made):
  """Writes a run; `recorded` lists (trajectory, turn). Returns its directory."""
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  (path / 'config.json').write_text(json.dumps(config or {'world.name': 'alfworld'}))
  (path / 'run.json').write_text('{"schema": 1, "method": "sdar"}')
  writer = writers.MetricsWriter(path, None)
  for step in steps:
    played = groups(**made)
    said = [tokens(*name, text=made.get('text', 'a room')) for name in recorded]
    means = {
      (g.group_id * len(g.trajectories) + t.member, i): {
        'advantage': t.member - 0.5,
        'gap': 0.25 * i,
        'gate': 0.75,
      }
      for g in played
      for t in g.trajectories
      for i in range(len(t.turns))
    }
    writer.trajectories(step, writers.with_tokens(played, said, means))
  writer.close()
  return path


def lines(path, step=1):
  """The records of a step."""
  text = (path / 'trajectories' / f'{step:06d}.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def older(record):
  """The same record as the version before wrote it."""
  front = ('goal', 'length', 'recorded', 'sampled', 'means')
  out = {k: v for k, v in record.items() if k not in front} | {'schema': 3}
  for item in out['turns']:
    item.pop('means', None)
    for name in ('student_prompt', 'teacher_prompt', 'old_entropy', 'action_mask'):
      item.get('tokens', {}).pop(name, None)
  return out


assert trajectories.SCHEMA_VERSION == 4
