# Everything a person types here. `make` alone lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One more than cores: tests that start sweeps and servers wait a third of their time.
WORKERS ?= 3
FLOORS := .venv-floors
KILLS ?= 200
SECONDS ?= 600
SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help install sweep test test-long test-floors check lint bench bench-full gpu-check docs ui clean clean-store

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## an environment in .venv with everything pinned; a second time does nothing

sweep: $(STAMP)  ## the quickstart sweep: real results and a picture in a minute or two
	$(BIN)/orchestrate sweep --space quickstart

test: export OMP_NUM_THREADS := 1
test: $(STAMP)  ## the tests; those that start sweeps, servers and browsers first
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not long"

test-long: export OMP_NUM_THREADS := 1
test-long: $(STAMP)  ## a night: the longest tests, all laws at length, SECONDS=600 of the fuzzer, KILLS=200 random kills
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m long
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --hypothesis-profile many -m "hypothesis and not slow"
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)
	$(BIN)/python tests/endurance --kills $(KILLS) --seed $(SEED)

test-floors: export OMP_NUM_THREADS := 1
test-floors:  ## the fast tests and a sweep with the lowest versions that pyproject.toml allows
	test -x $(FLOORS)/bin/python || $(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/python -m pip install packaging
	$(FLOORS)/bin/python tests/lowest_versions.py > $(FLOORS)/constraints.txt
	$(FLOORS)/bin/python -m pip install -c $(FLOORS)/constraints.txt -e '.[dev]'
	$(FLOORS)/bin/python -m pytest -n $(WORKERS) -m "not slow"
	$(FLOORS)/bin/python -m pytest tests/integration/test_transfer_sweep.py

check: lint  ## ruff, mypy, the import rules and the docs' tables
	$(BIN)/pytest tests/test_architecture.py tests/test_docs.py

lint: $(STAMP)  ## ruff and mypy alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: export OMP_NUM_THREADS := 1
bench: $(STAMP)  ## measure against baselines, and update the page
	$(BIN)/python -m benchmarks
	$(BIN)/python docs/write_benchmarks.py

bench-full: export OMP_NUM_THREADS := 1
bench-full: $(STAMP)  ## the same at full size, and what cutting out saves: hours
	$(BIN)/python -m benchmarks --full
	$(BIN)/python benchmarks/cut_networks.py
	$(BIN)/python benchmarks/measured_speedup.py
	$(BIN)/python docs/write_benchmarks.py

gpu-check: $(STAMP)  ## on a machine with a GPU: what it computes, step times, memory, latency; eight minutes at most
	$(BIN)/python -m benchmarks.gpu_check --page

docs: $(STAMP)  ## the documentation as pages, in site/
	$(BIN)/python docs/write_methods.py
	$(BIN)/zensical build --clean --strict

ui: $(STAMP)  ## the MLflow pages of this store
	$(BIN)/orchestrate ui

clean:  ## remove caches and builds; results stay
	rm -rf build dist site .cache *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -path ./mlruns -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

clean-store:  ## remove every result in mlruns/
	find mlruns -mindepth 1 -not -name .gitkeep -delete

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile -r requirements.lock  # Python compiles what is used when it is
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	touch $@
