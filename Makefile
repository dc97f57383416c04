# One short list of commands; CI runs the same ones. `make help` prints it.
PYTHON ?= python3
TOOLS := .tools
UV := $(TOOLS)/bin/uv
RUN := $(UV) run --locked --no-sync
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE := copy

.PHONY: help setup demo test lint types unit calibrate format clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# --target works where the system Python refuses global installs and where venv is not packaged.
$(UV):
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore --target $(TOOLS) 'uv>=0.8,<1'

setup: $(UV) ## everything a fresh machine lacks, into .venv
	@$(UV) sync --quiet --locked --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

demo: setup ## a real job: demo/tiny, two local replicas, some hundred requests
	@$(RUN) python benchmarks/demo.py

test: setup lint types unit ## lint, types and every test that needs no GPU and no network

lint: setup
	@$(RUN) ruff format --check --quiet .
	@$(RUN) ruff check --quiet .
	@$(RUN) lint-imports --no-cache

types: setup
	@$(RUN) mypy

unit: setup
	@$(RUN) pytest

calibrate: setup ## fit the throughput constants to POINTS=FILE.csv (docs/placement.md)
	@$(RUN) python -m tandemn.placement.calibration "$(POINTS)"

format: setup ## format and mend what ruff can
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

clean: ## remove what the commands above installed
	rm -rf .venv $(TOOLS) .cache
