.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: help demo serve test test-clients lint types fences unit chaos soak format openapi benchmark model clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/serve ## send examples/input.png through the whole service and write demo-output.png
	$(BIN)/img2img demo

serve: $(VENV)/serve ## run the whole service at http://127.0.0.1:8000 until Ctrl-C
	$(BIN)/img2img serve

test: lint types fences unit ## lint, types, import fences and all tests

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/mypy

fences: $(VENV)/dev
	$(BIN)/lint-imports

unit: $(VENV)/dev
	$(BIN)/python -m pytest

test-clients: $(VENV)/dev .clients/ready ## let clients that four generators make use the service (needs Java 11 and Node 20.19)
	$(BIN)/python -m pytest tests/clients

.clients/ready: $(wildcard tests/clients/requirements.txt tests/clients/package*.json)
	$(PYTHON) -m venv .clients
	.clients/bin/pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
	cp tests/clients/package.json tests/clients/package-lock.json tests/clients/.npmrc .clients/
	if command -v npm >/dev/null; then cd .clients && npm ci --silent; fi
	@touch $@

chaos: $(VENV)/dev ## a thousand jobs while everything is killed, paused and cut off (minutes; the full disk needs root)
	$(BIN)/python -m tests.chaos

soak: $(VENV)/dev ## half an hour of load at 80 % of capacity: memory, threads and connections must stay flat
	$(BIN)/python -m benchmarks.soak

format: $(VENV)/dev ## put the code into the form that lint wants
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/dev ## write openapi.json, which a test compares with what the service says
	$(BIN)/python -m app.document

benchmark: $(VENV)/dev ## measure throughput, submit cost and ETAs on this machine (minutes)
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.submit
	$(BIN)/python -m benchmarks.eta

model: $(VENV)/dev ## train the demo model from nothing (hours on two cores, minutes on a GPU; resumes)
	$(BIN)/python -m demo_model.train

clean: ## remove the virtual environment and what the demo left behind
	rm -rf $(VENV) .clients demo-output.png

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/serve: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) '.[serve]'
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) '.[dev]'
	@touch $@ $(VENV)/serve
