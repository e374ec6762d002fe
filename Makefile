# Two commands: `make demo` and `make test`. Each sets everything up first: a virtual environment, .venv with torch 1.13
# and k2, or .venv-torch2 with torch 2.x. STACK= names which; else tools/choose_stack.sh does.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help venv kaldifeat demo lint test test-slow test-all clean

STACK ?=
PYTHON ?=
ARGS ?=
WORKERS ?= 2
recipe := egs/librispeech/twopass_kd
# Asked for once, and only by targets that need it.
stack = $(eval stack := $(or $(STACK),$(shell PYTHON='$(PYTHON)' tools/choose_stack.sh)))$(stack)
venv = $(if $(filter torch2,$(stack)),.venv-torch2,.venv)
py = $(venv)/bin/python
# Tests of one file share what they make, so they run on one worker; the files in the order of their names.
pytest = $(py) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

# Threads that wait must sleep: with the default, two torch threads spin against each other as soon as
# anything else uses a core.
export OMP_WAIT_POLICY ?= PASSIVE

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /  make \1\t/p' Makefile
	@echo '  STACK=k2 is torch 1.13.1 and k2 in .venv, for Python 3.10 and 3.11 and GPUs up to compute capability 8.9;'
	@echo '  STACK=torch2 is torch 2.x without k2 in .venv-torch2, for Python 3.10 to 3.13 and newer GPUs;'
	@echo '  without STACK= it is k2 where that can be, else torch2: a line says which and why'
	@echo '  PYTHON=/path/to/python3.11 picks the interpreter'

venv:  ## make the stack's virtual environment from requirements/ (does nothing when it is up to date)
	@STACK='$(stack)' PYTHON='$(PYTHON)' tools/make_venv.sh

kaldifeat: venv  ## compile kaldifeat (the features of k2's recipes) for the torch in .venv; optional, needs a C++ compiler
	@tools/build_kaldifeat.sh $(py)

demo: venv  ## train a teacher, distil a student in three stages, decode, print the table (ARGS= goes to run.sh)
	@PATH="$$PWD/$(venv)/bin:$$PATH" $(recipe)/run.sh --conf mini $(ARGS)

lint: venv  ## ruff and its format, import-linter, shellcheck
	@$(py) -m ruff check .
	@$(py) -m ruff format --check --quiet .
	@PYTHONPATH=$(recipe) $(venv)/bin/lint-imports --no-logo --no-cache
	@find . -path './.venv*' -prune -o -type f \( -name '*.sh' -o -path ./.ci/run \) -print0 | xargs -0 $(venv)/bin/shellcheck -x

test: lint  ## lint, then the quick tests: minutes on two cores (WORKERS=2 of pytest-xdist; ARGS= goes to pytest)
	@$(pytest) -m 'not slow' $(ARGS)

test-slow: venv  ## the slow tests: Slurm, killed trainings, full sizes, a browser (installs Slurm and Chromium where it is root)
	@tests/install_programs.sh
	@$(pytest) -m slow $(ARGS)

# Rooms whose code is the same whatever torch is; `make test STACK=torch2` has them.
torchless := $(addprefix --ignore=tests/unit/,config files local report scoring stages tools)
test-all: test test-slow  ## all tests; where the stack is k2, those of models and the full sizes on torch2 as well
	@[ $(stack) = torch2 ] || $(MAKE) test STACK=torch2 ARGS='$(ARGS) $(torchless)'
	@[ $(stack) = torch2 ] || $(MAKE) test-slow STACK=torch2 ARGS='$(ARGS) tests/integration/test_full_size.py'

clean:  ## remove both environments and caches (not what runs made: download/, data/, exp/)
	@rm -rf .venv .venv-torch2 .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
