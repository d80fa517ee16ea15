# Two commands do everything on a fresh machine: `make demo` and `make test`. Each target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SOURCES := $(shell git ls-files 'front/*.py' 'store/*.py' 'extract/*.py' 'probe/*.py')

.PHONY: demo test stress check format bench clean
.DELETE_ON_ERROR:

# Third-party packages: made again only when pyproject.toml changes.
$(VENV)/.dependencies: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	touch $@

# The package itself, as a real (non-editable) install: what is tested and type-checked is what users get.
$(VENV)/.package: $(VENV)/.dependencies $(SOURCES)
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	rm -rf build
	touch $@

demo: $(VENV)/.package
	demo/run.sh $(BIN)

test: $(VENV)/.package
	$(BIN)/python -m pytest

# The tests that kill writing processes, fail their disk and forge metadata, far more often than in the suite.
stress: $(VENV)/.package
	FEATCACHE_TEST_KILLS=500 FEATCACHE_TEST_REAL_KILLS=50 FEATCACHE_TEST_FAULTS=100000 FEATCACHE_TEST_FUZZ=100000 \
		FEATCACHE_TEST_TRANSFERS=200 \
		$(BIN)/python -m pytest tests/store/test_crash.py tests/store/test_faults.py tests/store/test_hostile.py \
		tests/e2e/test_interruptions.py tests/transfer/test_interruptions.py --timeout 3600

check: $(VENV)/.package
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p featcache

format: $(VENV)/.dependencies
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All rows, or some: make bench ROWS="store trainer". Those of the extraction need what the demo fetches.
bench: $(VENV)/.package
	$(BIN)/python benchmarks/run.py $(ROWS)

clean:
	rm -rf $(VENV) .demo .node build
