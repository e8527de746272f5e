.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(PYTHON) scripts/install.py
# The earlier release that runs beside this version in some tests.
RELEASE ?= $(shell git describe --tags --abbrev=0 HEAD^ 2>/dev/null)
PYTHON_VERSION = $(shell $(PYTHON) -c 'import platform; print(platform.python_version())')

.PHONY: animation errors release-check sampler-table benchmark-durability help demo serve test test-unit test-clients lint types fences unit format openapi client web test-web screenshots model-keys families docs dist benchmark model gallery test-compose test-hosts test-torch-index test-upgrade test-checkpoints test-wheel test-python benchmark-queue fuzz lock audit chaos soak clean model-schema benchmark-memory benchmark-speed benchmark-gpu benchmark-check

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/serve ## send examples/input.png through the whole service and write demo-output.png
	$(BIN)/img2img demo

serve: $(VENV)/serve ## run the whole service at http://127.0.0.1:8000 until Ctrl-C
	$(BIN)/img2img serve

test: lint types fences unit ## check lint, types and import fences, and run all tests

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/check_language.py

types: $(VENV)/dev
	$(BIN)/mypy

fences: $(VENV)/dev
	$(BIN)/lint-imports

# In one process more than there are cores, because many tests wait. The tests of a file share servers, so they stay together.
# Tests of real processes wait for limited times, which a busy machine can exceed: a failed test is run again, and the report lists it.
unit: $(VENV)/dev
	$(BIN)/python -m pytest --reruns 2 --reruns-delay 2 --rerun-except "from pytest-timeout" --numprocesses $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder

test-unit: $(VENV)/dev ## the fast tests: no Redis, no torch, no processes
	$(BIN)/python -m pytest tests/unit

test-clients: $(VENV)/dev .clients/ready ## test clients generated from openapi.json by four generators (needs Java 11 and Node 20.19)
	$(BIN)/python -m pytest tests/clients

test-compose: $(VENV)/dev ## build the images, run the service in containers and kill some (needs Docker and compose; minutes)
	TEST_COMPOSE=1 $(BIN)/python -m pytest tests/deploy/compose

test-hosts: $(VENV)/dev ## run the service on several network namespaces and disconnect one (needs root and iproute2)
	TEST_HOSTS=1 $(BIN)/python -m pytest tests/deploy/test_hosts.py

test-torch-index: $(VENV)/dev ## install the packages of the worker image with an index that has only torch (asks PyPI; a minute)
	TEST_TORCH_INDEX=1 $(BIN)/python -m pytest tests/deploy/test_torch_index.py

test-upgrade: $(VENV)/dev ## run an earlier release beside this version, in every order; RELEASE=v0.1.0 names it (minutes)
	RELEASE=$(RELEASE) $(BIN)/python -m pytest tests/deploy/test_upgrade.py

test-checkpoints: $(VENV)/dev ## serve checkpoints of full size that have random weights (7 GB of disk, 16 GB of memory; minutes)
	TEST_CHECKPOINTS=1 $(BIN)/python -m pytest -s tests/e2e/test_full_size_checkpoints.py

test-wheel: $(VENV)/dev ## install the built wheel in an empty environment and run the service from it (asks PyPI; minutes)
	TEST_WHEEL=1 $(BIN)/python -m pytest tests/deploy/test_wheel.py

test-python: ## install with another Python and run the fast tests and the demo: make test-python PYTHON=python3.14
	$(INSTALL) dev .pythons/$(PYTHON_VERSION)
	.pythons/$(PYTHON_VERSION)/bin/python -m pytest tests/unit
	.pythons/$(PYTHON_VERSION)/bin/img2img doctor
	cd .pythons && $(PYTHON_VERSION)/bin/img2img demo

.clients/ready: $(wildcard tests/clients/requirements.txt tests/clients/package*.json)
	$(PYTHON) -m venv .clients
	.clients/bin/pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
	cp tests/clients/package.json tests/clients/package-lock.json tests/clients/.npmrc .clients/
	if command -v npm >/dev/null; then cd .clients && npm ci --silent; fi
	@touch $@

fuzz: $(VENV)/dev ## send 10,000 fuzzed inputs to the API server (minutes); FUZZ_SEED=n selects others
	FUZZ_INPUTS=$${FUZZ_INPUTS:-10000} $(BIN)/python -m pytest -s tests/http/test_fuzz.py

chaos: $(VENV)/dev ## run a thousand jobs under faults, then under failovers of Redis beside an earlier RELEASE (minutes; some need root and cc)
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.chaos --store bucket --jobs 300 --kills 16
	$(BIN)/python -m tests.chaos --redis sentinel --kills 32 $(if $(RELEASE),--release $(RELEASE))

soak: $(VENV)/dev ## run at 80 % of capacity for half an hour: memory, threads and connections must stay flat
	$(BIN)/python -m benchmarks.soak

format: $(VENV)/dev ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

openapi: $(VENV)/dev ## write openapi.json from the API server
	$(BIN)/python -m img2img.app.cli.openapi

client: $(VENV)/dev ## write the generated files of img2img/client
	$(BIN)/python scripts/generate_client.py

web: web/node_modules/ready ## check and build the page in web/ into app/playground/static (needs Node 20.19)
	cd web && npm run build && npm run lint && npm test

