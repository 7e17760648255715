# make demo: install into .venv and run the main job on embedded data.   make test: install and run the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test slow bench lint types layers check clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/exmap run digits --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest --cov=exmap --cov-report=term:skip-covered

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# What docs/performance.md shows: about ten minutes, alone on the machine.
bench: $(READY)
	$(BIN)/python benchmarks/suite.py --million --out docs/results/performance --document docs/performance.md

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

check: lint types layers test

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage*
