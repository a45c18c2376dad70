"""The user message of a turn, in our own words. Two styles.

`paper` is for real models: role, request, the last few turns, the page and the possible
actions, then how to answer. `compact` is for the small model: what the agent has read
so far in the episode, boiled down to a few short lines.
"""

from collections.abc import Sequence

from sdar_jax.envs import base
from sdar_jax.envs.base import Exchange, Observation, Task
from sdar_jax.envs.webshop import instruction as instruction_lib
from sdar_jax.envs.webshop.belief import (
  DETAIL,
  ITEM,
  RESULTS,
  ShopBelief,
  argument,
  believe,
  without_instruction,
)
from sdar_jax.envs.webshop.instruction import ShopInstruction

VERSION = 1
PAPER_INSTRUCTION = (
  'First think about what the request demands, what the page shows and which action '
  'brings you closer, between <think> and </think>. Then give the one action you '
  'choose between <action> and </action>: a link exactly as listed, or a search with '
  'words of your own in the brackets.'
)
_TITLE_WORDS = 2  # Of a title, in the compact style.
_ACTION_WORDS = 3  # Of a past action, in the compact style.


def paper(
  task: Task, history: Sequence[Exchange], observation: Observation, length: int
) -> str:
  """Writes the prompt for real models.

  Args:
    task: for its goal.
    history: the past turns that may be shown (see `envs.base.whole`).
    observation: the current one.
    length: how many past turns to show at most.
  """
  parts = [
    'You shop in an online store that you see as text, one action per turn. Find a '
    'product that meets the request, choose the options it names, then buy it.',
    f'The request: {task.goal}',
  ]
  turns = len(base.whole(history))
  parts += base.past_turns(history, length, 'the page', without_instruction)
  parts += [now(turns + 1, None, observation), PAPER_INSTRUCTION]
  return '\n\n'.join(parts)


def now(turn: int, before: Observation | None, observation: Observation) -> str:
  """Writes the page of a turn and what can be done there, or has changed."""
  page = without_instruction(observation.text)
  listed = before.admissible if before else ()
  actions = base.actions_since(listed, observation.admissible)
  return f'Turn {turn}, the page: {page}\n\n{actions}'


def compact(
  task: Task, history: Sequence[Exchange], observation: Observation, length: int
) -> str:
  """Writes the prompt for the small model, from the pages so far.

  Lines: the goal; the last actions, '?' marking one that did nothing; the kind of page
  and what it shows. A product is the first words of its title, its price in whole
  dollars and its id (what follows is easier to copy than what comes before); 'no' marks
  one that a page has shown not to fit, 'yes' one that has all that is wished for. The
  marks and the chosen options are a view of the whole history, since a policy without
  memory needs to know what it has been through.
  """
  asked = instruction_lib.read(task.goal)
  belief = believe(base.whole(history), observation)
  shown = min(length, len(history))
  lines = [_goal(asked) if asked else task.goal, _last(belief, shown)]
  if belief.page == RESULTS:
    page = [str(belief.number)] if belief.number > 1 else []
    lines.append(' '.join([RESULTS, *page, belief.query]))
    lines += [_shown(belief, asin, asked, asin) for asin in belief.results]
  elif belief.page == ITEM:
    lines.append(f'{ITEM} {_shown(belief, belief.item, asked)}')
    options = belief.options(observation)
    lines += [' '.join([name, *values]) for name, values in options.items()]
    chosen = belief.chosen(observation)
    lines.append(' '.join(['chose', *chosen.values()]) if chosen else '')
  elif belief.page == DETAIL:
    lines.append(f'{belief.detail} {_shown(belief, belief.item, asked)}')
    lines += [line.lower() for line in belief.lines]
  else:
    lines.append(belief.page)
  return '\n'.join(line for line in lines if line)


def _goal(asked: ShopInstruction) -> str:
  """Writes 'backpack waterproof padded color red size large under 40'."""
  options = [word for pair in asked.options.items() for word in pair]
  return ' '.join([asked.kind, *asked.attributes, *options, 'under', str(asked.limit)])


def _last(belief: ShopBelief, length: int) -> str:
  """Lists the last actions in short, '?' after one without effect."""
  words = []
  for action, idle in belief.past[len(belief.past) - min(length, len(belief.past)) :]:
    text = 'search' if argument(action, 'search') else argument(action, 'click')
    shown = (text or action).split()[:_ACTION_WORDS] or ['nothing']
    words.append(' '.join(shown + ['?'] * idle))
  return 'did ' + ', '.join(words) if words else ''


def _shown(
  belief: ShopBelief, asin: str, asked: ShopInstruction | None, label: str = ''
) -> str:
  """Writes 'velmo trek 35 no', with `label` before the mark."""
  words = ['unknown']
  if asin in belief.listings:
    listing = belief.listings[asin]
    words = [*listing.words[:_TITLE_WORDS], str(listing.dollars)]
  words += [label] if label else []
  if asked and asin in belief.listings:
    if belief.lacks(asked, asin):
      words.append('no')
    elif belief.confirmed(asked, asin):
      words.append('yes')
  return ' '.join(words)
