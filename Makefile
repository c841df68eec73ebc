# Needs git, make and python3-venv (Python 3.11 or later). `make` alone says what there is.

PYTHON ?= python3
PYTEST_ARGS ?=
BARE_STEPS ?=
BENCH_ARGS ?=
QUICK ?=
BIN := .venv/bin
PYTEST := $(BIN)/pytest
# Tests wait for other processes more than half of the time.
JOBS := $(shell echo $$((2 * $$(nproc) + 1)))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SHELL_SCRIPTS := proto/generate.sh .ci/run package/debian/postinst package/debian/postrm package/debian/prerm $(wildcard image/*.sh package/*.sh softhsm/*.sh tests/*.sh tests/bare/*.sh)
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header \
	--no-annotate --python-version 3.11

# Hundreds of processes start in the tests: twice as dear where Python may keep no bytecode.
unexport PYTHONDONTWRITEBYTECODE

.SHELLFLAGS := -euc
.DELETE_ON_ERROR:
.PHONY: help run check test test-faults test-alerts test-e2e test-node test-deb bench bench-docs dashboard-picture test-tokens test-bare coverage \
	mutation lint lint-workflows types docs docs-reference proto lock image dist deb clean packages softhsm2

help:
	@echo 'make run          serve with a SoftHSM2 token made in .dev'
	@echo 'make check        lint, types and unit tests, after every change'
	@echo 'make test         unit, command line, and a server as kube-apiserver sees it; a few minutes'
	@echo 'make test-faults  recovery from every fault of a token, rotations, local KEKs, under load'
	@echo 'make test-alerts  the alerts, in promtool and a real Prometheus (unpacked from its package)'
	@echo 'make test-e2e     a real kube-apiserver and etcd (Go, or KUBEBUILDER_ASSETS)'
	@echo 'make test-node    the container image, alone and under a real kubelet, and the systemd service (as root; Go)'
	@echo 'make test-deb     the Debian package, built, and installed in a bare root (as root; debootstrap)'
	@echo 'make test-tokens  Kryoptic, NSS, opencryptoki and p11-kit beside SoftHSM2'
	@echo 'make test-bare    what a fresh Debian lacks, in a root made by debootstrap (as root)'
	@echo 'make coverage     make test, with what it covers of hsm_kms, in every process'
	@echo 'make mutation     small faults put into six files, and which of them no test notices; five minutes'
	@echo 'make bench        measure everything in .bench; QUICK=1 for less (Go; h2load, from nghttp2-client)'
	@echo 'make bench-docs   put the figures and plots in .bench into docs/performance.md'
	@echo 'make dashboard-picture  docs/images/dashboard.png, from a run of make test-alerts'
	@echo 'make lint         ruff, import-linter, zizmor; shellcheck and actionlint where they are installed'
	@echo 'make types        mypy'
	@echo 'make docs         the pages of docs/ to browse, in .cache/docs; fails on a broken link or anchor'
	@echo 'make docs-reference  the settings and commands in docs/ anew from the program'
	@echo 'make proto        generate hsm_kms/api/rpc and hsm_kms/etcd/rpc anew from proto/'
	@echo 'make lock         lock requirements/ anew from pyproject.toml'
	@echo 'make image        the container image and its SBOM (docker, podman or buildah); takes TOOL,'
	@echo '                  BASE, IMAGE, TAG, TARGET and BUILD_OPTIONS: see image/build.sh'
	@echo 'make dist         wheel and sdist, byte for byte the same from the same commit'
	@echo 'make deb          a package for this release of Debian or Ubuntu (dpkg-dev)'
	@echo 'make clean        remove what these made, the token in .dev excepted'

run: softhsm2 .venv/run
	@softhsm/setup.sh .dev
	@socket=$$(cat .dev/socket); \
	echo; \
	echo "kube-apiserver:  --encryption-provider-config=$(CURDIR)/.dev/encryption-config.yaml"; \
	echo "in another shell: $(BIN)/hsm-kms status --socket $${socket#$(CURDIR)/}"; \
	echo "                  $(BIN)/hsm-kms check --config .dev/config.yaml"; \
	echo
	@exec $(BIN)/hsm-kms serve --config .dev/config.yaml

check: packages lint types
	@$(PYTEST) -n $(JOBS) --dist worksteal tests/unit $(PYTEST_ARGS)

test: packages .venv/dev
	@$(PYTEST) -n $(JOBS) --dist worksteal tests/unit tests/cli tests/system/conformance tests/system/serving \
		$(PYTEST_ARGS)
	@echo
	@echo 'Not run here, each with a command of its own:'
	@echo '  make test-faults  recovery from every fault of a token, rotations, local KEKs, under load'
	@echo '  make test-alerts  the alerts, in promtool and a real Prometheus'
	@echo '  make test-tokens  tokens besides SoftHSM2: Kryoptic (cargo), NSS, opencryptoki, p11-kit'
	@echo '  make test-e2e     a real kube-apiserver and etcd (Go 1.26, or KUBEBUILDER_ASSETS)'
	@echo '  make test-deb     the Debian package in a bare root (as root; debootstrap)'
	@echo '  make test-node    the container image, alone and under a real kubelet, and the systemd service (as root; Go)'

test-faults: packages .venv/dev
	@HSM_KMS_LONG=1 $(BIN)/pytest -n auto tests/system/faults tests/system/rotation tests/system/shim \
		tests/system/wrapping tests/system/conformance/test_cold.py \
		tests/unit/token/test_pool_machine.py tests/unit/keys/test_rotation_machine.py \
		tests/unit/etcd/test_etcd_json.py tests/cli/test_cli_interrupts.py \
		tests/cli/test_cli_installed.py $(PYTEST_ARGS)

test-alerts: packages .venv/dev
	@tests/packages-prometheus.sh
	@$(BIN)/pytest tests/system/alerts $(PYTEST_ARGS)

# A picture of the dashboard's panels, with the data of the run that checks its queries.
dashboard-picture: packages .venv/bench
	@tests/packages-prometheus.sh
	@HSM_KMS_PICTURE=$(CURDIR)/docs/images/dashboard.png $(BIN)/pytest tests/system/alerts/test_dashboard.py

test-e2e: packages .venv/dev
	@HSM_KMS_E2E=1 $(BIN)/pytest -n 2 --dist loadfile tests/system/e2e $(PYTEST_ARGS)

test-node: packages .venv/dev
	@tests/packages-node.sh
	@HSM_KMS_NODE=1 HSM_KMS_LONG=1 $(BIN)/pytest tests/system/node $(PYTEST_ARGS)

test-deb: packages .venv/dev
	@tests/packages-deb.sh
	@HSM_KMS_DEB=1 $(BIN)/pytest tests/system/deb $(PYTEST_ARGS)

test-tokens: packages .venv/dev
	@tests/packages-tokens.sh
	@$(BIN)/python -m tests.system.tokens.kryoptic_module || echo 'going on without Kryoptic'
	@$(BIN)/pytest -n auto --dist loadgroup tests/system/tokens $(PYTEST_ARGS)

# BARE_STEPS names some of the steps; tests/bare/run.sh lists them.
test-bare:
	@tests/bare/run.sh $(BARE_STEPS)

coverage: packages .venv/dev
	@rm -f .coverage .coverage.*
	@$(MAKE) --no-print-directory test PYTEST='$(BIN)/coverage run -m pytest'
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report $(if $(PYTEST_ARGS),--fail-under=0)

mutation: .venv/mutation
	@rm -rf mutants
	@nice -n 15 $(BIN)/mutmut run --max-children $$(nproc)
	@$(BIN)/python -m tests.harness.mutation_scores

# QUICK=1 measures less, in about three minutes; BENCH_ARGS takes `--only rates` and the like.
bench: .venv/bench packages
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH_ARGS)

bench-docs: .venv/bench
	@$(BIN)/python -m bench.publish

lint: .venv/dev lint-workflows
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@if command -v shellcheck >/dev/null; then \
		shellcheck $(SHELL_SCRIPTS); \
	else echo 'Not run: shellcheck, which is not installed'; fi

lint-workflows: .venv/dev
	@$(BIN)/zizmor --quiet --offline --no-progress .
	@actionlint=$$(command -v actionlint || command -v $(BIN)/actionlint || true); \
	if [ -n "$$actionlint" ]; then "$$actionlint"; \
	else echo 'Not run: actionlint, which is not installed; docs/releasing.md names it'; fi

types: .venv/dev
	@$(BIN)/mypy

docs: .venv/docs
	@mkdir -p .cache
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict 2>.cache/docs.log || { cat .cache/docs.log; exit 1; }
	@echo 'made .cache/docs/index.html'

docs-reference: .venv/dev
	@$(BIN)/python -m book

proto: .venv/dev
	@PYTHON=$(CURDIR)/$(BIN)/python proto/generate.sh

lock: .venv/dev
	@$(LOCK) pyproject.toml -o requirements/run.txt
	@$(LOCK) --group build --constraints requirements/run.txt -o requirements/build.txt
	@$(LOCK) pyproject.toml --group dev -o requirements/dev.txt
	@for group in coverage bench docs mutation; do \
		$(LOCK) --group $$group --constraints requirements/dev.txt -o requirements/$$group.txt; done

image:
	@TOOL='$(TOOL)' BASE='$(BASE)' IMAGE='$(IMAGE)' TAG='$(TAG)' TARGET='$(TARGET)' \
		BUILD_OPTIONS='$(BUILD_OPTIONS)' image/build.sh

dist: .venv/run
	@package/dist.sh

deb: .venv/run
	@$(BIN)/python -m package.deb

clean:
	@rm -rf .venv dist build .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis \
		.import_linter_cache .coverage* mutants
	@if [ -e .dev ]; then echo 'kept: .dev, the token with its key'; fi

# What is wanted of the system comes before all else: a user who may not install it is told
# at once. The tests want SoftHSM2 and the PKCS#11 spy.
packages:
	@tests/packages.sh

softhsm2:
	@softhsm/setup.sh --install

# The virtual environment. Each stamp names what has been installed in it.

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "$(PYTHON) is missing or older than 3.11; name another: make PYTHON=python3.12"; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv"; \
		exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/run: .venv/made requirements/run.txt requirements/build.txt pyproject.toml
	@echo 'installing requirements/run.txt into .venv'
	@$(PIP) install --require-hashes -r requirements/run.txt -r requirements/build.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev .venv/docs: .venv/run
.venv/bench .venv/mutation: .venv/dev
.venv/dev .venv/docs .venv/bench .venv/mutation: .venv/%: requirements/%.txt
	@echo 'installing $< into .venv'
	@$(PIP) install --require-hashes -r $<
	@touch $@
