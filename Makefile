# Two commands do everything on a fresh machine: `make demo` and `make test`. Each target sets up what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
LOWEST := .venv-lowest
SOURCES := $(shell git ls-files 'front/*' 'store/*' 'devices/*' 'extract/*' 'probe/*')

.PHONY: demo test test-lowest stress check format bench bench-against gpu-check evidence results clean
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

# A worker for every core, each with one thread: workers wait for children, disks and kills most of the time.
test: $(VENV)/.package
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# The tests that kill writing processes, fail their disk and forge metadata, far more often than in the suite; and every head
# on a pretended GPU, with all its kinds of targets.
stress: $(VENV)/.package
	FEATCACHE_TEST_KILLS=500 FEATCACHE_TEST_REAL_KILLS=50 FEATCACHE_TEST_FAULTS=100000 FEATCACHE_TEST_FUZZ=100000 \
		FEATCACHE_TEST_TRANSFERS=200 FEATCACHE_TEST_GPU_CHECK=1 FEATCACHE_TEST_EVERY_HEAD=1 \
		$(BIN)/python -m pytest tests/store/test_crash.py tests/store/test_faults.py tests/store/test_hostile.py \
		tests/e2e/test_interruptions.py tests/transfer/test_interruptions.py tests/probe/test_cuda.py \
		tests/test_benchmarks.py --timeout 3600

# The lowest versions that pyproject.toml admits, in a venv of their own (several GB), and all tests with them.
# Old versions beside new ones warn of what is deprecated, which is no fault of ours.
$(LOWEST)/.dependencies: pyproject.toml tests/support/floors.py
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(PYTHON) tests/support/floors.py pyproject.toml > $(LOWEST)/floors.txt
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(LOWEST)/floors.txt '.[dev]'
	touch $@

test-lowest: $(LOWEST)/.dependencies
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist worksteal -W ignore::DeprecationWarning

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

# This version against another installation: make bench-against OTHER=../older/.venv/bin/python ROWS="gather push"
bench-against: $(VENV)/.package
	$(BIN)/python benchmarks/against.py $(OTHER) $(ROWS)

# What only a GPU can tell, in under ten minutes: twelve stages, one line of JSON each. OPTIONS="--toy" tries it without a GPU.
gpu-check: $(VENV)/.package
	$(BIN)/python benchmarks/gpu_check $(OPTIONS)

# docs/results.md: what preprocessing, statistics tokens, views and stored types are worth; rows that are there are not computed again.
# make evidence SETS="digits textile"
evidence: $(VENV)/.package
	$(BIN)/python demo/prepare.py --dir .demo
	$(BIN)/python benchmarks/evidence.py $(SETS)

# docs/results.md: every head on two datasets, five seeds. Needs what the demo fetches.
results: $(VENV)/.package
	$(BIN)/python demo/prepare.py --dir .demo
	$(BIN)/python benchmarks/results.py

clean:
	rm -rf $(VENV) $(LOWEST) .demo .node build
