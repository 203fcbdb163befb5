# make demo   a picture with depth from the embedded model, on a fresh machine too
# make test   lint, types and all tests; what continuous integration runs
# make lint   only the first two
# make bench  timings of this machine
#
# Needs Python 3.10 or newer and make. Everything is installed into .venv.
# Another Python:          make demo PYTHON=python3.12
# Another PyTorch build:   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV   ?= .venv
# Test processes; 0 runs the tests in one, which is easier to read.
JOBS   ?= auto
PROMPT ?= a village with colourful houses and a church

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif

# With an NVIDIA card the newest build; on a CPU the version the tests were last run with.
TORCH ?= $(if $(shell command -v nvidia-smi 2>/dev/null),torch,torch==2.13.0)
PIP   := $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench clean

help:
	@sed -n 's/^# //p; /^$$/q' Makefile

# A first installation. Its stamp is older than pyproject.toml when the dependencies changed.
$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "error: $(PYTHON) is older than Python 3.10; name another: make PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "error: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(PIP) $(TORCH)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(PIP) -e '.[dev]'
	@touch $@

# The web page is tested in a real browser: the system's, or one fetched here. Without any, those tests are skipped.
$(VENV)/.browser: $(VENV)/.dev
	@if command -v chromium || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; \
	else $(BIN)/python -m playwright install chromium; \
	fi >/dev/null || echo "note: no Chromium here, so tests/browser will be skipped"
	@touch $@

demo: $(VENV)/.base
	$(BIN)/mf joint --prompt "$(PROMPT)"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/.browser
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

bench: $(VENV)/.dev
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
