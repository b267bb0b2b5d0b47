# Everything sets itself up in .venv from a bare Python 3.10+: `make demo` and `make test` are the two commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest transformers we promise to work with, in an environment of its own.
OLD := .venv-transformers4
TESTS ?= tests
JOBS ?= 2

.PHONY: env env-old demo test test-main test-old quality style tables clean

env: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

env-old: $(OLD)/.done

$(OLD)/.done: pyproject.toml constraints-transformers4.txt
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-transformers4.txt --editable '.[dev]'
	touch $@

demo: env
	$(BIN)/dnabert2 finetune training/recipes/demo.json

test: test-old test-main

# pytest's own closing line ends the output of each.
test-main: env
	$(BIN)/python -m pytest -n $(JOBS) $(TESTS)

test-old: env-old
	$(OLD)/bin/python -m pytest -n $(JOBS) $(TESTS)

quality: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# README tables come from benchmarks/results/*.json, never from a keyboard.
tables: env
	$(BIN)/python -m dnabert2.benchmarks.tables

clean:
	rm -rf $(VENV) $(OLD) build *.egg-info
