# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test lint docs wheel clean

help:
	@echo "make demo   install into $(VENV), run the main job on sample frames, say where to look"
	@echo "make test   the same set-up with the test extras, then the whole suite"
	@echo "make lint   linters, import contracts and type check"
	@echo "make docs   build the documentation into docs/_build"
	@echo "make wheel  build a wheel, install it into an empty environment, run the demo there"
	@echo "make clean  remove what the others made"

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/pip install --quiet -e '.[test,lint,docs]'
	@touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/pip install --quiet -e '.[test]'
	@touch $@

demo: $(VENV)/.base
	$(BIN)/pytorchdia demo demo

# One thread for each of the parallel test processes.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup $(PYTEST_OPTIONS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W -n --keep-going -q docs docs/_build
	@echo "open docs/_build/index.html"

wheel: $(VENV)/.dev
	rm -rf dist build/wheel-env
	$(BIN)/python -m build --quiet --outdir dist .
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/pip install --quiet dist/*.whl
	cd build && wheel-env/bin/pytorchdia demo wheel-demo

clean:
	rm -rf $(VENV) build dist demo docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
