# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= runs/demo

.PHONY: demo test slow check clean

demo: $(INSTALLED)  ## teacher -> pruned -> healed -> report, on this machine, with nothing else
	$(BIN)/compress demo --out $(RUN)

test: $(INSTALLED)  ## the default suite: CPU, no network, warnings are errors
	$(BIN)/python -m pytest

slow: $(INSTALLED)  ## the long tests; those that need ../shared/data say so and skip without it
	$(BIN)/python -m pytest -m slow

check: $(INSTALLED)  ## everything a change must pass: format, lint, strict types, tests
	$(BIN)/pre-commit run --all-files
	$(BIN)/python -m pytest

clean:  ## remove the virtual environment and caches; runs/ stays
	rm -rf $(VENV) .typecheck .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info

# torch goes first and alone: with it in place, no other package pulls another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
