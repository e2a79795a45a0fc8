# Two commands do everything on a fresh machine (Python 3.11+, a C++ compiler and make): `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := .venv/.installed
SOURCES := tables compression search ctr_models pipelines

.PHONY: demo test quick bench lint format wheels clean

# Where PyPI's torch is the CUDA build, name PyTorch's index of CPU builds: make demo TORCH_INDEX=URL
TORCH_INDEX ?=

# The lists are complete and locked, so all but torch goes in with --no-deps. TorchRec's metadata asks for the CUDA build of FBGEMM
# (gigabytes that a CPU cannot use), which is why its own dependencies stand in requirements/cpu.txt.
$(STAMP): pyproject.toml requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embank needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11 or later.")'
	$(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) --no-deps -r requirements/cpu.txt
	$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -n 2

# For daily work: what takes long is marked `slow`.
quick: lint
	$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Whether every locked package has a wheel for each Python and machine that the README names (iopath is pure Python, without one).
wheels: $(STAMP)
	grep -v '^iopath' requirements/cpu.txt > .venv/wheels.txt
	for python in 3.11 3.12 3.13 3.14; do for machine in x86_64 aarch64; do \
	  $(PIP) --dry-run --ignore-installed --no-deps --only-binary=:all: --python-version $$python --target .venv/wheels \
	    --platform manylinux_2_28_$$machine --platform manylinux_2_27_$$machine --platform manylinux_2_17_$$machine \
	    --platform manylinux2014_$$machine -r .venv/wheels.txt && echo "Python $$python, $$machine: all there" || exit 1; \
	done; done

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
