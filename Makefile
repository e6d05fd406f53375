# Everything starts here: each target first sets up whatever is missing (scripts/setup.sh), then does its work.

PYTHON := .venv/bin/python
# Options for the demo and for pytest: make demo DEMO_ARGS="--seed=1", make test PYTEST_ARGS="-k solvers".
DEMO_ARGS ?=
PYTEST_ARGS ?=

# Nothing that runs here may reach for the network, and two cores are shared by torch and the tokenizers.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo figures test test-slow test-browser docs-check check format lint types contracts docstrings lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

setup: ## set up .venv with all that is needed (does nothing where that is done)
	@sh scripts/setup.sh

demo: setup ## reflow the small teacher that ships with the repository; results in outputs/demo, demo-2, ...
	@dir=outputs/demo; n=1; \
	while [ -e "$$dir" ]; do n=$$((n + 1)); dir=outputs/demo-$$n; done; \
	.venv/bin/chordflow demo --output_dir="$$dir" $(DEMO_ARGS)

figures: setup ## make every published figure of the demo anew (with Chromium), then look at them and commit them
	@sh scripts/setup_browser.sh
	@$(PYTHON) scripts/figures.py

test: setup ## run the tests in two processes, but for the slow ones, those of documents and those that need a browser
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m "not slow and not browser and not docs" $(PYTEST_ARGS)

test-slow: setup ## run the slow tests
	@$(PYTHON) -m pytest -m slow $(PYTEST_ARGS)

test-browser: setup ## open reports in headless Chromium (sets it up: Debian's chromium, playwright-core and axe-core)
	@sh scripts/setup_browser.sh
	@$(PYTHON) -m pytest -m browser $(PYTEST_ARGS)

docs-check: setup ## compare the documents with the results, the code and each other
	@$(PYTHON) -m pytest -m docs $(PYTEST_ARGS)

check: setup lint types contracts docstrings docs-check test ## all that CI checks: format, lint, types, contracts, docstrings, documents, tests

lint: setup
	@.venv/bin/ruff format --check --output-format=concise
	@.venv/bin/ruff check --output-format=concise

types: setup
	@.venv/bin/mypy

contracts: setup
	@.venv/bin/lint-imports --no-logo

docstrings: setup
	@.venv/bin/interrogate src packages

format: setup ## put the code in shape and repair what a tool can repair
	@.venv/bin/ruff check --fix --exit-zero --quiet
	@.venv/bin/ruff format

lock: setup ## remake requirements.lock from pyproject.toml
	@sh scripts/lock.sh
