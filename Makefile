# Everything sets itself up in .venv from a bare Python 3.10+: `make demo` and `make test` are the two commands.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The oldest transformers we promise to work with, in an environment of its own.
OLD := .venv-transformers4
TESTS ?= tests
JOBS ?= 2

# transformers' own common model tests are in its source package only; without them (offline) their test file is skipped.
define fetch-common-tests
	-$(1)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers --dest $(1)/sdist \
	  "transformers==$$($(1)/bin/python -c 'from importlib.metadata import version; print(version("transformers"))')" && \
	  mkdir -p $(1)/transformers-tests && \
	  tar -xzf $(1)/sdist/transformers-*.tar.gz --strip-components=2 -C $(1)/transformers-tests --wildcards '*/tests/*'
endef

.PHONY: env env-old demo mini test test-main test-old quality style tables clean

env: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(call fetch-common-tests,$(VENV))
	touch $@

env-old: $(OLD)/.done

$(OLD)/.done: pyproject.toml constraints-transformers4.txt
	$(PYTHON) -m venv $(OLD)
	$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-transformers4.txt --editable '.[dev]'
	$(call fetch-common-tests,$(OLD))
	touch $@

demo: env
	$(BIN)/dnabert2 finetune training/recipes/demo.json

# Trains the bundled checkpoint anew, from genomes to the README's tables: hours on a CPU, and it resumes.
mini: env
	@test -n "$(GENOMES)" || { echo "GENOMES is missing: make mini GENOMES=folder-of-fasta"; exit 2; }
	for corpus in mini-corpus mini-finished-corpus; do \
	  $(BIN)/dnabert2 build-corpus --config training/recipes/$$corpus.json --input $(GENOMES) || exit; \
	done
	for part in mini mini-continued mini-finished; do \
	  corpus=mini-corpus; test $$part != mini-finished || corpus=mini-finished-corpus; \
	  test -f runs/$$part/metrics.json || $(BIN)/dnabert2 pretrain --config training/recipes/$$part.json \
	    --corpus runs/$$corpus --output_dir runs/$$part || exit; \
	done
	$(BIN)/python -m dnabert2.hub.bundle --run runs/mini-finished
	$(BIN)/dnabert2 bench bits --model mini --corpus runs/mini-corpus --sequences 512 --output benchmarks/results/bits.json
	$(BIN)/python -m dnabert2.benchmarks.tables

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
