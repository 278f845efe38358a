PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
# Two processes, of one thread each so that they do not hinder each other. A file's tests stay together, because they share what
# is costly to make.
TESTS := -m pytest --numprocesses 2 --dist loadfile --durations=15

.DEFAULT_GOAL := help
.PHONY: help demo space test test-slow test-lowest lint bench

help: ## show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# torch comes first and alone, so that its own choice of CUDA or CPU stands.
$(VENV)/.installed: setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(LOWEST)/.installed: setup.py
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip
	$(LOWEST)/bin/python -m pip install --quiet --editable '.[dev,lowest]'
	touch $@

demo: $(VENV)/.installed ## train on synthetic posts, then tag held-out ones in a new process (minutes)
	$(BIN)/python train.py configs/demo.yaml --overwrite_output_dir
	$(BIN)/python -m examples.demo outputs/demo/model

space: $(VENV)/.installed ## the demo page on the demo model, at http://127.0.0.1:7860
	test -f outputs/demo/model/README.md || $(MAKE) demo
	HAMLEARNING_MODEL=outputs/demo/model $(BIN)/python hub_scripts/space/app.py

lint: $(VENV)/.installed ## ruff check, format check, spelling, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $$(git ls-files '*.py' '*.md' '*.yaml')
	$(BIN)/mypy

test: lint ## everything that has to hold, in minutes
	OMP_NUM_THREADS=1 $(BIN)/python $(TESTS) $(PYTEST)

test-slow: $(VENV)/.installed ## what takes longer
	$(BIN)/python -m pytest -m slow --durations=15 $(PYTEST)

test-lowest: $(LOWEST)/.installed ## the tests with every lower bound of setup.py installed exactly
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python $(TESTS) $(PYTEST)

bench: $(VENV)/.installed ## what the model costs above its two encoders (BENCH="--rounds 5 …" for options)
	$(BIN)/python -m benchmarks.speed $(BENCH)
