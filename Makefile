# Every target works as the first command on a fresh clone: the environment is made when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test test-slow check format backbone clean

demo: $(VENV)/ready
	$(BIN)/evertune demo

test: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist worksteal

test-slow: $(VENV)/ready
	$(BIN)/pytest -m slow

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Trains the embedded backbone again from nothing: about 70 minutes on one core.
backbone: $(VENV)/ready
	$(BIN)/python -m pretraining

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "evertune needs Python 3.11 to 3.13; name one with make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
