"""Conversations by name, as trajectories for a learner. No JAX."""

import collections
import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdar_jax.prompts.chat import Chat
from sdar_jax.rollout.request import Completion, SamplingParams
from sdar_jax.serve import protocol
from sdar_jax.trajectory import Outcome, Trajectory, Turn


class SessionError(ValueError):
  """A wrong or missing session: one line."""


@dataclasses.dataclass
class _Session:
  """A conversation so far.

  Attributes:
    turns: as they were sampled.
    messages: of the last turn's prompt, and its answer.
    busy: a turn of it is being sampled.
    too_long: the last prompt was, and there is no turn of it.
    outcome: once its reward has come.
  """

  turns: list[Turn] = dataclasses.field(default_factory=list)
  messages: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
  busy: bool = False
  too_long: bool = False
  outcome: Outcome | None = None
  score: float | None = None


class Sessions:
  """Keeps the newest conversations by name.

  Args:
    chat: of the policy.
    seed: with a session's name and the number of its turn it makes random numbers.
    most: how many are remembered.
    talks: prompts go on as conversations, ids as they were sampled, where a client
      sends back what was said; else every prompt is written anew.
    fixed: how all tokens must be drawn, as a learner expects it; None for anyhow.
  """

  def __init__(
    self,
    chat: Chat,
    *,
    seed: tuple[int, ...],
    most: int,
    talks: bool,
    fixed: SamplingParams | None = None,
  ):
    self._chat, self._seed, self._most, self._talks = chat, seed, most, talks
    self._fixed = fixed
    self._lock = threading.Lock()
    self._known: collections.OrderedDict[str, _Session] = collections.OrderedDict()

  def begin(self, asked: protocol.Inquiry) -> tuple[np.ndarray, tuple[int, ...], bool]:
    """Begins a turn: its prompt, its identity, and whether it goes on.

    Raises:
      SessionError: the session has ended, or waits for another answer.
    """
    drawn = lambda s: (s.temperature, s.top_p, s.top_k)
    if self._fixed and drawn(asked.sampling) != drawn(self._fixed):
      raise SessionError(
        f'temperature, top_p, top_k {drawn(asked.sampling)}: this session is trained on'
        f' and must be drawn at {drawn(self._fixed)}: leave them out'
      )
    with self._lock:
      session = self._known.setdefault(asked.session, _Session())
      self._known.move_to_end(asked.session)
      while len(self._known) > self._most:
        self._known.popitem(last=False)
      if session.busy or session.outcome is not None:
        why = 'waits for an answer' if session.busy else 'has its reward: it has ended'
        raise SessionError(f'session {asked.session!r} {why}')
      session.busy, session.too_long = True, False
      turn = len(session.turns)
      new = self._new(session, asked) if turn and self._talks else None
      last = session.turns[-1] if turn else None
    try:
      if new is None:
        prompt = prompt_ids(self._chat, asked)
      else:
        said = self._chat.follow_messages(last.response_ids, new, asked.tools)
        prompt = np.concatenate([last.prompt_ids, last.response_ids, said])
        prompt = prompt.astype(np.int32)
    except BaseException:
      self.drop(asked.session)
      raise
    name = hashlib.blake2b(asked.session.encode('utf-8', 'replace'), digest_size=8)
    identity = (*self._seed, int.from_bytes(name.digest(), 'big'), turn)
    return prompt, identity, new is not None

  def _new(self, session: _Session, asked: protocol.Inquiry) -> Any:
    """Finds the messages since the last answer; None for another past."""
    known, said = session.messages, asked.messages
    count = len(known)
    same = len(said) > count and [_bare(m) for m in said[:count]] == known
    return said[count:] if same and asked.kind == 'chat' else None

  def drop(self, name: str) -> None:
    """Ends the turn that was begun, without an answer."""
    with self._lock:
      if name in self._known:
        self._known[name].busy = False

  def refuse(self, name: str) -> None:
    """Notes that the prompt of the turn that was begun is too long."""
    with self._lock:
      if name in self._known:
        self._known[name].too_long = True

  def cut(self, name: str) -> bool:
    """Ends a session whose last prompt was too long; tells whether it was."""
    with self._lock:
      session = self._known.get(name)
      if session is None or not session.too_long or session.outcome is not None:
        return False
      session.outcome = Outcome.PROMPT_TOO_LONG
      return True

  def record(
    self, asked: protocol.Inquiry, prompt: np.ndarray, done: Completion, goes_on: bool
  ) -> None:
    """Records the answer of the turn that was begun."""
    response = self._chat.decode(done.token_ids)
    if asked.kind == 'chat':
      text = json.dumps([dict(m) for m in asked.messages], ensure_ascii=False)
    elif isinstance(asked.prompt, str):
      text = asked.prompt
    else:
      text = self._chat.decode(asked.prompt)
    last = asked.messages[-1]['content'] if asked.messages else text
    turn = Turn(
      prompt_text=text,
      prompt_ids=prompt,
      response_ids=done.token_ids,
      sampler_logprobs=done.logprobs,
      observation=last,
      response=response,
      action=response,
      valid=True,
      admissible=True,
      reward=0.0,
      stop_reason=done.stop_reason,
      goes_on=goes_on,
    )
    said = [_bare(message) for message in asked.messages]
    if asked.kind == 'chat':
      stops = asked.sampling.stop_strings
      said.append(_spoken(self._chat.text_before(done.token_ids, stops), asked.names))
    with self._lock:
      session = self._known.get(asked.session)
      if session is not None:
        session.turns.append(turn)
        session.messages, session.busy = said, False

  def reward(
    self, name: str, value: float, *, success: bool, score: float | None = None
  ) -> int:
    """Ends a session with its reward; returns the count of turns.

    One whose first prompt was too long has no turn that could be rewarded.

    Raises:
      SessionError: it has no turn, has ended, or waits for an answer.
    """
    with self._lock:
      session = self._found(name)
      if session.too_long and not session.turns:
        session.outcome = Outcome.PROMPT_TOO_LONG
        return 0
      if session.busy or session.outcome is not None or not session.turns:
        raise SessionError(
          f'session {name!r}: has no turn, has its reward, or waits for an answer'
        )
      last = session.turns[-1]
      session.turns[-1] = dataclasses.replace(last, reward=float(value))
      session.outcome = Outcome.SUCCESS if success else Outcome.FAILURE
      session.score = score
      return len(session.turns)

  def trajectory(
    self, name: str, *, task_id: str = '', task_type: str = '', place=(0, 0)
  ) -> Trajectory:
    """Makes a session's trajectory; a fault if its reward never came."""
    with self._lock:
      session = self._found(name)
      outcome = session.outcome or Outcome.ENV_ERROR
      turns, score = list(session.turns), session.score
    return Trajectory(task_id or name, task_type, *place, turns, outcome, score)

  def forget(self, name: str) -> None:
    """Forgets a session, if it is there."""
    with self._lock:
      self._known.pop(name, None)

  def _found(self, name: str) -> _Session:
    if name not in self._known:
      raise SessionError(f'session {name[:80]!r}: there is none')
    return self._known[name]


def prompt_ids(chat: Chat, asked: protocol.Inquiry) -> np.ndarray:
  """Writes the prompt of a request anew."""
  if asked.kind == 'chat':
    return chat.render_messages(asked.messages, asked.tools)
  if isinstance(asked.prompt, np.ndarray):
    return asked.prompt
  return chat.encode_text(asked.prompt)


def _spoken(text: str, names: Sequence[str]) -> dict[str, Any]:
  """Makes the message as a client was given it, as `_bare` does."""
  message = protocol.message_of(text, names)
  calls = [dataclasses.asdict(call) for call in message.get('tool_calls', ())]
  return {'role': 'assistant', 'content': message['content'] or '', 'calls': calls}


def _bare(message: Mapping[str, Any]) -> dict[str, Any]:
  """Keeps what of a message a client sends back unchanged."""
  calls = [
    {key: call['function'][key] for key in ('name', 'arguments')}
    for call in message.get('tool_calls', ())
  ]
  return {
    'role': message['role'],
    'content': message.get('content') or '',
    'calls': calls,
  }
