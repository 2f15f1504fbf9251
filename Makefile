# Everything a developer runs. It needs GNU make and any Python from 3.12 on; the rest goes into .venv, with hashes.

VENV := .venv
BIN := $(VENV)/bin
UPGRADE :=
CLIENT_PACKAGES := curl git golang-go iproute2 libgtk-3-0 liblwp-protocol-https-perl nodejs npm openjdk-17-jdk-headless \
	php-cli php-curl ruby wget xvfb
CLIENT_WHEELS := aiohttp requests flet==0.28.3 flet-desktop-light==0.28.3
PYTHON :=

# `python3` comes first: it is what a .python-version file, an activated environment or the system says. A pyenv that
# lacks the version of .python-version answers for no name at all, so its other versions are looked at last.
CANDIDATES := $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python \
	$(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.1[2-9]*/bin/python3))

# Sets $$python to the first candidate that is new enough, or ends with one line that names all that were found.
define find_python
python=; found=; \
for candidate in $(CANDIDATES); do \
	version=$$("$$candidate" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue; \
	found="$$found $$candidate ($$version)"; \
	if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then python=$$candidate; break; fi; \
done; \
if [ -z "$$python" ]; then \
	echo "make: Overcoat needs Python 3.12 or newer, and found$${found:- no Python at all}; install one, or say make PYTHON=/path/to/python3" >&2; \
	exit 1; \
fi
endef

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: $(VENV)/installed ## make .venv with everything in it (the other targets do it by themselves)

$(VENV)/dependencies: requirements-dev.lock
	@$(find_python); \
	echo "==> $(VENV): Python $$("$$python" -c 'import platform; print(platform.python_version())') from $$python"; \
	"$$python" -m venv --clear $(VENV) || { \
		echo "make: $$python cannot make virtual environments (on Debian and Ubuntu: apt-get install python3-venv)" >&2; \
		rm -rf $(VENV); exit 1; }
	@echo "==> $(VENV): installing what requirements-dev.lock names (a minute or two the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes -r requirements-dev.lock
	@touch $@

$(VENV)/installed: $(VENV)/dependencies pyproject.toml
	@echo "==> $(VENV): installing Overcoat itself from this folder"
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: demo
demo: $(VENV)/installed ## show what Overcoat does, on this machine alone
	@$(BIN)/overcoat demo

# Files go whole to workers, in the order of tests/conftest.py.
ALL_TESTS := $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not containers and not browser"

.PHONY: test
test: $(VENV)/installed ## run all tests; fails under 100 % branch coverage of proxy/core
	$(ALL_TESTS) --cov --cov-report=term-missing:skip-covered

# A test with a time limit may fail here because all is slower: `make test` judges tests, this what they run.
.PHONY: coverage
coverage: $(VENV)/installed ## test the engine and the addons, sidecars counted: 90 % of the branches of each file (slow)
	@rm -f coverage.json
	-$(ALL_TESTS) tests/addons tests/e2e tests/proxy/engine \
		--cov --cov-config=tests/coverage.toml --cov-report=term-missing --cov-report=json:coverage.json
	$(BIN)/python tests/floors.py coverage.json

.PHONY: test-containers
test-containers: $(VENV)/installed ## build the image, run docker-compose.yml and the README's snippet
	$(BIN)/pytest -m containers -v tests/containers

.PHONY: test-browser
test-browser: $(VENV)/installed ## look at the status page in a headless Chromium (installs Debian's, if there is none)
	@command -v chromium >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; }
	$(BIN)/pytest -m browser -v tests/browser

# What the programs of the matrix need that is not everywhere: Debian's packages where this is root on Debian, the rest
# below .clients. Where something cannot be had, its test says that it is skipped.
.PHONY: test-clients
test-clients: $(VENV)/installed ## try common programs under `overcoat run`, and record the results for docs/apps.md
	-@command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get \
		install -y -qq --no-install-recommends $(CLIENT_PACKAGES) >/dev/null
	@$(BIN)/python -m venv .clients/venv && .clients/venv/bin/pip install --disable-pip-version-check --quiet $(CLIENT_WHEELS)
	-@cd .clients && { [ -e package.json ] || npm init -y >/dev/null; } && npm install --silent axios got hpagent jose
	RECORD_CLIENTS=1 $(BIN)/pytest -v -rs tests/clients
	$(BIN)/python docs/generate.py

.PHONY: check
check: $(VENV)/installed ## lint, formatting, types, and whether the generated docs are up to date
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

.PHONY: bench
bench: $(VENV)/installed ## measure beside other proxies (Linux, two cores, about an hour); writes docs/benchmarks.md
	@.venv-bench/bin/python -c 'import grpc, mitmproxy' 2>/dev/null || { $(BIN)/python -m venv .venv-bench && \
		.venv-bench/bin/pip install --disable-pip-version-check --quiet mitmproxy==12.2.3 proxy.py joserfc matplotlib grpcio trustme; }
	.venv-bench/bin/python -m bench

# UV_NO_CONFIG: neither a configuration file nor a folder of wheels on the machine that locks may leak into the locks.
.PHONY: lock
lock: ## write the lock files anew, keeping versions that still fit (UPGRADE=1: the newest of all)
	@$(find_python); \
	tools=$$(mktemp -d); trap 'rm -rf "$$tools"' EXIT; \
	echo "==> getting uv"; \
	"$$python" -m venv "$$tools" && "$$tools/bin/pip" install --disable-pip-version-check --quiet uv || exit 1; \
	compile() { \
		echo "==> $$1"; output=$$1; shift; \
		env -u UV_FIND_LINKS -u UV_INDEX -u UV_DEFAULT_INDEX -u UV_INDEX_URL -u UV_EXTRA_INDEX_URL UV_NO_CONFIG=1 \
			UV_CUSTOM_COMPILE_COMMAND="make lock" "$$tools/bin/uv" pip compile --quiet --universal --generate-hashes \
			--no-emit-index-url --python-version 3.12 $(if $(UPGRADE),--upgrade) --output-file "$$output" "$$@"; \
	}; \
	compile requirements-dev.lock pyproject.toml --group dev && \
	compile requirements.lock pyproject.toml --constraint requirements-dev.lock && \
	compile requirements-build.lock --group build --constraint requirements-dev.lock

.PHONY: sbom
sbom: $(VENV)/installed ## write the bill of materials (CycloneDX) from requirements.lock into dist/
	@$(BIN)/python -m docs.sbom dist/overcoat.cdx.json

.PHONY: clean
clean: ## remove .venv and everything else that these targets made
	rm -rf $(VENV) .venv-bench .clients build dist .coverage .coverage.* coverage.json .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
