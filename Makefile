# Three commands on a fresh machine, each doing all of its own set-up:
#
#   make demo               distil the shipped teacher, evaluate the student, say where the report is
#   make demo-federation    three nodes whose teachers know some classes each, merged in two rounds
#   make test               run every test
#
# PYTHON=python3.12 make demo    uses another Python (3.11 or newer) for .venv
# make demo-federation SPLIT=overlapping FASHION_MNIST=FOLDER
#                                other teachers; the table on the whole test set, which lies in FOLDER
# make test PYTEST="-k resume"   passes arguments on to pytest

PYTHON ?= python3
PYTEST ?=
# A file's tests stay in one process: many share a chain or a SuperLink.
WORKERS ?= 2
NPM ?= npm
SPLIT ?= disjoint
FASHION_MNIST ?=

BIN := .venv/bin
# Stamps make a repeat instant. They lie in the environment they speak of, and vanish with it.
CREATED := .venv/.created
FOR_DEMO := .venv/.installed-for-demo
FOR_FEDERATION := .venv/.installed-for-federation
FOR_TEST := .venv/.installed-for-test
CHAIN_TOOLS := contracts/node_modules/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo demo-federation test lint types format clean contracts/node_modules

help:
	@sed -n '1,/^$$/p' Makefile | sed -e 's/^# \{0,1\}//'
	@echo "make lint     ruff: rules and format        make types    mypy, strict"
	@echo "make format   let ruff put things right     make clean    delete .venv and the chain tools"

demo: $(FOR_DEMO)
	$(BIN)/genkd-node distill --teacher examples/fashion_mnist/teacher.safetensors \
		--eval-data examples/fashion_mnist/test_images.npz --recipe quick

demo-federation: $(FOR_FEDERATION) $(CHAIN_TOOLS)
	$(BIN)/python examples/federation/demo.py --split $(SPLIT) \
		$(if $(FASHION_MNIST),--images "$(FASHION_MNIST)")

test: $(FOR_TEST) $(CHAIN_TOOLS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

lint: $(FOR_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(FOR_TEST)
	$(BIN)/mypy

format: $(FOR_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv contracts/node_modules

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON) here. Install Python 3.11 or newer," \
			"or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
			"Name another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments." \
			"On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

$(FOR_DEMO): $(CREATED) pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[distill]'
	@touch $@

$(FOR_FEDERATION): $(CREATED) pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[distill,federation]'
	@touch $@ $(FOR_DEMO)

# What the tests need includes what the demos need.
$(FOR_TEST): $(CREATED) pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		-e '.[distill,onnx,federation,study,test]'
	@touch $@ $(FOR_DEMO) $(FOR_FEDERATION)

contracts/node_modules: $(CHAIN_TOOLS)

# The compiler, forge and anvil, exactly as locked.
$(CHAIN_TOOLS): contracts/package.json contracts/package-lock.json
	@command -v $(NPM) >/dev/null || { \
		echo "There is no $(NPM) here. The chain tools need Node 20 or newer." >&2; exit 1; }
	cd contracts && $(NPM) ci --no-audit --no-fund
	@touch $@
