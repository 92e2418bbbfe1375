# Two commands: `make serve` and `make test`. Each installs what it needs into .venv first.

# MindQuantum, the reference that tests compare with, has wheels for 3.11 and none for newer versions.
PYTHON ?= $(or $(shell command -v python3.11),python3)
HOST ?= $(or $(QD_HOST),127.0.0.1)
PORT ?= $(or $(QD_PORT),8000)
DATA ?= ../shared/data
CELLS ?= docs/study/cells.json
TASKS := emotion hiding thematic

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
SERVE := $(VENV)/.installed-serve
DEV := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help install serve test check format bench-student bench-embedder bench-cost bench-hardware bench-operating readme dashboards \
  image-check screenshots embedder adapted adapted-large study report bundles evaluate lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(DEV) ## install what serving, training and the tests need

serve: $(SERVE) ## start the service on HOST:PORT (127.0.0.1:8000)
	@$(BIN)/qdserve serve --host $(HOST) --port $(PORT)

test: $(DEV) ## run the tests
	@$(BIN)/python -m pytest

check: $(DEV) ## lint, format check, strict typing, import contract, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest --quiet tests/test_imports.py
	@$(BIN)/python -m benchmarks.readme --check
	@$(BIN)/python -m deploy.generate --check

format: $(DEV) ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench-student: $(DEV) ## time engines and training circuit against MindQuantum, in one run (JSON=FILE keeps figures)
	@$(BIN)/python -m benchmarks.student $(if $(JSON),--json $(JSON))

bench-embedder: $(DEV) ## measure what int8 costs and gains, on the texts in DATA
	@$(BIN)/python -m benchmarks.embedder $(DATA) $(if $(JSON),--json $(JSON))

bench-cost: $(DEV) ## measure how parameters, training and inference grow with the number of qubits (JSON=FILE keeps figures)
	@$(BIN)/python -m benchmarks.cost $(if $(JSON),--json $(JSON))

bench-hardware: $(DEV) ## measure what the chip's noise costs in accuracy, on 200 texts of each task in DATA
	@$(BIN)/python -m benchmarks.hardware $(DATA) $(if $(JSON),--json $(JSON))

bench-operating: $(DEV) ## switch a task between backends under load, on the texts in DATA (JSON=FILE, PICTURES=FOLDER)
	@$(BIN)/python -m benchmarks.operating $(DATA) $(if $(JSON),--json $(JSON)) $(if $(PICTURES),--pictures $(PICTURES))

dashboards: $(DEV) ## write what Grafana and Prometheus read anew from deploy/*.py
	@$(BIN)/python -m deploy.generate

image-check: $(DEV) ## carry out the Dockerfile's steps in a clean folder and check what comes of them (JSON=FILE)
	@$(BIN)/python -m deploy.image $(if $(JSON),--json $(JSON))

screenshots: $(DEV) ## take pictures of the console of the service at HOST:PORT into OUT (docs)
	@$(BIN)/python -m benchmarks.screenshots http://$(HOST):$(PORT) $(or $(OUT),docs)

readme: $(DEV) ## make the README's tables anew from what was measured
	@$(BIN)/python -m benchmarks.readme

embedder: $(DEV) ## export the shipped embedder from the registry package's weights
	@$(BIN)/qdtrain export-embedder minilm-l6 models/embedders/minilm-l6

adapted: $(DEV) ## adapt the encoder to all tasks from their teachers and export it (an hour)
	@$(BIN)/qdtrain adapt training/configs/adapt.toml --data $(DATA) --out .cache/minilm-l6-adapted
	@$(BIN)/qdtrain export-embedder .cache/minilm-l6-adapted models/embedders/minilm-l6-adapted

adapted-large: $(DEV) ## adapt a larger encoder likewise; no shipped student reads it (an hour; README.md says what it needs)
	@$(BIN)/qdtrain adapt training/configs/adapt-mpnet.toml --data $(DATA) --out .cache/mpnet-l6-adapted
	@$(BIN)/qdtrain export-embedder .cache/mpnet-l6-adapted .cache/embedders/mpnet-l6-adapted

study: $(DEV) ## run the cells of the study that CELLS has no results of (docs/study/cells.json), and add theirs
	@$(BIN)/qdtrain study training/configs/study.toml --data $(DATA) --final --export $(CELLS)

report: $(DEV) ## write the study's tables and plots from the results in CELLS
	@$(BIN)/qdtrain report --cells $(CELLS)

bundles: $(DEV) ## make the shipped bundles anew from the texts in DATA (an hour or two of teaching)
	@for task in $(TASKS); do \
	  $(BIN)/qdtrain distil training/configs/$$task.toml --data $(DATA)/$$task --out models/bundles/$$task --final || exit; \
	done

evaluate: $(DEV) ## measure the shipped bundles on the test texts in DATA
	@for task in $(TASKS); do $(BIN)/qdtrain evaluate models/bundles/$$task $(DATA)/$$task/test.csv || exit; done

lock: $(DEV) ## make the lock files anew
	@requirements/lock

clean: ## remove the environment and every cache but .cache (teachers, runs)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"expected Python 3.11 or newer, found {sys.version.split()[0]}; set PYTHON=")'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# Every lock file is complete, so nothing is resolved here: --no-deps installs exactly what it lists.
$(SERVE): requirements/serve.txt requirements/emulator.txt requirements/emulator-no-deps.txt pyproject.toml | $(BIN)/pip
	@echo "installing what serving and the emulator need"
	@$(PIP) install --no-deps --require-hashes -r requirements/serve.txt
	@$(PIP) install --no-deps --require-hashes -r requirements/emulator.txt
	@$(PIP) install --no-deps --require-hashes -r requirements/emulator-no-deps.txt
	@$(PIP) --quiet install --no-deps --no-build-isolation --editable .
	@touch $@

# torch's wheel differs between a CPU-only and a CUDA machine, so it is pinned by version and not by hash.
$(DEV): requirements/dev.txt requirements/no-deps.txt $(SERVE)
	@echo "installing what training and the tests need"
	@$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	@$(PIP) install --no-deps --require-hashes -r requirements/no-deps.txt
	@$(PIP) install torch==2.13.0
	@touch $@
