# Everything a newcomer needs is `make demo` and `make test`; the environment is made on the way and kept in .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

export PATH := $(PATH):/usr/sbin:/sbin
PYTHON ?=
BIN := .venv/bin
FUZZ_SECONDS ?= 300
PYTEST_ARGS ?=
IMAGE ?= kube2iam:dev

.PHONY: help
help: ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done

.PHONY: env
env: ## Make or refresh .venv and the system packages (all the others do it first)
	@PYTHON='$(PYTHON)' scripts/bootstrap $(NEEDS)

.PHONY: demo
demo: env ## Show the agent at work in a small world on this machine (ONCE=1: check itself, print JSON, end)
	@$(BIN)/kube2iam demo $(if $(ONCE),--once --json)

.PHONY: test
test: lint ## Lint, then run every test
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

.PHONY: lint
lint: env ## ruff, mypy, the rules about imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy kube2iam tests
	@$(BIN)/lint-imports

.PHONY: test-cluster
test-cluster: env ## The agent against a real kube-apiserver (needs Go; the first build takes minutes)
	@$(BIN)/python -m pytest tests/cluster $(PYTEST_ARGS)

.PHONY: test-clients
test-clients: env ## The agent against the SDKs of five languages (needs their compilers)
	@$(BIN)/python -m pytest tests/clients $(PYTEST_ARGS)

.PHONY: bench
bench: NEEDS := wrk
bench: env ## Measure it beside a bare aiohttp server
	@$(BIN)/python -m tests.bench.bench

.PHONY: fuzz
fuzz: env ## Feed it nonsense for FUZZ_SECONDS (300)
	@FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python tests/fuzz/fuzz.py

.PHONY: image
image: ## Build the container image with docker, podman or buildah
	@IMAGE='$(IMAGE)' scripts/image

.PHONY: clean
clean: ## Remove the environment and every cache
	@rm -rf .venv .cache build dist *.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