test-web: $(VENV)/dev ## test the page in a browser, against the whole service (needs Chromium)
	$(BIN)/python -m pytest tests/web

screenshots: $(VENV)/dev ## take the images of the page in docs/images, with the whole service (needs Chromium)
	$(BIN)/python -m scripts.screenshots

animation: $(VENV)/dev ## record the animation of the page in docs/images, with the whole service (needs Chromium)
	$(BIN)/python -m scripts.animation

web/node_modules/ready: web/package.json web/package-lock.json
	cd web && npm ci --silent
	@touch $@

model-keys: $(VENV)/dev ## write the tables of keys in docs/models.md
	$(BIN)/python -m scripts.model_keys

sampler-table: $(VENV)/dev ## write the tables in docs/schedulers.md
	$(BIN)/python -m scripts.sampler_table

families: $(VENV)/dev ## run every pipeline class of diffusers that takes an image, and write docs/families.md (minutes)
	$(BIN)/python -m scripts.families

errors: $(VENV)/dev ## write docs/errors.md from the error codes of the service
	$(BIN)/python -m scripts.error_reference

model-schema: $(VENV)/dev ## write docs/models.schema.json from the keys of a model
	$(BIN)/python -m scripts.model_schema

lock: .locks/ready ## write requirements/: the versions of constraints.txt with the hashes of their files (asks PyPI)
	for extra in api worker dev; do \
	  .locks/bin/uv pip compile pyproject.toml --extra $$extra --extra otel --constraint constraints.txt --universal --python-version 3.11 \
	    --generate-hashes --no-annotate --custom-compile-command "make lock" --quiet --output-file requirements/$$extra.txt; \
	done

audit: .locks/ready ## look up known vulnerabilities of the packages in requirements/ (asks PyPI)
	.locks/bin/pip-audit --requirement requirements/dev.txt --require-hashes --disable-pip --strict --progress-spinner off

.locks/ready: Makefile
	$(PYTHON) -m venv .locks
	.locks/bin/pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1
	@touch $@

docs: $(VENV)/dev ## build the documentation as a site in site/, and check its links and its language
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	$(BIN)/python -m pytest tests/unit/test_docs.py
	$(BIN)/python scripts/check_language.py

dist: $(VENV)/dev ## build the wheel and the source distribution into dist/
	rm -rf build dist
	$(BIN)/python -c "from setuptools import build_meta as backend; backend.build_sdist('dist'); backend.build_wheel('dist')"

release-check: $(VENV)/dev ## build and try everything that a release has: docs/releasing.md (asks PyPI; minutes)
	$(BIN)/python -m scripts.release_check

benchmark: $(VENV)/dev ## measure throughput, latencies and ETAs on this machine (a quarter of an hour)
	$(BIN)/python -m benchmarks.throughput
	$(BIN)/python -m benchmarks.submit
	$(BIN)/python -m benchmarks.eta
	$(BIN)/python -m benchmarks.preemption
	$(BIN)/python -m benchmarks.followers

benchmark-durability: $(VENV)/dev ## measure price and loss of each IMG2IMG_DURABILITY (a quarter of an hour, needs cc)
	$(BIN)/python -m benchmarks.durability

benchmark-memory: $(VENV)/dev ## measure memory and loss of dtype, quantize, offload and vae_tiling (minutes, 8 GB of memory)
	$(BIN)/python -m benchmarks.memory

benchmark-speed: $(VENV)/dev ## measure saved calls and loss of `speed` (minutes)
	$(BIN)/python -m benchmarks.step_cache

benchmark-gpu: $(VENV)/dev ## measure a GPU with random weights; without one, rehearse with tiny models (a quarter of an hour)
	$(BIN)/python -m benchmarks.gpu --only pixels
	$(BIN)/python -m benchmarks.gpu
	$(BIN)/python -m benchmarks.gpu --levers
	$(BIN)/python -m benchmarks.gpu --only endurance

benchmark-check: $(VENV)/dev ## compare speed ratios and exactness with the baseline of this machine (minutes, idle machine)
	$(BIN)/python -m benchmarks.check

benchmark-queue: $(VENV)/dev ## measure the cost of jobs in Redis, up to 1,000,000 queued ones (minutes, 4 GB of memory)
	$(BIN)/python -m benchmarks.queue_memory
	$(BIN)/python -m benchmarks.control_plane

model: $(VENV)/dev ## train the demo model and its companions from scratch (hours on two cores, minutes on a GPU; resumes)
	$(BIN)/python -m img2img.demo_model.train
	$(BIN)/python -m img2img.demo_model.companions.train

gallery: $(VENV)/dev ## generate the images of the README's tasks again, with the whole service
	$(BIN)/python -m img2img.demo_model.gallery

clean: ## remove the virtual environments and the output of the demo
	rm -rf $(VENV) web/node_modules .clients .locks .pythons demo-output.png

$(VENV)/serve: pyproject.toml setup.py constraints.txt scripts/install.py
	$(INSTALL) serve $(VENV)
	@touch $@

$(VENV)/dev: pyproject.toml setup.py constraints.txt scripts/install.py
	$(INSTALL) dev $(VENV)
	@touch $@ $(VENV)/serve
