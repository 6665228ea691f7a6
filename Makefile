# Everything works after `git clone`, with Python 3.11 or later, make and pip's index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt

.PHONY: help demo test test-oldest check format clean

help:
	@echo "make demo     start the demo shop (ARGS=--fresh starts over)"
	@echo "make test     run the tests on PostgreSQL and SQLite"
	@echo "make check    lint, format and types"
	@echo "make format   format the code"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or later is needed: make PYTHON=python3.12')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]" --group test --group check
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m demo $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)-oldest/installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[demo]" --group test
	touch $@

test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest -n 2 $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist
