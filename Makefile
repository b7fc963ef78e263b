# `make train` and `make test` do all the set-up themselves: a virtual environment in .venv with the pinned versions.
#   make setup EXTRA=cuda   (or EXTRA=tpu)   adds JAX's GPU or TPU support to .venv
PYTHON ?= python3
EXTRA ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-stress lint lock clean

help:
	@echo "make train      train a ResNet on handwritten digits (under a minute), then draw its curves"
	@echo "make test       lint and the test suite, on CPU"
	@echo "make test-slow  the long proofs: the deepest networks against torchvision's"
	@echo "make test-stress  a run killed twenty times, compared bit for bit with one that was not"
	@echo "make setup EXTRA=cuda|tpu|gcs   the environment with GPU or TPU support, or for gs:// data"
	@echo "make lock       renew requirements.lock from requirements*.txt"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "resnet_jax needs Python 3.11 to 3.13, found $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing the pinned dependencies into $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

setup: $(STAMP)
	@if [ -n "$(EXTRA)" ]; then $(BIN)/python -m pip install --disable-pip-version-check -c requirements.lock --editable ".[$(EXTRA)]"; fi

train: $(STAMP)
	$(BIN)/python train.py --config=configs/digits.py --workdir=runs/digits

# Compiling is most of the work; less of LLVM's optimisation saves a tenth of it. The slow proofs, and the programs that tests
# kill and restart, are compiled as for users.
test: lint
	XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=1" $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(ARGS)

test-stress: $(STAMP)
	$(BIN)/python -m pytest -m slow -s tests/training/test_stress.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck launch/*.sh

lock:
	uv pip compile --universal --python-version 3.11 --fork-strategy requires-python --upgrade \
	  --no-header --no-annotate requirements-dev.txt -o requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
