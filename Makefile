# Every target sets up what it needs in .venv (this clone's own) and is quick the second time.
# What is installed is pinned and hashed in requirements/; `make lock` renews the pins.

PYTHON ?= python3
UV ?= uv
MINUTES ?= 10
# Test processes. Most tests wait for programs more than they work: one more than the processors.
WORKERS ?= $(shell expr $$(nproc) + 1)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input --quiet
RELEASED := valetkey/__init__.py pyproject.toml

# Each file is one process's; which one is not said.
AT_ONCE := -n $(WORKERS) --dist loadfile
IN ?= .

.DEFAULT_GOAL := help
.PHONY: help demo test failed spire helm chart cluster image image-test lint format compiled bench bench-revocation decisions exchanges soak chaos fuzz lock generate clean

help: ## Show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 12

demo: $(VENV)/.runtime ## Run the whole story on this machine; exit 0 only if every step holds
	@$(BIN)/valetkey demo

test: $(VENV)/.dev $(VENV)/.ldap .venv-clients/.done ## Run all tests; what was skipped, and why, is listed at the end
	@$(BIN)/python -m pytest $(AT_ONCE)

failed: $(VENV)/.dev ## Run again what failed last, one after the other, with nothing beside it (IN=build/compiled)
	@cd $(IN) && $(CURDIR)/$(BIN)/python -m pytest --last-failed --last-failed-no-failures none

lint: $(VENV)/.dev ## Check style, types, imports, and that generated files are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m valetkey.cli.reference --check

format: $(VENV)/.dev ## Format the sources
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

spire: $(VENV)/.dev ## Build the SPIRE that its tests start, into .spire/ (Go; minutes the first time)
	@$(BIN)/python -m tests.support.spire

helm: $(VENV)/.dev ## Build what the chart is tested with, into .helm/ (Go; minutes the first time)
	@$(BIN)/python -m tests.support.helm

chart: helm ## Test the chart with Helm 3 and 4, helm-unittest and kubeconform
	@$(BIN)/python -m pytest tests/integration/helm_chart.py

cluster: helm ## Test chart, injector and broker on a real API server, built into .kubernetes/ (Go; minutes the first time)
	@$(BIN)/python -m tests.support.kubernetes
	@$(BIN)/python -m pytest $(addprefix tests/cluster/,installing.py injecting.py operator_file.py otherwise.py \
		trusting.py upgrading.py)

# The image's base by digest, its name, and what else the build is told (secrets, for one):
# docs/how-to/build-the-image.md.
BASE ?= docker.io/library/python:3.11-slim-bookworm
BASE_DIGEST ?=
IMAGE ?= localhost/valetkey:$(VERSION)
IMAGE_OPTIONS ?=
SOURCE ?=
BUILDAH ?= buildah
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' valetkey/__init__.py)
REVISION ?= $(shell git describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null)
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

image: ## Build the image: BASE_DIGEST=sha256:… (and BASE, IMAGE, SOURCE, IMAGE_OPTIONS)
	@[ -n "$(BASE_DIGEST)" ] || { echo "BASE_DIGEST=sha256:… of $(BASE) is needed" >&2; exit 1; }
	$(BUILDAH) build --layers --isolation chroot --format docker --timestamp $(SOURCE_DATE_EPOCH) \
		--build-arg BASE=$(BASE) --build-arg BASE_DIGEST=$(BASE_DIGEST) \
		--build-arg SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg SOURCE=$(SOURCE) \
		--build-arg CREATED=$$(date -u -d @$(SOURCE_DATE_EPOCH) +%FT%TZ) \
		$(IMAGE_OPTIONS) --tag $(IMAGE) .

image-test: $(VENV)/.dev ## Build the image on a base made here, and test it (root, buildah, podman, runc, mmdebstrap)
	@$(BIN)/python -m tests.support.container
	@VALETKEY_REQUIRE=all $(BIN)/python -m pytest -s tests/integration/image.py

# What the compiled modules are in: the sidecar's wire, record, streams and tunnels. The programs and
# clients around it are the same whether it is compiled.
COMPILED := tests/integration/test_sidecar_*.py tests/integration/test_streams_*.py \
	tests/integration/test_wire_*.py tests/integration/test_mcp_wire.py tests/e2e/test_crash.py

compiled: $(VENV)/.dev ## Compile the data path and run the sidecar's tests on it (needs a C compiler)
	@rm -rf build/compiled && mkdir -p build/compiled
	@cp -r valetkey tests config docs bench pyproject.toml hatch_build.py README.md Makefile build/compiled
	@cd build/compiled && ../../$(BIN)/python hatch_build.py . >/dev/null
	@cd build/compiled && ../../$(BIN)/python -m pytest $(AT_ONCE) $(COMPILED)

bench: .venv-bench/.done .venv-mitmproxy/.done ## Measure side by side; results go to bench/results/
	@.venv-bench/bin/python -m bench

exchanges: .venv-bench/.done ## Exchanges a second of brokers and of Keycloak; bench/results/exchanges.md
	@.venv-bench/bin/python -m bench.exchanges

