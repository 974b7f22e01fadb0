# make run     set everything up and run the quickstart (offline after set-up, no GPU needed)
# make test    lint, types and tests
# make slow    the tests marked slow
# make soak    runs killed at every system call that changes the disk, sweeps at random, and 2,000 odd inputs: two hours
#              (FTLAB_SOAK_EVERY=8: each eighth call, ten minutes)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two torch threads on two busy cores are slower than one.
TEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
# Tests run in this many processes: as many as there are cores.
JOBS ?= auto

.PHONY: run setup test lint slow soak wheel clean

run: setup
	$(BIN)/python -m ftlab

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ftlab needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(TEST) -n $(JOBS) -m "not slow and not soak"

slow: setup
	$(TEST) -n $(JOBS) -m slow

soak: setup
	$(TEST) -m soak -s

wheel: setup
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info
