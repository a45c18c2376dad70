"""ALFWorld played by the real TextWorld: the slow original, for comparison.

Needs the extra `textworld` (`pip install 'sdar-jax[textworld]'`). TextWorld keeps
module-global state and native code, so every environment is a process of its own that
is killed when it misses its deadline. Domain and grammar are those of the installed
alfworld package; a game file's grammar is never given to TextWorld, because TextWorld
evaluates the expressions in it. For the same reason the goal's words are put into the
intro here instead of into the grammar.
"""

import contextlib
import importlib.util
import io
import multiprocessing
from multiprocessing.connection import Connection

from sdar_jax.envs import base

UNKNOWN_GOAL = 'UNKNOWN GOAL.'


class BackendError(RuntimeError):
  """TextWorld failed or died; an infrastructure fault, not a lost game."""


def available() -> bool:
  """Whether textworld and alfworld are installed."""
  names = ('textworld', 'fast_downward', 'alfworld')
  return all(importlib.util.find_spec(name) for name in names)


class TextWorldEnv:
  """Plays the tasks of `AlfworldEnv` in TextWorld; implements `envs.base.TextEnv`.

  It pickles in mid-episode: the copy starts its own process and replays the actions.

  Args:
    deadline: seconds that a reset or a step may take (the first reset starts the
      process and imports TextWorld: some seconds).
  """

  def __init__(self, deadline: float = 120.0):
    if not available():
      raise BackendError(
        "the TextWorld back end needs: pip install 'sdar-jax[textworld]'"
      )
    self.deadline = deadline
    self._task: base.Task | None = None
    self._actions: list[str] = []
    self._process = None
    self._pipe: Connection | None = None

  def reset(self, task: base.Task) -> base.Observation:
    """Starts the game in `task.payload` (an `engine.Game` of the new grammar).

    Raises:
      TimeoutError: the deadline passed; the process is gone.
      BackendError: TextWorld raised or died.
    """
    if task.payload.grammar != 'new':
      raise ValueError(
        f"grammar {task.payload.grammar!r}: the TextWorld back end plays 'new' games"
      )
    if not isinstance(task.payload.pddl_problem, str):
      raise ValueError('the TextWorld back end needs the PDDL text of a problem')
    self._task, self._actions = task, []
    text, admissible, _ = self._ask('reset', task.payload.pddl_problem)
    text = text.replace(UNKNOWN_GOAL, task.payload.goal)
    return base.Observation(text, admissible)

  def step(self, action: str) -> base.StepResult:
    """Plays one command. Raises as `reset` does."""
    if self._process is None and self._task is not None:
      self._replay()
    self._actions.append(action)
    text, admissible, won = self._ask('step', action)
    return base.StepResult(
      base.Observation(text, admissible), float(won), done=won, success=won
    )

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None:
      self._pipe.close()
      self._process.kill()
      self._process.join()
      self._process.close()
    self._process = self._pipe = None

  def __del__(self):
    with contextlib.suppress(Exception):  # the interpreter may be going down
      self.close()

  def __getstate__(self):
    return {**self.__dict__, '_process': None, '_pipe': None}

  def _replay(self) -> None:
    """Brings a fresh process to where this episode stands."""
    actions = self._actions
    self.reset(self._task)
    for action in actions:
      self.step(action)

  def _ask(self, *request: str) -> tuple[str, tuple[str, ...], bool]:
    """Sends one request and waits for its answer until the deadline."""
    if self._process is None:
      context = multiprocessing.get_context('spawn')
      self._pipe, theirs = context.Pipe()
      self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
      self._process.start()
      theirs.close()
    try:
      self._pipe.send(request)
      if not self._pipe.poll(self.deadline):
        self.close()
        raise TimeoutError(
          f'TextWorld did not answer a {request[0]} in {self.deadline} s (deadline)'
        )
      answer = self._pipe.recv()
    except (EOFError, ConnectionError) as error:
      self.close()
      raise BackendError(f'TextWorld died during a {request[0]}: {error!r}') from None
    if isinstance(answer, str):
      self.close()
      raise BackendError(f'TextWorld failed in a {request[0]}: {answer}')
    return answer


def _serve(pipe: Connection) -> None:
  """The process: one TextWorld environment that answers requests."""
  logic = None
  with contextlib.redirect_stdout(io.StringIO()):  # fast-downward prints a lot
    while True:
      try:
        name, text = pipe.recv()
      except (EOFError, ConnectionError):
        return
      try:
        if logic is None:
          logic, env = _logic(), _environment()
        if name == 'reset':
          env.load({**logic, 'pddl_problem': text})
          state, won = env.reset(), False
        else:
          state, _, won = env.step(text)
        pipe.send((state.feedback, tuple(state.admissible_commands), bool(won)))
      except Exception as error:  # whatever TextWorld raises is the answer
        pipe.send(f'{type(error).__name__}: {error}'.replace('\n', ' ')[:300])


def _logic() -> dict[str, str]:
  """Domain and grammar of the installed alfworld."""
  from alfworld import info

  texts = {}
  for key, path in (
    ('pddl_domain', info.ALFRED_PDDL_PATH),
    ('grammar', info.ALFRED_TWL2_PATH),
  ):
    with open(path, encoding='utf-8') as file:
      texts[key] = file.read()
  return texts


def _environment():
  """A TextWorld environment that shows ALFWorld's names."""
  from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
  from textworld.core import EnvInfos
  from textworld.envs.pddl import PddlEnv

  return AlfredDemangler(PddlEnv(EnvInfos(admissible_commands=True)))
