"""Checks the numbers of a method against the keys that it reads."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdar_jax.methods import gates, hyperparameters, table
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm, Distillation

KEYS = frozenset(hyperparameters.KEYS)
_ALWAYS = ('policy_coef', 'kl_coef', 'entropy_coef', 'aggregation')


def keys_read(algorithm: Algorithm, hyper: Hyperparameters) -> frozenset[str]:
  """Collects the keys with an effect on training, at these numbers.

  Functions that declare nothing, as a method of one's own may have, count as reading
  every key. The coefficient of a term that is there counts as read, also at 0; what
  only a term with coefficient 0 would read does not.
  """
  keys = {*_ALWAYS}
  distillation = algorithm.distillation
  in_advantages = False
  if distillation is not None:
    keys.add(distillation.coef)
    if algorithm.needs_teacher(hyper):
      in_advantages = distillation.in_advantages(hyper)
      keys |= _teachers(distillation, hyper)
  if hyper.policy_coef != 0:
    keys |= _declared(algorithm.advantages)
  if hyper.policy_coef != 0 or in_advantages:
    keys |= _declared(algorithm.policy_loss)
  if algorithm.has_critic:
    keys.add('value_coef')
    if hyper.value_coef != 0:
      keys |= {'value_clip'} | _declared(algorithm.value_targets)
  if hyper.kl_coef != 0:
    keys |= {'kl_kind', 'kl_in'}
  return frozenset(keys)


def _teachers(distillation: Distillation, hyper: Hyperparameters) -> set[str]:
  keys = {'warmdown_steps'}
  if _heard(distillation, hyper):
    keys.add('teacher_weights')
    if distillation.context != 'none':
      keys.add('context')
    if hyper.teacher_weights == 'ema':
      keys.add('ema_decay')
  functions = [distillation.credit, distillation.rewards, distillation.weights]
  functions += [distillation.step_gate, distillation.remember]
  if distillation.advantages is not None:
    keys.add('distill_form')
  in_advantages = distillation.in_advantages(hyper)
  functions.append(distillation.advantages if in_advantages else distillation.losses)
  for function in filter(None, functions):
    keys |= _declared(function)
  if hyper.divergence != 'jsd':
    keys.discard('jsd_weight')
  if distillation.gate is not None:
    keys |= _gates(distillation.gate, hyper)
  return keys


def _heard(distillation: Distillation, hyper: Hyperparameters) -> bool:
  """Tells whether the teacher's scores matter: in a control, to its gate."""
  gate = distillation.gate
  moves = gate is not None and _gates(gate, hyper) != {'gate_beta'}
  return moves or not distillation.control


def _gates(
  choose: Callable[[Hyperparameters], gates.Gate], hyper: Hyperparameters
) -> set[str]:
  keys = set(gates.keys(choose(hyper)))
  if 'gate_beta' in keys and hyper.gate_beta == 0:  # A constant, whatever the rest.
    return {'gate_beta'}
  return keys | _declared(choose)


def _declared(function: Callable) -> frozenset[str]:
  return getattr(function, 'reads', KEYS)


def complaints(
  name: str, hyper: Hyperparameters, defaults: Mapping[str, Any]
) -> Iterator[str]:
  """Yields a line for each number without a reader, or for a wrong name.

  Args:
    name: of a row, or of two combined.
    hyper: its numbers.
    defaults: the value of each key that a method may leave unread.
  """
  try:
    algorithm = table.find(name)
  except KeyError as error:
    yield f'name={error.args[0]}'
    return
  own = algorithm.all_settings
  read = keys_read(algorithm, hyper)
  for key in sorted(KEYS - read):
    value, default = getattr(hyper, key), own.get(f'algorithm.{key}', defaults[key])
    if value != default:
      yield (
        f'{key}={value!r}: nothing reads it in {name} with these settings: leave it at'
        f' {default!r}'
      )
