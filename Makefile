# Everything sets itself up: a virtual environment in .venv, exact versions from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080
MINUTES ?= 60

.PHONY: serve test check unit constraints clients chromium fuzz-server soak clean

serve: $(VENV)/ready
	$(BIN)/nestling serve --port $(PORT)

test: check $(VENV)/ready-dev chromium
	$(BIN)/pytest -q tests/contract tests/fault
	$(BIN)/python -m benchmarks.soak 10 0.05 --dry

check: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit tests/golden

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable data --editable .
	touch $@

$(VENV)/ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable data --editable '.[dev]'
	touch $@ $(VENV)/ready

# The exact versions, from what resolves today; no addresses.
constraints:
	rm -rf $(VENV)/fresh && $(PYTHON) -m venv $(VENV)/fresh
	$(VENV)/fresh/bin/python -m pip install --quiet ./data '.[dev]'
	$(VENV)/fresh/bin/python -m pip freeze --exclude nestling --exclude nestling-data > constraints.txt

# Every client example of docs/server.md, for real, in an environment of its own (some 650 MB).
clients: $(VENV)/ready-dev
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --requirement tests/contract/clients/requirements.txt
	$(BIN)/python -m tests.contract.clients.run $(VENV)/clients/bin/python

# The browser of tests/contract/test_page.py: Debian's, installed where this may be done.
chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium; } \
	  || { echo "chromium is missing: apt-get install chromium" >&2; exit 1; }

# 20,000 random and malformed requests, some ten minutes; writes benchmarks/results/server-fuzz.json.
fuzz-server: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks.server_fuzz

# Mixed load for MINUTES; fails for a wrong vector, a server error, or memory that grows; writes benchmarks/results/server-soak.json.
soak: $(VENV)/ready-dev
	$(BIN)/python -m benchmarks.soak $(MINUTES)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
