# The cells of quickstart.ipynb, which `python -m experiments.notebooks.build` writes.

# %% [markdown]
# # From nothing to a coloured episode
#
# A small language model (0.7 million weights, it ships with the project) plays
# household tasks in text worlds. It has learnt the language by imitation; here it
# learns to solve more of them, by GRPO with gated self-distillation (SDAR). The teacher
# is the model itself with skills in its prompt, and a gate says token by token how much
# it is listened to.
#
# A CPU is enough. On two cores it takes about four minutes, the installation included.

# %%
STEPS = 6  # Of training; 20 are `make train`.
TASKS = 100  # Unseen ones, on which success is measured.
WORKDIR = 'runs/notebook'
KEYS = {}  # More of the configuration: {'seed': 1}, for example.

# %% [markdown]
# ## Install
#
# Where the package is not there yet, from the checkout that this notebook lies in.

# %%
import importlib.util
import pathlib
import subprocess
import sys

if importlib.util.find_spec('sdar_jax') is None:
  here = pathlib.Path.cwd()
  root = next(path for path in (here, *here.parents) if (path / 'sdar_jax').is_dir())
  pip = (sys.executable, '-m', 'pip', 'install', '--quiet', '-e', f'{root}[plot]')
  subprocess.run(pip, check=True)
  sys.path.insert(0, str(root))  # This interpreter began before.

# %% [markdown]
# ## Train
#
# A config is an experiment file with arguments, and keys that differ. `train` evaluates
# before the first step and after the last, each time on the same unseen tasks.

# %%
import sdar_jax

config = sdar_jax.config_of(
  'experiments/alfworld.py:model=tiny',
  {'eval.tasks': TASKS, 'eval.every': 0, 'log.token_episodes': 16, **KEYS},
  steps=STEPS,
)
sdar_jax.train(config, WORKDIR)

# %% [markdown]
# ## The curve
#
# Success among the episodes that it trained on, step by step. Sixteen tasks of eight
# episodes are few, and every step has others: the two evaluations, on the same tasks,
# say more.

# %%
import json

import matplotlib.pyplot as plt

lines = pathlib.Path(WORKDIR, 'metrics.jsonl').read_text().splitlines()
success = [json.loads(line)['rollout/success_rate'] for line in lines]
reports = sorted(pathlib.Path(WORKDIR, 'eval').glob('*.json'))
panels = {int(path.stem): json.loads(path.read_text()) for path in reports}
solved = {
  step: sum(task['success'] for task in report['tasks']) / len(report['tasks'])
  for step, report in panels.items()
}

figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(range(1, len(success) + 1), success, label='training episodes')
axes.plot(*zip(*solved.items()), 'o-', label=f'the same {TASKS} unseen tasks')
axes.set(xlabel='step', ylabel='success', ylim=(0, 1))
axes.legend()
figure.tight_layout()

# %% [markdown]
# ## What the teacher did
#
# The last step's episodes, each token on the colour of its gate: what the student saw,
# what the teacher saw besides, what was sampled, and where the two disagreed. Point at
# a token for its numbers. [docs/looking.md](../../docs/looking.md) explains the page.

# %%
import html

from IPython.display import HTML, display

page = pathlib.Path(WORKDIR, 'episodes.html')
view = ('view', WORKDIR, f'--step={STEPS}', '--kind=train', f'--html={page}')
subprocess.run((sys.executable, '-m', 'sdar_jax.main', *view), check=True)
framed = '<div><iframe srcdoc="{}" width="100%" height="700"></iframe></div>'
display(HTML(framed.format(html.escape(page.read_text()))))

# %% [markdown]
# ## Ask it
#
# The trained policy, as an object.

# %%
policy = sdar_jax.load(WORKDIR)
prompt = """cool some lettuce and put it in countertop.
at start
new cabinet 1 countertop 1 countertop 2 fridge 1 garbagecan 1 microwave 1 shelf 1"""
for seed in range(3):
  answer = policy.generate(prompt, seed=seed)
  print(f'{answer.text}  ({answer.logprobs.sum():.2f} nats)')

# %% [markdown]
# ## What next
#
# - `method_lab.ipynb`: a gate of your own in ten lines, compared with SDAR's.
# - [docs/methods.md](../../docs/methods.md): the methods there are.
# - [docs/results.md](../../docs/results.md): what training brought, with seeds and
#   intervals. One run of a notebook is no result.
