# make demo    real pictures in, a sealed release and a trained model out
# make test    the quick tests       make check   lint, types, import directions
# make test-all                      the tests that `make test` leaves out
# make test-numerics                 the tests of numbers again, as another processor would round them
# make reference                     configs/REFERENCE.md from the settings classes
# make pictures                      README's pictures, from the demo's release, with Chromium
# make gpu-check                     right and how fast on this machine's GPU; on a machine without one, a small twin on the CPU
# make figures                       which results are older than the code that they measure
# make bench   the measurements      make clean   what tools left behind; demo data and .venv stay
#
# Every target sets up .venv first when pyproject.toml or constraints.txt changed. pip obeys its own settings
# (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CACHE_DIR, pip.conf): that is how a machine offers its own build of torch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Files and options for pytest, as in PYTEST_ARGS=tests/docs. A file stays in one process, so that its fixtures are made once;
# files start in the order they are found, since the long ones (e2e, integration) come first and none must be left for the end.
PYTEST_ARGS ?=
PYTEST_WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# The slow tests wait for two fifths of their time: one worker more than there are cores.
test-all: PYTEST_WORKERS := --numprocesses $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# What computes with floats through BLAS or torch, and takes less than a minute.
NUMERIC_TESTS := tests/unit/pipeline/planning tests/unit/pipeline/judging/quotas tests/unit/pipeline/judging/matching \
  tests/unit/pipeline/scoring tests/unit/pipeline/fetching/pictures/test_pictures_phash.py tests/unit/training/model \
  tests/unit/training/evaluation/test_metrics.py \
  tests/integration/test_semantic_duplicates.py tests/property/test_planning_property.py
STAMP := $(VENV)/.installed
# where it is set, each process that a test starts compiles all our modules again
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-numerics check reference pictures figures bench gpu-check setup clean distclean constraints

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "set-up: '$(PYTHON)' is not on this machine; install Python 3.11 to 3.13 or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "set-up: $$($(PYTHON) --version) will not do, Python 3.11 to 3.13 is needed; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "set-up: this Python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@echo "set-up: installing into $(VENV) with $$($(PYTHON) --version); the first time takes some minutes"
	@"$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[pipeline,training,dev]' --constraint constraints.txt
	@touch $@
	@echo "set-up: done; $(BIN)/plantmix and $(BIN)/dalip are ready"

demo: $(STAMP)
	@$(BIN)/python -m pipeline.demo

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_WORKERS) -m 'not slow' $(PYTEST_ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_WORKERS) -m slow $(PYTEST_ARGS)

test-numerics: $(STAMP)
	$(BIN)/python .ci/other_rounding.py $(PYTEST_WORKERS) -m 'not slow' $(PYTEST_ARGS) $(NUMERIC_TESTS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# configs/REFERENCE.md from the settings classes; a test sees that it is current
reference: $(STAMP)
	@$(BIN)/python .ci/reference.py

# .github/*.png and what they show (pictures.json); tests see that they are current
pictures: demo
	@$(BIN)/python .ci/pictures.py

# sections of tests/benchmarks/results whose code has changed since; fails nothing, but needs the git history
figures: $(STAMP)
	@$(BIN)/python .ci/figures.py

# a script that needs pictures or tables of yours prints how it is called, and ends with 2
bench: $(STAMP)
	@for script in tests/benchmarks/bench_*.py; do \
	  echo "$$script"; $(BIN)/python "$$script" || [ $$? -eq 2 ] || exit 1; done

# goes on when it is run again; the rows lie in data/gpu-check.jsonl; a GPU that torch cannot use is an error
gpu-check: $(STAMP)
	@$(BIN)/python tests/benchmarks/gpu_check.py

# pins of what is installed now: run it in a fresh .venv after changing a range in pyproject.toml
constraints: $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[s3,cluster]' --constraint constraints.txt
	@{ sed -n '/^#/p;/^$$/q' constraints.txt; echo; $(BIN)/python -m pip freeze --exclude-editable \
	  | grep -viE '^(torch|torchvision|triton|nvidia-|sympy|mpmath|networkx)|^-e|^#'; } > constraints.new
	@mv constraints.new constraints.txt
	@echo "constraints: wrote $$(grep -c == constraints.txt) pins"

clean:
	@rm -rf build dist ./*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find pipeline training manifests tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: caches are gone; data/demo and $(VENV) stay (make distclean removes them)"

distclean: clean
	@rm -rf data/demo $(VENV) $(VENV)-*
	@echo "distclean: data/demo and $(VENV) are gone"
