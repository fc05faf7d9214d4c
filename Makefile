# Two commands on a fresh machine with git, make and Python 3.11+: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo docs here test test-slow test-cpp test-cpp-sanitizers lint triton-venv clean

setup: .venv/installed

# constraints.txt holds the versions the numbers in the docs were made with.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/python scripts/demo.py

# Reference pages of the Python API, from its docstrings: build/api/index.html.
docs: setup
	$(BIN)/python scripts/api_docs.py build/api

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/tables.py --check

# What the tests run on. ONEDNN_MAX_CPU_ISA holds OpenVINO below it (docs/testing.md).
here: setup
	@$(BIN)/python -m tests.here

# Two workers: most of a test is one thread. WORKERS=0 runs all in this process, for a debugger.
WORKERS ?= 2

test: here lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

# One by one: they are long, use all cores, and some measure.
test-slow: here
	$(BIN)/pytest -m slow

# NVIDIA's Triton server (nvidia-pytriton) for the slow tests, in an environment of its own: NumPy 1.
triton-venv: setup
	$(BIN)/python scripts/triton_server.py install .triton-venv

# The C++ runtime. OpenVINO comes from the wheel; VENV=DIR takes another environment than ours.
CPP_SETUP = $(if $(filter .venv,$(VENV)),setup)
CPP_PYTHON = $(abspath $(BIN))/python
CPP_OPTIONS = -DREST_DEPLOY_TESTS=ON -DREST_DEPLOY_PYTHON="$(CPP_PYTHON)" \
  -DOpenVINO_DIR="$$($(CPP_PYTHON) -c 'import importlib.util as i; \
    print(i.find_spec("openvino").submodule_search_locations[0] + "/cmake")')"
cpp_test = cd cpp && cmake --preset $(1) $(CPP_OPTIONS) && cmake --build --preset $(1) \
  && ctest --preset $(1)

test-cpp: $(CPP_SETUP)
	scripts/cpp_packages.sh
	$(call cpp_test,release)

# The same tests with the address and undefined behaviour sanitizers, then with the thread one.
test-cpp-sanitizers: $(CPP_SETUP)
	scripts/cpp_packages.sh
	$(call cpp_test,asan-ubsan)
	$(call cpp_test,tsan)

clean:
	rm -rf .venv .triton-venv build dist
