# `make demo` and `make test` each do all of their own set-up on a fresh machine with Python 3.11 or later.
# Another Python: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
OUT ?= demo

# Images of Python often forbid it to keep what it compiled. Hundreds of processes would each compile all packages anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install demo test lint fast docs audit constraints

help:
	@echo "make demo    the whole way on phantoms, 15 to 20 minutes on 2 idle cores (OUT=demo)"
	@echo "make test    lint, format, types, all tests that need no GPU and no browser"
	@echo "make fast    the tests of under a minute"
	@echo "make lint    lint, format, types"
	@echo "make docs    the documentation as a site, site/index.html; a warning is an error"
	@echo "make constraints    constraints.txt anew: the versions that are installed in .venv"
	@echo "make audit   known vulnerabilities, in what is installed and in the lowest versions allowed (asks osv.dev)"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"$(PYTHON) is Python {v[0]}.{v[1]}; expected 3.11 or later. Name another one: make PYTHON=python3.12")' \
		|| { echo "A working Python 3.11 or later is needed." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# Compiling the 30,000 files of the packages takes a minute; Python compiles those that it imports.
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[dev,docs]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/mmh demo $(OUT) --config configs/demo.yaml

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two files at a time, a thread each: most tests wait for processes to start.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not gpu and not browser" --durations 40

fast: $(INSTALLED)
	$(PYTEST) -m "fast and not slow"

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Strict: a package that the service does not know, or a service that does not answer, is no clean bill of health.
AUDIT := $(BIN)/pip-audit --strict --no-deps --disable-pip --vulnerability-service osv --progress-spinner off
LISTS := .venv/installed.txt .venv/lowest.txt

audit: $(INSTALLED)
	$(BIN)/python -m pip freeze --exclude-editable >.venv/installed.txt
	$(BIN)/uv pip compile --quiet --no-annotate --resolution lowest-direct --python $(BIN)/python pyproject.toml -o .venv/lowest.txt
	@status=0; for list in $(LISTS); do echo "== $$list"; $(AUDIT) --requirement $$list || status=1; done; exit $$status

# What is needed is found by resolving pyproject.toml; its versions are those that the tests ran with.
constraints: $(INSTALLED)
	$(BIN)/python -m pip freeze --exclude-editable >.venv/installed.txt
	$(BIN)/uv pip compile --quiet --no-annotate --no-header --constraints .venv/installed.txt --python $(BIN)/python pyproject.toml -o .venv/pins.txt
	{ head -2 constraints.txt; cat .venv/pins.txt; } >.venv/constraints.txt && mv .venv/constraints.txt constraints.txt
