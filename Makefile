# make demo    install what the demo needs, run the demo, print its table
# make test    lint, then every test but those of the next line
# make test-faults   faults one at a time in whole runs (kills, full disk, NaNs ...), tens of minutes
# make study    what each sampler is worth downstream, on generated data; hours, resumable
# make test-soak    60 random faults in rounds, each compared with an undisturbed run; hours, resumable
# make test-videos   all readers against a plain decode, on 400 videos made at random, about 10 minutes
# make docker-test    the image, and docs/operations.md command by command (Linux, Docker or root; under an hour)
# make bench   time and memory against public peers (benchmarks/), about 20 minutes
# make bench-data   what a clip costs to decode, beside VideoMAE's loader, by codec and size, about 10 minutes
# make docs    write docs/reference, the keys of every YAML file, from the code
# The rest: setup, test-fast, lint, format, lock, clean. Each target does its own set-up and is quick to repeat.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo study test test-fast test-faults test-soak test-videos docker-test bench bench-data docs lint format lock clean

help:
	@sed -n 's/^# \(make .*\)/\1/p; s/^# \(The rest.*\)/\1/p' Makefile

setup: $(VENV)/.dev-installed

demo: $(VENV)/.installed
	@$(BIN)/tats run pipeline demo

study: $(VENV)/.installed
	@$(BIN)/tats sweep study

# Two at a time, a file each: many tests wait for processes to start.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not faults"

test-fast: $(VENV)/.dev-installed
	$(PYTEST) -m "not slow"

test-faults: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -m faults -n 2

test-soak: $(VENV)/.dev-installed
	$(BIN)/python -m tests.faults.soak build/soak

test-videos: $(VENV)/.dev-installed
	TEST_VIDEOS=400 $(BIN)/python -m pytest -q tests/data/test_any_video.py

docker-test:
	$(PYTHON) docker/test.py

bench: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/run.py

bench-data: $(VENV)/.dev-installed
	$(BIN)/python benchmarks/data.py

docs: $(VENV)/.installed
	$(BIN)/tats explain --out docs/reference

lint: $(VENV)/.dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# New pins from a fresh environment: run it to move to newer releases, then `make test`, then commit both.
lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --disable-pip-version-check '.[dev]'
	{ sed '/^[^#]/,$$d' requirements.lock; \
	  build/lock/bin/python -m pip freeze --all --exclude pip --exclude tats-core; } > build/requirements.lock
	mv build/requirements.lock requirements.lock
	rm -rf build/lock

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# The stamps: nothing is installed again until pyproject.toml or the lock changes.
$(VENV)/.dev-installed: pyproject.toml requirements.lock | $(BIN)/pip
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.dev-installed $(VENV)/.installed

$(VENV)/.installed: pyproject.toml requirements.lock | $(BIN)/pip
	$(PIP) -e '.[flow]'
	@touch $(VENV)/.installed

# pip is the last thing that venv writes: an interrupted set-up is done again.
$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: there is no '$(PYTHON)' here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: Python 3.11 or newer is needed and '$(PYTHON)' is $$($(PYTHON) -V 2>&1); install one and name it: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
