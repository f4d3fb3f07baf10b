# `make demo` and `make test` need nothing but Python 3.11 or newer, pip and make. ffmpeg comes from PATH, else from wheels.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
MEDIA ?=
FFMPEG ?= path
JOBS := tests/acceptance/test_encode.py tests/acceptance/test_demo.py tests/integration/test_worker.py

# else each process that a test starts would compile all of nommerd anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-jobs test-deploy test-all lint docs bench dist clean

demo: $(VENV)/.installed
	$(BIN)/nommerd demo $(if $(MEDIA),"$(MEDIA)")

# On the ffmpeg in PATH, else (and with FFMPEG=wheels) on the wheels' one; tests of media run on both anyway.
test: $(VENV)/.dev
	$(BIN)/python -m $(if $(filter wheels,$(FFMPEG)),tests.wheels) tests.side_by_side -m "not slow"

# What runs whole jobs, on the other one.
test-jobs: $(VENV)/.dev
	$(BIN)/python -m $(if $(filter-out wheels,$(FFMPEG)),tests.wheels) pytest $(JOBS)

# Image, user-data, supervisor, container: in roots of their own, as root, with packer, debootstrap, cloud-init and shellcheck.
test-deploy: $(VENV)/.dev
	$(BIN)/python -m pytest tests/deploy -m "not slow"

# Everything, with what takes minutes.
test-all: test test-jobs test-deploy
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check setup.py nommerd tests benchmarks tools deploy
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

# The pages that are made of the code.
docs: $(VENV)/.installed
	$(BIN)/python -m nommerd.pipeline.reference > docs/reference.md

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks

# The last commit as sdist and wheel in dist/, the same bytes on every machine.
dist: $(VENV)/.python
	$(PIP) install --quiet -r tools/requirements.txt
	$(BIN)/python -m tools.dist

# Debian's Python brings no ensurepip, but then its pip can fill a virtual environment from outside.
$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "nommerd needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) && $(PYTHON) -m venv --without-pip $(VENV) && \
	$(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	touch $@

# Not compiled: of most that is installed nothing is ever imported.
$(VENV)/.installed: $(VENV)/.python setup.py
	$(PIP) install --quiet --no-compile -e '.[ffmpeg]'
	touch $@

$(VENV)/.dev: $(VENV)/.python setup.py
	$(PIP) install --quiet --no-compile -e '.[dev,ffmpeg]'
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
