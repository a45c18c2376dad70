# The cells of method_lab.ipynb, which `python -m experiments.notebooks.build` writes.

# %% [markdown]
# # A gate of your own
#
# SDAR listens to its teacher through a gate, one number for each sampled token:
# `sigmoid(beta * gap)`, where the gap is the teacher's log-prob of the token less the
# student's. Here you write another one, train with it, and compare. The tasks, the
# random numbers of every episode and the panel are the same for both.
#
# A CPU is enough; on two cores a run takes some two minutes. `quickstart.ipynb` comes
# first.

# %%
STEPS, TASKS, SEEDS = 4, 100, (0,)  # A result wants 20, 500 and three or more.
RUNS = 'runs/lab'
KEYS = {}  # More of the configuration of both: {'rollout.group_size': 4}, for example.

# %% [markdown]
# ## The gate
#
# A function of arrays, `[rows, tokens]`. What it is given are the names of its
# parameters: `gap`, `entropy`, `logprobs`, `teacher_logprobs`, `turn_ids`; behind the
# `*` stand keys of `config.algorithm`. No gradient goes through it.
#
# This one listens only where the student itself is unsure, and there as SDAR does.

# %%
import sdar_jax
from sdar_jax.methods import gates


def unsure_gate(gap, entropy, *, gate_beta):
  """Trusts the teacher where the student's entropy is above a fifth of a nat."""
  xp = gap.__array_namespace__()  # NumPy when recorded, JAX when trained.
  return xp.where(entropy > 0.2, 1 / (1 + xp.exp(-gate_beta * gap)), 0.0)


gates.GATES['unsure'] = unsure_gate

# %% [markdown]
# ## Two methods, one word apart

# %%
METHODS = {'sdar': {}, 'sdar, unsure': {'algorithm.gate': 'unsure'}}


def run(method, seed):
  """Trains one of the methods; returns its work directory."""
  path = f'{RUNS}/{method.replace(", ", "-")}-{seed}'
  config = sdar_jax.config_of(
    f'experiments/alfworld.py:model=tiny,seed={seed}',
    {'eval.tasks': TASKS, 'eval.every': 0, **KEYS, **METHODS[method]},
    steps=STEPS,
  )
  return sdar_jax.train(config, path)


paths = {(method, seed): run(method, seed) for method in METHODS for seed in SEEDS}

# %% [markdown]
# ## What the gates did
#
# The share of tokens whose gate was nearly open or nearly shut, and success on the same
# unseen tasks.

# %%
import json


def lines(path, name):
  """The numbers of a file of a run."""
  return [json.loads(line) for line in (path / name).read_text().splitlines()]


for (method, seed), path in paths.items():
  last = lines(path, 'metrics.jsonl')[-1]
  report = json.loads(sorted(path.glob('eval/*.json'))[-1].read_text())
  solved = sum(task['success'] for task in report['tasks'])
  print(
    f'{method:14} seed {seed}: open {last["train/gate_open"]:.0%}, shut'
    f' {last["train/gate_shut"]:.0%}; {solved} of {len(report["tasks"])} solved'
  )

# %% [markdown]
# One seed and a hundred tasks settle nothing: `sdar compare` says how much they could,
# and [docs/studies.md](../../docs/studies.md) how to ask properly. To keep the gate,
# move it to `sdar_jax/methods/gates.py` and give it a formula in
# `tests/methods/test_gates.py` ([docs/methods.md](../../docs/methods.md)).
