# Two commands on a fresh machine with git, make and Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow lint triton-venv clean

setup: .venv/installed

# constraints.txt holds the versions the numbers in the docs were made with.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/tables.py --check

test: setup lint
	$(BIN)/pytest

test-slow: setup
	$(BIN)/pytest -m slow

# NVIDIA's Triton server (nvidia-pytriton) for the slow tests, in an environment of its own: NumPy 1.
triton-venv: setup
	$(BIN)/python scripts/triton_server.py install .triton-venv

clean:
	rm -rf .venv .triton-venv build dist
