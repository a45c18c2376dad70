"""Banks, a chat over bytes, and teachers of them, for the tests of skills."""

from pathlib import Path

import numpy as np

from sdar_jax.envs import base
from sdar_jax.envs.alfworld import instruction
from sdar_jax.prompts import bank_file, retrieval, skills

ROOT = Path(__file__).resolve().parents[1]
ALFWORLD = ROOT / 'sdar_jax/envs/alfworld/skills.json'
TINY = ROOT / 'experiments/tiny/alfworld/skills.json'
BANKS = {'alfworld': ALFWORLD, 'tiny': TINY}
HEAT_MUG = {'task_type': instruction.HEAT, 'object': 'mug', 'target': 'desk'}


class ByteChat:
  """A template over bytes: 1 opens a message, 2 closes it."""

  def __init__(self, system=''):
    self.system = system

  def encode_text(self, text):
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

  def render(self, user_text, system=None):
    system = self.system if system is None else system
    text = f'\x01{system}\x02' if system else ''
    return self.encode_text(f'{text}\x01{user_text}\x02\x01')


def spell(ids):
  return bytes(ids.tolist()).decode()


def context(
  placement='user', *, budget=10_000, bank=ALFWORLD, system='', kind='task+object'
):
  retriever = retrieval.Retriever(bank_file.load(bank), kind)
  chat = ByteChat(system)
  return skills.TeacherContext(retriever, chat, placement, token_budget=budget)


def task(metadata=HEAT_MUG, goal='heat a mug'):
  return base.Task('task', 'kind', goal, metadata, None)
