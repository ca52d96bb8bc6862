# Two commands to begin with: `make demo` and `make test`. Both make an environment with the pins of constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Wheels only: nothing that a machine would have to build, but granary itself.
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt --only-binary=:all:
.PHONY: install demo test test-slow bench lint docs clean

install: $(VENV)/installed
demo: install
	$(BIN)/granary demo
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
test-slow: $(VENV)/installed-slow
	$(BIN)/python -m pytest -m slow
bench: install
	$(BIN)/python -m tests.benchmarks
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
docs: install
	$(BIN)/sphinx-build -qW docs site
clean:
	rm -rf $(VENV) build dist runs site

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[all,dev]'
	touch $@

# mlcroissant asks for jsonpath-rw, which has no wheel; its test hands it jsonpath-ng, the successor.
$(VENV)/installed-slow: $(VENV)/installed
	$(INSTALL) -e '.[all,dev,gcp]' etils jsonpath-ng rdflib
	$(INSTALL) --no-deps mlcroissant
	touch $@
