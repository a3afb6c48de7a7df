# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= runs/demo
BENCH_VENV := .venv-bench
BENCH_BIN := $(BENCH_VENV)/bin
BENCH_OPTIONS ?=
# Two tests at a time, each on one thread; whoever has done its half takes of the other's.
TWO := -n 2 --dist worksteal

.PHONY: demo test slow lint check bench bench-quick gpu-wheels clean

demo: $(INSTALLED)  ## teacher -> pruned -> healed -> report, on this machine, with nothing else
	$(BIN)/compress demo --out $(RUN)

test: $(INSTALLED)  ## the default suite: CPU, no network, warnings are errors
	$(BIN)/python -m pytest $(TWO)

slow: $(INSTALLED)  ## the long tests; those that need ../shared/data or a package index skip without it
	$(BIN)/python -m pytest -m slow

lint: $(INSTALLED)  ## format, lint, strict types, and which floor imports which
	$(BIN)/pre-commit run --all-files

check: lint  ## for a small change: lint, and the tests that take no second
	$(BIN)/python -m pytest $(TWO) --quick

bench: $(BENCH_VENV)/.installed  ## loss and training step against the peers: hours, on a quiet machine; goes on if stopped
	$(BENCH_BIN)/python benchmarks/loss.py $(BENCH_OPTIONS)
	$(BENCH_BIN)/python benchmarks/step.py $(BENCH_OPTIONS)

bench-quick: $(BENCH_VENV)/.installed  ## the same on tiny models, a few minutes: does every peer still run?
	$(BENCH_BIN)/python benchmarks/loss.py --smoke $(BENCH_OPTIONS)
	$(BENCH_BIN)/python benchmarks/step.py --smoke $(BENCH_OPTIONS)

gpu-wheels: $(INSTALLED)  ## what a bare GPU machine without a network lacks, into .whl/, for benchmarks/gpu.sh
	PYTHON=$(BIN)/python bash benchmarks/gpu_wheels.sh

clean:  ## remove the virtual environments and caches; runs/ stays
	rm -rf $(VENV) $(BENCH_VENV) .typecheck .mypy_cache .ruff_cache .pytest_cache build dist *.egg-info

# torch goes first and alone: with it in place, no other package pulls another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

# torchtune needs an older torchao than the one our own options are tested with.
$(BENCH_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH_VENV)
	grep -v '^torchao==' constraints.txt >$(BENCH_VENV)/constraints.txt
	$(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(BENCH_VENV)/constraints.txt torch
	$(BENCH_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(BENCH_VENV)/constraints.txt --editable '.[bench]'
	touch $@
