# The two commands of this project, and what a developer needs beside them.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
TEST = $(RUN) -m pytest -n auto --dist loadfile --max-worker-restart=0
WORKDIR ?= runs/quickstart

.PHONY: train test test-long test-slow lint docs tiny study clean help

train: $(VENV)/.installed  ## Trains SDAR on generated ALFWorld with the small model.
	$(RUN) -m sdar_jax.main --config=experiments/alfworld.py:model=tiny \
	  --workdir=$(WORKDIR)

test: $(VENV)/.tested  ## Passes the tests.
	$(TEST)

test-long: $(VENV)/.tested  ## Those of several devices, processes and compilations.
	$(TEST) -m long

test-slow: $(VENV)/.tested  ## All tests: hours.
	$(TEST) -m 'slow or not slow'

lint: $(VENV)/.tested  ## Style, as CI checks it.
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

docs: $(VENV)/.documented  ## Builds docs/ into build/site; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

tiny: $(VENV)/.installed  ## Rebuilds the small models of experiments/tiny (long).
	for world in alfworld webshop search_qa; do \
	  $(RUN) -m experiments.tiny.build --world=$$world || exit 1; done

study: $(VENV)/.installed  ## Nine methods, three seeds, compared (about an hour).
	$(RUN) -m experiments.study --study=small

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[test,dev]'
	touch $@

$(VENV)/.documented: $(VENV)/.tested
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

clean:  ## Removes the environment and what was built.
	rm -rf $(VENV) build dist

help:  ## Lists what there is to make.
	@awk -F ':.*## +' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' Makefile
