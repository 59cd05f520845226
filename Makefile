# make run         trains the quickstart job on this machine and shows a recovery
# make test        what CI runs: format, lint, types, import contracts and tests, under 30 minutes on two cores
# make test-all    make test, then the proofs that it leaves out because they only repeat at full size or at length
#                  what its tests show, then make test-kube and make test-sim
# make test-kube   the end-to-end suite against our double of the API server, with its tests of minutes and its proofs;
#                  KUBECONFIG=FILE runs it against a real API server
# make test-sim    20,000 seeds of random faults against the simulated cluster
# make bench       the figures of restarts and detection in the README
# make help        this list
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.test-installed

.PHONY: help install run test test-all lint test-kube test-sim bench proto clean

install: $(STAMP)

help:
	@sed -n 's/^# make/make/p; s/^#  / /p' Makefile

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "make: Python 3.11, 3.12 or 3.13 is needed; set PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,kernels]'
	@touch $@

run: $(STAMP)
	$(BIN)/megascale run examples/quickstart.yaml

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests that depend on the times of the processes they start come after the others and one by one.
test: $(TEST_STAMP) lint
	@ended=0; set -x; \
	$(BIN)/pytest -m 'not minutes and not proof and not multiprocess' -n 2 --durations=20 || ended=1; \
	$(BIN)/pytest -m 'not minutes and not proof and multiprocess' --durations=20 || ended=1; \
	exit $$ended

test-all: test
	$(BIN)/pytest -m proof --ignore tests/kube/e2e --durations=20
	$(MAKE) test-kube
	$(MAKE) test-sim

# Only a file given on this command line counts: one in the environment must not send tests to somebody's cluster.
test-kube: $(STAMP)
	$(BIN)/pytest tests/kube/e2e -m '' --slots 60 $(if $(filter command line,$(origin KUBECONFIG)),--kubeconfig $(KUBECONFIG))

test-sim: $(STAMP)
	$(BIN)/python -m megascale.sim.explore --seeds 20000 --jobs 2

bench: $(STAMP)
	$(BIN)/python benchmarks/restart.py --shared-store --write
	$(BIN)/python benchmarks/detect.py

proto: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. megascale/rpc/megascale.proto

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
