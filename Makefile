# The one entry point for people, hooks and CI. `make` alone lists the targets.
VENV    ?= .venv
PYTHON  ?= python3
BIN     := $(VENV)/bin
PROTOS  := $(wildcard protos/cuvee/v1/*.proto)
TORCH   := 2.13.0
# Without an NVIDIA driver the CPU build of torch is taken: some 200 MB instead of several GB.
CPU_INDEX := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-router-a test-router-m test-others check protos protos-check k8s format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## Make the environment in .venv

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  echo "NVIDIA driver found: installing torch $(TORCH) with CUDA"; \
	  $(BIN)/pip install --quiet "torch==$(TORCH)"; \
	else \
	  echo "no NVIDIA driver: installing torch $(TORCH) for the CPU"; \
	  $(BIN)/pip install --quiet "torch==$(TORCH)+cpu" \
	  || $(BIN)/pip install --quiet "torch==$(TORCH)+cpu" --index-url $(CPU_INDEX); \
	fi
	$(BIN)/pip install --quiet --editable . --group dev --constraint constraints.txt
	@touch $@

demo: setup  ## Start the cluster on loopback, show a blended reply, stop
	$(BIN)/cuvee demo

test: setup  ## Run all checks and all tests, those without a cluster in three processes
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target \
	  check test-others test-router-m test-router-a
	$(BIN)/pytest -m cluster tests/cli tests/deployments tests/kubernetes

# Some two hundred processes import the same modules, which are compiled once, not by each.
test: export PYTHONDONTWRITEBYTECODE :=

# Threads of one process would wait for each other where several processes share the cores.
check test-router-a test-router-m test-others: export OMP_NUM_THREADS := 1

test-router-a:
	$(BIN)/pytest -m "not cluster" tests/router/test_[a-l]*.py

test-router-m:
	$(BIN)/pytest -m "not cluster" tests/router/test_[m-z]*.py

test-others:
	$(BIN)/pytest -m "not cluster" --ignore=tests/router

check: setup  ## Run the checks, cheapest first
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf breaking --against released.binpb
	@$(MAKE) --no-print-directory protos-check
	$(BIN)/lint-imports
	$(BIN)/mypy

define generate
PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) \
  --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)
endef

protos: setup  ## Regenerate the checked-in code of the wire contracts
	$(call generate,protos)

protos-check: setup  ## Fail if the checked-in code is not what the wire contracts give
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call generate,$$fresh) && \
	  for f in "$$fresh"/cuvee/v1/*; do diff -u "protos/cuvee/v1/$$(basename $$f)" "$$f" \
	  || { echo "generated code is out of date: run 'make protos'"; exit 1; }; done

k8s: setup  ## Render what k8s/ has from its blend files
	$(BIN)/python -m deployments.kubernetes.overlays

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
