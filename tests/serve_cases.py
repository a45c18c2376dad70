"""An endpoint over a scripted sampler, for tests."""

import numpy as np

from sdar_jax.prompts.chat import Chat
from sdar_jax.rollout.request import Completion


class Scripted:
  """Says what a script says, a few tokens at a time, as the sampler does.

  Args:
    chat: encodes the script's texts.
    script: of the prompt's text and the request, the response's text.
    pace: tokens a pass; 0 holds everything.
  """

  def __init__(self, chat: Chat, script, pace=3):
    self.chat, self.script, self.pace = chat, script, pace
    self.live, self.requests, self.cancelled = {}, [], []
    self.clears = 0

  def submit(self, requests):
    for request in requests:
      if request.sampling.max_tokens > 999:
        raise ValueError('max_tokens: too many')
      text = self.script(self.chat.decode(request.prompt_ids), request)
      ids = self.chat.encode_response(text)[: request.sampling.max_tokens]
      self.requests.append(request)
      self.live[request.request_id] = [request, ids, 0]

  def advance(self):
    done = []
    for name, entry in list(self.live.items()):
      entry[2] += self.pace
      request, ids, count = entry
      stops = request.sampling.stop_strings
      cut = next(
        (
          i
          for i in range(1, min(count, len(ids)) + 1)
          if any(s in self.chat.decode(ids[:i]) for s in stops)
        ),
        None,
      )
      if cut is not None or count >= len(ids):
        del self.live[name]
        stop = cut is not None or ids[-1] in request.sampling.stop_ids
        ids = ids[:cut]
        done.append(Completion(name, ids, _logprobs(ids), 'stop' if stop else 'length'))
    return done

  def progress(self):
    return {
      name: (ids[:count], _logprobs(ids[:count]))
      for name, (_, ids, count) in self.live.items()
      if count
    }

  def cancel(self, names):
    self.cancelled += [name for name in self.live if name in names]
    for name in list(self.live):
      if name in names:
        del self.live[name]

  def clear(self):
    self.clears += 1
    self.live.clear()


def _logprobs(ids):
  return np.asarray(ids, np.float32) / -1000
