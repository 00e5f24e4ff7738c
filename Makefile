SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Installed once for each change of what is to be installed.
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
INPUTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help quickstart test fuzz cases lint format client types wheel ci clean

help:  ## Show what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "curation needs Python 3.11 or later; say which with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --quiet torch==2.13.0 $(TORCH_INDEX)
	$(BIN)/python -m pip install --quiet --quiet -c constraints.txt -e '.[cpu]'
	@touch $@

$(DEV_READY): $(READY)
	$(BIN)/python -m pip install --quiet --quiet -c constraints.txt -e '.[cpu,service,train,test,dev]'
	@touch $@

quickstart: $(READY)  ## Set up and curate the standard library's functions into out/quickstart
	$(BIN)/curation run quickstart -o out/quickstart
	$(BIN)/curation inspect out/quickstart

test: $(DEV_READY)  ## Set up and pass the tests (about 10 minutes on 2 cores)
	$(BIN)/python -m pytest -q

fuzz: SEED ?= $(shell date +%s)
fuzz: SECONDS ?= 600
fuzz: $(DEV_READY)  ## Send the service Arrow bodies that nobody would send, for ten minutes (SECONDS=, SEED=)
	CURATION_FUZZ_SECONDS=$(SECONDS) CURATION_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -q -n 0 -s tests/service/http/test_fuzz.py

cases: CASES ?= 100000
cases: $(DEV_READY)  ## Send the service requests that schemathesis makes up from its OpenAPI document (CASES=)
	CURATION_OPENAPI_CASES=$(CASES) $(BIN)/python -m pytest -q -n 0 -s tests/service/http/test_openapi.py

lint: $(DEV_READY)  ## Lint, check the format and the generated client
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/generate-client --check

format: $(DEV_READY)  ## Format, and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

client: $(DEV_READY)  ## Generate the service's sync client from the async one
	$(BIN)/python .ci/generate-client

wheel: $(DEV_READY)  ## Build the wheel into dist/
	rm -rf build dist
	$(BIN)/python -m build --wheel --quiet --outdir dist .

types: wheel  ## mypy --strict on the wheel, installed in a clean environment, and a smoke run there
	.ci/wheel-check dist/curation-*.whl

ci: ; bash .ci/run  ## Everything that has to pass before a change lands

clean:  ## Remove what make made
	rm -rf $(VENV) build dist out *.egg-info
