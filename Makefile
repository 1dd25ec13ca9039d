# The everyday commands; people and CI run the same. `make help` lists them.

PYTHON ?= python3
CORPUS ?=
RECIPE ?= small
SET ?=
PORT ?= 4200

# A folder of corpora beside the checkout stands in for the network (layout: <corpus>/<file name>).
ifneq ($(wildcard ../shared/corpora),)
export CORPORA_MIRROR ?= $(abspath ../shared/corpora)
endif

# Python keeps what it compiled beside each module in .venv; without this, each process compiles a thousand modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help train plan test pytest slow faults lint up install clean

help: ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo
	@echo "  make train CORPUS=three-kingdoms RECIPE=bpe SET='steps=500 learning_rate=0.002'"

train: .venv/installed ## corpus -> vocabulary -> shards -> GPT -> evaluation -> report -> champion
	@.venv/bin/bard train $(CORPUS) --recipe $(RECIPE) $(foreach change,$(SET),--set $(change))

plan: .venv/installed ## what such a training takes: memory by part, time, disk, and the same on rented graphics cards
	@.venv/bin/bard plan $(CORPUS) --recipe $(RECIPE) $(foreach change,$(SET),--set $(change))

up: .venv/installed ## server with UI, worker and all deployments; Ctrl-C stops all of it
	@.venv/bin/bard up --port $(PORT)

test: .venv/installed-dev ## lint, types and tests, at the same time
	@$(MAKE) --no-print-directory --jobs=2 lint pytest

pytest: .venv/installed-dev
	@.venv/bin/python -m pytest

slow: .venv/installed-dev ## tests that take seconds each: flows again and again, many processes, large inputs (minutes)
	@.venv/bin/python -m pytest -m 'slow and not faults'

faults: .venv/installed-dev ## tests that kill processes, fill disks and start other servers (several minutes)
	@.venv/bin/python -m pytest -m faults

lint: .venv/installed-dev ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

install: .venv/installed ## only make .venv and install the project into it

clean: ## remove .venv (not the artifacts, which lie in .bardflow)
	rm -rf .venv

.venv/installed: pyproject.toml constraints.txt install.sh
	@PYTHON='$(PYTHON)' ./install.sh
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt install.sh
	@PYTHON='$(PYTHON)' ./install.sh dev
	@touch .venv/installed $@
