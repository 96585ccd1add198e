# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MAE_NAS_DATA ?= data
export MAE_NAS_DATA

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check lint-conf

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

install: $(VENV)/installed ## make .venv with everything in it

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mae_nas needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch and the rest into $(VENV): some 6 GB, some minutes"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@du -sh $(VENV)
	@touch $@

demo: install ## search on the embedded digits: two minutes on a laptop, ends with a drawn cell
	$(BIN)/mae-nas search experiment=demo

test: install ## the default tests: CPU, no network, under six minutes on two cores
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'not slow and not gpu'

test-slow: install ## the long tests: kills, the wheel, learning
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m 'slow and not gpu'

check: install ## lint, format and types
	$(BIN)/ruff check src tests experiments
	$(BIN)/ruff format --check src tests experiments
	$(BIN)/basedpyright

lint-conf: install ## every file in conf/ composes, and names exactly its class's arguments
	$(BIN)/pytest tests/test_configs.py
