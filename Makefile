# `make demo` and `make test` start from nothing but Python 3.11 and make: the first run builds .venv from the lock.
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BUILDING := $(VENV)/.building
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# a module path or an environment of somebody else's must not decide what is tested
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST))

demo: $(READY) ## from a real recording: a lake, a class for each job, watts and what caps would cut off
	$(BIN)/jobwatt demo

test: $(READY) ## the fast tests
	POLARS_MAX_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not system"

check: export JOBWATT_STRICT_SKIPS := 1
check: $(READY) ## everything: style, types, import contracts, all tests; a skip must be on tests/allowed_skips.txt
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or system"

bench: $(READY) ## measure, and write BENCHMARKS.md
	$(BIN)/python -m tests.benchmarks

clean: ## remove .venv and what tools left behind; data and lakes stay
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv is quick; where it cannot reach the package index (it reads no pip configuration), pip does the same, slower.
# The stamp comes last, and what was interrupted is built anew: a half-copied package can look like a whole one.
$(READY): requirements.lock requirements-uv.lock pyproject.toml hatch_build.py ingest/sources/_quick.c
	@python=; for name in python3.11 python3; do \
	  if $$name -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    python=$$name; break; \
	  fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "make: neither python3.11 nor python3 is Python 3.11 or newer with venv; install it (Debian: python3.11-venv)" >&2; \
	  exit 1; \
	fi; \
	if [ -e $(BUILDING) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "building $(VENV) with $$($$python --version), once; some minutes on a slow line"; \
	  rm -rf $(VENV) && $$python -m venv $(VENV); \
	fi
	@rm -f $(READY) && touch $(BUILDING)
	@if $(BIN)/python -m pip install --quiet --require-hashes -r requirements-uv.lock && \
	  $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.lock; then :; \
	else \
	  echo "uv did not get through; trying pip" && \
	  $(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock; \
	fi
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@rm $(BUILDING) && touch $(READY)
