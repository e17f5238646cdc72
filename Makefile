# Everything sets itself up: a virtual environment in .venv, exact versions from constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8080

.PHONY: serve test check unit constraints clients clean

serve: $(VENV)/ready
	$(BIN)/nestling serve --port $(PORT)

test: check $(VENV)/ready-dev
	$(BIN)/pytest -q tests/contract tests/fault

check: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/unit tests/golden

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/ready-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ $(VENV)/ready

# The exact versions, from what resolves today; no addresses.
constraints:
	rm -rf $(VENV)/fresh && $(PYTHON) -m venv $(VENV)/fresh
	$(VENV)/fresh/bin/python -m pip install --quiet '.[dev]'
	$(VENV)/fresh/bin/python -m pip freeze --exclude nestling > constraints.txt

# Every client example of docs/server.md, for real, in an environment of its own (some 650 MB).
clients: $(VENV)/ready-dev
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install --quiet --requirement tests/contract/clients/requirements.txt
	$(BIN)/python -m tests.contract.clients.run $(VENV)/clients/bin/python

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
