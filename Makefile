# Every target does all of its own set-up: a fresh clone needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := data/movie
# Twice quiet: errors are printed and end the set-up, warnings that a newcomer takes for errors are
# not, such as a package index on disk that lacks a package, or how an editable install is found.
PIP := $(BIN)/python -m pip install --quiet --quiet

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-long check format docs screenshots bench bench-table clean

help:  ## Show what there is to make
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV), 2.5 GB and some minutes; pip says nothing unless something is wrong"
	$(PIP) --upgrade "pip>=25"
	$(PIP) -e ".[dev]"
	touch $@

setup: $(VENV)/.ready  ## Make .venv and install everything into it

$(DATA)/train.parquet: $(VENV)/.ready examples/prepare_movie.py
	$(BIN)/python examples/prepare_movie.py --out $(DATA)
	touch $@

# Each demo is a sweep of its own name, so that it can be run again; the profile is then cached.
demo: $(DATA)/train.parquet  ## Run a small sweep on movie reviews, three to seven minutes on two cores
	$(BIN)/ranksweep launch examples/demo.yaml --set name=demo-$$(date +%Y%m%d-%H%M%S)

# The second part file by file in two processes, each with a Ray of its own: much of it is waiting.
test: test-fast  ## Run all tests but those that take minutes each
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "(ray or server or group or command) and not long"

# One after the other: each starts clusters and launches of its own, which would starve another's.
test-long: setup  ## Run the tests of accidents and clusters that take minutes each
	$(BIN)/python -m pytest -m long

# In two processes.
test-fast: setup  ## Run the tests that start no Ray, no server and no other processes that take long
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not (ray or server or group or command or long)"

check: setup  ## Check format, lint, types, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Format the code, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## Build the documentation into site/
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo built site/index.html

# Of a sweep on all that the demo has, which is launched in build/screenshots where it is not there.
screenshots: $(DATA)/train.parquet  ## Take the pictures of the README and the guides; needs Chromium
	mkdir -p build/screenshots
	ln -sfn $(CURDIR)/data $(CURDIR)/examples build/screenshots/
	test -d build/screenshots/.ranksweep/sweeps/movie || (cd build/screenshots && \
	  $(CURDIR)/$(BIN)/ranksweep launch examples/demo.yaml --set name=movie --set search.trials=24 \
	  --set "confirm={top: 1, seeds: 5}")
	$(BIN)/python docs/screenshots.py movie --folder build/screenshots

# Each appends what it found to benchmarks/results.jsonl, which bench-table makes a table of.
bench: $(DATA)/train.parquet  ## Run the benchmarks; best with nothing else on the machine
	$(BIN)/python benchmarks/profile_cost.py --rows 640 --repeat 3
	$(BIN)/python benchmarks/handover.py --fresh 5
	$(BIN)/python benchmarks/adapter_step.py --repeat 12
	$(BIN)/python benchmarks/plans.py --repeat 5
	$(BIN)/python benchmarks/driver_cost.py --trials 200
	$(BIN)/python benchmarks/time_to_quality.py --trials 3 --plain-trials 1 --of 24
	$(BIN)/python benchmarks/search_quality.py --seeds 5 --surfaces digits --stand-ins forest --kinds front --ways TPE plan
	$(BIN)/python benchmarks/edges.py
	$(BIN)/python benchmarks/profile_memory.py
	$(BIN)/python benchmarks/fuzz_profiles.py --inputs 20000

bench-table: setup  ## Make the table in benchmarks/README.md from the records
	$(BIN)/python benchmarks/results.py

clean:  ## Remove what the set-up, the tools and the build of the documentation have made
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
