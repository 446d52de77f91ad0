# Every target sets up what it needs; `make` alone lists them.
SHELL := /bin/bash
VENV ?= .venv
DEVICE ?= cpu
WORKERS ?= 2
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench mutants acceptance docs

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## a virtual environment with everything, in exact versions

$(VENV)/.ready: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[retrieval,lmeval,augment,faiss,dashboard,slurm,joblib,dev]'
	@touch $@

run: setup ## edit the embedded world with one editor of each family and show the table
	@$(BIN)/kedit sweeps=quickstart

test: setup ## the tests (KEDIT_TEST_DATA=DIR: also on the full benchmark files; WORKERS=2)
	$(BIN)/pytest -n $(WORKERS) --dist loadfile

check: setup ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup ## kedit against plain loops, interleaved: seconds, ratios and their bounds (DEVICE=cuda, ONLY="editing scoring", BENCH="--rows 200")
	$(BIN)/python -m benchmarks --device $(DEVICE) $(if $(ONLY),--parts $(ONLY)) $(BENCH)

mutants: setup ## do the tests notice faults? plants each of tests/mutants.yaml in a copy (MUTANTS="3 7": some)
	$(BIN)/python tests/mutants.py $(MUTANTS)

acceptance: setup ## the slower checks: the world's recipe, editing scores over three seeds, kills and restarts
	$(BIN)/pytest -m acceptance -rP

docs: setup ## the documentation as a site, in runs/site
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet
	@echo runs/site/index.html
