"""Padded lengths of a run, checked against the model's context."""

from collections.abc import Sequence

from ml_collections import ConfigDict

from sdar_jax.batching.packing import Packing
from sdar_jax.config import ConfigError
from sdar_jax.methods.hyperparameters import Hyperparameters
from sdar_jax.methods.interface import Algorithm
from sdar_jax.models import hf


def talks(config: ConfigDict) -> bool:
  """Whether prompts go on as conversations."""
  return config.rollout.layout == 'conversation'


def make_packing(
  config: ConfigDict, algorithm: Algorithm, hyper: Hyperparameters
) -> Packing:
  """Makes the packing of rows, with buckets for the longest ones.

  Buckets are those of the config, and one more for students that see skills.

  Raises:
    ConfigError: the model's context is shorter than what a run of this method reads.
  """
  c, budget, longest = config.train, config.skills.token_budget, _longest_row(config)
  seen = any(map(algorithm.sees_skills, range(config.rollout.group_size)))
  shown = seen or algorithm.needs_teacher(hyper) or config.eval.with_skills
  check_context(config, with_skills=shown)
  return Packing(
    kind=c.packing,
    minibatch_rows=c.minibatch_rows,
    microbatch_rows=c.microbatch_rows,
    length_buckets=_reaching(c.length_buckets, longest + budget * seen),
    teacher_buckets=_reaching(c.teacher_buckets, longest + budget),
    response_tokens=config.rollout.max_response_tokens,
    lanes=config.mesh.data * config.mesh.fsdp,
    layout=config.rollout.layout,
    shuffle=c.shuffle_rows,
    seed=config.seed,
    sequence_rows=config.world.max_turns if talks(config) else 1,
  )


def sft_buckets(config: ConfigDict) -> tuple[int, ...]:
  """Makes the buckets of demonstrations, with and without skills.

  Raises:
    ConfigError: the model's context is shorter.
  """
  skilled = config.sft.skilled_fraction > 0
  check_context(config, with_skills=skilled)
  most = _longest_row(config) + config.skills.token_budget * skilled
  return _reaching(config.train.length_buckets, most)


def _longest_row(config: ConfigDict) -> int:
  """Counts tokens of the longest prompt without skills and response."""
  return config.rollout.max_prompt_tokens + config.rollout.max_response_tokens


def _reaching(buckets: Sequence[int], length: int) -> tuple[int, ...]:
  """Adds a bucket of `length` where none is so large."""
  return (*buckets, length) if buckets[-1] < length else tuple(buckets)


def check_context(config: ConfigDict, *, with_skills: bool) -> None:
  """Checks the longest sequence against the model's context length.

  Args:
    config: of the run.
    with_skills: some prompt shows them: a student's, a teacher's or an evaluation's.

  Raises:
    ConfigError: the model has fewer positions.
  """
  c, positions = config.rollout, hf.read_context(config.model.path)
  keys = ['rollout.max_prompt_tokens', 'rollout.max_response_tokens']
  keys += ['skills.token_budget'] if with_skills else []
  sizes = [c.max_prompt_tokens, c.max_response_tokens, config.skills.token_budget]
  sizes = sizes[: len(keys)]
  if positions is not None and sum(sizes) > positions:
    said = ' + '.join(f'config.{k}={n}' for k, n in zip(keys, sizes, strict=True))
    raise ConfigError(
      f'{said} is {sum(sizes)} tokens, model {config.model.path} has {positions}'
      ' positions (max_position_embeddings): lower them'
    )
