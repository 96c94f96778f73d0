# `make help` explains. Every target that needs it runs the set-up first, which skips what is there.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= /usr/bin/python3
QUICK ?=
# Extra words for pytest and for the experiment, for example PYTEST_ARGS="-x -k rekey".
PYTEST_ARGS ?=
EXPERIMENT_ARGS ?=
# Which seeds `make sim` runs, and what else testbed sim takes, for example SIM_ARGS="--members 10".
SEEDS ?= 1..5000
SIM_ARGS ?=
# How long `make fuzz` goes on, in seconds, and what else tests.fuzz takes, as --target engine-mike.
FUZZ_TIME ?= 600
FUZZ_ARGS ?=
# FRR=no: do not build FRR; black routers then use static multicast routes.
FRR ?=
# Where kernel tests run: auto, native or vm.
ENV ?= auto

VENV := .venv/bin
TESTBED := $(VENV)/testbed
PYTEST := $(VENV)/python -m pytest
IN_ENVIRONMENT := $(VENV)/python -m testbed.environment --env $(ENV)
EXPERIMENT := $(TESTBED) run experiment $(if $(QUICK),--quick) $(EXPERIMENT_ARGS)

# Emulation needs root and namespaces: here if there is root, in the guest if not.
ROOT := $(filter 0,$(shell id -u))
HERE := not kernel and not vm$(if $(ROOT),, and not emulation)
THERE := kernel$(if $(ROOT),, or emulation)

# Pytest's status 5 says that no test was chosen: fine for one group of some chosen tests.
NONE_CHOSEN := { [ $$? = 5 ] && [ -n '$(strip $(PYTEST_ARGS))' ]; }
# Under sudo, what root made goes to the owner of the project; the status stays.
HAND_OVER := status=$$?; testbed/setup/setup.sh owner; exit $$status

.PHONY: help setup check format test test-here test-kernel test-vm fuzz sim experiment bench figures clean distclean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)$$/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@echo
	@echo '  make experiment QUICK=1          a short run'
	@echo '  make test PYTEST_ARGS="-k mike"  some tests'
	@echo '  make setup PYTHON=python3.12     another interpreter for .venv'

setup: ## install Debian packages, the guest's kernel, FRR and .venv, each only if missing
	@PYTHON='$(PYTHON)' FRR='$(FRR)' testbed/setup/setup.sh

check: setup ## style, types and import contracts
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	$(VENV)/lint-imports

format: setup ## put the code into the one style
	$(VENV)/ruff format
	$(VENV)/ruff check --fix

test: setup ## all tests; those that need kernel SAs in one guest where this kernel has none
	@$(MAKE) --keep-going --no-print-directory test-here test-kernel test-vm; $(HAND_OVER)

test-here: setup # everything that needs no kernel SAs
	$(PYTEST) -m '$(HERE)' $(PYTEST_ARGS) || $(NONE_CHOSEN)

test-kernel: setup # everything that needs kernel SAs, in one guest if need be
	$(IN_ENVIRONMENT) -- $(PYTEST) -m '$(THERE)' $(PYTEST_ARGS) || $(NONE_CHOSEN)

test-vm: setup # the guest itself, seen from outside
	$(PYTEST) -m vm $(PYTEST_ARGS) || $(NONE_CHOSEN)

fuzz: setup ## every decoder and engine under hostile input (FUZZ_TIME=600 seconds in sum)
	@$(VENV)/pip install --quiet --only-binary=atheris -e '.[fuzz]' \
		|| echo 'no wheel of atheris for this Python: inputs are damaged at random instead'
	$(VENV)/python -m tests.fuzz --seconds $(FUZZ_TIME) --work .cache/fuzz $(FUZZ_ARGS)

sim: setup ## many seeds of the deterministic simulator on all cores (SEEDS=1..5000)
	$(TESTBED) sim --seeds $(SEEDS) --jobs $$(nproc) $(SIM_ARGS)

experiment: setup ## the main job: joins and leaves measured, figures drawn (QUICK=1: a short run)
	@$(EXPERIMENT); $(HAND_OVER)

bench: setup ## the figures that the project must reach, measured
	$(VENV)/python -m experiments.bench
	$(IN_ENVIRONMENT) -- $(VENV)/python -m experiments.bench --kernel

figures: setup ## draw the latest run's figures again
	$(TESTBED) plot --latest

clean: ## remove what tools and crashed runs left (results and set-up stay)
	[ ! -x $(TESTBED) ] || $(TESTBED) clean
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	rm -rf .cache/vm/runs .cache/vm/compiled
	find protocol testbed topologies experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove the set-up too: .venv, the guest's kernel and image
	rm -rf .venv .cache
