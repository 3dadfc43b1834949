SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# One thread for each of two workers: more threads on two cores only wait for each other.
export OMP_NUM_THREADS := 1
export MPLBACKEND := agg

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): requirements.txt constraints.txt pyproject.toml package.json package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep -m1 '^torch==' requirements.txt | sed 's/ .*//')"
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	PATH="$(abspath $(VENV)/bin):$$PATH" npm ci --silent --no-audit --no-fund
	@touch $@

.PHONY: setup
setup: $(READY) ## install what everything needs into .venv

# A stale notebook is refused: the site shows what was checked.
.PHONY: book
book: $(READY) ## render the site to _build/html
	$(PY) -m press.notebooks --check
	$(PY) -m press.pages
	PYTHONPATH=. $(VENV)/bin/jupyter-book build --nitpick --warningiserror --keep-going -q .
	@echo "Open _build/html/index.html"

.PHONY: notebooks
notebooks: $(READY) ## run the chapters whose notebooks are stale
	$(PY) -m press.notebooks
