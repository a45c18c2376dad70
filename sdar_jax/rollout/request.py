"""Requests to a sampler, and its completions. No JAX."""

import dataclasses
import hashlib
import math
import numbers
from collections.abc import Hashable, Sequence

import numpy as np

MIN_TEMPERATURE = 1e-4  # Below it logits / temperature can overflow float32.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
  """How the tokens of one request are drawn.

  Attributes:
    max_tokens: longest response, the stop token included.
    temperature: divides the logits; 0 is greedy (the lowest id among equals).
    top_p: keep the fewest most likely ids whose mass reaches it; 1 keeps all.
    top_k: keep the most likely ids, the lower id first among equals; 0 keeps all.
    stop_ids: a response ends with the first of these.
    stop_strings: a response ends with the first token that completes one of these.
  """

  max_tokens: int
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  stop_ids: tuple[int, ...] = ()
  stop_strings: tuple[str, ...] = ()

  def __post_init__(self):
    whole, real = (numbers.Integral, 'a whole number'), (numbers.Real, 'a number')
    names = {'max_tokens': whole, 'top_k': whole, 'temperature': real, 'top_p': real}
    for name, (kind, what) in names.items():
      if not isinstance(getattr(self, name), kind):
        raise ValueError(f'{name} {getattr(self, name)!r:.40}: must be {what}')
    if self.max_tokens < 1:
      raise ValueError(f'max_tokens {self.max_tokens}: must be at least 1')
    if not (self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf):
      raise ValueError(
        f'temperature {self.temperature}: must be 0 (greedy) or at least '
        f'{MIN_TEMPERATURE}'
      )
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p {self.top_p}: must be in (0, 1], 1 keeps all')
    if self.top_k < 0:
      raise ValueError(f'top_k {self.top_k}: must be 0 (off) or positive')
    for text in self.stop_strings:
      if not isinstance(text, str):
        raise ValueError(f'stop_strings holds {text!r:.40}: must be texts')
    if '' in self.stop_strings:
      raise ValueError("stop_strings holds '': every response would stop at once")


@dataclasses.dataclass(frozen=True)
class Request:
  """A prompt to be continued.

  Attributes:
    request_id: given back with the completion.
    prompt_ids: [L] token ids, at least one.
    sampling: how tokens are drawn and when to stop.
    identity: integers that the random key is made of, e.g. (seed, step, task, member,
      turn); equal identities draw equal random numbers.
  """

  request_id: Hashable
  prompt_ids: Sequence[int] | np.ndarray
  sampling: SamplingParams
  identity: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Completion:
  """The response to a request.

  Attributes:
    request_id: the request's.
    token_ids: [R] int32, exactly as sampled, the stop token included.
    logprobs: [R] float32, nats, at the sampling temperature (1 for greedy) over the
      valid vocabulary, not renormalised by top_k or top_p.
    stop_reason: 'stop' (a stop id or stop string) or 'length'.
  """

  request_id: Hashable
  token_ids: np.ndarray
  logprobs: np.ndarray
  stop_reason: str


@dataclasses.dataclass(frozen=True)
class SamplerCounts:
  """What a sampler did for its requests.

  Attributes:
    prompt_tokens: of the prompts, less their last ones, which decoding reads.
    kept_tokens: of those, computed before in the slot that the request got.
    copied_tokens: of those, computed in another slot.
    prefilled_tokens: of those, computed for the request.
    prefill_positions: that the calls computed, empty ones included.
    decoded_tokens: sampled.
    decode_positions: steps times slots.
  """

  prompt_tokens: int = 0
  kept_tokens: int = 0
  copied_tokens: int = 0
  prefilled_tokens: int = 0
  prefill_positions: int = 0
  decoded_tokens: int = 0
  decode_positions: int = 0


def request_key(identity: Sequence[int]) -> np.ndarray:
  """Hashes the identity of a request to its random key.

  Args:
    identity: integers of any size, e.g. (seed, step, task, member, turn).

  Returns:
    [2] u32, raw threefry key data.
  """
  text = ','.join(str(int(part)) for part in identity)
  digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
  return np.frombuffer(digest, '<u4').astype(np.uint32)
