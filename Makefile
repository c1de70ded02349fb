# `make demo` and `make test` need Python 3.11 or newer and nothing else. `make help` lists the rest.
PYTHON ?= python3
# How many tests run at a time. Many wait for processes to start: a few more than the cores keep those busy.
TEST_JOBS ?= 3
# They load the machine by themselves.
PROOF_JOBS ?= 2
ARGS ?=
# How often `make chaos` kills, cuts the power and breaks the network.
KILLS ?= 1000
CUTS ?= 10000
FAULTS ?= 300
# How often its escapees try, how often it loses work, how many launches it sends up to five times.
ESCAPES ?= 50
LOSSES ?= 300
LAUNCHES ?= 10000
# How often it has controllers crash at every boundary of a job's life, and how many jobs it has die with their logs.
CRASHES ?= 5
DEATHS ?= 1000
# How much `make fuzz` sends.
FRAMES ?= 1000000
MESSAGES ?= 1000000
SEQUENCES ?= 100000
SEED ?= 1

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
GENERATED := src/fluster/rpc/gen

# Without bytecode every start of a daemon compiles what it imports, which takes seconds.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH
unexport PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PIP := $(BIN)/python -m pip -qq

.PHONY: help env demo test proofs zephyr chaos everywhere fuzz check lint types imports protos format generate lock clean
.DELETE_ON_ERROR:

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

env: $(READY)  ## make the environment in .venv

demo: $(READY)  ## count the words of the standard library on a cluster of this machine
	@$(BIN)/python examples/wordcount.py $(ARGS)

test: $(READY)  ## the tests (ARGS="-k name" for some of them); what needs Docker or root is skipped where it is missing
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist worksteal -m "not proof" $(ARGS)

proofs: $(READY)  ## the tests that kill, cut and flood, and those of whole deployments: minutes
	$(BIN)/python -m pytest -n $(PROOF_JOBS) --dist worksteal -m proof $(ARGS)

zephyr: $(READY)  ## Zephyr and fray's own tests on Fluster, with processes killed: minutes
	tools/zephyr-env
	ZEPHYR_LONG=1 $(BIN)/python -m pytest tests/integrations $(ARGS)

# One after the other, each beside nothing else: what they measure is the machine's.
chaos: $(READY)  ## the long form of kills, crashes, deaths, power cuts and network faults: hours; shorter; see docs/reliability.md
	FLUSTER_CHAOS_ROUNDS=$(KILLS) FLUSTER_CHAOS_LOSSES=$(LOSSES) FLUSTER_CHAOS_LAUNCHES=$(LAUNCHES) \
	  $(BIN)/python -m pytest -s tests/e2e/test_chaos.py tests/e2e/test_chaos_running.py $(ARGS)
	FLUSTER_ESCAPES=$(ESCAPES) $(BIN)/python -m pytest tests/worker/process/test_escape.py $(ARGS)
	FLUSTER_CRASH_ROUNDS=$(CRASHES) $(BIN)/python -m pytest -s tests/e2e/test_crash_points.py $(ARGS)
	FLUSTER_DEATHS=$(DEATHS) $(BIN)/python -m pytest -s tests/e2e/test_last_lines.py $(ARGS)
	FLUSTER_CROWD=10000 $(BIN)/python -m pytest tests/cluster/controller/test_crowds.py $(ARGS)
	POWER_CUTS=$(CUTS) $(BIN)/python -m pytest tests/cluster/controller/test_store_faults.py $(ARGS)
	FLUSTER_NETWORK_ROUNDS=$(FAULTS) $(BIN)/python -m pytest -s tests/network $(ARGS)

everywhere: $(READY)  ## all tests of jobs and pools on each kind of cluster, containers too: minutes
	FLUSTER_EVERYWHERE=1 $(BIN)/python -m pytest tests/pool tests/e2e/test_job_life.py tests/e2e/test_on_every_kind.py \
	  tests/actor/test_server_life.py -k "docker-" $(ARGS)

fuzz: $(READY)  ## random frames, requests and sequences of them: half an hour (FRAMES=10000 MESSAGES=5000 SEQUENCES=500: seconds)
	$(BIN)/python -u -m tests.fuzz --frames $(FRAMES) --messages $(MESSAGES) --sequences $(SEQUENCES) --seed $(SEED)

check: lint types imports protos  ## everything but the tests (make -k check goes on after the first that fails)
	@tools/check-no-registry

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

imports: $(READY)
	$(BIN)/lint-imports --no-logo

protos: $(READY)
	$(BIN)/buf lint
	@tools/check-generated $(BIN) $(GENERATED)

format: $(READY)  ## format, and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(READY)  ## src/fluster/rpc/gen from proto/
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/buf generate

lock: $(READY)  ## requirements.lock from pyproject.toml (add ARGS=--upgrade for newer versions)
	UV_PYTHON_DOWNLOADS=never $(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal \
	  --python-version 3.11 --generate-hashes --no-header --quiet -o requirements.lock $(ARGS)

clean:  ## remove the environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist

# pip checks every file against the hash in the lock and compiles what it installs; hatchling builds the editable
# install without a network. The mark is written last, so an environment that was cut off is completed next time.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Fluster needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo missing). Name another one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Making the environment in $(VENV) (once) ..." >&2
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) cannot make environments: install its venv module (Debian: python3-venv) and try again." >&2; exit 1; }
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q src
	@touch $(READY)
