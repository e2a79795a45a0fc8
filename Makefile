# Two commands do everything on a fresh machine (Python 3.11+, a C++ compiler and make): `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
SOURCES := tables compression search ctr_models pipelines

.PHONY: demo test bench lint format clean

# Where PyPI's torch is the CUDA build, name PyTorch's index of CPU builds: make demo TORCH_INDEX=URL
TORCH_INDEX ?=

# TorchRec goes in with --no-deps: its metadata asks for the CUDA build of FBGEMM (gigabytes that a CPU cannot use).
$(STAMP): pyproject.toml requirements/cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embank needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Set PYTHON=python3.11 or later.")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check fbgemm-gpu-cpu==1.8.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps torchrec==1.8.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/cpu.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
