# Every target does all of its own set-up: a fresh clone needs Python 3.11 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA := data/movie

.PHONY: setup demo test test-fast check bench bench-table clean

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

setup: $(VENV)/.ready

$(DATA)/train.parquet: $(VENV)/.ready examples/prepare_movie.py
	$(BIN)/python examples/prepare_movie.py --out $(DATA)
	touch $@

# Each demo is a sweep of its own name, so that it can be run again; the profile is then cached.
demo: $(DATA)/train.parquet
	$(BIN)/ranksweep launch examples/demo.yaml --set name=demo-$$(date +%Y%m%d-%H%M%S)

test: test-fast
	$(BIN)/python -m pytest -m "ray or server or group"

# The part without Ray, servers or groups of processes, in two processes.
test-fast: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not ray and not server and not group"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Each appends what it found to benchmarks/results.jsonl, which bench-table makes a table of.
bench: $(DATA)/train.parquet
	$(BIN)/python benchmarks/profile_cost.py --rows 640 --repeat 3
	$(BIN)/python benchmarks/handover.py --fresh 5
	$(BIN)/python benchmarks/adapter_step.py --repeat 12
	$(BIN)/python benchmarks/plans.py --repeat 5
	$(BIN)/python benchmarks/driver_cost.py --trials 200
	$(BIN)/python benchmarks/time_to_quality.py --trials 3 --plain-trials 1 --of 24
	$(BIN)/python benchmarks/search_quality.py --seeds 5
	$(BIN)/python benchmarks/profile_memory.py
	$(BIN)/python benchmarks/fuzz_profiles.py --inputs 20000

bench-table: setup
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
