# `make demo` shows the main job, `make test` runs the tests; both set themselves up in .venv.
PYTHON ?= python3
BIN := .venv/bin
# Two files of tests at a time, in their order: the long ones come early. `make test AT_ONCE=` does one.
AT_ONCE ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-slow lint clean

demo: .venv/ready
	$(BIN)/laionkit demo demo

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow" $(AT_ONCE)

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	$(BIN)/python -m pip install --quiet --no-deps --target .venv/oldest webdataset==0.2.86
	touch $@

clean:
	rm -rf .venv demo dist
