"""Gates: trust in the teacher, token by token. Host and device.

`GATES` is the whole table: the choices of `algorithm.gate`, training, records and
metrics all read it. A gate's signature says its inputs: positional parameters are
fields of `GateInputs`, keyword parameters keys of `config.algorithm`. It takes NumPy or
JAX arrays, answers in kind, and is finite at any finite input; its callers keep
gradients out of it.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Gate = Callable[..., Any]


class GateInputs(NamedTuple):
  """Inputs that a gate may name: [B, T] each, 0 where nothing is taught.

  Attributes:
    gap: nats, the teacher's log-prob of the sampled token less the student's.
    entropy: nats, of the student; None unless the gate reads it.
    logprobs: nats, the student's.
    teacher_logprobs: nats.
    turn_ids: int, which turn of its episode the row is.
  """

  gap: Any
  entropy: Any
  logprobs: Any
  teacher_logprobs: Any
  turn_ids: Any


def _sigmoid(x: Any) -> Any:
  with np.errstate(over='ignore'):  # exp(inf) is the right answer, 0, in the end.
    return 1.0 / (1.0 + x.__array_namespace__().exp(-x))


def _clipped(gap: Any, gap_clip: float) -> Any:
  clip = gap_clip or math.inf
  return gap.clip(-clip, clip)


def gap_gate(gap: Any, *, gate_beta: float, gap_clip: float) -> Any:
  """Trusts a teacher surer of the token: g = σ(β·clip(Δ, -τ, τ)).

  Args:
    gap: [B, T] float, nats: Δ.
    gate_beta: β, 1/nat. 0 makes every gate 1/2.
    gap_clip: τ, nats, so that no single token saturates the gate; 0 is none.

  Returns:
    [B, T] in [0, 1], 1/2 where the gap is 0.

  Source: SDAR (arXiv 2605.15155), the gap gate; verl/trainer/ppo/sdar_utils.py of
    ZJU-REAL/SDAR@8b85c23. The clip is ours, after the token clip of OPSD (arXiv
    2601.18734).
  """
  return _sigmoid(gate_beta * _clipped(gap, gap_clip))


def entropy_gate(entropy: Any, *, gate_beta: float) -> Any:
  """Trusts the teacher of an unsure student: g = σ(βh).

  h >= 0, so g >= 1/2: this gate never shuts, and it does not look at the teacher.

  Args:
    entropy: [B, T] float, nats: h, of the student's distribution at each token.
    gate_beta: β, 1/nat.

  Returns:
    [B, T] in [1/2, 1].

  Source: SDAR (arXiv 2605.15155), the entropy gate of its ablation, from public
    digests of the paper; not in the released code.
  """
  return _sigmoid(gate_beta * entropy)


def soft_or_gate(gap: Any, entropy: Any, *, gate_beta: float, gap_clip: float) -> Any:
  """Trusts the teacher of an unsure student, or one surer of the token.

    g = σ(β·[1 - (1 - min(h, 1))·(1 - clip(Δ, -τ, τ))])

  It rises with the gap where h < 1 and ignores the gap from h = 1 on: without the
  bound it would fall with the gap beyond, which is no `or`.

  Args:
    gap: [B, T] float, nats: Δ.
    entropy: [B, T] float, nats: h (the paper does not say how it scales it).
    gate_beta: β.
    gap_clip: τ, nats; 0 is none.

  Returns:
    [B, T] in [0, 1].

  Source: SDAR (arXiv 2605.15155), the soft-OR gate of its ablation, from public
    digests of the paper; not in the released code.
  """
  unsure = entropy.clip(max=1.0)
  gap = _clipped(gap, gap_clip)
  # 1 - (1 - h)(1 - gap), exact at 0.
  return _sigmoid(gate_beta * (unsure + gap - unsure * gap))


GATES: dict[str, Gate] = {
  'gap': gap_gate,
  'entropy': entropy_gate,
  'soft_or': soft_or_gate,
}


def find(name: str) -> Gate:
  """Finds the gate of this name, or raises ValueError."""
  if name not in GATES:
    raise ValueError(f'gate={name!r}: must be one of {tuple(GATES)}')
  return GATES[name]


@functools.cache
def fields(gate: Gate) -> tuple[str, ...]:
  """Lists the fields of `GateInputs` in a gate's signature."""
  parameters = inspect.signature(gate).parameters.values()
  return tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)


@functools.cache
def keys(gate: Gate) -> tuple[str, ...]:
  """Lists the keys of `config.algorithm` in a gate's signature."""
  parameters = inspect.signature(gate).parameters.values()
  return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def apply(gate: Gate, inputs: GateInputs, hyper: Any) -> Any:
  """Calls a gate, [B, T], with the inputs of its signature alone."""
  seen = [getattr(inputs, name) for name in fields(gate)]
  return gate(*seen, **{key: getattr(hyper, key) for key in keys(gate)})
