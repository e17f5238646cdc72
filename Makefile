# Everything sets itself up: a virtual environment in .venv, exact versions from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
MINUTES ?= 60
# A process for each usable processor; the tests of one file stay together, and so do their servers and models.
PYTEST := $(BIN)/pytest -q -n auto --maxprocesses 8 --dist loadfile

.PHONY: serve test check quick lint nightly constraints lower-bounds wheels clients chromium fuzz fuzz-server kills soak \
        starter-records clean

serve: $(VENV)/ready
	$(BIN)/nestling serve --port $(PORT)

# What a change must pass before it is proposed; what it lacks to run everything, it says and counts as skipped.
test: check
	$(PYTEST) -m slow tests/unit tests/golden
	$(PYTEST) tests/contract tests/fault

# The quick part: mypy, which has one thread, beside the tests. `make check PYTEST_ADDOPTS=--durations=30` shows the slow.
check: $(VENV)/ready-dev
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint quick

quick: $(VENV)/ready-dev
	$(PYTEST) -m "not slow" tests/unit tests/golden

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Hours: mixed load, malformed input, every documented client, processes killed at random moments.
nightly: test soak fuzz fuzz-server clients kills

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml data/pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable data --editable '.[images,serve]'
	touch $@

$(VENV)/ready-dev: pyproject.toml data/pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable data --editable '.[dev]'
	touch $@ $(VENV)/ready

# Rewrites constraints.txt: the exact versions of what resolves today, without addresses.
constraints:
	rm -rf $(VENV)/fresh && $(PYTHON) -m venv $(VENV)/fresh
	$(VENV)/fresh/bin/python -m pip install --quiet ./data '.[dev]'
	$(VENV)/fresh/bin/python -m pip freeze --exclude nestling --exclude nestling-data > constraints.txt

# The unit tests with the lowest version of every dependency that pyproject.toml allows, in an environment of its own.
lower-bounds:
	rm -rf $(VENV)/lowest && $(PYTHON) -m venv $(VENV)/lowest
	$(VENV)/lowest/bin/python tests/lowest.py > $(VENV)/lowest/requirements.txt
	$(VENV)/lowest/bin/python -m pip install --quiet --requirement $(VENV)/lowest/requirements.txt --editable data --editable .
	$(VENV)/lowest/bin/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile -W default::DeprecationWarning \
	  --ignore tests/unit/test_contracts.py tests/unit  # old packages call newer ones in deprecated ways

# Both distributions, into dist/.
wheels: $(VENV)/ready-dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . ./data

# Every client of tests/contract/clients, for real, in an environment of its own (some 3 GB, a quarter of an hour).
clients: $(VENV)/ready-dev
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --requirement tests/contract/clients/requirements.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cl100k]'
	$(BIN)/python -m tests.contract.clients.run $(VENV)/clients/bin/python

# The browser of tests/contract/test_page.py, from Debian; the one target that installs something outside the project.
chromium:
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; }

# Malformed files for the readers of checkpoints and GGUF.
fuzz: $(VENV)/ready-dev
	$(BIN)/python -m fuzz.readers

# 20,000 random and malformed requests, some ten minutes; writes benchmarks/results/server-fuzz.json.
fuzz-server: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks.server_fuzz

# Builds and corpus jobs killed at random moments; writes benchmarks/results/kills.json.
kills: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks.kills

# After the starter's checkpoint was replaced: every vector, ranking, figure and table that hangs on its weights, anew.
# REFERENCE is a Python with the packages of tests/golden/record_vectors.py.
starter-records: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks.starter_records $(if $(REFERENCE),--reference $(REFERENCE))

# Mixed load for MINUTES; fails for a wrong vector, a server error, or memory that grows; writes benchmarks/results/server-soak.json.
soak: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks.soak $(MINUTES)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache dist
