# Two commands to begin with: `make demo` and `make test`. Both make .venv with the pins of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
.PHONY: install demo test test-slow bench lint clean

install: .venv/installed
demo: install
	$(BIN)/granary demo
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto
test-slow: .venv/installed-gcp
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
	$(BIN)/python -m pip install -q -c constraints.txt hatchling editables
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

.venv/installed-gcp: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev,gcp]'
	touch $@
