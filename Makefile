# SPDX-License-Identifier: MIT
# Every target makes the virtual environment it needs; Python and make are all that must be there.

PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
NEWEST_PYTHON ?= python3.13
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test fast test-matrix test-oldest test-newest lint docs notebooks figures package bench art-suite clean

# One thread, so that figures are those of docs/demo.md; a network as small as this one is no faster with more.
demo: export OMP_NUM_THREADS ?= 1
demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py $(ARGS)

# One process a core; each begins with tests that lie together, which share what they set up, and the first to end takes
# over from the others. ARGS="-n 0" is one process, as a plain pytest is.
PYTEST := $(BIN)/python -m pytest -n auto --dist worksteal

# DEVICE=cuda runs every test whose object has a device on a GPU.
DEVICE ?= cpu

test: $(VENV)/.test
	$(PYTEST) --device $(DEVICE) $(ARGS)

# What is not marked slow: no long training, no programs.
fast: $(VENV)/.test
	$(PYTEST) --device $(DEVICE) -m "not slow" $(ARGS)

# The fast tests at both ends of what is supported: the lower bounds of setup.cfg, and the newest that pip finds.
test-matrix: test-oldest test-newest

test-oldest:
	mkdir -p build
	$(OLDEST_PYTHON) .ci/oldest.py > build/oldest.txt
	PIP_CONSTRAINT=$(CURDIR)/build/oldest.txt $(MAKE) fast PYTHON=$(OLDEST_PYTHON) VENV=.venv-oldest

test-newest:
	$(MAKE) fast PYTHON=$(NEWEST_PYTHON) VENV=.venv-newest

lint: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Build sdist and wheel, and see that the wheel works, and is typed, where only its core dependencies are.
package: $(VENV)/.package
	rm -rf dist build/installed
	$(BIN)/cffconvert --validate
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/installed
	build/installed/bin/pip install --disable-pip-version-check dist/*.whl
	cd build && installed/bin/python ../.ci/installed.py
	build/installed/bin/pip install --disable-pip-version-check mypy
	cd build && installed/bin/mypy --config-file= --strict ../.ci/installed.py

# One thread, so that figures do not depend on the number of cores.
docs: export OMP_NUM_THREADS = 1
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -c docs -d build/doctrees -E -W --keep-going -n $(ARGS) . build/docs

notebooks: export OMP_NUM_THREADS = 1
notebooks: $(VENV)/.docs
	$(BIN)/python .ci/notebooks.py $(ARGS)

# The drawings at the head of README and docs, with fixed seeds. DATA_DIR holds the files of the Debian package
# dataset-fashion-mnist; the network is trained once and kept in runs.
DATA_DIR ?= /usr/share/datasets/fashion-mnist
figures: export OMP_NUM_THREADS = 1
figures: $(VENV)/.bench
	$(BIN)/python docs/draw_threat_model.py
	$(BIN)/python -m benchmarks.attacks.pictures fashion-mnist --data-dir $(DATA_DIR) --figure docs/attacked.png --curve docs/bracket.png --json benchmarks/results/pictures.json

bench: $(VENV)/.bench
	$(BIN)/pip install --disable-pip-version-check --no-deps adv-lib==0.2.8  # it wants a server for plots
	$(BIN)/python -m benchmarks.attacks.evaluation digits --json runs/evaluation_digits.json
	$(BIN)/python -m benchmarks.speed.attacks digits --options --json runs/attack_speed_digits.json
	$(BIN)/python -m benchmarks.speed.training digits --json runs/training_speed_digits.json
	$(BIN)/python -m benchmarks.speed.knapsack digits --json runs/knapsack_speed_digits.json
	$(BIN)/python -m benchmarks.speed.large --gigabytes 1 --json runs/large.json
	$(BIN)/python -m benchmarks.speed.growth --json runs/growth.json --figure runs/growth.png
	$(BIN)/python -m benchmarks.paper.upsilon_estimates $(ARGS)

art-suite: $(VENV)/.test
	$(BIN)/python tests/art_suite/run.py $(ARGS)

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info

# One stamp an extra, so that a change of setup.cfg or of the version installs again.
$(VENV)/.%: setup.cfg pyproject.toml art_wdro/_version.py | $(VENV)/bin/pip
	$(BIN)/pip install --disable-pip-version-check --editable '.[$*]'
	touch $@

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