decisions: $(VENV)/.dev ## What grants of other workloads cost a decision; bench/results/decisions.md
	@$(BIN)/python -m bench.decisions

bench-revocation: .venv-bench/.done ## From an incident to the last accepted call, with 1,000 simulated sidecars; needs PostgreSQL
	@.venv-bench/bin/python -m bench.revocation

fleet: .venv-bench/.done ## 10,000 simulated sidecars at two brokers and a collector; bench/results/fleet.md; needs PostgreSQL
	@.venv-bench/bin/python -m bench.fleet

soak: .venv-bench/.done ## A steady load beside 5,000 idle and 200 slow connections; bench/results/soak.md
	@.venv-bench/bin/python -m bench.soak

chaos: $(VENV)/.dev ## Kill the sidecar, and brokers, under load, 50 times in a loop
	@$(BIN)/python -m pytest -s tests/e2e/test_crash.py tests/e2e/test_*_crash.py --kills 50

fuzz: $(VENV)/.dev ## Play new inputs to the sidecar and to other readers of HTTP for MINUTES=10
	@$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

generate: $(VENV)/.dev ## Write schemas, reference pages, dashboards and the README's tables anew
	@$(BIN)/python -m valetkey.cli.reference

LOCK := $(UV) pip compile --quiet --generate-hashes --python-version 3.11 --no-annotate \
	--no-emit-index-url --no-header

lock: ## Resolve and pin the requirements anew (needs uv)
	$(LOCK) --upgrade requirements/build.in -o requirements/build.txt
	$(LOCK) --upgrade pyproject.toml --extra all -o requirements/runtime.txt
	$(LOCK) --upgrade pyproject.toml --extra all --group dev -o requirements/dev.txt
	$(LOCK) --upgrade pyproject.toml --extra all --group dev --group bench -o requirements/bench.txt
	$(LOCK) --upgrade --constraints requirements/dev.txt requirements/image.in -o requirements/image.txt
	$(LOCK) --upgrade requirements/ldap.in -o requirements/ldap.txt
	$(LOCK) --upgrade requirements/mitmproxy.in -o requirements/mitmproxy.txt
	$(LOCK) --upgrade requirements/clients.in --no-emit-package greenlet -o requirements/clients.txt

clean: ## Remove environments, caches and builds
	rm -rf $(VENV) .helm .image .keycloak .kubernetes .spire .venv-bench .venv-clients .venv-mitmproxy dist build .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments ---------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or later is needed: make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' \
		|| { echo "Python's venv module is needed (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# The package goes in without dependencies and without build isolation: both would install what
# is not pinned.
INSTALL_SELF = $(PIP) install --no-deps --no-build-isolation --editable .

$(VENV)/.runtime: requirements/runtime.txt requirements/build.txt $(RELEASED) | $(BIN)/python
	@echo "installing what the programs need"
	@$(PIP) install --require-hashes -r requirements/build.txt
	@$(PIP) install --require-hashes -r requirements/runtime.txt
	@$(INSTALL_SELF)
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.runtime
	@echo "installing what tests and checks need"
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@

# Built here, on the system's libldap; where there is none the tests that need it say so.
$(VENV)/.ldap: requirements/ldap.txt $(VENV)/.dev
	@if [ -e /usr/include/ldap.h ]; then $(PIP) install --require-hashes --no-deps \
		--no-build-isolation -r requirements/ldap.txt; fi
	@touch $@

# The benchmark measures the package as it is deployed: installed, its data path compiled where the
# machine has a C compiler (the report says which).
.venv-bench/.done: requirements/bench.txt hatch_build.py $(shell find valetkey -name '*.py')
	@echo "making .venv-bench"
	@$(PYTHON) -m venv .venv-bench
	@.venv-bench/bin/python -m pip --disable-pip-version-check --no-input --quiet install \
		--require-hashes -r requirements/bench.txt
	@HATCH_BUILD_HOOK_ENABLE_CUSTOM=$$(command -v cc >/dev/null && echo true || echo false) \
		.venv-bench/bin/python -m pip --disable-pip-version-check --no-input --quiet install \
		--no-deps --no-build-isolation --force-reinstall .
	@touch $@

.venv-mitmproxy/.done: requirements/mitmproxy.txt
	@echo "making .venv-mitmproxy"
	@$(PYTHON) -m venv .venv-mitmproxy
	@.venv-mitmproxy/bin/python -m pip --disable-pip-version-check --no-input --quiet install \
		--require-hashes -r requirements/mitmproxy.txt
	@touch $@

# All that is needed is in the file; --no-deps keeps out what httpbin asks for and never imports.
.venv-clients/.done: requirements/clients.txt requirements/node/package-lock.json | $(BIN)/python
	@echo "making .venv-clients"
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip --disable-pip-version-check --no-input --quiet install \
		--require-hashes --no-deps -r requirements/clients.txt
	@if command -v npm >/dev/null; then cp requirements/node/package*.json .venv-clients/ \
		&& npm ci --prefix .venv-clients --silent --no-audit --no-fund; fi
	@touch $@
