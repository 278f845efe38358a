PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo space test test-slow lint bench

help: ## show these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(STAMP) ## train on synthetic posts, then tag held-out ones in a new process (minutes)
	$(BIN)/python train.py configs/demo.yaml --overwrite_output_dir
	$(BIN)/python -m examples.demo outputs/demo/model

space: $(STAMP) ## the demo page on the demo model, at http://127.0.0.1:7860
	test -f outputs/demo/model/README.md || $(MAKE) demo
	HAMLEARNING_MODEL=outputs/demo/model $(BIN)/python hub_scripts/space/app.py

lint: $(STAMP) ## ruff check, format check, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell $$(git ls-files '*.py' '*.md' '*.yaml')

test: lint ## everything that has to hold, in minutes
	$(BIN)/python -m pytest --durations=15

test-slow: $(STAMP) ## what takes longer
	$(BIN)/python -m pytest -m slow

bench: $(STAMP) ## what the model costs above its two encoders (BENCH="--rounds 5 …" for options)
	$(BIN)/python -m benchmarks.speed $(BENCH)
