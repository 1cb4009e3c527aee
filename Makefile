# Everything that a person or a CI needs. Each target works alone, in a fresh clone.
PYTHON ?= python3
BIN := .venv/bin
ACTIVATED := PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.PHONY: help install demo test check fmt mutants simulate soak datasets clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 16

install: .venv/installed ## Create .venv with darkroom and the tested versions of its dependencies

demo: .venv/installed ## Run configs/demo.yaml on a local Ray, and print where its images are
	@$(BIN)/darkroom run configs/demo.yaml

# Without byte code, each of the hundreds of processes that tests start would compile the same modules.
test: .venv/installed-test ## Run every test
	@$(ACTIVATED) PYTHONDONTWRITEBYTECODE= python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

check: .venv/installed-test ## Check format, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fmt: .venv/installed-test ## Format the code, and fix what lint can fix
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

mutants: .venv/installed-test ## Plant mistakes, and print which test notices each (N=12: a random dozen)
	@$(ACTIVATED) python -m tools.mutants --num $(or $(N),0)

simulate: .venv/installed-test ## Run jobs in simulated time, and plant bugs that must be found (SEEDS=10000)
	@$(ACTIVATED) python -m tests.support.simulation.simulate --seeds $(or $(SEEDS),10000)

soak: .venv/installed-test ## Run one job on a real store and a real Ray under all kinds of failures
	@$(ACTIVATED) python -m tests.support.simulation.soak

# Lists of images have another type since 4.0.
OTHER_DATASETS := 3.6.0 4.0.0 4.4.0

datasets: .venv/installed-test $(OTHER_DATASETS:%=.venv/datasets-%/installed) ## Open outputs with older releases of datasets
	@$(ACTIVATED) DATASETS_PYTHONS=$(subst $() ,:,$(strip $(OTHER_DATASETS:%=.venv/datasets-%/bin/python))) \
		python -m pytest tests/output/test_opened_elsewhere.py

.venv/datasets-%/installed:
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet datasets==$* pillow
	@touch $@

clean: ## Remove .venv and the output of the demo
	rm -rf .venv out

.venv/installed: pyproject.toml constraints.txt
	@echo "installing darkroom into .venv (the first time takes some minutes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-test: .venv/installed
	@echo "installing the dependencies of the tests"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	@touch $@
