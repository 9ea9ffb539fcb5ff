# `make help` lists the targets. VENV=path uses an environment in another place.
VENV ?= .venv
BENCH ?= .venv-bench
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := $(abspath $(VENV))/bin
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install run repro test test-all schedule serve audit fuzz ui peers bench soak evidence seeds lock deps rooms clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || grep '##' $(MAKEFILE_LIST)

install: ## create or update the environment from requirements.lock
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh scripts/install.sh

run: install ## run the whole pipeline as a Prefect flow
	@python -m flows.pipeline $(ARGS)

repro: install ## run the same pipeline with `dvc repro`
	@python -m flows.repair && dvc repro $(ARGS)

# The tests run in up to 4 processes, one a core; each process takes 2 to 4 GB.
PYTEST := pytest -q -n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder

test: install ## run the linter, the type checker and the tests
	ruff check .
	ruff format --check .
	@said=$$(mktemp); mypy >"$$said" 2>&1 & types=$$!; trap 'kill $$types; exit 130' INT; \
	echo '$(PYTEST) -m "not e2e"'; $(PYTEST) -m "not e2e"; tests=$$?; \
	wait $$types; types=$$?; echo mypy; cat "$$said"; rm "$$said"; exit $$((tests || types))

test-all: test ## run those, and the end-to-end tests: server, worker, schedule, browser
	$(PYTEST) -m e2e

fuzz: install ## fuzz every reader and the decoder, a minute each way and target (about 15 minutes)
	@python -m tests.fuzz --seconds 60
	@FUZZ_EXAMPLES=15000 pytest -q tests/test_fuzz.py -k "not guided"

ui: install ## serve MLflow's and Prefect's UIs on loopback, until Ctrl-C
	@python -m flows.ui

schedule: install ## run Prefect's server, a worker and the deployments of prefect.yaml on loopback, until Ctrl-C
	@python -m flows.schedule

serve: install ## serve the champion over HTTP on loopback, until Ctrl-C
	@python -m flows.serve $(ARGS)

audit: install ## look up known vulnerabilities of everything in requirements.lock (asks pypi.org)
	@pip-audit -r requirements.lock --disable-pip

peers: ## create or update the benchmarks' environment from bench/requirements.lock (fastai, timm)
	@PYTHON="$(PYTHON)" VENV="$(BENCH)" LOCK=bench/requirements.lock sh scripts/install.sh

bench: peers ## run every benchmark, those of fastai and timm too (about 3 hours)
	@for name in precompute head recipe tail depthwise cache scan duplicates overhead neighbours predict serving columns tabular targets; do $(BENCH)/bin/python -m bench.$$name || exit; done

soak: install ## kill, damage, fill and crowd small projects in random order, and check that nothing is lost (about 2 hours, as root)
	@python -m bench.soak $(ARGS)

evidence: install ## measure accuracy over seeds; write docs/views.md, bn_freeze.md, recipe.md, rates.md (about 110 minutes)
	@python -m bench.views --seeds 5 > docs/views.md
	@python -m bench.bn_freeze > docs/bn_freeze.md
	@python -m bench.steps > docs/recipe.md
	@python -m bench.rates > docs/rates.md

seeds: install ## measure the default's test accuracy over 5 seeds (about 8 minutes)
	@python -m bench.seeds

lock: ## compile requirements.lock from pyproject.toml (needs uv; it installs nothing)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-strip-extras --extra dev pyproject.toml \
	  --custom-compile-command "make lock" --output-file requirements.lock
	python3 scripts/lock.py requirements.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-strip-extras --extra bench pyproject.toml \
	  --constraint requirements.lock --custom-compile-command "make lock" --output-file bench/requirements.lock
	python3 scripts/lock.py bench/requirements.lock

deps: install ## write each stage's code dependencies, found from the imports, into dvc.yaml
	@python scripts/code_deps.py

rooms: install ## draw docs/rooms.svg: which folder of the code imports which
	@python scripts/rooms.py

clean: ## list and delete what the stages wrote, and .headstart; MLflow's records, DVC's cache and your own files stay (ARGS=--dry-run only lists)
	@python -m flows.clean $(ARGS)
