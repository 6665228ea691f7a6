# Everything works after `git clone`, with Python 3.11 or later, make and pip's index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo load test test-oldest torture torture-oldest check format docs bench guarantees clean

help:
	@echo "make demo     start the demo shop (ARGS=--fresh starts over)"
	@echo "make load     let 50 clients buy in it for 30 seconds, and check the books"
	@echo "make test     run the tests on PostgreSQL and SQLite"
	@echo "make torture  cancel requests at every step, cut every message, for minutes"
	@echo "make check    lint, format and types"
	@echo "make format   format the code"
	@echo "make docs     build the documentation into build/site"
	@echo "make bench    compare with code written by hand and with the alternatives"
	@echo "make guarantees  cancel requests at every step on those, too"

$(VENV)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=python3.12')"
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Also of an environment that was made by hand.
$(VENV)/pip: | $(VENV)/bin/python
	@$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/demo: pyproject.toml constraints.txt | $(VENV)/pip
	@echo "Installing the demo into $(VENV)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	@touch $@

$(VENV)/tests: pyproject.toml constraints.txt | $(VENV)/pip
	@echo "Installing the demo, the tests and the checks into $(VENV)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]" --group test --group check
	@touch $@ $(VENV)/demo

demo: $(VENV)/demo
	@$(BIN)/python -m demo $(ARGS)

load: $(VENV)/demo
	@$(BIN)/python -m demo.load $(ARGS)

test: $(VENV)/tests
	$(BIN)/python -m pytest -n 3 $(ARGS)

torture: $(VENV)/tests
	$(BIN)/python -m pytest -n 3 tests/torture $(ARGS)

check: $(VENV)/tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/tests
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)-oldest/tests: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[demo]" --group test
	touch $@

test-oldest: $(VENV)-oldest/tests
	$(VENV)-oldest/bin/python -m pytest -n 3 $(ARGS)

torture-oldest: $(VENV)-oldest/tests
	$(VENV)-oldest/bin/python -m pytest -n 3 tests/torture $(ARGS)

$(VENV)/docs: $(VENV)/tests
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	@touch $@

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The alternatives are installed for the comparison only.
$(VENV)-peers/installed: pyproject.toml benchmarks/peers.txt
	$(PYTHON) -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-peers/bin/python -m pip install --quiet --editable ".[demo]" --requirement benchmarks/peers.txt
	touch $@

bench: $(VENV)-peers/installed
	@$(VENV)-peers/bin/python -m benchmarks.compare $(ARGS)

guarantees: $(VENV)-peers/installed
	@$(VENV)-peers/bin/python -m benchmarks.guarantees $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-peers build dist
