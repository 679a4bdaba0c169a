# Two commands: `make demo` fits the handwritten digits with every measurement, `make test` runs every check.
# Both build one environment in .venv from the exact versions in constraints.txt; stamp files in it save a second install.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# Nothing is compiled at install (see below), so what an interpreter compiles has to be kept.
unexport PYTHONDONTWRITEBYTECODE

# Processes that share the tests, one file after another each.
WORKERS ?= 2

# The matrices here are too small to benefit from more threads. If the cores are busy, more threads are ten times slower.
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

# --no-compile: only what is imported gets compiled, on first import, which is sooner done than compiling everything.
# The two variables hold the build environment of the package to the same versions, in old and in new releases of pip.
INSTALL := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: help demo pictures check test test-oldest clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    fit the handwritten digits with every measurement (about a minute, most of it the install)"
	@echo "make pictures   train the runs of docs/you_see_this.md and draw their pictures (a few minutes)"
	@echo "make check   run the quick checks: ruff, mypy, and the tests that are neither slow nor distributed (a few minutes)"
	@echo "make test    run every check: ruff, mypy, pytest with doctests, README, configs and the built wheel"
	@echo "make clean   remove $(VENV) and the caches; runs/ is kept"
	@echo "make test-oldest   run the tests with the oldest versions that are allowed, in .venv-oldest (gigabytes)"
	@echo "PYTHON=python3.12 make ... chooses the interpreter of a new $(VENV) (3.10 or newer)"

demo: $(VENV)/installed-demo
	$(BIN)/lightning-sloppy fit --config configs/digits.yaml

pictures: $(VENV)/installed-demo
	$(BIN)/python docs/make_pictures.py

# For daily work. `tests/` alone: doctests, slow tests and several processes are for `make test`.
check: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile -m "not slow and not distributed and not cuda" tests

test: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

# Without what is about today's versions: the linters, the pins, the wheel, and the comparison with curvlinops.
test-oldest: .venv-oldest/installed
	.venv-oldest/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile --ignore tests/curvature/test_against_curvlinops.py \
	  --ignore tests/contract/test_packaging.py --ignore tests/contract/test_wheel.py

.venv-oldest/installed: pyproject.toml tests/oldest.txt
	"$(PYTHON)" -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --no-compile --disable-pip-version-check --constraint tests/oldest.txt \
	  --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-oldest build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

# --clear: what an interrupted run left behind is not trusted.
$(VENV)/created:
	@command -v "$(PYTHON)" >/dev/null || { \
	  echo "No interpreter named '$(PYTHON)' was found: install Python 3.10 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or newer is needed, and $(PYTHON) is %d.%d: name another one, for instance make PYTHON=python3.12 ..." % sys.version_info[:2])'
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make a virtual environment: its modules venv and ensurepip are missing." >&2; \
	  echo "Install them (Debian and Ubuntu: apt install python3-venv) or name another interpreter: make PYTHON=python3.12 ..." >&2; exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(VENV)/installed-demo: pyproject.toml constraints.txt $(VENV)/created
	@echo "Installing the package and its dependencies into $(VENV): about a minute."
	$(INSTALL) --editable '.[cli,demo]'
	@touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt tests/references.txt $(VENV)/created
	@echo "Installing the package, its dependencies and the test tools into $(VENV): about a minute."
	$(INSTALL) --editable '.[test]'
	$(INSTALL) --no-deps --requirement tests/references.txt
	@touch $(VENV)/installed-demo $@
