# Two commands to begin with: `make demo` and `make test`. Both make .venv with the pins of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# Wheels only: nothing that a machine would have to build, but granary itself.
INSTALL := $(BIN)/python -m pip install -q -c constraints.txt --only-binary=:all:
.PHONY: install demo test test-slow bench lint clean

install: .venv/installed
demo: install
	$(BIN)/granary demo
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
test-slow: .venv/installed-slow
	$(BIN)/python -m pytest -m slow
bench: install
	$(BIN)/python -m tests.benchmarks
lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy
clean:
	rm -rf .venv build dist runs

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[all,dev]'
	touch $@

# mlcroissant asks for jsonpath-rw, which has no wheel; its test hands it jsonpath-ng, the successor.
.venv/installed-slow: .venv/installed
	$(INSTALL) -e '.[all,dev,gcp]' etils jsonpath-ng rdflib
	$(INSTALL) --no-deps mlcroissant
	touch $@
