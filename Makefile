# Two commands do all the set-up: `make demo` and `make test`. Each makes .venv once and installs what it needs with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test test-all check-fast docs format clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed-core  ## train, measure, bound and attack three families; write runs/demo/report.html
	$(BIN)/pinchpoint demo

test: $(VENV)/.installed-dev  ## lint, types, layers, tests with doctests and coverage
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest -m "not slow" -n 2 --cov --cov-report=term:skip-covered

test-all: $(VENV)/.installed-dev  ## the slow tests too, and new draws for the property tests
	$(BIN)/pytest --hypothesis-profile=explore --cov --cov-report=term:skip-covered

check-fast: $(VENV)/.installed-dev  ## the inner loop, under a minute
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pytest tests --ignore tests/web -m "not slow and not long" -x -n 2 --hypothesis-profile=quick $(ARGS)

docs: $(VENV)/.installed-docs  ## the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) runs site

# A stamp newer than pyproject.toml says that the environment is up to date.
$(VENV)/.installed-core: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Pinchpoint needs Python 3.11 or newer; try: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinchpoint into $(VENV) (a few minutes, once)"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed-core
	@echo "installing the test tools into $(VENV) (once)"
	$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/.installed-core
	@echo "installing the documentation's tools into $(VENV) (once)"
	$(PIP) --editable '.[docs]'
	@touch $@
