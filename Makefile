# make demo: install into .venv and run the main job on embedded data.   make test: install and run the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Of the report page's script: tsc reads its JSDoc types. It has no dependencies, and is not installed.
TSC    := npx --yes --package typescript@5.9.3 tsc --allowJs --checkJs --strict --noEmit --target es2022 --lib es2022,dom,dom.iterable

# Two worker processes of one thread each; a worker without work takes half of what the other has left.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: install demo test test-all slow coverage fuzz crash bench docs tutorials lowest lint script types layers check clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	touch $@

demo: $(READY)
	$(BIN)/exmap run digits --out runs/demo

test: $(READY)
	$(PYTEST) -m "not slow and not long"

test-all: $(READY)
	$(PYTEST) -m "not slow" --durations=25

slow: $(READY)
	$(PYTEST) -m slow --durations=25

# Of the quick tests. From Python 3.12 on, lines are counted without slowing them down.
coverage: $(READY)
	COVERAGE_CORE=$$($(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")') \
	    $(PYTEST) -m "not slow and not long" --cov=exmap --cov-report=term:skip-covered

# What docs/reliability.md counts: ten minutes each, continued where the last one ended (SEED=1 begins another).
SEED ?= 0
CAMPAIGN := $(BIN)/python tests/robustness/campaign.py

fuzz: $(READY)
	$(CAMPAIGN) readers whole --minutes 10 --seed $(SEED)

crash: $(READY)
	$(CAMPAIGN) crash --minutes 10 --seed $(SEED)

# The tables of docs/performance.md. Alone on the machine, and with patience: the references are slow.
bench: $(READY)
	$(BIN)/python benchmarks/suite.py --million --out docs/results/performance --document docs/performance.md

# The lower bounds of pyproject.toml, in an environment of their own. Old libraries warn of more: warnings are no errors.
LOWEST       := .venv-lowest
LOWEST_TESTS := tests/cluster tests/data tests/explain tests/retrain tests/test_api.py tests/test_cli.py tests/test_runs.py

lowest:
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints-lowest.txt . pytest hypothesis
	$(LOWEST)/bin/python -m pytest -W default -m "not slow and not long" $(LOWEST_TESTS)

# The site, in docs/_build/html; a warning is an error. The tests build it, too, and follow its links.
docs: $(READY)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going docs docs/_build/html

# The tutorials executed again, and saved with their outputs.
tutorials: $(READY)
	$(BIN)/python tests/notebooks.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

script:
	@if command -v npx > /dev/null; then set -x; $(TSC) src/exmap/report/assets/*.js; \
	elif [ -n "$$CI" ]; then echo "script: npx is not installed, and the page's script must be checked where CI is set"; exit 1; \
	else echo "script: skipped, because npx is not installed (install npm to check the report page's script)"; fi

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

check: lint script types layers test-all

clean:
	rm -rf $(VENV) $(LOWEST) docs/_build docs/reference/api runs .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
